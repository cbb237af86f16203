"""What methods that train share: their checks, their plan, how prompts and pairs are dealt out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from places import TOY

from alignbench import (
    Batch,
    Key,
    LoRA,
    PairTraining,
    PolicyGradient,
    Prompt,
    Prompts,
    Sampling,
    Training,
    Unsupported,
    ask,
    chunked,
    pairs_of,
    path_divergence,
    plugins,
    rollout,
    shuffled_parts,
    watched_kl,
    watched_kl_of,
    without_pairs,
    without_prompts,
)
from alignbench.processes import ALONE

KEY = Key("test", "training")
VALUES = {
    "rounds": 3, "updates_per_round": 4, "batch": 2, "learning_rate": 0.1, "weight_decay": 0.0, "max_norm": 1.0,
    "tuning": "lora", "rank": 2,
}  # fmt: skip


@pytest.fixture
def problem(make_problem):
    return make_problem(plugins.load("rewards", f"{TOY}:FirstCoordinate")())


@pytest.mark.parametrize("kind", [Training, PolicyGradient, PairTraining])
def test_a_base_has_no_values_that_papers_differ_in(kind):
    with pytest.raises(TypeError, match=r"missing .*required"):
        kind()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rounds", 0, "rounds must be at least 1, got 0"),
        ("updates_per_round", 0, "updates_per_round must be at least 1, got 0"),
        ("batch", 0, "batch must be at least 1, got 0"),
        ("rank", 0, "rank must be at least 1, got 0"),
        ("learning_rate", 0.0, "learning_rate must be positive, got 0.0"),
        ("max_norm", -1.0, "max_norm must be positive, got -1.0"),
        ("weight_decay", -0.1, "weight_decay must not be negative, got -0.1"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        Training(**VALUES | {field: value})


def test_a_path_without_noise_has_no_density():
    with pytest.raises(ValueError, match=r"eta must lie in \(0, 1\], got 0"):
        PolicyGradient(**VALUES, samples_per_round=4, eta=0.0)


def test_pairs_are_asked_for_in_numbers_that_make_sense():
    for field, value in (("pairs_per_update", 0), ("warmup", -1), ("caption_dropout", 1.0)):
        with pytest.raises(ValueError, match=f"{field} must .*got {value}"):
            PairTraining(batch=1, learning_rate=0.1, **{field: value})


def test_a_plan_counts_updates_and_what_each_is_made_of():
    plan = Training(**VALUES).plan("images", 10, passes=3)
    assert plan == {"images a round": 10, "updates a round": 12, "images an update": 2.5, "learning rate": 0.1}


def test_training_starts_at_the_model_with_the_optimiser_that_is_named(problem):
    policy, optimiser = Training(**VALUES).start(problem)
    assert isinstance(optimiser, torch.optim.AdamW)
    assert (optimiser.defaults["lr"], optimiser.defaults["weight_decay"]) == (0.1, 0.0)
    x, condition = KEY("x").normal(4, 2), policy.condition([Prompt("a", "b")] * 4)
    assert torch.equal(policy.predict(x, 500, condition).eps, problem.pipeline.predict(x, 500, condition).eps)
    _, other = Training(**VALUES).start(problem, "adafactor")
    assert type(other).__name__ == "Adafactor"


def test_a_paths_actions_are_its_steps_with_noise(problem):
    for steps, eta in ((None, 1.0), (5, 0.5)):
        method = PolicyGradient(**VALUES, samples_per_round=4, steps=steps, eta=eta)
        sampling = method.path_sampling(problem)
        assert sampling == replace(problem.sampling, steps=steps or problem.sampling.steps, eta=eta)
        path = rollout(problem.pipeline, problem.pipeline.condition([Prompt("a", "b")]), [KEY], sampling)
        assert method.actions(problem) == len(path.actions) > 0


def test_the_parts_of_a_pass_have_every_item_once():
    items = list("abcdefghij")
    parts = shuffled_parts(items, KEY("order"), 4)
    assert [len(part) for part in parts] == [2, 3, 2, 3]
    assert sorted(item for part in parts for item in part) == items
    assert [item for part in parts for item in part] == [items[i] for i in KEY("order").permutation(10)]
    assert shuffled_parts(items, KEY("order"), 1) != [items]


@pytest.mark.parametrize(("items", "count", "sizes"), [(21, 20, {1, 2}), (100, 80, {1, 2}), (16, 4, {4}), (3, 5, {1})])
def test_a_pass_has_the_updates_that_were_asked_for(items, count, sizes):
    """Where there are enough items: neither 11 of 2 for 21 in 20, nor 50 of 2 for 100 in 80."""
    parts = shuffled_parts(range(items), KEY("order"), count)
    assert len(parts) == min(items, count)
    assert {len(part) for part in parts} == sizes
    assert shuffled_parts([], KEY("order"), count) == []


def test_prompts_are_drawn_each_with_its_key(problem):
    problem.prompts = Prompts([Prompt(f"p{i}", f"point {i}") for i in range(5)])
    asked = ask(problem, KEY("round"), 8, 2)
    assert [p.id for p in asked.prompts[::2]] == [p.id for p in asked.prompts[1::2]]  # each twice in a row
    assert len({p.id for p in asked.prompts}) == 4
    assert asked.keys == [KEY("round", "sample", i) for i in range(8)]


class Numbers:
    """Ten pairs that nobody looks at."""

    def __len__(self):
        return 10

    def batch(self, indices):
        raise AssertionError("nothing is read here")


def test_updates_go_through_all_pairs_before_any_comes_again(problem):
    method = PairTraining(batch=1, learning_rate=0.1, pairs_per_update=4)
    pairs = Numbers()
    shown = [place for update in range(5) for place in method.order(problem, pairs, update)]
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10))
    assert shown[:10] != shown[10:]


def test_what_is_missing_is_said_with_the_option_that_brings_it(problem):
    assert without_prompts(problem, "DDPO") == (
        "DDPO draws prompts to train on, and none were named; pass --train-prompts."
    )
    with pytest.raises(Unsupported, match="SFT learns from preference pairs; pass --pairs, or --train-prompts and"):
        pairs_of(problem, "SFT")
    problem.prompts, problem.pairs = Prompts([Prompt("a", "b")]), Numbers()
    assert without_prompts(problem, "DDPO") is None
    assert without_pairs(problem, "SFT") is None
    assert pairs_of(problem, "SFT") is problem.pairs


def test_the_watched_divergence_is_the_mean_over_the_first_images(mixture):
    policy = mixture.adapt(LoRA(2), KEY("adapter"))
    for parameter in policy.parameters():
        parameter.data += 0.05 * KEY("moved", *parameter.shape).normal(*parameter.shape)
    keys = [KEY("path", i) for i in range(40)]
    path = rollout(policy, policy.condition([Prompt("a", "b")] * 40), keys, Sampling(steps=4, guidance=1.0, eta=1.0))
    assert float(watched_kl(ALONE, policy, path, 5)) == pytest.approx(
        float(path_divergence(policy, path)[:32].mean()), rel=1e-5
    )
    assert float(watched_kl(ALONE, policy, path, 64)) > 0
    own = [Batch(part, path.rows(slice(part[0], part[-1] + 1))) for part in chunked(range(40), 7)]
    assert float(watched_kl_of(ALONE, policy, own)) == pytest.approx(
        float(watched_kl(ALONE, policy, path, 7)), rel=1e-6
    )
