"""Trajectories: importance ratios, batches, keys."""

from __future__ import annotations

import pytest
import torch

from alignbench import LoRA, Prompt, Sampling, Start
from alignbench.diffusion.episodes import Episode, joined
from alignbench.diffusion.rollout import PipelineSampler, path_divergence, rollout
from alignbench.errors import Unsupported
from alignbench.keys import Key

PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(16)]
KEYS = [Key("rollout", i) for i in range(16)]
NOISY = Sampling(steps=12, guidance=1.0, eta=1.0)
HALVES = (slice(0, 5), slice(5, 16))


@pytest.fixture
def policy(mixture):
    made = mixture.adapt(LoRA(), Key("adapter"))
    with torch.no_grad():
        made.parameters()[-2].add_(0.05 * Key("moved").normal(*made.parameters()[-2].shape))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_recomputed_densities_equal_the_stored_ones_exactly(policy, dtype, reduction):
    """The path is kept, and continued, in the precision its densities are computed for: the ratio is exactly 1."""
    path = rollout(policy, policy.condition(PROMPTS), KEYS, NOISY, reduction, dtype)
    for action in range(len(path.actions)):
        again = path.log_density(policy, action, reduction)
        assert torch.equal(again.detach(), path.log_prob[:, action])


def test_in_another_batch_the_log_ratio_is_zero_to_a_millionth(policy):
    path = rollout(policy, policy.condition(PROMPTS), KEYS, NOISY)
    for part in (slice(0, 3), slice(3, 16)):
        other = rollout(policy, policy.condition(PROMPTS[part]), KEYS[part], NOISY)
        assert (other.log_prob - path.log_prob[part]).abs().max() <= 1e-6


def test_mean_and_sum_differ_by_the_number_of_elements(policy):
    mean, total = (rollout(policy, policy.condition(PROMPTS), KEYS, NOISY, r) for r in ("mean", "sum"))
    torch.testing.assert_close(2 * mean.log_prob, total.log_prob)


def test_a_last_step_without_noise_is_no_action(mixture):
    from dataclasses import replace

    mixture.schedule = replace(mixture.schedule, steps_offset=0)
    path = rollout(mixture, mixture.condition(PROMPTS), KEYS, NOISY)
    assert path.actions == tuple(range(11))
    assert path.log_prob.shape == (16, 11)
    assert torch.isfinite(path.log_prob).all()


def test_without_noise_there_is_nothing_to_reinforce(mixture):
    with pytest.raises(Unsupported, match="eta = 0 makes every step deterministic"):
        rollout(mixture, mixture.condition(PROMPTS), KEYS, Sampling(5, 1.0, 0.0))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_batch_an_image_stands_in_does_not_change_it(policy, eta):
    sampler = PipelineSampler(policy, Sampling(10, 1.0, eta))
    whole = sampler(PROMPTS, KEYS).images
    for size in (1, 7):
        parts = [sampler(PROMPTS[i : i + size], KEYS[i : i + size]).images for i in range(0, 16, size)]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)


def test_a_stored_path_ends_where_the_sampler_ends(policy):
    path = rollout(policy, policy.condition(PROMPTS), KEYS, NOISY)
    torch.testing.assert_close(path.final, PipelineSampler(policy, NOISY)(PROMPTS, KEYS).latents, atol=1e-6, rtol=0)


def test_divergence_from_the_reference_is_zero_at_the_start_and_grows(mixture, policy):
    fresh = mixture.adapt(LoRA(), Key("adapter"))
    path = rollout(fresh, fresh.condition(PROMPTS), KEYS, NOISY)
    assert path_divergence(fresh, path).abs().max() == 0
    moved = rollout(policy, policy.condition(PROMPTS), KEYS, NOISY)
    assert (path_divergence(policy, moved) > 0).all()


def test_the_first_paths_of_a_trajectory_are_those_of_their_images(policy):
    path = rollout(policy, policy.condition(PROMPTS), KEYS, NOISY)
    part = path.rows(slice(3))
    assert torch.equal(part.final, path.final[:3])
    assert torch.equal(part.log_prob, path.log_prob[:3])
    torch.testing.assert_close(path_divergence(policy, part), path_divergence(policy, path)[:3], atol=1e-5, rtol=1e-5)


def test_the_x0_estimates_of_a_path_are_kept_where_they_are_asked_for(policy):
    path = rollout(policy, policy.condition(PROMPTS), KEYS, NOISY, keep_x0=True)
    plain = rollout(policy, policy.condition(PROMPTS), KEYS, NOISY)
    assert plain.x0 is None
    assert torch.equal(path.latents, plain.latents)
    assert path.x0.shape == (12, 16, 2)
    assert torch.equal(path.rows(slice(3)).x0, path.x0[:, :3])
    assert plain.rows(slice(3)).x0 is None
    for action in (0, 7, 11):
        with torch.no_grad():
            prediction = policy.predict(path.latents[action], int(path.steps[action].t), path.condition, 1.0)
        assert torch.equal(path.x0[action], prediction.x0)
    parts = [rollout(policy, policy.condition(PROMPTS[s]), KEYS[s], NOISY, keep_x0=True) for s in HALVES]
    torch.testing.assert_close(torch.cat([part.x0 for part in parts], 1), path.x0, atol=1e-5, rtol=1e-5)
    whole = joined([Episode(part, part.final[:, 0]) for part in parts]).path
    torch.testing.assert_close(whole.latents, path.latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.x0, path.x0, atol=1e-5, rtol=1e-5)


def test_parts_of_a_path_have_its_densities_and_add_up_to_its_divergence(policy):
    path = rollout(policy, policy.condition(PROMPTS), KEYS, NOISY, keep_x0=True)
    start, end = path.only(range(4)), path.only(range(4, 12))
    assert (start.actions, end.actions) == (path.actions[:4], path.actions[4:])
    assert torch.equal(end.log_prob, path.log_prob[:, 4:])
    assert torch.equal(end.log_density(policy, 1).detach(), path.log_prob[:, 5])
    assert torch.equal(end.x0, path.x0[4:])
    parts = path_divergence(policy, start) + path_divergence(policy, end)
    torch.testing.assert_close(parts, path_divergence(policy, path), atol=1e-5, rtol=1e-5)


def test_path_divergence_is_the_mean_log_ratio_of_paths(policy):
    """E_p[log p(path) − log q(path)] over many paths, within four standard errors."""
    keys = [Key("many", i) for i in range(4000)]
    condition = policy.condition(PROMPTS[:1] * 4000)
    path = rollout(policy, condition, keys, NOISY, "sum")
    reference = torch.stack([path.log_density(policy.reference, a, "sum") for a in range(len(path.actions))], 1)
    ratio = (path.log_prob - reference).sum(1)
    error = ratio.std() / 4000**0.5
    assert (ratio.mean() - path_divergence(policy, path).mean()).abs() < 4 * error


def test_image_to_image_keeps_more_of_the_source_at_lower_strength(mixture):
    source = torch.tensor([[4.0, 4.0]]).expand(16, 2)
    sampler = PipelineSampler(mixture, Sampling(20, 1.0, 0.0))
    distances = [(sampler(PROMPTS, KEYS, Start(source, s)).images - source).norm(dim=1).mean() for s in (0.1, 0.5, 1.0)]
    assert distances[0] < distances[1] < distances[2]
    assert distances[0] < 1


def test_guidance_one_runs_the_denoiser_once_and_others_twice(mixture):
    for guidance, evaluations in ((1.0, 16 * 5), (3.0, 2 * 16 * 5)):
        before = mixture.meter.total
        PipelineSampler(mixture, Sampling(5, guidance, 0.0))(PROMPTS, KEYS)
        spent = mixture.meter.total - before
        assert spent.denoiser_forward == evaluations
        assert spent.decode_forward == 16


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("guidance", -1.0), ("eta", 1.5)])
def test_impossible_sampling_is_refused(field, value):
    values = {"steps": 5, "guidance": 1.0, "eta": 0.0} | {field: value}
    with pytest.raises(ValueError, match=str(value)):
        Sampling(**values)


def test_the_means_of_actions_are_kept_where_they_are_asked_for(mixture):
    """They are what the transitions are made anew as, also of some images and some actions."""
    keys = [Key("mean", i) for i in range(4)]
    condition = mixture.condition([Prompt(f"p{i}", "point") for i in range(4)])
    path = rollout(mixture, condition, keys, Sampling(5, 1.0, 1.0), window=range(1, 4), keep_means=True)
    assert path.actions == (1, 2, 3)
    assert path.means.shape == (3, 4, 2)
    some = path.only(range(1, 3)).rows(slice(2, 4))
    assert torch.equal(some.means, path.means[1:3, 2:4])
    for action in range(3):
        torch.testing.assert_close(path.transition(mixture, action).mean, path.means[action])
    assert rollout(mixture, condition, keys, Sampling(5, 1.0, 1.0)).means is None
