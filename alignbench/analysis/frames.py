"""Result files as pandas DataFrames."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.analysis.costs import cost_of_run
from alignbench.analysis.load import Run, load, methods_of
from alignbench.analysis.picture_shifts import DIVERSITY, OF_A_PICTURE, picture_means
from alignbench.record.result import Result

if TYPE_CHECKING:
    import pandas as pd


ABOUT = ("evaluation", "method", "algorithm", "seed")  # what every table begins with
OF_A_PROMPT = ("prompt", "text", "category", "challenge", "sample")
OF_A_RUN = ("model", "prompts", "reward", "images", "file")
TAKEN = frozenset((*ABOUT, *OF_A_PROMPT, *OF_A_RUN, *OF_A_PICTURE, *DIVERSITY))


@dataclass(frozen=True)
class _Named:
    """A result with the name that its method has among the others of its evaluation."""

    path: Path
    result: Result
    method: str

    @property
    def about(self) -> dict[str, Any]:
        """The columns that every table begins with."""
        c = self.result.configuration
        return {
            "evaluation": self.result.evaluation.fingerprint,
            "method": self.method,
            "algorithm": c.algorithm,
            "seed": c.seed,
        }


class Results:
    """Complete results, as tables. Each is a DataFrame that begins with evaluation, method, algorithm and seed. A
    scorer's column has its name; one that is called like another column, such as `saturation`, is
    `scorer.saturation`."""

    def __init__(self, runs: Sequence[Run]) -> None:
        groups: dict[str, list[Run]] = {}
        for run in runs:
            groups.setdefault(run.result.evaluation.fingerprint, []).append(run)
        self._named = [
            _Named(run.path, run.result, method.label)
            for group in groups.values()
            for method in methods_of(group)
            for run in method.runs
        ]

    def __len__(self) -> int:
        return len(self._named)

    def __repr__(self) -> str:
        return f"<{len(self)} results of {len({item.method for item in self._named})} methods>"

    def _repr_html_(self) -> str:
        html: str = self.runs.to_html(index=False)
        return html

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [item.path for item in self._named]

    @functools.cached_property
    def runs(self) -> pd.DataFrame:
        """A row per result: model, prompts, reward, number of images, the mean of every scorer and of every statistic
        of its pictures, its file."""
        return _frame(self._run_rows())

    @functools.cached_property
    def rows(self) -> pd.DataFrame:
        """A row per image: prompt, text, category, challenge, sample, a column per scorer, NaN where it failed, and one
        per statistic of pictures, where results keep them."""
        return _frame(self._image_rows())

    @functools.cached_property
    def curves(self) -> pd.DataFrame:
        """A row per round of training: what was logged, what was spent so far, and `held_out.<scorer>` where the policy
        was looked at on held-out prompts."""
        return _frame({**item.about, **_flat(line)} for item in self._named for line in item.result.curve)

    @functools.cached_property
    def costs(self) -> pd.DataFrame:
        """A row per result: denoiser and reward evaluations and seconds of alignment and per image, peak memory."""
        return _frame(
            {**item.about, **cost_of_run(item.result)} for item in self._named if item.result.cost is not None
        )

    def _run_rows(self) -> Iterator[dict[str, Any]]:
        for item in self._named:
            c, e = item.result.configuration, item.result.evaluation
            yield {
                **item.about,
                "model": e.model["name"],
                "prompts": f"{e.prompts}/{e.split}",
                "reward": c.reward,
                "images": len(item.result.rows),
                **_means(item.result),
                **picture_means(item.result),
                "file": str(item.path),
            }

    def _image_rows(self) -> Iterator[dict[str, Any]]:
        for item in self._named:
            prompts = {prompt.id: prompt for prompt in item.result.prompts}
            about = item.about
            for row in item.result.rows:
                prompt = prompts[row.prompt]
                yield {
                    **about,
                    "prompt": row.prompt,
                    "text": prompt.text,
                    "category": prompt.category,
                    "challenge": prompt.challenge,
                    "sample": row.sample,
                    **{_column(name): score for name, score in row.scores.items()},
                    **{str(name): value for name, value in row.picture.items()},
                }


def load_results(paths: Sequence[Path], skip_bad: bool = False) -> Results:
    """The complete results of files and folders. Raises ResultFileError for a bad file unless told to skip it."""
    return Results([run for runs in load(paths, skip_bad).groups.values() for run in runs])


def _means(result: Result) -> dict[str, float]:
    columns = {name: [row.scores.get(name) for row in result.rows] for name in result.scorers}
    known = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {_column(name): sum(values) / len(values) if values else float("nan") for name, values in known.items()}


def _column(scorer: str) -> str:
    """The column of a scorer, which is no other column's."""
    return f"scorer.{scorer}" if scorer in TAKEN else scorer


def _flat(line: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested entries as `outer.inner`."""
    found: dict[str, Any] = {}
    for name, value in line.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return found


def _frame(rows: Any) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    if "seed" in frame:
        frame["seed"] = frame["seed"].astype("Int64")  # a method that does not train has none
    return frame
