"""What a plug-in may say of itself besides its interface: whether it asks for a reward, and what was published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from alignbench.interface import Algorithm


@runtime_checkable
class SaysWhetherItIsRewarded(Algorithm, Protocol):
    """An algorithm that says whether it reads the problem's reward. One that says nothing is taken to."""

    reads_reward: ClassVar[bool]


@dataclass(frozen=True)
class Published:
    """One configuration of a paper or of its authors' code, as far as it is known; what is not known is left out.

    `fields` are the algorithm's own. Steps, guidance and η stand in `sampling`, whether fields or the evaluation set
    them: they are of the images that the method samples.
    """

    name: str  # what tells it from the others, such as "aesthetic"
    source: str  # where it stands
    fields: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, float] = field(default_factory=dict)
    model: str | None = None  # that it is for, as `alignbench list models` has it; None: for any
    reward: str | None = None  # likewise

    def __str__(self) -> str:
        return f"{self.name} ({self.source})"


@runtime_checkable
class OfPapers(Algorithm, Protocol):
    """An algorithm that keeps what was published of it. Its defaults are those of the first, but for what its header
    says."""

    paper: ClassVar[tuple[Published, ...]]


@runtime_checkable
class PublishedPrompts(Protocol):
    """What a prompt set that others published says of itself."""

    source: ClassVar[str]
    licence: ClassVar[str]
    counts: ClassVar[Mapping[str, int]]  # prompts of each split, checked when they are read


@runtime_checkable
class TrainsOnEvaluated(Protocol):
    """A prompt set that a paper trains on and evaluates, with other noise. All others must not share prompts."""

    trains_on_evaluated: ClassVar[bool]
