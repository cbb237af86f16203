"""A cell beside what papers and their code say of its algorithm: which configuration is nearest, and what differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignbench.declared import OfPapers, Published
from alignbench.diffusion.registry import Model
from alignbench.interface import Algorithm, Sampling

SAMPLED = ("steps", "guidance", "eta")  # an algorithm's field of that name, else the evaluation's
OF_SAMPLING = "sampling."  # before their names among the differences


@dataclass(frozen=True)
class BesidePaper:
    """What of an algorithm's values is the nearest published configuration's, and what is not."""

    nearest: Published
    values: Mapping[str, Any]  # all that any configuration speaks of: fields, and sampling.<name>
    others: tuple[Published, ...]

    @property
    def differences(self) -> dict[str, Any]:
        """What is not as published, as a result file keeps it."""
        said = _said(self.nearest)
        return {
            name: {"value": value, "paper": said[name]}
            for name, value in self.values.items()
            if name in said and value != said[name]
        }

    def note(self, name: str) -> str:
        """What stands behind a value that is not the nearest configuration's; '' behind one that is, or is its own. A
        field of sampling may stand for the evaluation's."""
        said = _said(self.nearest)
        name = f"{OF_SAMPLING}{name}" if name in SAMPLED else name
        if name not in said or self.values[name] == said[name]:
            return ""
        told: dict[Any, str] = {said[name]: "paper"}
        for other in self.others:
            if name in _said(other):
                told.setdefault(_said(other)[name], other.name)
        return f"   ({'; '.join(f'{who}: {value}' for value, who in told.items())})"


def beside(
    algorithm: Algorithm, sampling: Sampling | None, model: Model | None, reward: str | None
) -> BesidePaper | None:
    """The nearest of an algorithm's published configurations, and all it says; None for one that keeps none.

    Near is one for the same model, then one for the same reward, then one that shares the most values; of equals the
    first.
    """
    if not isinstance(algorithm, OfPapers) or not algorithm.paper:
        return None
    values = _values(algorithm, sampling)
    names = {model.name, model.like} - {None} if model else set()

    def near(published: Published) -> tuple[bool, bool, int]:
        shared = sum(values.get(name) == value for name, value in _said(published).items())
        return published.model in names, reward is not None and published.reward == reward, shared

    nearest = max(algorithm.paper, key=near)
    return BesidePaper(nearest, values, tuple(other for other in algorithm.paper if other is not nearest))


def fields_of(algorithm: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(algorithm)]


def _said(published: Published) -> dict[str, Any]:
    return {**published.fields, **{f"{OF_SAMPLING}{name}": value for name, value in published.sampling.items()}}


def _values(algorithm: OfPapers, sampling: Sampling | None) -> dict[str, Any]:
    """An algorithm's value of whatever is published, its fields first and in their order."""
    spoken = {name for published in algorithm.paper for name in published.fields}
    values = {name: getattr(algorithm, name) for name in fields_of(algorithm) if name in spoken}
    values |= {name: getattr(algorithm, name) for name in sorted(spoken - set(values))}
    for name in SAMPLED:
        own = getattr(algorithm, name, None)
        evaluated = None if sampling is None else getattr(sampling, name)
        if (value := evaluated if own is None else own) is not None:
            values[f"{OF_SAMPLING}{name}"] = value
    return values
