"""The start-up check, activation checkpointing that is seen to work, and the one step back of a run that diverges."""

from __future__ import annotations

import math

import pytest
import torch
from places import TOY

from alignbench import FullFineTune, Key, LoRA, Probe, Prompt, plugins
from alignbench.diffusion.checkpointing import Recomputation
from alignbench.diffusion.registry import Hold, load, named
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import Diverged, RunError
from alignbench.experiment import start_up
from alignbench.experiment.align import align
from alignbench.experiment.problem import ROLLBACK, CellProblem
from alignbench.interface import Prompts, Sampling
from alignbench.meter import Cost, Meter
from alignbench.progress import Progress

PROMPTS = [Prompt("a", "a red circle"), Prompt("b", "a blue square")]


def probe_of(policy, scale: float = 1.0, **identities) -> Probe:
    latents, t = Key("latents").normal(2, *policy.latent_shape), torch.tensor([300, 700])
    eps = policy.predict(latents, t, policy.condition(PROMPTS)).eps
    return Probe(scale * eps.square().mean(), identities)


@pytest.fixture
def policy(mixture):
    return mixture.adapt(LoRA(), Key("adapter"))


def test_a_sound_start_passes_and_leaves_no_gradient(policy):
    start_up.check(policy, probe_of(policy, loss=(torch.tensor([math.log(2)]), math.log(2))))
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize("value", [0.7, math.nan])
def test_an_identity_that_does_not_hold_is_named_with_both_numbers(policy, value):
    with pytest.raises(RunError, match=rf"the loss is {value:.6g} where policy and reference are equal.* be 0.693147"):
        start_up.check(policy, probe_of(policy, **{"the loss": (torch.tensor([0.693147, value]), math.log(2))}))


def test_a_loss_that_reaches_no_trained_weight_is_refused(policy):
    with pytest.raises(RunError, match=r"6 of 6 trained weights have no gradient, such as 0\.weight"):
        start_up.check(policy, probe_of(policy, scale=0.0))


def test_a_gradient_on_a_frozen_weight_is_named():
    policy = load(named()["tiny"], Meter()).adapt(LoRA(2), Key("adapter"))
    policy.denoiser.conv_out.bias.requires_grad_(True)
    with pytest.raises(RunError, match=r"the frozen weight conv_out\.bias receives a gradient"):
        start_up.check(policy, probe_of(policy))


def test_a_lora_part_that_the_loss_does_not_reach_is_named():
    policy = load(named()["tiny"], Meter()).adapt(LoRA(2), Key("adapter"))
    name, dead = next((n, p) for n, p in policy.denoiser.named_parameters() if "lora_B" in n)
    dead.register_hook(torch.zeros_like)
    with pytest.raises(RunError, match=rf"1 of \d+ trained weights have no gradient, such as {name}"):
        start_up.check(policy, probe_of(policy))


def test_a_gradient_that_is_not_finite_is_refused(policy):
    with pytest.raises(RunError, match=r"the gradient of .* is not finite"):
        start_up.check(policy, probe_of(policy, scale=math.inf))


@pytest.mark.parametrize("tuning", [LoRA(2), FullFineTune()])
def test_checkpointing_gives_the_same_gradients_with_the_reference_used_in_between(tuning):
    """The reference's forward pass switches the adapter off before the policy's activations are computed again."""
    found = []
    for checkpointing in (False, True):
        pipeline = load(named()["tiny"], Meter(), Hold(checkpointing=checkpointing))
        policy = pipeline.adapt(tuning, Key("adapter"))
        with torch.no_grad():
            for i, parameter in enumerate(policy.parameters()):
                parameter.add_(0.05 * Key("moved", i).normal(*parameter.shape))
        loss = probe_of(policy).loss
        with torch.no_grad():
            probe_of(policy.reference)
        before = pipeline.components.meter.total
        loss.backward()
        again = (pipeline.components.meter.total - before).denoiser_forward
        assert (again, policy.recomputations is not None) == ((2, True) if checkpointing else (0, False))
        found.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert policy.recomputations > 0
    torch.testing.assert_close(found[0], found[1], atol=1e-7, rtol=1e-4)


def test_checkpointing_that_computes_nothing_again_is_refused(policy):
    policy.recomputation = Recomputation()
    policy.network.requires_grad_(True)
    policy.recomputation = Idle()
    with pytest.raises(RunError, match="activation checkpointing was asked for, but nothing was computed again"):
        start_up.check(policy, probe_of(policy))


class Idle(Recomputation):
    def __call__(self, module, *inputs):
        return module(*inputs)


def test_checkpointing_keeps_fewer_activations():
    """Bytes that autograd saves for one forward pass of the embedded denoiser."""

    def saved(checkpointing: bool) -> int:
        policy = load(named()["tiny"], Meter(), Hold(checkpointing=checkpointing)).adapt(LoRA(2), Key("adapter"))
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            probe_of(policy)
        return total

    assert saved(True) < 0.6 * saved(False)


class Steps:
    """A stand-in algorithm: one weight, one step a round, a loss that the test chooses by round and attempt."""

    trains = True

    def __init__(self, loss):
        self.loss, self.keys, self.norms = loss, [], []

    def align(self, problem):
        weight = torch.nn.Parameter(torch.zeros(()))
        holder = torch.nn.ParameterList([weight])
        optimiser = torch.optim.SGD(holder.parameters(), lr=1.0)
        for current in problem.rounds(30, {"policy": holder, "optimiser": optimiser}):
            self.keys.append(current.key.path)
            problem.step(self.loss(current, weight), optimiser)
            current.log(weight=weight.detach())
        self.weight = float(weight)
        return PipelineSampler(problem.pipeline, problem.sampling)

    def unsupported(self, problem):
        return None


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self):
        super().__init__(quiet=True)
        self.said = []

    def say(self, text):
        self.said.append(text)


def problem_in(folder, mixture) -> CellProblem:
    folder.mkdir(exist_ok=True)
    return CellProblem(
        pipeline=mixture,
        reward=plugins.load("rewards", f"{TOY}:FirstCoordinate")(),
        prompts=Prompts(()),
        sampling=Sampling(4, 1.0),
        key=Key("align"),
        meter=mixture.meter,
        folder=folder,
        progress=Heard(),
    )


def spiking(at: dict[int, float], anew: float):
    """Slope 1 everywhere but in some rounds; in a round that is drawn anew, `anew`."""

    def loss(current, weight):
        return weight * (anew if "again" in current.key.path else at.get(current.index, 1.0))

    return loss


@pytest.mark.parametrize(("slope", "reason"), [(math.nan, "the loss is nan"), (150.0, "150 times what it used to be")])
def test_a_run_that_diverges_once_goes_back_a_round_and_draws_it_anew(slope, reason, mixture, tmp_path):
    problem = problem_in(tmp_path / "run", mixture)
    algorithm = Steps(spiking({25: slope}, 2.0))
    align(algorithm, problem)
    assert algorithm.weight == -(29 + 2)  # 29 rounds of slope 1, the one drawn anew of slope 2
    assert [k for k in algorithm.keys if "again" in k] == [("align", "round", 25, "again")]
    (line,) = [line for line in problem.curve() if "rolled_back" in line]
    assert line["round"] == 26
    assert reason in line["rolled_back"]
    assert reason in problem.progress.said[0]
    assert "going back to the last checkpoint, and drawing that round anew" in problem.progress.said[0]


def test_the_second_time_the_run_stops(mixture, tmp_path):
    problem = problem_in(tmp_path / "run", mixture)
    with pytest.raises(Diverged, match="the loss is nan"):
        align(Steps(spiking({5: math.nan}, math.nan)), problem)
    assert len(problem.curve()) == 5


def test_a_run_killed_after_it_went_back_ends_like_one_never_killed(mixture, tmp_path):
    whole = problem_in(tmp_path / "whole", mixture)
    align(Steps(spiking({3: math.nan}, 2.0)), whole)

    class Killed(Exception):
        pass

    def deadly(current, weight):
        if current.index == 7:
            raise Killed
        return spiking({3: math.nan}, 2.0)(current, weight)

    with pytest.raises(Killed):
        align(Steps(deadly), problem_in(tmp_path / "killed", mixture))
    again = problem_in(tmp_path / "killed", mixture)
    align(Steps(spiking({3: math.nan}, 2.0)), again)
    one, other = ([{k: v for k, v in line.items() if k != "seconds"} for line in p.curve()] for p in (whole, again))
    assert one == other
    assert one[-1]["weight"] == -31


def test_going_back_forgets_what_the_failed_round_cost(mixture, tmp_path):
    problem = problem_in(tmp_path / "run", mixture)
    failing = spiking({0: math.nan}, 1.0)

    def costly(current, weight):
        problem.meter.forward("denoiser", 7)
        return failing(current, weight)

    align(Steps(costly), problem)
    assert problem.meter.total == Cost(denoiser_forward=30 * 7)


def test_a_gradient_is_only_a_spike_against_twenty_others(mixture, tmp_path):
    """The first rounds of a run may differ by any factor; and norms are kept over a restart."""
    problem = problem_in(tmp_path / "run", mixture)
    align(Steps(spiking({3: 1e6}, 0.0)), problem)
    assert not (problem.folder / ROLLBACK).exists()
    saved = torch.load(problem.folder / "checkpoint.pt", weights_only=True)["norms"]
    assert saved == {"optimiser": [1.0] * 3 + [1e6] + [1.0] * 26}


def test_the_plan_of_a_run_is_printed_with_the_number_of_trained_weights(policy, mixture, tmp_path):
    problem = problem_in(tmp_path / "run", mixture)
    before = mixture.meter.total
    problem.check(policy, {"pairs an update": 2048, "learning rate": 2.05e-5}, lambda: probe_of(policy))
    assert problem.progress.said == [
        f"trains {sum(p.numel() for p in policy.parameters()):,} weights  pairs an update 2048  learning rate 2.05e-05"
    ]
    assert mixture.meter.total == before
