"""The roles: what algorithms, samplers, rewards, prompt sets and pipelines are to each other.

Shapes   b images of a batch, `latent` and `image` the axes of one latent and one image (channels, height, width for
         pictures; one axis for points). Images lie in [0, 1]; rewards are real numbers, higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Real
from torch import Tensor

from alignbench.choices import Kernel
from alignbench.keys import Key
from alignbench.quantities import Condition, Prediction, Steps, guided

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """A text to picture. `id` is unique within its prompt set; category and challenge group the tables."""

    id: str
    text: str
    category: str = ""
    challenge: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Sampling:
    """How a pipeline is sampled: number of steps, classifier-free guidance scale, DDIM's η in [0, 1].

    A guidance of at most 1 is none, as in diffusers, and is kept as 1, unless the denoiser is told the scale. Kernel
    `exact` draws from the true p(x_s | x_t), where it is known in closed form; those of flow_transition.py are flow
    models', and two of them take an η above 1.
    """

    steps: int
    guidance: float
    eta: float = 0.0
    kernel: Kernel = "ddim"
    embedded_guidance: bool = False  # the denoiser is told the scale (FLUX.1 [dev]); a fact of the model, not a choice

    def as_dict(self) -> dict[str, str | int | float | bool | None]:
        """What a result file keeps: the kernel only where it is not DDIM's, as in files older than the choice."""
        common = {"steps": self.steps, "guidance": self.guidance, "eta": self.eta}
        return {**common} if self.kernel == "ddim" else {**common, "kernel": self.kernel}

    @property
    def evaluations(self) -> int:
        """Of the denoiser, for one image and step: classifier-free guidance takes two."""
        return 2 if guided(self.guidance) and not self.embedded_guidance else 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must not be negative, got {self.guidance}.")
        if not guided(self.guidance) and not self.embedded_guidance:
            object.__setattr__(self, "guidance", 1.0)
        most = math.inf if self.kernel in ("flow_sde", "dance_sde") else 1
        if not 0 <= self.eta <= most or self.eta == math.inf:
            whose = "" if self.kernel in ("ddim", "exact") else f" of kernel {self.kernel!r}"
            raise ValueError(f"eta{whose} must lie in [0, 1], got {self.eta}.")


@dataclass(frozen=True)
class Start:
    """Where image-to-image sampling starts (SDEdit): source images in [0, 1] and the share of the steps to run."""

    images: Float[Tensor, b * image]
    strength: float


@dataclass(frozen=True)
class Samples:
    """What a sampler returns: images in [0, 1] (points of the mixture: any real numbers) and their latents."""

    images: Float[Tensor, b * image]
    latents: Float[Tensor, b * latent]


@dataclass(frozen=True)
class LoRA:
    """Train low-rank updates W + (alpha / rank) B A of the attention projections (Hu et al. 2021)."""

    rank: int = 4
    alpha: float | None = None  # None: equal to the rank, so that the factor is 1
    targets: tuple[str, ...] = ()  # layers by the ends of their names; none: the model's attention projections

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the LoRA rank must be at least 1, got {self.rank}.")


@dataclass(frozen=True)
class FullFineTune:
    """Train every weight of the denoiser; the reference is a frozen copy."""


@dataclass(frozen=True)
class BiasFineTune:
    """Train the biases of the denoiser alone (BitFit, Ben Zaken et al. 2022): few weights, so little gradient noise."""


Tuning = LoRA | FullFineTune | BiasFineTune


@runtime_checkable
class Pipeline(Protocol):
    """A text-to-image diffusion model in the field's terms. The pipeline of a problem is the reference policy."""

    @property
    def train_timesteps(self) -> int:
        """How many noise levels the model was trained on."""

    @property
    def latent_shape(self) -> tuple[int, ...]: ...

    def info(self) -> Mapping[str, Any]:
        """What identifies the model in a result file: name, files or revision, native size."""

    def condition(self, prompts: Sequence[Prompt]) -> Condition:
        """Everything the denoiser is told about the prompts, and about the empty prompt for guidance."""

    def initial_noise(self, keys: Sequence[Key]) -> Float[Tensor, b * latent]:
        """x_T, one draw per key."""

    def timesteps(self, n: int) -> Steps:
        """n sampling steps, noisiest first."""

    def training_timesteps(self, uniform: Float[Tensor, " b"]) -> Real[Tensor, " b"]:
        """From uniform numbers in [0, 1)."""

    def add_noise(
        self, x0: Float[Tensor, b * latent], noise: Float[Tensor, b * latent], t: Real[Tensor, " b"]
    ) -> Float[Tensor, b * latent]:
        """x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε."""

    def predict(
        self, latents: Float[Tensor, b * latent], t: float | Tensor, condition: Condition, guidance: float = 1.0
    ) -> Prediction:
        """The denoiser's prediction at training timestep t (one for all, or one per row). Guidance ≤ 1 is none."""

    def decode(self, latents: Float[Tensor, b * latent], clamp: bool = True) -> Float[Tensor, b * image]:
        """Images in [0, 1]. Gradient paths pass clamp=False: clamping kills the gradient of saturated pixels."""

    def encode(self, images: Float[Tensor, b * image]) -> Float[Tensor, b * latent]:
        """The latents of images in [0, 1] (the posterior mean)."""

    def adapt(self, tuning: Tuning, key: Key) -> Policy:
        """A trainable policy that starts exactly at this pipeline; the key draws new weights."""


@runtime_checkable
class ExactKernel(Protocol):
    """A pipeline whose reverse conditional p(x_s | x_t) is known in closed form."""

    def exact_step(
        self, latents: Float[Tensor, b * latent], step: Steps, keys: Sequence[Key]
    ) -> Float[Tensor, b * latent]:
        """One draw from it per row. Raises Unsupported where training has changed the pipeline."""


@runtime_checkable
class Policy(Pipeline, Protocol):
    """A pipeline with trainable weights."""

    @property
    def reference(self) -> Pipeline:
        """The pipeline before training: the adapter switched off, or a frozen copy."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable weights, float32."""

    def networks(self) -> list[torch.nn.Module]:
        """Every network that runs in it, with trainable and frozen weights."""

    @property
    def recomputations(self) -> int | None:
        """How often a part of a network was computed again in a backward pass; None where activations are kept."""

    def state_dict(self) -> dict[str, Any]:
        """The trainable weights alone."""

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...

    def save(self, folder: Path) -> None:
        """Write the trained weights in the format diffusers reads."""


@runtime_checkable
class Sampler(Protocol):
    """Prompts to images: what is evaluated. One key per prompt; the same key gives the same image."""

    @property
    def particles(self) -> int:
        """Images held in memory per prompt, so that the runner can choose its batches."""

    def describe(self) -> Mapping[str, Any]:
        """The method's own sampler for the result file: kind, steps, guidance, eta, and what else it has."""

    def save(self, folder: Path) -> None:
        """Write the weights this sampler changed; nothing for a test-time method."""

    def __call__(self, prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None = None) -> Samples: ...


@runtime_checkable
class KnownDivergence(Protocol):
    """A sampler that may know how far its images are from the model's own distribution."""

    def divergence(self) -> float | None:
        """KL(images ‖ the model) in nats where it is known exactly, for a reward without ties; else None."""


@dataclass(frozen=True)
class RewardInfo:
    """What identifies a reward in a result file. Scores whose infos differ are never compared."""

    id: str  # with its version, such as "hpsv2.1"
    files: Mapping[str, str] = field(default_factory=dict)  # weight file -> sha256
    preprocessing: str = ""
    tie_epsilon: float = 0.0  # differences up to this are ties
    range: str = ""
    higher_is_better: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)  # libraries the value depends on


@runtime_checkable
class Reward(Protocol):
    """A scorer of images for prompts."""

    @property
    def differentiable(self) -> bool:
        """Whether `with_grad` works."""

    def __call__(self, images: Float[Tensor, b * image], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        """The reporting path, without gradient. A row it cannot score is NaN."""

    def with_grad(self, images: Float[Tensor, b * image], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        """The differentiable path; raises Unsupported where there is none. Never mixed with the other in a table."""

    def info(self) -> RewardInfo: ...

    def unsupported(self, prompts: Sequence[Prompt], image_shape: Sequence[int]) -> str | None:
        """Why these prompts or images cannot be scored at all, or None."""


@runtime_checkable
class Truncates(Protocol):
    """A scorer, or a pipeline, that reads so many words of a prompt and no more."""

    def truncated(self, prompts: Sequence[Prompt]) -> Sequence[bool]:
        """Which prompts are longer than that."""


@runtime_checkable
class PromptSet(Protocol):
    """A named set of prompts. One without a `train` split is for evaluation only."""

    splits: ClassVar[tuple[str, ...]]

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of a split in their fixed order. Raises InputError where a file is missing or wrong."""


class Prompts(Sequence[Prompt]):
    """Training prompts with a seeded way of drawing from them."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._prompts = tuple(prompts)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: Any) -> Any:
        return self._prompts[index]

    def sample(self, key: Key, n: int) -> list[Prompt]:
        """n prompts, without repetition while they last."""
        return key.sample(self._prompts, n)


@dataclass(frozen=True)
class PairBatch:
    """Preference pairs as the losses want them. label is P(winner preferred): 1, or 0.5 for a tie that was kept.

    `rows` says which of the pairs asked for they are, by place in the request: one whose image cannot be read is left
    out.
    """

    winner: Float[Tensor, b * latent]
    loser: Float[Tensor, b * latent]
    condition: Condition
    label: Float[Tensor, " b"]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.label)


@runtime_checkable
class Pairs(Protocol):
    """Preference pairs, encoded and cached by the core. Their order is the caller's: a key permutation."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> PairBatch:
        """The pairs of these numbers, in this order, without those that cannot be read. Raises IndexError outside of
        [0, len)."""


class Probe(NamedTuple):
    """What an algorithm shows at θ = reference: a loss whose gradient must reach the trained weights and no others, and
    its own identities by name: (values, what each of them must be)."""

    loss: Tensor
    identities: Mapping[str, tuple[Tensor, float]]


@runtime_checkable
class Round(Protocol):
    """One round of training, as `Problem.rounds` yields it."""

    @property
    def index(self) -> int: ...

    @property
    def key(self) -> Key:
        """The round's own key, below the problem's."""

    def log(self, **values: float | Tensor) -> None:
        """Numbers for the training curve; `reward` and `kl` are shown while training."""


@runtime_checkable
class Sharing(Protocol):
    """Work that the processes of a run share; one process has all of it."""

    def shard(self, items: Sequence[T], together: int = 1) -> Sequence[T]:
        """This process's share of items that are the same on every process. It may be empty. With `together`, the
        size of a forward pass, it is of whole passes wherever there are enough of them (see `Processes.shard`)."""

    def gather(self, parts: Sequence[T]) -> list[T]:
        """What came of the shares of all processes, in the order of the items that were shared. A part is what came of
        one of these items; of a share taken `together`, of one whole forward pass."""


@runtime_checkable
class Problem(Sharing, Protocol):
    """What an algorithm may use, and the services the core gives it."""

    @property
    def pipeline(self) -> Pipeline: ...

    @property
    def reward(self) -> Reward:
        """The reward to optimise; it counts its own use."""

    @property
    def prompts(self) -> Prompts:
        """Training prompts; empty where the prompt set has none."""

    @property
    def pairs(self) -> Pairs | None:
        """Preference pairs for algorithms that learn from them (`learns_from_pairs`), else None."""

    @property
    def sampling(self) -> Sampling:
        """How images are sampled when the result is evaluated."""

    @property
    def key(self) -> Key: ...

    @property
    def budget(self) -> Mapping[str, float] | None:
        """What a test-time method may spend per image, or None."""

    def rounds(self, n: int, state: Mapping[str, Any]) -> Iterator[Round]:
        """The rounds still to do. Restores `state` (anything with state_dict) from the last checkpoint, saves it after
        each round (large ones less often, so that writing takes little of the time), times rounds, shows progress, and
        probes the policy on held-out prompts."""

    def check(self, policy: Policy, plan: Mapping[str, float], probe: Callable[[], Probe]) -> None:
        """The start-up check, before `rounds`, while the policy still equals its reference.

        `probe` measures, at no cost on the meter; `plan` (effective batch, learning rate, updates a round …) is
        printed. Raises RunError naming what does not hold.
        """

    def step(
        self, loss: Tensor | Iterable[Tensor], optimiser: torch.optim.Optimizer, max_norm: float | None = None
    ) -> float:
        """Backward, the sum of gradients over processes, clipping, one optimiser step; returns the gradient norm.

        Several losses are accumulated, one backward pass each; their sum over all processes is what is minimised, so
        that each is divided by the number of all items and not by this process's. Raises Diverged when
        a loss or the gradient is not finite, or the gradient a hundred times what it was, before the weights change:
        the run then goes back to its last checkpoint, once, and draws that round anew.
        """


@runtime_checkable
class Algorithm(Protocol):
    """An alignment algorithm: a frozen dataclass whose fields are its hyper-parameters."""

    trains: ClassVar[bool]

    def align(self, problem: Problem) -> Sampler: ...

    def unsupported(self, problem: Problem) -> str | None:
        """Why this algorithm cannot run on this problem, or None."""


@runtime_checkable
class PairAlgorithm(Algorithm, Protocol):
    """An algorithm that learns from preference pairs: a file's, or pairs made by the base model and the reward."""

    learns_from_pairs: ClassVar[bool]


@runtime_checkable
class TestTimeAlgorithm(Algorithm, Protocol):
    """An algorithm that leaves the weights alone and pays per image."""

    def for_budget(self, budget: Mapping[str, float], problem: Problem) -> Algorithm:
        """This algorithm with its free parameter chosen to spend at most the budget per image. Pure."""
