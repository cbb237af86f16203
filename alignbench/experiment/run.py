"""Running one cell: align, generate, score, write the result. Typed again, the same command continues."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from alignbench.diffusion import memory, models
from alignbench.diffusion.adapters import open_policy
from alignbench.diffusion.latent import LatentPipeline
from alignbench.diffusion.memory import Fitting
from alignbench.diffusion.meter import Cost, Meter
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.diffusion.training import chunked
from alignbench.downloads import cache_folder
from alignbench.errors import Diverged, InputError, RunError, Unsupported
from alignbench.experiment import generate as generation
from alignbench.experiment import making, optimality
from alignbench.experiment import prompts as prompt_sets
from alignbench.experiment import result as results
from alignbench.experiment.budget import resolve_budget
from alignbench.experiment.making import Made
from alignbench.experiment.problem import CellProblem, exclusive
from alignbench.experiment.progress import Progress
from alignbench.experiment.result import Costs, Evaluation, Metric, PromptRow, Result, Row, Status
from alignbench.experiment.rewarding import MeteredReward, identity
from alignbench.experiment.spec import Cell, check_ready
from alignbench.experiment.trained import check_model, name_of
from alignbench.files import remove_leftovers, write_text
from alignbench.interface import Algorithm, Pipeline, Prompt, Sampler, TestTimeAlgorithm, Truncates
from alignbench.keys import Key
from alignbench.preferences.cache import TensorCache
from alignbench.preferences.choosing import choose
from alignbench.preferences.encoded import EncodedPairs
from alignbench.preferences.source import open_pairs

STATE = "cell.json"
FORWARD_BATCH = "forward_batch.json"
HELD_OUT_PROMPTS = 24
PACKAGES = ("alignbench", "torch", "diffusers", "transformers", "peft", "numpy", "pillow")


@dataclass(frozen=True)
class Outcome:
    """What happened: the result, and whether it was there before."""

    result: Result
    path: Path
    was_complete: bool = False
    resumed_at: int = 0


def run_cell(cell: Cell, force: bool = False, quiet: bool = False) -> Outcome:
    """Run or continue a cell. Raises InputError where another configuration holds its path; other failures are
    written into the result before they are raised."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("several processes are not supported yet: run without `accelerate launch` or torchrun.")
    done = _finished(cell, force)
    if done is not None:
        return Outcome(done, cell.path, was_complete=True)
    check_ready(cell.spec, cell.model, cell.algorithm.trains and cell.spec.pairs is None)
    device = "cpu" if cell.model.source == "exact" else models.device_of(cell.spec.device)
    with exclusive(cell.folder):
        attempts = _begin(cell, force)
        memory.reset_peak(device)
        with Progress(quiet) as progress:
            return _run(cell, attempts, progress, device)


def _finished(cell: Cell, force: bool) -> Result | None:
    """The result that is already there, if it is final. Raises InputError if its configuration is another."""
    if force or not cell.path.exists():
        return None
    result = results.read(cell.path)
    different = result.configuration.differences(cell.configuration)
    if different:
        raise InputError(
            f"{cell.path} holds another configuration; it differs in {', '.join(different)}. "
            "Choose --name, another --output, or --force to replace it."
        )
    return result if result.status in ("complete", "diverged", "unsupported") else None


def _begin(cell: Cell, force: bool) -> int:
    """Prepare the cell's folder and return the number of this attempt. A folder of another configuration is only
    cleared with --force, and the result file beside it stays until the new one is complete."""
    state = cell.folder / STATE
    configuration = cell.configuration.model_dump(mode="json")
    attempts = 0
    if state.exists():
        try:
            saved = json.loads(state.read_text(encoding="utf-8"))
        except ValueError:
            saved = {}
        same = saved.get("configuration") == configuration and saved.get("running", False)
        if same:
            attempts = int(saved["attempts"])
        elif not force and saved.get("configuration") != configuration:
            raise InputError(f"{cell.folder} belongs to another configuration; choose --name or use --force.")
        else:
            _clear(cell.folder)
    remove_leftovers(cell.folder)
    for leftover in cell.path.parent.glob(f".{cell.path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    _mark(cell, attempts + 1, running=True)
    return attempts + 1


def _mark(cell: Cell, attempts: int, running: bool) -> None:
    content = {
        "configuration": cell.configuration.model_dump(mode="json"),
        "attempts": attempts,
        "running": running,
    }
    write_text(cell.folder / STATE, json.dumps(content, indent=1) + "\n")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _run(cell: Cell, attempts: int, progress: Progress, device: str) -> Outcome:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    meter = Meter()
    pipeline, aligned = _pipeline(cell, meter, device)
    _check_scorers(cell, pipeline)
    batch = cell.spec.batch_size or generation.BATCH[3 if len(pipeline.info()["image_shape"]) == 3 else 1]
    problem = _problem(cell, pipeline, meter, batch, progress)
    made = _add_pairs(cell, problem, batch)
    draft = _Draft(cell, pipeline, aligned, device, attempts, started)
    if attempts > 1:
        _check_same_scorers(cell)
    if not cell.path.exists():
        results.write(cell.path, draft.result("partial", "in progress, or interrupted; the same command continues"))
    try:
        algorithm = cell.algorithm
        if reason := algorithm.unsupported(problem):
            raise Unsupported(reason)
        if (budget := cell.configuration.budget) and isinstance(algorithm, TestTimeAlgorithm):
            problem.budget = resolve_budget(budget, cell.path.parent, problem, cell.evaluated, cell.spec.dtype)
            algorithm = algorithm.for_budget(problem.budget, problem)
        sampler, fewer = _align(algorithm, problem)
        _check_sampling(cell, sampler)
        alignment, alignment_seconds = meter.total, problem.seconds
        sampler.save(cell.folder / "adapter")
        start = functools.partial(cell.sources.start, pipeline) if cell.sources else None
        wanted = generation.slots(len(cell.evaluated), cell.spec.images_per_prompt)
        cost, seconds = generation.generate(
            sampler, cell.evaluated, wanted, cell.spec.eval_seed, batch, meter, cell.folder, progress, start
        )
        kept = cache_folder() / "scores" if len(pipeline.info()["image_shape"]) == 3 else None
        values, failures = generation.score(
            cell.scorers, cell.evaluated, wanted, batch, cell.folder, progress, device, kept
        )
        truncated = _truncated(cell, progress)
        images = generation.ImageStore(cell.folder / "images")
        metrics = optimality.metrics(cell, pipeline, sampler, images, wanted)
    except (Diverged, Unsupported) as error:
        status: Status = "diverged" if isinstance(error, Diverged) else "unsupported"
        reason = f"{error} in round {len(problem.curve())}" if status == "diverged" else str(error)
        final = draft.result(status, reason, curve=problem.curve())
        results.write(cell.path, final)
        _mark(cell, attempts, running=False)
        return Outcome(final, cell.path, resumed_at=problem.resumed_at)
    except (InputError, RunError) as error:
        if not cell.path.exists() or results.read(cell.path).status == "partial":
            results.write(cell.path, draft.result("failed", str(error), curve=problem.curve()))
        raise
    rows = [
        Row(
            prompt=cell.evaluated[slot.place].id,
            sample=slot.sample,
            scores={name: values[name].get(slot) for name in cell.scorers},
            failures={name: failures[name][slot] for name in cell.scorers if slot in failures[name]},
        )
        for slot in wanted
    ]
    costs = Costs(
        alignment=(alignment + (made.cost if made else Cost())).as_dict(),
        alignment_seconds=round(alignment_seconds + (made.seconds if made else 0), 2),
        pairs_seconds=round(made.seconds if made else 0, 2),
        per_image={name: value / len(wanted) for name, value in cost.as_dict().items()},
        per_image_seconds=round(seconds / len(wanted), 5),
        peak_memory_bytes=memory.peak(device),
        forward_batch=fewer,
    )
    final = draft.result(
        "complete",
        None,
        sampler=sampler,
        rows=rows,
        metrics=metrics,
        curve=problem.curve(),
        costs=costs,
        budget=problem.budget,
        truncated=truncated,
    )
    results.write(cell.path, final)
    _mark(cell, attempts, running=False)
    return Outcome(final, cell.path, resumed_at=problem.resumed_at)


def _pipeline(cell: Cell, meter: Meter, device: str) -> tuple[Pipeline, Mapping[str, str]]:
    """The model, with the adapter that was asked for, and what was done to it before this run."""
    pipeline = models.load(cell.model, meter, cell.options(device), cell.evaluated, cell.spec.vae)
    aligned = dict(pipeline.aligned) if isinstance(pipeline, LatentPipeline) else {}
    if cell.adapter is None:
        return pipeline, aligned
    check_model(cell.adapter, pipeline)
    policy = open_policy(pipeline, cell.adapter)
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    aligned["adapter"] = f"{name_of(cell.adapter)}@{str(cell.configuration.adapter)[:12]}"
    return policy, aligned


def _check_scorers(cell: Cell, pipeline: Pipeline) -> None:
    """Refuse scorers that cannot read this model's images, before anything is made for them."""
    shape = pipeline.info()["image_shape"]
    for name, scorer in cell.scorers.items():
        if reason := scorer.unsupported(cell.evaluated, shape):
            raise InputError(f"scorer {name!r} cannot score images of model {cell.spec.model!r}: {reason}")


def _check_same_scorers(cell: Cell) -> None:
    """Refuse to go on with scorers that are not what they were when the cell was begun: other weights, another
    version, or another scorer behind a URL."""
    if not cell.path.exists() or (before := results.read(cell.path)).status not in ("partial", "failed"):
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


def _truncated(cell: Cell, progress: Progress) -> dict[str, int]:
    """How many prompts each scorer that reads so many words does not read to their end; said where there are any."""
    counts = {n: sum(s.truncated(cell.evaluated)) for n, s in cell.scorers.items() if isinstance(s, Truncates)}
    for name, cut in counts.items():
        if cut:
            progress.say(f"{name} reads {cut} of {len(cell.evaluated)} prompts cut off at its longest")
    return counts


def _align(algorithm: Algorithm, problem: CellProblem) -> tuple[Sampler, int | None]:
    """The sampler of the aligned model, and how many images a forward pass had if they were fewer than asked for.

    A run that diverges once goes on from its last good round; one whose forward passes do not fit into memory, with
    half as many images in each, which changes no gradient but for rounding.
    """
    kept = problem.folder / FORWARD_BATCH  # a run that is continued does not try the larger ones again
    batch: int | None = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None
    while True:
        fitting = algorithm if batch is None else dataclasses.replace(algorithm, batch=batch)  # type: ignore[type-var]
        try:
            return fitting.align(problem), batch
        except Diverged as error:
            if not problem.roll_back(error):
                raise
            continue
        except (RuntimeError, MemoryError) as error:
            if not memory.is_full(error):
                raise
            batch = getattr(fitting, "batch", 1) // 2
            if batch < 1:
                raise RunError(
                    "out of memory with one image in a forward pass; try --checkpointing, --dtype bfloat16, a smaller "
                    "--resolution, or --set tuning=lora where there is a choice."
                ) from error
        memory.release()  # outside of the handler, whose error holds what did not fit
        problem.start_again()
        write_text(kept, json.dumps(batch))
        problem.progress.say(f"out of memory: going on with {batch} images in a forward pass")


def _check_sampling(cell: Cell, sampler: Sampler) -> None:
    """Raises InputError where the sampler does not do what --steps, --guidance or --eta asked for."""
    described = sampler.describe()
    for name in ("steps", "guidance", "eta"):
        asked = getattr(cell.spec, name)
        if asked is not None and (used := described.get(name)) != asked:
            own = f"samples with {name}={used}" if used is not None else "makes no use of it"
            instead = f"--set {name}={asked}" if name in cell.configuration.fields else "another algorithm"
            raise InputError(f"--{name} {asked:g}: {cell.spec.algo} {own}; choose {instead}, or leave it out.")


def _problem(cell: Cell, pipeline: Pipeline, meter: Meter, batch: int, progress: Progress) -> CellProblem:
    name = cell.configuration.reward or "none"
    return CellProblem(
        pipeline=pipeline,
        reward=MeteredReward(name, cell.reward or _NoReward(), meter),
        prompts=cell.training,
        sampling=cell.sampling,
        key=Key("align", cell.spec.seed),
        meter=meter,
        folder=cell.folder,
        progress=progress,
        probe=_probe(cell, batch, Fitting(meter, progress.say)) if cell.held_out else None,
    )


def _add_pairs(cell: Cell, problem: CellProblem, batch: int) -> Made | None:
    """Give the problem its preference pairs and say what they are: of a file, or made now and kept for later."""
    made, chosen, wanted = None, cell.chosen, cell.configuration.pairs
    if wanted is None:
        return None
    if wanted["source"] == "exact":
        problem.pairs = optimality.pairs(cell, problem.pipeline)
        return None
    if chosen is None:
        made = _make_pairs(cell, problem, int(wanted["count"] or 0), int(wanted["candidates"] or 0), batch)
        chosen = choose(open_pairs(made.folder), cell.spec.pair_ties, None, ())
    say = problem.progress.say
    say(chosen.summary())
    cache = TensorCache(cache_folder() / "tensors.sqlite", say=say)
    problem.pairs = EncodedPairs(chosen, problem.pipeline, cache, cell.spec.pair_crop, Key("pairs", "crop"), say)
    return made


def _make_pairs(cell: Cell, problem: CellProblem, count: int, candidates: int, batch: int) -> Made:
    """Pairs of the base model on the training prompts, labelled by the reward: one set for all seeds."""
    reward, name = cell.reward, cell.configuration.reward
    assert reward is not None
    assert name is not None
    asked = [dict(problem.pipeline.info()), asdict(reward.info()), prompt_sets.digest(cell.training)]
    content = results.canonical([*asked, count, candidates, cell.sampling.as_dict()])
    folder = cache_folder() / "pairs" / hashlib.sha256(content.encode()).hexdigest()[:16]
    problem.progress.say(
        f"no --pairs: {count} pairs of {cell.model.name} on {cell.configuration.train_prompts}/train, "
        f"labelled by {name}, are made or found in {folder}"
    )
    before = problem.meter.total
    made = making.make_pairs(
        pipeline=problem.pipeline,
        reward=reward,
        reward_name=name,
        model_name=cell.model.name,
        prompts=cell.training,
        count=count,
        candidates=candidates,
        folder=folder,
        key=Key("pairs", 0),
        sampling=cell.sampling,
        batch=batch,
        meter=problem.meter,
        progress=problem.progress,
    )
    problem.meter.total = before  # what they cost stands in their folder, whoever made them
    return made


class _NoReward:
    """Stands where no reward was named; an algorithm that needs one is told so."""

    differentiable = False

    def __call__(self, images: Any, prompts: Any) -> Any:
        raise InputError("this algorithm optimises a reward; pass --reward NAME (see `alignbench list`).")

    with_grad = __call__

    def info(self) -> Any:
        return self(None, None)

    def unsupported(self, prompts: Any, image_shape: Any) -> str | None:
        return None


def _probe(cell: Cell, batch: int, fitting: Fitting) -> Any:
    """Mean held-out scores of a policy on the first prompts of the dev split, with the same noise each time."""
    prompts = Key("probe", "prompts").sample(cell.held_out, min(HELD_OUT_PROMPTS, len(cell.held_out)))
    usable = {name: s for name, s in cell.scorers.items() if s.unsupported(prompts, ()) is None}

    def probe(policy: Pipeline) -> Mapping[str, float]:
        sampler = PipelineSampler(policy, cell.sampling)

        def make(part: Sequence[Prompt]) -> torch.Tensor:
            return sampler(part, [Key("probe")(p.id) for p in part]).images

        images = torch.cat([image for part in chunked(prompts, batch) for image in fitting(make, part)])
        return {name: float(scorer(images, prompts).nanmean()) for name, scorer in usable.items()}

    return probe


@dataclass(frozen=True)
class _Draft:
    """What is known about a result before it is finished."""

    cell: Cell
    pipeline: Pipeline
    aligned: Mapping[str, str]  # what was done to the model before this run
    device: str
    attempts: int
    started: str

    def result(
        self,
        status: Status,
        reason: str | None,
        *,
        sampler: Sampler | None = None,
        rows: Sequence[Row] = (),
        metrics: Mapping[str, Metric] | None = None,
        curve: Sequence[dict[str, Any]] = (),
        costs: Costs | None = None,
        budget: Mapping[str, float] | None = None,
        truncated: Mapping[str, int] | None = None,
    ) -> Result:
        cell = self.cell
        return Result(
            schema=results.SCHEMA,
            status=status,
            reason=reason,
            trains=cell.algorithm.trains,
            configuration=cell.configuration,
            preset=cell.preset,
            differs_from_paper=cell.differs_from_paper,
            evaluation=Evaluation(
                model=dict(self.pipeline.info()),
                prompts=prompt_sets.label(cell.configuration.prompts),
                split=cell.configuration.split,
                prompts_sha256=cell.prompts_sha256,
                eval_seed=cell.spec.eval_seed,
                task=cell.configuration.task,
            ),
            sampler={**sampler.describe(), **self.aligned} if sampler else {},
            scorers={name: identity(scorer.info()) for name, scorer in cell.scorers.items()},
            prompts=[
                PromptRow(id=p.id, text=p.text, category=p.category, challenge=p.challenge) for p in cell.evaluated
            ],
            rows=list(rows),
            truncated=dict(truncated or {}),
            metrics=dict(metrics or {}),
            frontiers=optimality.frontiers(cell, self.pipeline) if metrics else {},
            curve=list(curve),
            budget=dict(budget) if budget else None,
            cost=costs,
            environment=environment(self.device),
            attempts=self.attempts,
            started=self.started,
            finished=datetime.now(UTC).isoformat(timespec="seconds") if status != "partial" else None,
        )


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, commit and hardware."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def _commit() -> str | None:
    """The commit of the repository alignbench is installed from, with -dirty; None for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
