"""Flow-GRPO: its ratio, KL and guard against the authors' formulas, its windows, and what it does not inherit."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch

from alignbench import (
    Asked,
    Batch,
    Episode,
    Key,
    LoRA,
    Prompt,
    Prompts,
    chunked,
    flow_scale,
    flow_sigma,
    joined,
    official_log_density,
    scale_of,
)
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.diffusion.flow_transition import flow_rate
from alignbench.diffusion.rollout import step_noise
from alignbench.interface import FullFineTune, Sampling
from alignbench.meter import Meter
from alignbench.testbed.pipeline import MixturePipeline
from alignbench.testbed.toys import grid

flow_grpo = importlib.import_module("alignbench.algorithms.flow_grpo")
KEY = Key("test", "flow_grpo")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(8)]
SMALL = {"samples_per_round": 8, "samples_per_prompt": 4, "updates_per_round": 2, "batch": 3, "steps": 6, "clip": 0.2}
NOISE = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8, "ddim": 1.0}


@pytest.fixture
def pipelines(mixture):
    return {"diffusion": mixture, "flow": MixturePipeline(grid().mixture, FlowSchedule(shift=3.0), Meter())}


def algorithm(**changes):
    return flow_grpo.FlowGRPO(**{**SMALL, **changes})


def moved(policy, scale=0.02, name="moved"):
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(scale * KEY(name, i).normal(*parameter.shape))
    return policy


def share():
    return Asked(PROMPTS, [KEY("sample", i) for i in range(8)])


class FirstCoordinate:
    differentiable = False

    def __call__(self, images, prompts):
        return images[:, 0]


def sampled(make_problem, pipeline, own, policy=None, parts=((0, 3, 5, 6, 7), (1, 2, 4)), window=None):
    """Paths of a policy that has moved already."""
    problem = make_problem(FirstCoordinate(), pipeline)
    policy = policy or moved(pipeline.adapt(LoRA(), KEY("adapter")))
    sampling = own.path_sampling(problem, own.kernel, own.eta)
    batches, rewards = own.sample(problem, policy, share(), parts, sampling, window)
    assert [i for batch in batches for i in batch.places] == list(range(8))
    path = joined([Episode(batch.path, torch.zeros(len(batch.places))) for batch in batches]).path
    return policy, path, rewards


def losses_of(own, policy, path, advantages, seen):
    """Of one update on all of these paths."""
    parts = chunked(range(len(advantages)), own.batch)
    batches = [Batch(part, path.rows(slice(part[0], part[-1] + 1))) for part in parts]
    return own.losses(policy, batches, advantages, len(advantages), seen)


def ratios(own, policy, path, n=8):
    seen = []
    list(losses_of(own, policy, path, torch.ones(n), seen))
    return torch.cat([each.log_ratio for each in seen])


@pytest.mark.parametrize("model", ["diffusion", "flow"])
@pytest.mark.parametrize("kernel", NOISE)
def test_the_ratio_is_1_at_the_first_update_to_the_last_bit(make_problem, pipelines, model, kernel):
    own = algorithm(kernel=kernel, eta=NOISE[kernel])
    policy, path, _ = sampled(make_problem, pipelines[model], own)
    assert (ratios(own, policy, path.rows(slice(0, 5)), 5) == 0).all()
    assert (ratios(own, moved(policy, name="again"), path) != 0).any()


@pytest.mark.parametrize("units", ["official", "nats"])
def test_a_guarded_or_windowed_ratio_is_1_as_well(make_problem, pipelines, units):
    own = algorithm(guard=units == "official", units=units, window=2)
    policy, path, _ = sampled(make_problem, pipelines["flow"], own, window=range(1, 3))
    assert path.actions == (1, 2)
    assert (ratios(own, policy, path) == 0).all()


def test_rewards_come_in_the_order_of_the_prompts(make_problem, pipelines):
    _, path, rewards = sampled(make_problem, pipelines["flow"], algorithm())
    order = [0, 3, 5, 6, 7, 1, 2, 4]
    assert torch.equal(rewards[order], path.final[:, 0])
    _, _, together = sampled(make_problem, pipelines["flow"], algorithm(batch=8), parts=[range(8)])
    torch.testing.assert_close(rewards, together)


@pytest.mark.parametrize("model", ["diffusion", "flow"])
@pytest.mark.parametrize("kernel", NOISE)
def test_the_ratio_is_the_difference_of_the_authors_log_probabilities(make_problem, pipelines, model, kernel):
    own = algorithm(kernel=kernel, eta=NOISE[kernel], beta=0.0)
    old, path, _ = sampled(make_problem, pipelines[model], own)
    new = moved(pipelines[model].adapt(LoRA(), KEY("adapter")), 0.03)
    for action in own.trained(path):
        i = path.actions[action]
        theirs = [
            official_log_density(path.latents[i + 1], path.transition(policy, action), path.steps[i], kernel)
            for policy in (new, old)
        ]
        found = own.measure(new, path, action).log_ratio
        torch.testing.assert_close(found, theirs[0] - theirs[1], atol=2e-6, rtol=1e-3)
        nats = replace(own, units="nats")
        true = nats.measure(new, replace(path, log_prob=path.log_prob * 2), action).log_ratio  # of two elements
        scale = 2 if kernel != "cps" else 1 / flow_grpo.deviation(path.steps[i], path.sampling) ** 2
        torch.testing.assert_close(true, scale * found, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kernel", ["flow_sde", "dance_sde", "cps"])
def test_the_official_kl_is_the_authors_and_lacks_the_length_of_the_step(make_problem, pipelines, kernel):
    """mean (μ − μ_ref)² / 2s² in a flow model's own coordinates, from the velocities alone."""
    own = algorithm(kernel=kernel, eta=NOISE[kernel], beta=1.0)
    policy, path, _ = sampled(make_problem, pipelines["flow"], own)
    for action in own.trained(path):
        i = path.actions[action]
        step, x = path.steps[i], path.latents[i]
        new, old = (p.predict(x, step.t.item(), path.condition).velocity for p in (policy, policy.reference))
        sigma, after, s = (
            float(value)
            for value in (flow_sigma(step.alpha_bar), flow_sigma(step.next_alpha_bar), flow_rate(step, kernel, own.eta))
        )
        if kernel == "cps":
            shift = -(1 - after) * sigma + math.sqrt(after**2 - s**2) * (1 - sigma)
        else:
            shift = (1 + s**2 * (1 - sigma) / (2 * sigma)) * (after - sigma)
        official = (shift * (new - old)).square().mean(1) / (2 * s**2)
        torch.testing.assert_close(own.measure(policy, path, action).kl, official, rtol=2e-3, atol=1e-9)
        length = 1 if kernel == "cps" else sigma - after
        true = replace(own, units="nats").measure(policy, path, action).kl
        torch.testing.assert_close(true * length / 2, official, rtol=2e-3, atol=1e-9)  # two elements


def test_on_sd3s_grid_the_official_kl_charges_from_4_to_27_percent():
    steps = FlowSchedule(shift=3.0, sigmas="scheduler").steps(10)
    shares = [flow_grpo.official_scales(steps[i], Sampling(10, 1.0, 0.7, "flow_sde"))[1] for i in range(9)]
    assert [shares[0], shares[8]] == pytest.approx([0.04, 0.27], abs=0.005)
    assert flow_grpo.official_scales(steps[3], Sampling(10, 1.0, 0.8, "cps"))[1] == 1
    assert flow_grpo.official_scales(steps[3], Sampling(10, 1.0, 1.0)) == (1, 1)


def test_the_true_kl_of_a_flow_sde_step_is_the_closed_form(make_problem, pipelines):
    """(1 + a²/2)² |dt| (1 − σ) / (2 a² σ) ‖Δv‖² in nats, where σ < 1."""
    own = algorithm(units="nats")
    policy, path, _ = sampled(make_problem, pipelines["flow"], own)
    a = own.eta
    for action in own.trained(path)[1:]:
        i = path.actions[action]
        step, x = path.steps[i], path.latents[i]
        new, old = (p.predict(x, step.t.item(), path.condition).velocity for p in (policy, policy.reference))
        sigma, dt = float(flow_sigma(step.alpha_bar)), flow_grpo.length(step)
        expected = (1 + a**2 / 2) ** 2 * dt * (1 - sigma) / (2 * a**2 * sigma) * (new - old).square().sum(1)
        torch.testing.assert_close(own.measure(policy, path, action).kl, expected, rtol=2e-3, atol=1e-8)


def test_the_guarded_ratio_is_linear_in_the_noise_and_has_mean_zero(make_problem, pipelines):
    """q (Δ log p + mean Δμ² / 2q²) = mean (z Δμ), with Δμ in the flow's own coordinates."""
    own = algorithm(guard=True, batch=8)
    old, path, _ = sampled(make_problem, pipelines["flow"], own, parts=[range(8)])
    new = moved(pipelines["flow"].adapt(LoRA(), KEY("adapter")), 0.04)
    for action in own.trained(path):
        i = path.actions[action]
        change = path.transition(new, action).mean - path.transition(old, action).mean
        noise = step_noise(share().keys, i, change)
        expected = (noise * change * float(flow_scale(path.steps[i].next_alpha_bar))).mean(1)
        torch.testing.assert_close(own.measure(new, path, action).log_ratio, expected, atol=2e-5, rtol=5e-3)


def test_the_guard_divides_the_policys_loss_by_the_length_of_the_step(make_problem, pipelines):
    own = algorithm(guard=True, beta=0.0, batch=8)
    policy, path, _ = sampled(make_problem, pipelines["flow"], own, parts=[range(8)])
    lengths = [flow_grpo.length(path.steps[path.actions[a]]) for a in own.trained(path)]
    found = [float(loss.detach()) for loss in losses_of(own, policy, path, torch.ones(8), [])]
    assert found == pytest.approx([-1 / length / len(lengths) for length in lengths], rel=1e-5)


def test_a_window_lies_in_the_first_half_and_every_place_is_met():
    own = algorithm(window=2)
    found = {(w.start, w.stop) for k in range(60) if (w := own.draw_window(10, KEY("window", k)))}
    assert found == {(0, 2), (1, 3), (2, 4), (3, 5)}
    assert algorithm().draw_window(10, KEY) is None


def test_outside_of_the_window_steps_are_eulers(make_problem, pipelines):
    own = algorithm(window=2, batch=8)
    policy, path, _ = sampled(make_problem, pipelines["flow"], own, parts=[range(8)], window=range(1, 3))
    assert own.trained(path) == [0, 1]
    sigma = FlowSchedule(shift=3.0).grid(6)
    scale = flow_scale(torch.cat([path.steps.alpha_bar, path.steps.next_alpha_bar[-1:]])).float()
    for i in (0, 3, 4, 5):
        velocity = policy.predict(path.latents[i], path.steps.t[i].item(), path.condition).velocity
        euler = path.latents[i] * scale[i] + (sigma[i + 1] - sigma[i]).float() * velocity
        torch.testing.assert_close(path.latents[i + 1] * scale[i + 1], euler.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "model", "skip", "expected"),
    [
        ("flow_sde", "flow", 1, [0, 1, 2, 3, 4]),
        ("flow_sde", "flow", 0, [0, 1, 2, 3, 4, 5]),
        ("cps", "flow", 1, [0, 1, 2, 3, 4]),  # its last step has no noise in any case
        ("cps", "flow", 0, [0, 1, 2, 3, 4]),
        ("flow_sde", "flow", 3, [0, 1, 2]),
    ],
)
def test_the_last_steps_are_left_out_by_their_place_in_the_path(make_problem, pipelines, kernel, model, skip, expected):
    own = algorithm(kernel=kernel, eta=NOISE[kernel], skip_last=skip)
    _, path, _ = sampled(make_problem, pipelines[model], own)
    assert own.trained(path) == expected


def gradient(policy, losses):
    for parameter in policy.parameters():
        parameter.grad = None
    for loss in losses:
        loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_at_the_old_policy_the_gradient_is_that_of_the_log_probability(make_problem, pipelines):
    own = algorithm(beta=0.0, batch=8)
    policy, path, _ = sampled(make_problem, pipelines["flow"], own, parts=[range(8)])
    advantages = KEY("advantages").normal(8)
    found = gradient(policy, losses_of(own, policy, path, advantages, []))
    actions = own.trained(path)
    reinforce = [-(advantages * path.log_density(policy, a)).sum() / (8 * len(actions)) for a in actions]
    torch.testing.assert_close(found, gradient(policy, reinforce), rtol=1e-4, atol=1e-7)


def test_images_without_advantage_keep_their_weight_and_their_kl(make_problem, pipelines):
    """Dropping them, as the authors' code does, would double the others' weight and lose half of the KL."""
    own = algorithm(batch=8, beta=0.5)
    policy, path, _ = sampled(make_problem, pipelines["flow"], own, parts=[range(8)])
    advantages = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0, 0.0, 0.0, 0.0])
    seen = []
    losses = [float(loss.detach()) for loss in losses_of(own, policy, path, advantages, seen)]
    kl = torch.stack([each.kl for each in seen]).mean()
    assert float(kl) > 0
    assert sum(losses) == pytest.approx(0.5 * float(kl), rel=1e-4, abs=1e-7)  # ρ = 1, and the advantages add up to 0
    policy_alone = replace(own, beta=0.0)
    few = gradient(policy, losses_of(policy_alone, policy, path.rows(slice(0, 4)), advantages[:4], []))
    torch.testing.assert_close(gradient(policy, losses_of(policy_alone, policy, path, advantages, [])), few / 2)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_batch_changes_no_gradient(make_problem, pipelines, batch):
    own = algorithm(batch=8)
    policy, path, _ = sampled(make_problem, pipelines["diffusion"], own, parts=[range(8)])
    advantages = KEY("advantages").normal(8)
    whole = gradient(policy, losses_of(own, policy, path, advantages, []))
    parts = gradient(policy, losses_of(replace(own, batch=batch), policy, path, advantages, []))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_without_a_price_the_reference_is_not_evaluated(make_problem, pipelines):
    spent = {}
    for beta in (0.0, 0.04):
        own = algorithm(beta=beta, batch=8)
        policy, path, _ = sampled(make_problem, pipelines["flow"], own, parts=[range(8)])
        before = policy.meter.total.denoiser_forward
        list(losses_of(own, policy, path, torch.ones(8), []))
        spent[beta] = policy.meter.total.denoiser_forward - before
    assert (spent[0.0], spent[0.04]) == (8 * 5, 2 * 8 * 5)


class Adapted(Exception):
    """Carries what a pipeline was asked for."""


class Adapting:
    def adapt(self, tuning, key):
        raise Adapted(tuning)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, LoRA(32, 64.0)), ({"rank": 4, "alpha": None}, LoRA(4)), ({"tuning": "full"}, FullFineTune())],
)
def test_the_lora_has_the_published_rank_and_scale(make_problem, fields, expected):
    problem = make_problem(FirstCoordinate())
    problem.pipeline = Adapting()
    with pytest.raises(Adapted) as found:
        flow_grpo.FlowGRPO(**fields).start(problem)
    assert found.value.args[0] == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"window": 4}, "window=4 exceeds what is trained of the first half of 6 steps."),
        ({"window": 3, "skip_last": 4}, "window=3 exceeds what is trained of the first half of 6 steps."),
        ({"window": 2, "skip_last": 4}, None),
        ({"skip_last": 6}, "skip_last=6 leaves none of a path's 6 steps to train; set it lower."),
        ({"kernel": "ddim", "eta": 1.0, "skip_last": 5}, None),
    ],
)
def test_what_leaves_no_step_to_train_is_refused(make_problem, pipelines, fields, reason):
    problem = make_problem(FirstCoordinate(), pipelines["flow"])
    assert "draws prompts to train on" in algorithm(**fields).unsupported(problem)
    problem.prompts = Prompts(PROMPTS)
    assert algorithm(**fields).unsupported(problem) == reason


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eta": 0.0}, "eta must be positive, got 0.0"),
        ({"kernel": "cps", "eta": 1.2}, r"eta of kernel 'cps' must lie in \[0, 1\], got 1.2"),
        ({"window": 0}, "window must be at least 1 or be left out, got 0"),
        ({"guard": True, "kernel": "cps"}, "guard is for flow_sde and dance_sde in official units, not cps"),
        ({"guard": True, "units": "nats"}, "not flow_sde in nats"),
        ({"samples_per_round": 1, "updates_per_round": 2}, "updates_per_round=2 cannot be cut from the 1 images"),
        ({"beta": -1.0}, "beta must not be negative"),
        ({"advantage_clip": 0.0}, "advantage_clip must be positive"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        algorithm(**fields)


def test_a_model_that_is_told_its_scale_is_told_it_where_others_go_without_guidance():
    evaluated = Sampling(6, 3.5)
    assert (scale_of(evaluated, True), scale_of(evaluated, False)) == (3.5, 1.0)
    assert scale_of(replace(evaluated, embedded_guidance=True), False) == 3.5
