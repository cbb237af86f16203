"""The divergence that training curves show: what it is of, and what it costs."""

from __future__ import annotations

import pytest
import torch

from alignbench import (
    WATCHED_IMAGES,
    Batch,
    Key,
    LoRA,
    Prompt,
    Sampling,
    Trajectory,
    chunked,
    divergence,
    path_divergence,
    rollout,
    watched_divergence,
    watched_kl,
    watched_kl_of,
)
from alignbench.diffusion.watching import looked_at
from alignbench.processes import ALONE

KEY = Key("test", "watching")
SAMPLING = Sampling(steps=10, guidance=1.0, eta=1.0)


@pytest.fixture
def policy(mixture):
    moved = mixture.adapt(LoRA(2), KEY("adapter"))
    for parameter in moved.parameters():
        parameter.data += 0.05 * KEY("moved", *parameter.shape).normal(*parameter.shape)
    return moved


def drawn(policy, images: int) -> tuple[Trajectory, list[Key]]:
    keys = [KEY("path", i) for i in range(images)]
    return rollout(policy, policy.condition([Prompt("a", "b")] * images), keys, SAMPLING), keys


def evaluations(pipeline, work) -> int:
    before = pipeline.meter.total.denoiser_forward
    work()
    return pipeline.meter.total.denoiser_forward - before


def test_the_last_two_actions_are_looked_at_in_all_images_and_the_others_in_an_eighth_of_them():
    assert looked_at(0, 32, 12) == [(0, 0), (0, 8), (0, 10), (0, 11)]
    assert looked_at(13, 32, 12) == [(13, 5), (13, 10), (13, 11)]
    assert looked_at(1, 3, 10) == [(1, 1), (1, 4), (1, 7), (1, 8), (1, 9)]
    assert looked_at(0, 1, 3) == [(0, 0), (0, 1), (0, 2)]
    assert looked_at(5, 32, 1) == [(5, 0)]
    for images in (1, 2, 3, 8, 11, 32):
        actions = [action for image in range(images) for _, action in looked_at(image, images, 10)]
        *others, last, final = [actions.count(action) for action in range(10)]
        assert (last, final) == (images, images)
        assert set(others) <= {max(1, images // 8), images // 8 + 1}


@torch.no_grad()
def test_the_watched_divergence_is_the_sum_over_actions_of_the_means_over_the_images_looked_at(policy):
    path, keys = drawn(policy, 40)
    total = 0.0
    for action in range(len(path.actions)):
        step = divergence(*(path.transition(own, action) for own in (policy, policy.reference)))
        total += float((step[:WATCHED_IMAGES] if action >= 8 else step[:WATCHED_IMAGES][action::8]).mean())
    assert total > 0
    assert float(watched_kl(ALONE, policy, path, 5)) == pytest.approx(total, rel=1e-5)
    assert float(watched_kl(ALONE, policy, path, 5, keys)) == pytest.approx(total, rel=1e-3)
    assert float(watched_kl(ALONE, policy, path, 64, keys)) == pytest.approx(total, rel=1e-3)


def test_paths_that_stay_with_their_processes_have_the_divergence_of_the_same_paths_together(policy):
    path, keys = drawn(policy, 40)
    own = [Batch(part, path.rows(slice(part[0], part[-1] + 1))) for part in chunked(range(40), 7)]
    assert float(watched_kl_of(ALONE, policy, own, keys, 7)) == pytest.approx(
        float(watched_kl(ALONE, policy, path, 7, keys)), rel=1e-5
    )


def test_of_one_image_all_actions_are_watched(policy):
    path, keys = drawn(policy, 1)
    assert float(watched_kl(ALONE, policy, path, 3, keys)) == pytest.approx(
        float(path_divergence(policy, path)[0]), rel=1e-3
    )


def test_an_unchanged_policy_has_no_divergence_but_for_rounding(mixture):
    policy = mixture.adapt(LoRA(2), KEY("adapter"))
    path, keys = drawn(policy, 8)
    assert float(watched_kl(ALONE, policy, path, 8)) == 0
    assert 0 <= float(watched_kl(ALONE, policy, path, 8, keys)) < 1e-6


def test_paths_that_are_drawn_for_it_have_the_divergence_of_the_same_paths_stored(policy):
    path, keys = drawn(policy, 40)
    prompts = [Prompt("a", "b")] * 40
    for batch in (3, 64):
        found = watched_divergence(ALONE, policy, prompts, keys, SAMPLING, batch)["kl"]
        assert found == pytest.approx(float(watched_kl(ALONE, policy, path, 64, keys)), rel=1e-3)
    assert watched_divergence(ALONE, policy, prompts, keys, Sampling(10, 1.0, 0.0), 8) == {}


def test_watching_costs_one_evaluation_for_each_move_that_is_looked_at(policy):
    path, keys = drawn(policy, 40)
    moves = 2 * 32 + 8 * 4
    assert (WATCHED_IMAGES, len(path.actions)) == (32, 10)
    assert evaluations(policy, lambda: watched_kl(ALONE, policy, path, 8, keys)) == moves
    assert evaluations(policy, lambda: watched_kl(ALONE, policy, path, 8)) == 2 * moves
