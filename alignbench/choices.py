"""The words that options, interfaces and files share where there is a choice. Imports no torch."""

from __future__ import annotations

from typing import Literal

DType = Literal["float32", "float16", "bfloat16"]
ScorerDType = Literal["float32", "bfloat16"]
Kernel = Literal["ddim", "exact"]  # of reverse steps
Ties = Literal["drop", "keep"]  # among preference pairs
Crop = Literal["centre", "random"]  # of a pair's images to the model's size
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
BudgetKind = Literal["nfe", "reward_evals", "seconds"]  # what an image may cost
