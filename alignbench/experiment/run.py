"""Running one cell in five steps: prepare, align, generate, score, write. Typed again, the same command continues."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignbench.asking import prompts as prompt_sets
from alignbench.asking.adapter_folders import check_model, name_of
from alignbench.asking.resolve import Cell
from alignbench.asking.rewarded import as_without_reward
from alignbench.caches import Caches
from alignbench.devices import BATCH
from alignbench.diffusion.latent import LatentPipeline
from alignbench.errors import CannotContinue, Diverged, InputError, ResultFileError, RunError, Unsupported
from alignbench.experiment import cut_off, evaluate, optimality
from alignbench.experiment.align import add_pairs, align, problem_of
from alignbench.experiment.budget import resolve_budget
from alignbench.experiment.diversity import LATENTS, diversity_of, remove_latents
from alignbench.experiment.draft import Draft, Found, rows_of
from alignbench.experiment.evaluate import Generated, Scores
from alignbench.experiment.pairs import Made
from alignbench.experiment.problem import CellProblem
from alignbench.experiment.ready import check_pipeline
from alignbench.experiment.trackers import Trackers, check_installed
from alignbench.experiment.trained import Trained, kept_of, opened
from alignbench.files import explained
from alignbench.interface import Pipeline, Sampler, TestTimeAlgorithm, Truncates
from alignbench.memory import Measured, Memory, to_measure
from alignbench.meter import Cost, Meter
from alignbench.plugins import label
from alignbench.processes import Processes, joined, on_this_machine
from alignbench.progress import Progress
from alignbench.record import result as results
from alignbench.record.listing import STATE, WEIGHTS
from alignbench.record.pictures import ImageStore, PictureFacts, Slot, slots
from alignbench.record.result import (
    Configuration,
    Costs,
    Result,
    Status,
    identity,
)
from alignbench.record.resumable import Resumable

PROMPTS = "prompts_sha256"  # of a cell's folder, where the prompts are of a file


@dataclass(frozen=True)
class Outcome:
    """What happened: the result, and whether it was there before."""

    result: Result
    path: Path
    was_complete: bool = False
    resumed_at: int = 0


def run_cell(cell: Cell, force: bool = False, quiet: bool = False, trained: Trained | None = None) -> Outcome:
    """Run or continue a cell, or evaluate weights that another one has `trained`. Raises InputError where another
    configuration holds its path; other failures are written into the result before they are raised."""
    with joined(cell.family.device(cell.options.device)) as processes, processes.together():
        outcome: Any = None
        if processes.first:
            outcome = _lead(cell, force, quiet, trained, processes)
            processes.agree(0)
        else:
            _follow(cell, trained, processes)
        return processes.told(outcome)


def _lead(cell: Cell, force: bool, quiet: bool, trained: Trained | None, processes: Processes) -> Outcome:
    """What one process does, or the first of several: it tells the others when to begin."""
    work = work_of(cell)
    done = _finished(cell, work, force)
    if done is not None:
        work.settle(passing=LATENTS)
        return Outcome(done, cell.path, was_complete=True)
    cell.needs.check()
    check_installed(cell.options.report_to)
    asked = work
    if trained is not None:  # nobody goes on training in a folder whose pictures are of other weights
        work = replace(work, configuration={**work.configuration, "weights": trained.digest(cell.family)})
    with work.alone(), Progress(quiet) as progress:
        done = _finished(cell, asked, force)  # by a process that was waited for
        if done is not None:
            return Outcome(done, cell.path, was_complete=True)

        def attempted(number: int) -> Outcome:
            memory = _memory(cell)
            processes.agree(number)
            run = _prepare(cell, number, memory, progress, trained, processes)
            try:
                outcome = run.complete()
            except (Diverged, Unsupported) as error:
                outcome = run.ended(error)
            except (InputError, RunError) as error:
                run.failed(error)
                raise
            work.finish(number)
            return outcome

        try:
            return work.attempted(attempted, force, progress.say)
        except CannotContinue as error:  # anew, since the others wait to be told whether it begins again
            raise CannotContinue(error.what) from error


def _follow(cell: Cell, trained: Trained | None, processes: Processes) -> None:
    """What the other processes do: the same work as the first, whenever it begins, of which only images of their share
    are written."""
    while attempt := processes.agree(0):
        with Progress(quiet=True) as progress, contextlib.suppress(Diverged, Unsupported, CannotContinue):
            run = _prepare(cell, attempt, _memory(cell), progress, trained, processes)
            run.score(run.wanted, run.make(run.align()[0]).pictures)


def _memory(cell: Cell) -> Memory:
    """The memory that this process may take, and a look at it from now on: one process may run several cells."""
    return Memory(cell.family.device(cell.options.device), on_this_machine())


def work_of(cell: Cell) -> Resumable:
    """The work of a cell, in its folder."""
    return Resumable(
        cell.folder,
        _asked(cell),
        STATE,
        elsewhere="choose --name or another --output",
        replace="use --force to replace it",
    )


def _asked(cell: Cell) -> dict[str, Any]:
    """What the cell's folder belongs to: its configuration, and what a file of prompts holds, which may change."""
    asked = cell.configuration.model_dump(mode="json")
    return asked | ({PROMPTS: cell.prompts_sha256} if prompt_sets.is_file(cell.configuration.prompts) else {})


def _finished(cell: Cell, work: Resumable, force: bool) -> Result | None:
    """The result that is already there, if it is final and not to be made again."""
    if cell.path.is_dir():
        raise InputError(f"{cell.path}, which would be the result, is a folder; choose --name or another --output.")
    return None if force else final_result(cell.path, cell.configuration, work)


def final_result(path: Path, configuration: Configuration, work: Resumable) -> Result | None:
    """The result of a cell at its path, if it is there and final. Raises InputError if it is of another configuration,
    ResultFileError if it cannot be read."""
    if not path.exists():
        return None
    try:
        result = results.read(path)
    except ResultFileError as error:
        raise ResultFileError(f"{error} (--force replaces it.)") from None
    found = as_without_reward(result.configuration, configuration).model_dump(mode="json")
    if PROMPTS in work.configuration:
        found[PROMPTS] = result.evaluation.prompts_sha256
    work.check_same(found, path)
    return result if result.status in ("complete", "diverged", "unsupported") else None


def _before(cell: Cell) -> Result | None:
    """The result that is already there, if it can be read."""
    try:
        return results.read(cell.path) if cell.path.exists() else None
    except ResultFileError:
        return None


def _prepare(
    cell: Cell, attempt: int, memory: Memory, progress: Progress, trained: Trained | None, processes: Processes
) -> _Run:
    """Load the model, build the problem, and write down that the cell is in progress."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    meter = Meter()
    for line in cell.notes:
        progress.say(line)
    progress.follow(meter)
    progress.say(f"loading model {cell.model.name}")
    pipeline, aligned = _pipeline(cell, meter, memory.device)
    _check_scorers(cell, pipeline)
    check_pipeline(pipeline, cell.sampling, progress.say)
    used = cut_off.prompts_of(cell)
    cut = cut_off.counted(cut_off.reader_of(pipeline), used) or {}
    if cut:
        progress.say(cut_off.sentence(cell.model.name, cut, used))
    images = len(cell.evaluated) * cell.options.images_per_prompt
    if processes.size > images:
        progress.say(f"{processes.size} processes share {images} images: {processes.size - images} will make none")
    batch = cell.options.batch_size or BATCH[3 if len(pipeline.info()["image_shape"]) == 3 else 1]
    is_fixed = bool(cell.options.batch_size or cell.options.compile)  # which compiles each number of images anew
    measured = to_measure(memory, pipeline.info()["image_shape"], batch, is_fixed)
    problem = problem_of(cell, pipeline, meter, batch, progress, processes, measured)
    own = cell.folder / "cache"
    caches = Caches.usable(progress.say, instead=own) if len(pipeline.info()["image_shape"]) == 3 else Caches(own)
    made = add_pairs(cell, problem, batch, caches, measured) if trained is None else None
    origin = trained.path.name if trained else None
    draft = Draft(cell, pipeline, aligned, memory.device, attempt, started, cut, origin)
    if attempt > 1 and processes.first:
        _check_same_scorers(cell)
    if processes.first and not cell.path.exists():
        results.write(cell.path, draft.result("partial", "in progress, or interrupted; the same command continues"))
    return _Run(cell, pipeline, problem, draft, batch, memory, measured, progress, caches, made, trained)


@dataclass(frozen=True)
class _Run:
    """A cell that is prepared."""

    cell: Cell
    pipeline: Pipeline
    problem: CellProblem
    draft: Draft
    batch: int
    memory: Memory
    measured: Measured | None  # the same, where it is measured how many images fit into it
    progress: Progress
    caches: Caches
    made: Made | None
    trained: Trained | None

    def complete(self) -> Outcome:
        """Align, generate, score, write."""
        cell, problem = self.cell, self.problem
        sampler, fewer = self.align()
        alignment, alignment_seconds = problem.meter.total, problem.seconds
        with explained(cell.folder / WEIGHTS):
            sampler.save(cell.folder / WEIGHTS)
        generated, wanted = self.make(sampler), self.wanted
        scores = self.score(wanted, generated.pictures)
        images = ImageStore(cell.folder / "images")
        metrics = optimality.metrics(cell, self.pipeline, sampler, images, wanted)
        costs = Costs(
            alignment=(alignment + (self.made.cost if self.made else Cost())).as_dict(),
            alignment_seconds=round(alignment_seconds + (self.made.seconds if self.made else 0), 2),
            pairs_seconds=round(self.made.seconds if self.made else 0, 2),
            per_image={name: value / len(wanted) for name, value in generated.cost.as_dict().items()},
            per_image_seconds=round(generated.seconds / len(wanted), 5),
            peak_memory_bytes=self.memory.peak(),
            forward_batch=fewer,
        )
        found = Found(
            sampler={**sampler.describe(), **self.draft.aligned},
            rows=rows_of(cell, wanted, scores, generated.pictures),
            diversity=diversity_of(cell.folder, images, cell.evaluated, wanted) if generated.pictures else [],
            metrics=metrics,
            frontiers=optimality.frontiers(cell, self.pipeline) if metrics else {},
            curve=self.trained.result.curve if self.trained else problem.curve(),
            cost=self.trained.costs(costs) if self.trained else costs,
            kept=kept_of(cell, images, wanted, generated.pictures),
            budget=dict(problem.budget) if problem.budget else None,
            truncated=_truncated(cell, self.progress),
        )
        outcome = self.written(self.draft.result("complete", None, found))
        remove_latents(cell.folder)
        from alignbench.analysis.card import write_card  # imports for a second

        write_card(cell.path)
        return outcome

    def align(self) -> tuple[Sampler, int | None]:
        """The sampler to evaluate, and how many images a forward pass had if they were fewer than asked for."""
        cell, algorithm = self.cell, self.cell.algorithm
        if self.trained is not None:
            sampler = self.trained.sampler(cell, self.pipeline)
            _check_sampling(cell, sampler)
            return sampler, None
        if reason := algorithm.unsupported(self.problem):
            raise Unsupported(reason)
        if (budget := cell.configuration.budget) and isinstance(algorithm, TestTimeAlgorithm):
            folder, dtype = cell.path.parent, cell.options.dtype
            processes = self.problem.processes
            limit = resolve_budget(budget, folder, self.problem, cell.evaluated, dtype) if processes.first else {}
            self.problem.budget = processes.told(limit)  # seconds are measured once
            algorithm = algorithm.for_budget(self.problem.budget, self.problem)
        trackers = self.trackers()
        self.problem.report = trackers.log
        try:
            sampler, fewer = align(algorithm, self.problem)
        finally:
            trackers.finish()
        _check_sampling(cell, sampler)
        return sampler, fewer

    def trackers(self) -> Trackers:
        """Where the training curve is shown besides."""
        c = self.cell.configuration
        about = {**c.fields, "algorithm": c.algorithm, "model": c.model, "reward": c.reward, "seed": c.seed}
        speaks = self.cell.algorithm.trains and self.problem.processes.first
        names = self.cell.options.report_to if speaks else ()
        return Trackers(names, self.cell.folder, self.cell.path.stem, about, self.progress.say)

    @property
    def wanted(self) -> list[Slot]:
        """The images of the evaluation."""
        return slots(len(self.cell.evaluated), self.cell.options.images_per_prompt)

    def make(self, sampler: Sampler) -> Generated:
        """The images of the evaluation, by all processes together."""
        cell, c = self.cell, self.cell.configuration
        seed = {} if c.seed is None else {"seed": str(c.seed)}
        about = {"method": label(c.algorithm), **seed, "noise seed": str(c.eval_seed)}
        start = functools.partial(cell.sources.start, self.pipeline) if cell.sources else None
        return evaluate.generate(
            sampler,
            cell.evaluated,
            self.wanted,
            cell.options.eval_seed,
            self.batch,
            self.problem.meter,
            cell.folder,
            self.progress,
            start,
            about,
            self.problem.processes,
            self.measured,
        )

    def score(self, wanted: Sequence[Slot], pictures: Mapping[Slot, PictureFacts]) -> Scores:
        cell = self.cell
        kept = self.caches.scores if len(self.pipeline.info()["image_shape"]) == 3 else None
        return evaluate.score(
            cell.scorers,
            cell.evaluated,
            wanted,
            self.batch,
            cell.folder,
            self.progress,
            self.memory.device,
            kept,
            self.problem.processes,
            pictures,
        )

    def ended(self, error: Diverged | Unsupported) -> Outcome:
        """A row of the table, without scores: what the algorithm cannot do here, or where it diverged."""
        diverged = isinstance(error, Diverged)
        reason = f"{error} in round {len(self.problem.curve())}" if diverged else str(error)
        status: Status = "diverged" if diverged else "unsupported"
        return self.written(self.draft.result(status, reason, Found(curve=self.problem.curve())))

    def failed(self, error: Exception) -> None:
        """Write why, unless an earlier result is there."""
        before = _before(self.cell)
        if before is None or before.status == "partial":
            results.write(self.cell.path, self.draft.result("failed", str(error), Found(curve=self.problem.curve())))

    def written(self, result: Result) -> Outcome:
        results.write(self.cell.path, result)
        return Outcome(result, self.cell.path, resumed_at=self.problem.resumed_at)


def _pipeline(cell: Cell, meter: Meter, device: str) -> tuple[Pipeline, Mapping[str, str]]:
    """The model, with the adapter that was asked for, and what was done to it before this run."""
    pipeline = cell.family.load(cell.model, meter, cell.hold(device), cell.evaluated)
    aligned = dict(pipeline.aligned) if isinstance(pipeline, LatentPipeline) else {}
    if cell.adapter is None:
        return pipeline, aligned
    check_model(cell.adapter, pipeline)
    policy = opened(cell.family, pipeline, cell.adapter)
    aligned["adapter"] = f"{name_of(cell.adapter)}@{str(cell.configuration.adapter)[:12]}"
    return policy, aligned


def _check_scorers(cell: Cell, pipeline: Pipeline) -> None:
    """Refuse scorers that cannot read this model's images, before anything is made for them."""
    shape = pipeline.info()["image_shape"]
    for name, scorer in cell.scorers.items():
        if reason := scorer.unsupported(cell.evaluated, shape):
            raise InputError(f"scorer {name!r} cannot score images of model {cell.options.model!r}: {reason}")


def _check_same_scorers(cell: Cell) -> None:
    """Refuse to go on with scorers that are not what they were when the cell was begun: other weights, another
    version, or another scorer behind a URL."""
    before = _before(cell)
    if before is None or before.status not in ("partial", "failed"):
        return
    for name, scorer in cell.scorers.items():
        was, now = before.scorers.get(name), identity(scorer.info())
        if was is not None and was != now:
            entries = [entry for entry in type(now).model_fields if getattr(was, entry) != getattr(now, entry)]
            raise InputError(
                f"scorer {name!r} is not what it was when {cell.path} was begun: {entries[0]} was "
                f"{getattr(was, entries[0])!r} and is {getattr(now, entries[0])!r}. Bring that one back, or delete "
                f"{cell.folder} and {cell.path} to begin anew."
            )


def _check_sampling(cell: Cell, sampler: Sampler) -> None:
    """Raises InputError where the sampler does not do what --steps, --guidance or --eta asked for."""
    described = sampler.describe()
    for name in ("steps", "guidance", "eta"):
        asked = getattr(cell.options, name)
        if asked is not None and (used := described.get(name)) != asked:
            own = f"samples with {name}={used}" if used is not None else "makes no use of it"
            instead = f"--set {name}={asked}" if name in cell.configuration.fields else "another algorithm"
            raise InputError(f"--{name} {asked:g}: {cell.options.algo} {own}; choose {instead}, or leave it out.")


def _truncated(cell: Cell, progress: Progress) -> dict[str, int]:
    """How many prompts each scorer that reads so many words does not read to their end; said where there are any."""
    counts = {n: sum(s.truncated(cell.evaluated)) for n, s in cell.scorers.items() if isinstance(s, Truncates)}
    for name, cut in counts.items():
        if cut:
            progress.say(f"{name} reads {cut} of {len(cell.evaluated)} prompts cut off at its longest")
    return counts
