"""The models of the golden numbers (README.md): a linear denoiser, a decoder that scales, a quadratic reward; and noise
that is given instead of drawn."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from alignbench import Condition, Key, Prediction, Prompt, Prompts, RewardInfo, Sampling, Steps
from alignbench.diffusion import rollout
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.diffusion.schedule import Schedule
from alignbench.experiment.problem import CellProblem
from alignbench.meter import Meter
from alignbench.progress import Progress

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
SHAPE = (1, 2, 2)
KEY = Key("official")


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def schedule(inputs: Mapping[str, Any]) -> Schedule:
    """The noise schedule of an entry: Stable Diffusion's."""
    about = GOLDEN["schedule"]
    levels = Schedule.scaled_linear(about["beta_start"], about["beta_end"], about["train_timesteps"])
    offset = inputs.get("steps_offset", about["steps_offset"])
    return Schedule(levels, float(levels[0]), inputs.get("kind", "epsilon"), steps_offset=offset)


@dataclass
class Linear:
    """A pipeline and policy with the denoiser A x + (t / 1000) b + c, of x in the model's own coordinates; `outputs`
    keeps what it said."""

    schedule: Schedule | FlowSchedule
    a: Tensor
    b: Tensor
    start: Tensor | None = None  # x_T, by the last part of a key
    outputs: list[Tensor] = field(default_factory=list)
    latent_shape: tuple[int, ...] = SHAPE

    @property
    def train_timesteps(self) -> int:
        return len(self.schedule)

    @property
    def reference(self) -> Linear:
        return denoiser("reference", self.schedule)

    def condition(self, prompts: Sequence[Prompt]) -> Condition:
        return given(tensor([prompt.metadata["text"] for prompt in prompts]))

    def initial_noise(self, keys: Sequence[Key]) -> Tensor:
        assert self.start is not None
        return torch.stack([self.start[key.path[-1]] for key in keys])  # a copy: a caller may write into it

    def timesteps(self, n: int) -> Steps:
        return self.schedule.steps(n)

    def training_timesteps(self, uniform: Tensor) -> Tensor:
        return self.schedule.draw(uniform)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.schedule.add_noise(x0, noise, t)

    def predict(self, latents: Tensor, t: float | Tensor, condition: Condition, guidance: float = 1.0) -> Prediction:
        rows = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1) / 1000
        flat = self.schedule.scaled(latents, t).flatten(1) @ self.a.T + rows * self.b
        told, untold = (flat + part["text"] for part in (condition.tensors, condition.null_tensors))
        output = (told if guidance == 1 else untold + guidance * (told - untold)).reshape(latents.shape)
        self.outputs.append(output)
        if output.requires_grad:
            output.retain_grad()
        return self.schedule.predict(output, latents, t)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        images = 0.5 + latents / 64
        assert not clamp or bool(((images >= 0) & (images <= 1)).all())
        return images

    def encode(self, images: Tensor) -> Tensor:
        return 64 * (images - 0.5)

    def parameters(self) -> list[Any]:
        return [self.a, self.b]

    # What a pipeline and a policy have besides, and nothing here asks for.
    info = adapt = networks = state_dict = load_state_dict = save = lambda self, *asked: None
    recomputations = None


def denoiser(name: str, levels: Schedule | FlowSchedule, start: Tensor | None = None) -> Linear:
    """`reference` or `policy`, whose weights carry a gradient."""
    weights = GOLDEN["denoiser"][name]
    a, b = (tensor(weights[part]).requires_grad_(name == "policy") for part in ("a", "b"))
    return Linear(levels, a, b, start)


def given(text: Tensor) -> Condition:
    """The condition of c, and of the empty prompt's."""
    return Condition({"text": text}, {"text": tensor(GOLDEN["denoiser"]["null"]).expand_as(text)})


def prompts_of(text: Sequence[Sequence[float]]) -> list[Prompt]:
    return [Prompt(str(i), "", metadata={"text": c}) for i, c in enumerate(text)]


class Quadratic:
    """r = w·y − (s / 2) ‖y‖² of y = 64 (image − ½); `values` keeps what it said."""

    differentiable = True

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def with_grad(self, images: Tensor, prompts: Sequence[Prompt] = ()) -> Tensor:
        y = 64 * (images - 0.5).flatten(1)
        values = y @ tensor(GOLDEN["reward"]["w"]) - GOLDEN["reward"]["s"] / 2 * y.square().sum(1)
        self.values.append(values)
        return values

    __call__ = with_grad

    def info(self) -> RewardInfo:
        return RewardInfo(id="quadratic")

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        return None


def problem_of(pipeline: Linear, sampling: Sampling) -> CellProblem:
    """The problem that an algorithm meets."""
    return CellProblem(pipeline, Quadratic(), Prompts(()), sampling, KEY, Meter(), Path(), Progress(quiet=True))


@contextlib.contextmanager
def noise(table: Mapping[tuple[str | int, ...], Any], *others: ModuleType) -> Iterator[None]:
    """Standard normal draws by the path of their key below KEY, in the core and in these modules. Any other draw is a
    KeyError."""

    def normal(keys: Sequence[Key], shape: Sequence[int]) -> Tensor:
        return torch.stack([tensor(table[key.path[1:]]).reshape(tuple(shape)) for key in keys])

    with contextlib.ExitStack() as stack:
        for module in (rollout, *others):
            stack.enter_context(mock.patch.object(module, "normal", normal))
        yield


def by_step(values: Any) -> dict[tuple[str | int, ...], Any]:
    """Noise given by step, then image."""
    return {(i, "step", step): row for step, rows in enumerate(values) for i, row in enumerate(rows)}


def keys(count: int) -> list[Key]:
    """Keys of images."""
    return [KEY(i) for i in range(count)]


def gradients(loss: Tensor, policy: Linear) -> dict[str, Tensor]:
    a, b = torch.autograd.grad(loss, [policy.a, policy.b], retain_graph=True)
    return {"gradient_a": a, "gradient_b": b}
