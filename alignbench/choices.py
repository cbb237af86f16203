"""The words that options, interfaces and files share where there is a choice. Imports no torch."""

from __future__ import annotations

from typing import Final, Literal

DType = Literal["float32", "float16", "bfloat16"]
ScorerDType = Literal["float32", "bfloat16"]
Kernel = Literal["ddim", "exact", "flow_sde", "dance_sde", "cps"]  # of reverse steps
Sigmas = Literal["linspace", "scheduler"]  # the grid of a flow model's levels
Guiding = Literal["classifier_free", "embedded", "none"]  # how guidance enters a denoiser
Ties = Literal["drop", "keep"]  # among preference pairs
Crop = Literal["centre", "random"]  # of a pair's images to the model's size
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
BudgetKind = Literal["nfe", "reward_evals", "seconds"]  # what an image may cost
Breakdown = Literal["category", "challenge", "budget"]  # of win rates
Family = Literal["scorer", "table", "none"]  # of tests that are adjusted for each other
Format = Literal["table", "markdown", "csv", "latex", "json"]  # of a comparison
CurveAxis = Literal["rounds", "denoiser", "seconds"]  # of reward curves
Compiling = Literal["default", "reduce-overhead"]  # modes of torch.compile
Attending = Literal["auto", "math", "flash", "efficient", "cudnn"]  # kernels of torch's attention
KeptKind = Literal["scores", "pairs", "tensors", "compiled", "files"]  # what lies in the cache
Fetched = Literal["scorers", "prompts", "models"]  # what needs a network once
FirstNumber = Literal[0, 1]  # of the pictures of the first prompt
ToyName = Literal["mixture", "mixture_flow", "tiny"]  # what an algorithm is checked on
NO_REWARD: Final = "none"  # what is typed for a reward where none is wanted
