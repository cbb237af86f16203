"""alignbench from Python: run a cell, load results, compare them, look at pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.analysis.compare import DEFAULT_BASELINE
from alignbench.analysis.comparison import Comparison
from alignbench.analysis.frames import Results, load_results
from alignbench.choices import Breakdown

if TYPE_CHECKING:
    from PIL.Image import Image

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Ran:
    """What `run` did."""

    path: Path  # of the result file
    status: str  # complete, diverged or unsupported
    was_complete: bool  # it was there before
    results: Results  # of this one file

    def _repr_html_(self) -> str:
        return self.results._repr_html_()


def run(algo: str, *, force: bool = False, quiet: bool = False, **options: Any) -> Ran:
    """Run one cell, or continue it, as `alignbench run` does; `options` are its options, such as model="tiny",
    set={"n": 8}, seed=1.

    Raises InputError for a wrong option or another configuration at this path, RunError for a failed run.
    """
    from alignbench.asking.options import RunOptions
    from alignbench.asking.resolve import resolve
    from alignbench.experiment.run import run_cell

    outcome = run_cell(resolve(RunOptions.parse({"algo": algo, **options}, "alignbench.run")), force, quiet)
    complete = [outcome.path] if outcome.result.status == "complete" else []
    results = load_results(complete) if complete else Results([])
    return Ran(outcome.path, outcome.result.status, outcome.was_complete, results)


def load(paths: Paths = "results", skip_bad: bool = False) -> Results:
    """The complete results of files and folders as DataFrames. Raises ResultFileError for a file that cannot be
    trusted, unless it is to be skipped."""
    return load_results(_paths(paths), skip_bad)


def compare(
    paths: Paths | Results = "results",
    baseline: str = DEFAULT_BASELINE,
    by: Breakdown | None = None,
    scorers: Sequence[str] = (),
    skip_bad: bool = False,
    published: bool = False,
    votes: Sequence[str | Path] = (),
) -> Comparison:
    """Compare results as `alignbench compare` does: paired win rates with intervals, ranks, costs; and, with logs of
    `alignbench vote`, what people chose."""
    from alignbench.analysis.compare import compare as compare_files

    files = paths.paths if isinstance(paths, Results) else _paths(paths)
    logs = [Path(path) for path in votes]
    return compare_files(files, baseline, by, scorers, skip_bad, published, votes=logs)


def sheet(paths: Paths | Results = "results", prompts: int = 6, methods: Sequence[str] = ()) -> Image:
    """Pictures of several methods side by side, a row a method, a column a prompt with the same noise."""
    from alignbench.analysis.sheet import draw

    files = paths.paths if isinstance(paths, Results) else _paths(paths)
    return draw(files, prompts, methods)


def _paths(paths: Paths) -> list[Path]:
    given = [paths] if isinstance(paths, str | Path) else paths
    return [Path(path) for path in given]
