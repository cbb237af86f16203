"""Recovery on the embedded model: after one fault a run ends with the very numbers of a run that never met it."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from on_tiny import pictures_with_pairs
from torch import Tensor

from alignbench import plugins
from alignbench.contracts.toys import Toy
from alignbench.experiment import problem as problems
from alignbench.experiment.align import FORWARD_BATCH, align
from alignbench.experiment.problem import ROLLBACK, CellProblem
from alignbench.interface import LoRA
from alignbench.keys import Key

TRAINING = [name for name in plugins.own_names("algorithms") if plugins.load("algorithms", name).trains]
TUNINGS = ("lora", "full", "bias")
DIVERGES = ("a loss that is no number", "a gradient that is no number", "a gradient that spikes")
FULL = ("memory full before a first backward pass", "memory full after a first backward pass")
SMALL = {"rounds": 2, "updates_per_round": 2, "batch": 2, "samples_per_round": 4, "samples_per_update": 2, "steps": 2}
SMALL |= {"pairs_per_update": 2, "moves_per_update": 2, "value_updates": 2, "passes": 1, "learning_rate": 1e-5}
SMALL |= {"margin": "none", "window": 1, "warmup": 0, "samples_per_prompt": 2, "first": 0, "skipped": 0, "levels": 2}
# Each algorithm with one tuning in turn, and one that keeps a second policy with all of them.
COVER = [(name, TUNINGS[i % len(TUNINGS)]) for i, name in enumerate(TRAINING) if name != "diffusion_nft"]
COVER += [("diffusion_nft", tuning) for tuning in TUNINGS]
QUICK = [("diffusion_dpo", "lora")]  # by default; the others take longer: slow
THOROUGH = [("diffusion_nft", "lora")]  # with every fault; each of the others meets one of a kind, in turn


class Faulty(CellProblem):
    """A problem with one fault, in the second update of its second round."""

    fault: str | None = None
    updates = 0

    def step(
        self, loss: Tensor | Iterable[Tensor], optimiser: torch.optim.Optimizer, max_norm: float | None = None
    ) -> float:
        self.updates += 1
        if self.fault is None or self._done == 0 or self.updates % 2:
            return super().step(loss, optimiser, max_norm)
        fault, self.fault = self.fault, None
        return super().step(faulty([loss] if isinstance(loss, Tensor) else loss, fault), optimiser, max_norm)


def faulty(losses: Iterable[Tensor], fault: str) -> Iterator[Tensor]:
    if fault == FULL[0]:
        raise torch.OutOfMemoryError("CUDA out of memory")
    for loss in losses:
        if fault == DIVERGES[0]:
            yield loss * math.nan
        elif fault in DIVERGES:
            size = math.nan if fault == DIVERGES[1] else 1e9
            loss.register_hook(lambda gradient, size=size: gradient * size)
            yield loss
        else:
            yield loss
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture(scope="module")
def toy() -> Toy:
    return pictures_with_pairs(steps=2)


@pytest.fixture(autouse=True)
def few_norms_are_enough_to_know_a_spike(monkeypatch):
    monkeypatch.setattr(problems, "USUAL", (1, 50))
    monkeypatch.setattr(problems, "SPIKE", 1e6)  # two rounds of tiny runs differ by much


def algorithm_of(name: str, tuning: str):
    kind = plugins.load("algorithms", name)
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{field: value for field, value in (SMALL | {"tuning": tuning}).items() if field in known})


@dataclasses.dataclass
class Ended:
    """What a run came to."""

    images: Tensor
    curve: list[dict[str, object]]
    said: list[str]


def run(toy: Toy, name: str, tuning: str, folder: Path, fault: str | None = None) -> Ended:
    problem = toy.problem(folder, kind=Faulty)
    assert isinstance(problem, Faulty)
    toy.meter.total = type(toy.meter.total)()
    problem.fault, said = fault, []
    problem.progress.say = said.append  # type: ignore[method-assign]
    sampler, _ = align(algorithm_of(name, tuning), problem)
    images = sampler(list(toy.prompts), [Key("image", i) for i in range(len(toy.prompts))]).images
    left_out = ("seconds", "rolled_back")  # a time, and words
    curve = [{k: v for k, v in line.items() if k not in left_out} for line in problem.curve()]
    assert any("rolled_back" in line for line in problem.curve()) is (folder / ROLLBACK).exists()
    return Ended(images, curve, said)


def of_case(faults: tuple[str, ...], name: str, tuning: str) -> tuple[str, ...]:
    """The faults that a case meets: they are met in `step`, which is the same for all; what is put back is not."""
    return faults if (name, tuning) in THOROUGH else (faults[COVER.index((name, tuning)) % len(faults)],)


CASES = [
    pytest.param(name, tuning, id=f"{name}-{tuning}", marks=[] if (name, tuning) in QUICK else [pytest.mark.slow])
    for name, tuning in COVER
]


def test_every_algorithm_that_trains_and_every_tuning_is_among_these():
    assert {name for name, _ in COVER} == set(TRAINING)
    assert all(sum(tuning == own for _, own in COVER) >= 4 for tuning in TUNINGS)
    assert set(QUICK) | set(THOROUGH) <= set(COVER)
    for faults in (DIVERGES, FULL):
        met = [fault for case in COVER for fault in of_case(faults, *case)]
        assert all(met.count(fault) >= 4 for fault in faults)


@pytest.mark.parametrize(("name", "tuning"), CASES)
def test_a_run_that_diverged_once_ends_as_one_whose_round_was_drawn_anew(name, tuning, toy, tmp_path):
    known = tmp_path / "known"  # a run that knows beforehand which round is to be drawn anew
    known.mkdir()
    (known / ROLLBACK).write_text(json.dumps({"round": 1, "reason": "known"}))
    expected = run(toy, name, tuning, known)
    for i, fault in enumerate(of_case(DIVERGES, name, tuning)):
        found = run(toy, name, tuning, tmp_path / str(i), fault)
        assert any("going back to the last checkpoint" in line for line in found.said), fault
        assert torch.equal(found.images, expected.images), fault
        assert found.curve == expected.curve, fault


@pytest.mark.parametrize(("name", "tuning"), CASES)
def test_a_run_whose_memory_was_full_once_ends_as_one_that_went_on_with_less(name, tuning, toy, tmp_path):
    class Stopped(Exception):
        pass

    class Stopping(Faulty):
        def step(self, *arguments, **options):
            if self._done == 1:
                raise Stopped
            return super().step(*arguments, **options)

    known = tmp_path / "known"
    with pytest.raises(Stopped):
        algorithm_of(name, tuning).align(toy.problem(known, kind=Stopping))
    (known / FORWARD_BATCH).write_text("1")
    expected = run(toy, name, tuning, known)
    for i, fault in enumerate(of_case(FULL, name, tuning)):
        found = run(toy, name, tuning, tmp_path / str(i), fault)
        assert any("going on with 1 images" in line for line in found.said), fault
        assert torch.equal(found.images, expected.images), fault
        assert found.curve[-1]["gradient_norm"] == expected.curve[-1]["gradient_norm"], fault


@pytest.mark.slow
def test_the_adapter_of_a_policy_that_is_no_more_is_deleted_and_others_stay(toy):
    pipeline = toy.pipeline
    kept = pipeline.adapt(LoRA(2), Key("kept"))
    for _ in range(3):
        lost = pipeline.adapt(LoRA(4, targets=("to_q",)), Key("lost"))
        del lost
        gc.collect()
    last = pipeline.adapt(LoRA(2), Key("last"))
    assert list(pipeline.components.adapters) == [kept.adapter, last.adapter]
    names = [name for name, _ in pipeline.components.denoiser.named_parameters() if "lora_" in name]
    assert {name.rsplit(".", 2)[1] for name in names} == {kept.adapter, last.adapter}
    prompts = list(toy.prompts)
    x, condition = Key("x").normal(4, *pipeline.latent_shape), pipeline.condition(prompts)
    with torch.no_grad():
        for parameter in kept.parameters():
            parameter.add_(0.1)
        plain = pipeline.predict(x, 500, condition).eps
        assert torch.equal(last.predict(x, 500, condition).eps, plain)
        assert not torch.equal(kept.predict(x, 500, condition).eps, plain)
