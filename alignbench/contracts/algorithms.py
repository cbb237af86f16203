"""What every algorithm promises."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from alignbench import plugins
from alignbench.asking.presets import build_algorithm
from alignbench.asking.rewarded import NoReward
from alignbench.contracts.contract import Broken, Contract, NotAsked, require
from alignbench.contracts.toys import Toy
from alignbench.declared import SaysWhetherItIsRewarded
from alignbench.errors import RunError, Unsupported
from alignbench.experiment.problem import CellProblem
from alignbench.interface import Algorithm, PairAlgorithm, Policy, Sampler, Samples, TestTimeAlgorithm
from alignbench.keys import Key
from alignbench.meter import Cost
from alignbench.plugins import lacking

UNKEYED = "is something drawn without a key, as torch.randn does?"
BUDGETS = (8, 33, 400)  # denoiser evaluations an image
PLENTY = 4000
BATCHES = (1, 3, 8, 10_000)  # the last is all at once
SAME_WEIGHTS = 1e-5  # up to rounding


@dataclass(frozen=True)
class Aligned:
    """What one alignment left: the sampler, its images, what each cost, and how far the reference moved."""

    sampler: Sampler
    whole: Tensor
    alignment: Cost
    sampling: Cost
    reference_moved: float


class Subject:
    """An algorithm on a toy. It is aligned once for all contracts; where that fails, one of them says so."""

    def __init__(self, name: str, algorithm: Algorithm, toy: Toy, folder: Path) -> None:
        self.name, self.algorithm, self.toy, self.folder = name, algorithm, toy, folder
        self.keys = [Key("contract", prompt.id) for prompt in toy.prompts]
        self._failed = False

    def problem(self, name: str, prompts: bool = True) -> CellProblem:
        return self.toy.problem(self.folder / name, prompts)

    @functools.cached_property
    def aligned(self) -> Aligned:
        if self._failed:
            raise NotAsked("it needs the sampler and its images, see above")
        self._failed = True
        found = self._align()
        self._failed = False
        return found

    @property
    def images(self) -> Tensor:
        """What its sampler draws, where that has the right shape."""
        if tuple(self.aligned.whole.shape) != self.shape:
            raise NotAsked("it needs images of the right shape, see above")
        return self.aligned.whole

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image for each prompt."""
        pipeline = self.toy.pipeline
        return (len(self.keys), *pipeline.decode(pipeline.initial_noise(self.keys[:1])).shape[1:])

    def _align(self) -> Aligned:
        problem, meter = self.problem("run"), self.toy.meter
        if reason := self.algorithm.unsupported(problem):
            raise NotAsked(f"it does not run on this problem: {reason}")
        before, started = self.reference(), meter.total
        sampler = self.algorithm.align(problem)
        if absent := lacking(sampler, Sampler):
            raise Broken(f"align returned {_kind(sampler)}, which lacks {', '.join(absent)}; expected a Sampler")
        aligned, moved = meter.total, float((self.reference() - before).abs().max())
        spent = meter.total
        images = self.draw(sampler)
        return Aligned(sampler, images, aligned - started, meter.total - spent, moved)

    def reference(self) -> Tensor:
        """What the pipeline predicts for latents of its own; not counted."""
        pipeline, meter = self.toy.pipeline, self.toy.meter
        before, prompts = meter.total, list(self.toy.prompts[:8])
        latents = pipeline.initial_noise([Key("latents", i) for i in range(len(prompts))])
        with torch.no_grad():
            eps = pipeline.predict(latents, 500, pipeline.condition(prompts)).eps
        meter.total = before
        return eps

    def draw(self, sampler: Sampler, below: str | None = None, rows: slice = slice(None)) -> Tensor:
        """Images of some prompts, by their keys or by others below them."""
        keys = [key if below is None else key(below) for key in self.keys]
        drawn = sampler(list(self.toy.prompts)[rows], keys[rows])
        if not isinstance(drawn, Samples):
            raise Broken(f"its sampler returned {_kind(drawn)}; expected Samples(images, latents)")
        return drawn.images

    @functools.cached_property
    def base(self) -> Tensor:
        """What the model draws before it is aligned."""
        return self.draw(plugins.load("algorithms", "base")().align(self.problem("base")))


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def subject(name: str, kind: type[Any], toy: Toy, fields: dict[str, Any], folder: Path, preset: str) -> Subject:
    """An algorithm with the fields that are to be checked. Raises InputError where it cannot be built."""
    return Subject(name, build_algorithm(name, kind, preset, fields)[0], toy, folder)


def _is_a_dataclass(subject: Subject) -> None:
    algorithm = subject.algorithm
    if absent := lacking(algorithm, Algorithm):
        raise Broken(f"it lacks {', '.join(absent)}")
    require(type(algorithm).__dataclass_params__.frozen, "it is a dataclass that is not frozen")  # type: ignore[attr-defined]
    loose = [field.name for field in dataclasses.fields(algorithm) if not field.kw_only]  # type: ignore[arg-type]
    fields = {field.name for field in dataclasses.fields(algorithm)}  # type: ignore[arg-type]
    known = {*fields, *Algorithm.__annotations__, *PairAlgorithm.__annotations__, *type(algorithm).__annotations__}
    for name, value in vars(type(algorithm)).items():
        require(
            name.startswith("_") or name in known or not isinstance(value, int | float | str),
            f"{name} has no annotation, so it is no field and cannot be set; write {name}: {_kind(value)} = {value!r}",
        )
    require(not loose, f"these fields can be given by place: {', '.join(loose)}; declare it with kw_only=True")


def _survives_json(subject: Subject) -> None:
    algorithm = subject.algorithm
    values = json.loads(json.dumps(dataclasses.asdict(algorithm), allow_nan=False))  # type: ignore[call-overload]
    again = build_algorithm(subject.name, type(algorithm), "other", values)[0]
    require(again == algorithm, f"written to JSON and read again it is {again}, and was {algorithm}")


def _describes_itself(subject: Subject) -> None:
    sampler = subject.aligned.sampler
    json.dumps(dict(sampler.describe()), allow_nan=False)
    require(sampler.particles >= 1, f"its sampler holds {sampler.particles} images per prompt")


def _images_fit(subject: Subject) -> None:
    images, expected = subject.aligned.whole, subject.shape
    points = ", each a point of the plane here" if len(expected) == 2 else ""
    require(
        tuple(images.shape) == expected,
        f"{expected[0]} prompts gave images of shape {tuple(images.shape)}; expected {expected}: one for each "
        f"prompt{points}",
    )
    require(bool(torch.isfinite(images).all()), "some images are not finite")


def _same_key(subject: Subject) -> None:
    images = subject.images
    again = subject.draw(subject.aligned.sampler)
    require(torch.equal(again, images), f"two calls differ by {(again - images).abs().max():.2g}; {UNKEYED}")


def _own_key_alone(subject: Subject) -> None:
    images, some = subject.images, slice(2, min(7, len(subject.keys)))
    off = (subject.draw(subject.aligned.sampler, rows=some) - images[some]).abs().max()
    require(float(off) <= 1e-4, f"drawn in another batch, an image differs by {off:.2g}")


def _other_key(subject: Subject) -> None:
    images = subject.images
    other = subject.draw(subject.aligned.sampler, "other")
    require(not torch.allclose(other, images), "other keys give the same images")


def _reference_stays(subject: Subject) -> None:
    moved = subject.aligned.reference_moved
    require(moved == 0, f"after it was aligned the pipeline predicts other noise, by {moved:.2g}")


def _costs(subject: Subject) -> None:
    aligned, trains = subject.aligned, subject.algorithm.trains
    spent = aligned.alignment.denoiser_forward
    require((spent > 0) is trains, f"trains is {trains}, and its alignment used {spent} evaluations of the denoiser")
    used = aligned.sampling.denoiser_forward
    require(used >= len(subject.keys), f"its {len(subject.keys)} images used {used} evaluations of the denoiser")


def _improves(subject: Subject) -> None:
    if subject.name == "base":
        raise NotAsked("base aligns nothing")
    reward, prompts = subject.toy.reward, list(subject.toy.prompts)
    gain = (reward(subject.images, prompts) - reward(subject.base, prompts)).double()
    error = gain.std() / len(gain) ** 0.5
    require(
        bool(gain.mean() > 3 * error),
        f"its reward is {gain.mean():+.3g} above the plain model's, with a standard error of {error:.2g}",
    )


def _says_why_not(subject: Subject) -> None:
    reason = subject.algorithm.unsupported(subject.problem("without", prompts=False))
    if reason is None:
        require(not subject.algorithm.trains, "it trains, and finds nothing missing where there are no prompts")
    else:
        require(reason.endswith("."), f"what it says is no sentence: {reason!r}")


def _twice(subject: Subject) -> None:
    first = subject.images
    second = subject.draw(subject.algorithm.align(subject.problem("again")))
    off = (first - second).abs().max()
    require(torch.equal(first, second), f"images of two alignments differ by {off:.2g}; {UNKEYED}")


class _Stopped(Exception):
    pass


def _resumes(subject: Subject) -> None:
    if not subject.algorithm.trains:
        raise NotAsked("it trains nothing")
    whole = subject.images
    try:
        subject.algorithm.align(subject.toy.problem(subject.folder / "killed", kind=_Stopping))
    except _Stopped:
        pass
    else:
        raise NotAsked("it has one round")
    again = subject.draw(subject.algorithm.align(subject.problem("killed")))
    require(torch.equal(whole, again), f"images differ by {(whole - again).abs().max():.2g} from those of one go")


class _Stopping(CellProblem):
    """A problem whose second round never comes."""

    def rounds(self, n: int, state: Any) -> Any:
        for current in super().rounds(n, state):
            if current.index == 1:
                raise _Stopped
            yield current


class _Watched(CellProblem):
    """A problem that counts optimiser steps and keeps what is trained."""

    steps = 0
    state: Mapping[str, Any] = MappingProxyType({})

    def rounds(self, n: int, state: Mapping[str, Any]) -> Any:
        self.state = state
        return super().rounds(n, state)

    def step(self, loss: Any, optimiser: torch.optim.Optimizer, max_norm: float | None = None) -> float:
        self.steps += 1
        return super().step(loss, optimiser, max_norm)


def _batch_is_memory(subject: Subject) -> None:
    """`batch` says how much stands in memory at once: neither how many updates there are nor what they are made of."""
    algorithm = subject.algorithm
    if not algorithm.trains:
        raise NotAsked("it trains nothing")
    fields = {field.name for field in dataclasses.fields(algorithm)}  # type: ignore[arg-type]
    if "batch" not in fields:
        raise NotAsked("it has no field `batch`, so memory that is full ends its runs")
    if reason := algorithm.unsupported(subject.problem("memory")):
        raise NotAsked(f"it does not run on this problem: {reason}")
    few = {name: min(2, getattr(algorithm, name)) for name in ("rounds", "updates_per_round") if name in fields}
    found = {batch: _trained(subject, dataclasses.replace(algorithm, batch=batch, **few)) for batch in BATCHES}  # type: ignore[type-var]
    for batch, (steps, weights, cost) in found.items():
        expected = found[BATCHES[-1]]
        require(
            steps == expected[0],
            f"batch={batch} makes {steps} optimiser steps, and batch={BATCHES[-1]} makes {expected[0]}",
        )
        off = float((weights - expected[1]).abs().max())
        require(off <= SAME_WEIGHTS, f"with batch={batch} and batch={BATCHES[-1]} trained weights differ by {off:.2g}")
        require(cost == expected[2], f"batch={batch} costs {cost}, and batch={BATCHES[-1]} {expected[2]}")


def _trained(subject: Subject, algorithm: Algorithm) -> tuple[int, Tensor, Cost]:
    """Optimiser steps, the trained weights and what they cost."""
    before = subject.toy.meter.total
    with tempfile.TemporaryDirectory(dir=subject.folder) as folder:
        problem = subject.toy.problem(Path(folder), kind=_Watched)
        assert isinstance(problem, _Watched)
        algorithm.align(problem)
    policy = problem.state.get("policy")
    if not isinstance(policy, Policy):
        raise NotAsked("what it trains is not the item 'policy' of its state")
    weights = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
    return problem.steps, weights.clone(), subject.toy.meter.total - before


def _keeps_its_budget(subject: Subject) -> None:
    algorithm = subject.algorithm
    if not isinstance(algorithm, TestTimeAlgorithm):
        raise NotAsked("it has no for_budget")
    for nfe in BUDGETS:
        budget = {"nfe": float(nfe)}
        try:
            chosen = algorithm.for_budget(budget, subject.problem("budget"))
        except Unsupported as error:
            require(str(error).endswith("."), f"what it says of nfe={nfe} is no sentence: {error}")
            continue
        require(chosen == algorithm.for_budget(budget, subject.problem("budget")), f"nfe={nfe}: two choices differ")
        sampler, before = chosen.align(subject.problem("budget")), subject.toy.meter.total
        subject.draw(sampler, rows=slice(4))
        spent = (subject.toy.meter.total - before).denoiser_forward / len(subject.keys[:4])
        require(spent <= nfe, f"nfe={nfe}: it spent {spent:g} an image")
    try:
        algorithm.for_budget({"nfe": float(PLENTY)}, subject.problem("budget"))
    except Unsupported as error:
        raise Broken(f"it refuses nfe={PLENTY}, which is plenty: {error}") from None


def _reads_no_reward(subject: Subject) -> None:
    algorithm = subject.algorithm
    if not isinstance(algorithm, SaysWhetherItIsRewarded) or algorithm.reads_reward:
        raise NotAsked("it asks for a reward")
    problem = subject.problem("unrewarded")
    problem.reward = NoReward()
    try:
        subject.draw(algorithm.align(problem), rows=slice(2))
    except RunError as error:
        raise Broken(f"it says reads_reward=False, and then: {error}") from None


CONTRACTS = (
    Contract("it is a frozen dataclass with keyword fields, and has all that an algorithm needs", _is_a_dataclass),
    Contract("its fields survive JSON", _survives_json),
    Contract("what it cannot do is a sentence and not a crash", _says_why_not),
    Contract("it gives a sampler that describes itself", _describes_itself),
    Contract("its images are finite and of the model's shape", _images_fit),
    Contract("the same keys give the same images", _same_key),
    Contract("an image depends on its own key and not on its batch", _own_key_alone),
    Contract("other keys give other images", _other_key),
    Contract("the pipeline that it was given is as it was", _reference_stays),
    Contract("training is paid for in alignment, test-time work per image", _costs),
    Contract("it improves the reward that it is given", _improves),
    Contract("aligning twice gives the same images", _twice),
    Contract("stopped after a round and continued, it ends as in one go", _resumes),
    Contract("`batch` is memory: it changes neither the updates nor the weights they lead to", _batch_is_memory),
    Contract("it spends at most its budget, or says what it takes", _keeps_its_budget),
    Contract("where it says that it reads no reward, it reads none", _reads_no_reward),
)
