"""Result files as arrays: runs, pooled into methods, grouped by evaluation."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignbench.errors import InputError, ResultFileError
from alignbench.files import canonical_json
from alignbench.reading import is_folder
from alignbench.record.listing import folders_below
from alignbench.record.result import Result, Scorer, read

Array = NDArray[np.float64]
IN_EVALUATION = {"model", "prompts", "vae", "vae_tiling", "resolution"}
UNSAID = ("fields.", "code", "scorer_code")  # not worth a word where they are None: as in evaluation, or our own
ALIGNED = ("adapter", "denoiser", "refiner")  # entries of a sampler whose model somebody changed before the run
# Entries of a configuration that change no picture of an unaligned model in one evaluation.
IDLE = {"model", "prompts", "limit", "images_per_prompt", "reward", "train_prompts", "scorers", "code"}


@dataclass(frozen=True)
class Run:
    """One complete result file."""

    path: Path
    result: Result

    @property
    def pool(self) -> str:
        """Equal for runs that differ in the training seed alone. The model, how it is held, and the prompts are the
        evaluation's: here they are as somebody typed them, such as a path. Scorers are the columns that are there,
        whoever wrote them and when."""
        configuration = self.result.configuration.model_dump(exclude=IN_EVALUATION | {"seed", "code"})
        configuration["scorers"] = columns_of(self.result)
        code = [self.result.configuration.makers, {name: scorer.source for name, scorer in self.result.scorers.items()}]
        return canonical_json([configuration, code, self.result.sampler])


@dataclass(frozen=True)
class Method:
    """The runs of one configuration, one per training seed."""

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Result:
        return self.runs[0].result

    @property
    def seeds(self) -> list[int | None]:
        return [run.result.configuration.seed for run in self.runs]


@dataclass(frozen=True)
class Unfinished:
    """A result that is not in the tables, and why."""

    path: Path
    status: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """All that was read: complete runs by evaluation fingerprint, unfinished ones, and files that were skipped."""

    groups: dict[str, list[Run]]
    unfinished: list[Unfinished]
    skipped: list[Unfinished]


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Rows are no garbage, and walking all of them again and again takes a third of the time of a comparison."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@no_garbage_collection()
def load(paths: Sequence[Path], skip_bad: bool | None = None) -> Loaded:
    """Read result files; a folder means its `*.json`. Raises ResultFileError for a bad file unless told to skip it.
    None is of a caller that has no such option."""
    files: list[Path] = []
    for path in paths:
        if is_folder(path):
            files += sorted(path.glob("*.json"))
        elif path.suffix == ".json" or os.path.lexists(path) or skip_bad:
            files.append(path)
        else:
            raise InputError(f"{path}: there is no such folder; `alignbench run` makes results.")
    if not files:
        below = folders_below(path for path in paths if is_folder(path))
        more = f" There are some in {', '.join(map(str, below))}." if below else ""
        places = f"in {', '.join(map(str, paths))}" if paths else "are named"
        raise InputError(f"no result files {places}; make one with `alignbench run`.{more}")
    loaded = Loaded({}, [], [])
    for file in sorted(set(files)):
        try:
            result = read(file)
        except ResultFileError as error:
            if not skip_bad:
                way = "Name the other files." if skip_bad is None else "(--skip-bad leaves such files out.)"
                raise ResultFileError(f"{error} {way}") from None
            loaded.skipped.append(Unfinished(file, "unreadable", str(error)))
            continue
        if result.status == "complete":
            loaded.groups.setdefault(result.evaluation.fingerprint, []).append(Run(file, result))
        else:
            loaded.unfinished.append(Unfinished(file, result.status, result.reason or ""))
    return loaded


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """Pool equal configurations as seeds and give each method a label that tells it from the others.

    Raises InputError where one configuration and seed occurs twice.
    """
    pools: dict[str, dict[int | None, Run]] = {}
    for run in runs:
        seeds = pools.setdefault(run.pool, {})
        seed = run.result.configuration.seed
        if seed in seeds:
            raise InputError(f"{seeds[seed].path} and {run.path} hold the same configuration and seed; leave one out.")
        seeds[seed] = run
    pooled = [
        tuple(seeds[seed] for seed in sorted(seeds, key=lambda s: -1 if s is None else s)) for seeds in pools.values()
    ]
    facts = [_facts(group[0].result) for group in pooled]
    aligned = [f"sampler.{k}" for k in ALIGNED]
    told_by = {
        name: _varying([own for own in facts if own["algorithm"] == name])
        for name in {own["algorithm"] for own in facts}
    }
    methods = []
    for group, own in zip(pooled, facts, strict=True):
        name = own["algorithm"]
        differing = [k for k in own if k in aligned or k in told_by[name]]
        said = [k for k in differing if own[k] != "None" or not k.startswith(UNSAID)]
        details = dict.fromkeys(f"{k.rpartition('.')[2]}={own[k]}" for k in said)
        methods.append(Method(" ".join([name, *details]), group))
    return sorted(methods, key=lambda method: (method.first.trains, natural(method.label)))


def _varying(facts: Sequence[Mapping[str, str]]) -> set[str]:
    """What is not the same in all of them, or not there in all."""
    return {name for name in set().union(*facts) if len({own.get(name) for own in facts}) > 1}


def is_aligned(result: Result) -> bool:
    """Whether the model was changed before the run, by an adapter or another network in the place of its own."""
    return any(name in result.sampler for name in ALIGNED)


def drawn_otherwise(one: Result, other: Result) -> list[str]:
    """In which entries two results of one evaluation differ that decide how pictures are drawn, whoever draws them."""
    first, second = ({**result.configuration.sampling, "dtype": result.configuration.dtype} for result in (one, other))
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def draws_as(one: Result, other: Result) -> bool:
    """Whether two unaligned models of one evaluation draw the same picture from the same noise: sampled alike, whatever
    reward they name, and however many prompts, images and scorers they were asked for."""
    said = [result.configuration.model_dump(exclude=IDLE) for result in (one, other)]
    return not drawn_otherwise(one, other) and said[0] == said[1] and one.sampler == other.sampler


def columns_of(result: Result) -> list[str]:
    """The scorers that were asked for, and those that were added later."""
    return sorted({*result.configuration.scorers, *result.scorers})


def natural(label: str) -> list[tuple[bool, float, str]]:
    """A sorting key by which n=8 stands before n=64."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", label)
    return [(i % 2 == 1, float(part), "") if i % 2 else (False, 0.0, part) for i, part in enumerate(parts)]


def budget_text(budget: Mapping[str, float]) -> str:
    """A budget as the command line takes it."""
    return " ".join(f"{kind}={limit:g}" for kind, limit in sorted(budget.items()))


def _facts(result: Result) -> dict[str, str]:
    """What may tell two methods of one algorithm apart: all that `Run.pool` looks at."""
    configuration = result.configuration
    fields = configuration.fields
    if configuration.budget:  # it chose one of them, and the sampler says which value
        fields = {name: result.sampler.get(name, value) for name, value in fields.items()}
    made_by = configuration.makers.values()
    values = {
        "algorithm": configuration.algorithm,
        **{f"fields.{name}": value for name, value in fields.items()},
        "reward": configuration.reward,
        **{f"sampler.{name}": value for name, value in result.sampler.items() if name not in configuration.fields},
        **{f"sampling.{name}": value for name, value in configuration.sampling.items()},
        "split": configuration.split,
        "limit": configuration.limit,
        "images_per_prompt": configuration.images_per_prompt,
        "train_prompts": configuration.train_prompts,
        "dtype": configuration.dtype,
        "scorers": ",".join(columns_of(result)),
        "code": _shortened(made_by),
        "scorer_code": _shortened(
            source for scorer in result.scorers.values() if (source := scorer.source) and source not in made_by
        ),
        "eval_seed": configuration.eval_seed,
        **{f"budget.{kind}": f"{limit:g}" for kind, limit in (configuration.budget or {}).items()},
    }
    return {name: str(value) for name, value in values.items()}


def _shortened(sources: Iterable[str]) -> str | None:
    """A few digits that tell code from other code."""
    code = sorted(sources)
    return hashlib.sha256(canonical_json(code).encode()).hexdigest()[:6] if code else None


@dataclass(frozen=True)
class Scores:
    """One scorer's values: [runs, pairs] with NaN where missing, and the prompt and image number of every pair.

    Pairs are sorted by prompt, so that a prompt's pairs stand together.
    """

    values: Array
    prompts: NDArray[np.int64]
    samples: NDArray[np.int64]  # the number of the image among its prompt's
    failed: NDArray[np.bool_]  # [runs, pairs]: a row with a null score
    sign: float  # -1 where lower is better
    epsilon: float


@dataclass(frozen=True)
class Axes:
    """The images of several runs in one order, sorted by prompt."""

    prompt_ids: list[str]  # that prompt numbers stand for
    prompts: NDArray[np.int64]  # number of each image's prompt
    samples: NDArray[np.int64]
    _place: Mapping[tuple[str, int], int]

    @staticmethod
    def of(runs: Sequence[Run]) -> Axes:
        prompt_ids = list(dict.fromkeys(row.prompt for run in runs for row in run.result.rows))
        number = {prompt: i for i, prompt in enumerate(prompt_ids)}
        pairs = sorted({(number[row.prompt], row.sample) for run in runs for row in run.result.rows})
        place = {(prompt_ids[prompt], sample): i for i, (prompt, sample) in enumerate(pairs)}
        prompts, samples = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return Axes(prompt_ids, prompts, samples, place)

    def places(self, run: Run) -> NDArray[np.int64]:
        """Where the rows of a run stand."""
        return np.array([self._place[row.prompt, row.sample] for row in run.result.rows], dtype=np.int64)


def table(runs: Sequence[Run], scorers: Mapping[str, Scorer]) -> tuple[dict[str, Scores], list[str]]:
    """The scores of several runs on common axes, by scorer; and the prompt ids that prompt numbers stand for.

    Scores of another scorer than the one wanted under this name are missing.
    """
    axes = Axes.of(runs)
    shape = len(runs), len(axes.prompts)
    values = {name: np.full(shape, np.nan) for name in scorers}
    failed = {name: np.zeros(shape, dtype=bool) for name in scorers}
    for i, run in enumerate(runs):
        rows = run.result.rows
        columns = axes.places(run)
        for name, wanted in scorers.items():
            if run.result.scorers.get(name) == wanted:
                column = np.array([row.scores.get(name) for row in rows], dtype=np.float64)
                values[name][i, columns] = column
                failed[name][i, columns] = np.isnan(column)
    found = {}
    for name, wanted in scorers.items():
        sign = 1.0 if wanted.higher_is_better else -1.0
        found[name] = Scores(values[name], axes.prompts, axes.samples, failed[name], sign, wanted.tie_epsilon)
    return found, axes.prompt_ids
