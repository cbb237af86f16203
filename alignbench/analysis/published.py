"""What papers report beside our own numbers. `benchmarks/published.toml` says where each was read and who judged."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignbench import plugins
from alignbench.analysis.load import Method
from alignbench.record.result import Evaluation, Result

FILE = "published.toml"


@dataclass(frozen=True)
class Number:
    """One number of a paper. `judge` is human, one of our scorers, or another judge's name."""

    source: str  # paper and tag: P read in it, S in a table of another
    model: str
    algorithm: str | None  # None: not one of ours, so that the released preset alone is it
    released: str | None  # the preset of the paper's own checkpoint
    prompts: str  # prompts/split
    judge: str
    quantity: str
    value: float
    sampling: Mapping[str, Any]  # as far as it is said


@dataclass(frozen=True)
class Beside:
    """A published number and, where the same judge scored ours, our own."""

    method: str
    judge: str
    quantity: str
    published: float
    ours: float | None
    their_sampling: str
    our_sampling: str
    source: str


@dataclass(frozen=True)
class Published:
    """What there is about the methods of one evaluation."""

    rows: Sequence[Beside]
    notes: Sequence[str]


def content() -> dict[str, Any]:
    """The file of published numbers."""
    path = plugins.folder_of("benchmarks") / FILE
    return tomllib.loads(path.read_text(encoding="utf-8"))


def numbers(known: Mapping[str, Any]) -> Iterator[Number]:
    """All numbers of the file, one at a time."""
    papers = {paper["id"]: f"{paper['title']}, {paper['link']}" for paper in known["papers"]}
    for entry in known["numbers"]:
        for prompts, value in entry["values"].items():
            yield Number(
                f"[{entry['tag']}] {papers[entry['paper']]}", entry["model"], entry.get("algorithm"),
                entry.get("released"), prompts, entry["judge"], entry["quantity"], value,
                entry.get("sampling", {}),
            )  # fmt: skip
    for table in known["tables"]:
        for row in table["rows"]:
            for judge, value in zip(table["judges"], row["values"], strict=True):
                yield Number(
                    f"[{table['tag']}] {papers[table['paper']]}", row["model"], row.get("algorithm"),
                    row.get("released"), table["prompts"], judge, "mean", value, table["sampling"],
                )  # fmt: skip


def beside(evaluation: Evaluation, methods: Sequence[Method], means: Mapping[str, Mapping[str, float]]) -> Published:
    """The published numbers about these methods, on this model and these prompts. `means` are ours, by scorer and
    method: only a number that the same scorer gave is set beside one of them."""
    known = content()
    place = f"{evaluation.prompts}/{evaluation.split}"
    rows = [
        Beside(
            method=method.label,
            judge=number.judge,
            quantity=number.quantity,
            published=number.value,
            ours=_ours(number, method, means),
            their_sampling=_sampling(number.sampling),
            our_sampling=_sampling({name: method.first.sampler.get(name) for name in ("steps", "guidance")}),
            source=number.source,
        )
        for method in methods
        for number in numbers(known)
        if number.prompts == place and _is_about(number, method.first)
    ]
    algorithms = {method.first.configuration.algorithm for method in methods}
    papers = {paper["id"]: paper["title"] for paper in known["papers"]}
    notes = [
        f"published: {papers[curve['paper']]}: {curve['note']}; curve only."
        for curve in known["curves"]
        if curve["algorithm"] in algorithms and place in curve["prompts"]
    ]
    if any(row.judge == "human" for row in rows):
        notes.append("published: what people preferred has no counterpart here; the win rates above are scorers'.")
    if not rows and not notes:
        notes.append(f"published: no number about these methods of {evaluation.model['name']} on {place}.")
    return Published(rows, notes)


def _is_about(number: Number, result: Result) -> bool:
    """Whether a result is of what the paper measured: the algorithm on the model, or the paper's own checkpoint."""
    configuration = result.configuration
    whole = configuration.limit is None and configuration.resolution == number.sampling.get("resolution")
    named = configuration.prompts.rpartition(":")[2] == result.evaluation.prompts
    if not whole or "adapter" in result.sampler or not named:
        return False  # of a part, of another size, of a model of somebody's own, or of a file that bears a set's name
    asked = (configuration.model, configuration.algorithm)  # of a folder the path, which is no model's name
    return asked in ((number.model, number.algorithm), (number.released, "base"))


def _ours(number: Number, method: Method, means: Mapping[str, Mapping[str, float]]) -> float | None:
    if number.quantity != "mean" or number.judge not in means:
        return None
    mean = means[number.judge][method.label]
    return None if math.isnan(mean) else mean


def _sampling(values: Mapping[str, Any]) -> str:
    said = {name: value for name, value in values.items() if value is not None}
    shown = (f"{name}={value if isinstance(value, str) else f'{value:g}'}" for name, value in said.items())
    return " ".join(shown) or "not said"
