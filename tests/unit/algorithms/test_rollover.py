"""Rollover: where a search stands after each candidate, by hand; what it costs; and that images do not share stops."""

from __future__ import annotations

import importlib

import pytest
import torch
from closed_form import Bowl, Constant

from alignbench import Key, Prediction, Prompt, Sampling, Start
from alignbench.diffusion.rollout import PipelineSampler

rollover = importlib.import_module("alignbench.algorithms.rollover")
Rollover, Search = rollover.Rollover, rollover.Search
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(6)]
KEYS = [Key("rollover", i) for i in range(6)]
SHORT = Sampling(6, 1.0, 1.0)


def tagged(*tags: float) -> Prediction:
    """One prediction an image, that can be told by its number."""
    rows = torch.tensor(tags)[:, None]
    return Prediction(rows, -rows, torch.tensor(tags, dtype=torch.float64), "epsilon")


def test_a_step_ends_when_it_is_better_or_has_spent_its_allowance_and_leaves_the_rest_to_the_next():
    """Two candidates a step, three searched steps, so six draws in all for each of two images. The draw is the tag."""
    search = Search.begun(tagged(0, 0), torch.tensor([1.0, 1.0]), 0, 2)
    expected = [  # of both images: rewards, r*, step, draws of it, allowance, current, kept
        ([2.0, 0.5], [2.0, 1.0], [1, 0], [0, 1], [3, 2], [1, 0], [1, 1]),  # the first is better: it leaves one
        ([1.5, 0.8], [2.0, 1.0], [1, 1], [1, 0], [3, 2], [1, 2], [2, 2]),  # the second has spent two: its best goes on
        ([1.9, 1.1], [2.0, 1.1], [1, 2], [2, 0], [3, 3], [1, 3], [3, 3]),
        (
            [1.2, 3.0],
            [2.0, 3.0],
            [2, 2],
            [0, 1],
            [2, 3],
            [3, 3],
            [3, 4],
        ),  # three are spent, the best was the third draw
        ([1.0, 2.0], [2.0, 3.0], [2, 2], [1, 2], [2, 3], [3, 3], [5, 4]),  # the last step goes on to the end
        ([1.7, 2.5], [2.0, 3.0], [2, 2], [2, 3], [2, 3], [3, 3], [6, 4]),
    ]
    for draw, (values, highest, place, drawn, allowance, current, kept) in enumerate(expected, 1):
        search = search.after(tagged(draw, draw), torch.tensor(values), 2, 2)
        torch.testing.assert_close(search.highest, torch.tensor(highest))
        assert (search.place.tolist(), search.drawn.tolist()) == (place, drawn)
        assert search.allowance.tolist() == allowance
        for prediction, tags in ((search.current, current), (search.kept, kept)):
            assert prediction.native.flatten().tolist() == tags
            assert prediction.latents.flatten().tolist() == [-tag for tag in tags]
            assert prediction.alpha_bar.tolist() == tags


def test_rewards_that_are_not_numbers_win_nothing_and_stop_nothing():
    search = Search.begun(tagged(0), torch.tensor([1.0]), 0, 2)
    search = search.after(tagged(1), torch.tensor([float("nan")]), 2, 5)
    assert (search.highest.tolist(), search.place.tolist()) == ([1.0], [0])
    search = search.after(tagged(2), torch.tensor([0.5]), 2, 5)
    assert (search.highest.tolist(), search.place.tolist()) == ([1.0], [1])


@pytest.mark.parametrize(("kernel", "eta"), [("ddim", 1.0), ("ddim", 0.4), ("flow_sde", 0.7)])
def test_one_candidate_is_plain_sampling_and_so_is_a_reward_that_prefers_nothing(kernel, eta, make_problem, mixture):
    """Of equals the first is kept, and its noise is plain sampling's."""
    plain = PipelineSampler(mixture, Sampling(6, 1.0, eta, kernel))(PROMPTS, KEYS).images
    for reward, fields in ((Bowl(), {"candidates": 1, "starts": 1}), (Constant(), {"candidates": 3, "starts": 2})):
        algorithm = Rollover(kernel=kernel, eta=eta, **fields)
        found = algorithm.align(make_problem(reward, sampling=SHORT))(PROMPTS, KEYS).images
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


def test_images_stop_at_different_steps_and_none_depends_on_the_others(make_problem, monkeypatch):
    places = []
    after = Search.after
    monkeypatch.setattr(Search, "after", lambda self, *rest: places.append(self.place.tolist()) or after(self, *rest))
    sampler = Rollover(candidates=4, starts=2).align(make_problem(Bowl(), sampling=SHORT))
    together = sampler(PROMPTS, KEYS).images
    assert any(len(set(row)) > 2 for row in places)
    for i in (0, 3):
        alone = sampler(PROMPTS[i : i + 1], KEYS[i : i + 1]).images
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=1e-5)
    assert sampler.particles == 1


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.1])
def test_every_image_costs_the_same_wherever_it_stops(strength, make_problem, mixture):
    """Three starts, and four candidates for each step but the last: of six steps, of three, and of one."""
    problem = make_problem(Bowl(), sampling=SHORT)
    algorithm = Rollover(candidates=4, starts=3)
    before = problem.meter.total
    algorithm.align(problem)(PROMPTS, KEYS, Start(torch.zeros(6, 2), strength))
    spent = problem.meter.total - before
    looks = 3 + 4 * (max(1, round(6 * strength)) - 1)
    assert (spent.denoiser_forward, spent.reward_forward, spent.decode_forward) == (
        6 * looks, 6 * looks, 6 * (looks + 1)
    )  # fmt: skip
    if strength == 1:
        assert algorithm.cost(problem).denoiser_forward == looks


def test_it_raises_the_reward_and_more_candidates_raise_it_further(make_problem, mixture):
    prompts, keys = [Prompt(str(i), "point") for i in range(32)], [Key("many", i) for i in range(32)]
    problem = make_problem(Bowl(), sampling=SHORT)
    rewards = [
        float(Bowl()(Rollover(candidates=n, starts=1).align(problem)(prompts, keys).images, prompts).mean())
        for n in (1, 2, 6)
    ]
    assert rewards[1] > rewards[0] + 2
    assert rewards[2] > rewards[1]


def test_the_best_of_several_starts_goes_on(make_problem, mixture):
    """With one step nothing is left to search, and the images are those of the best noise."""
    quiet = Sampling(1, 1.0, 1e-6)  # the last step's noise is the image's own, whichever start it had
    found = Rollover(candidates=5, starts=3, eta=1e-6).align(make_problem(Bowl(), sampling=quiet))(PROMPTS, KEYS).images
    plain = PipelineSampler(mixture, quiet)
    tried = [plain(PROMPTS, [key("start", j) if j else key for key in KEYS]).images for j in range(3)]
    rewards = torch.stack([Bowl()(images, PROMPTS) for images in tried])
    best = torch.stack([tried[j][i] for i, j in enumerate(rewards.argmax(0).tolist())])
    torch.testing.assert_close(found, best, atol=1e-5, rtol=1e-5)


def test_an_ode_has_nothing_to_choose_from(make_problem):
    ode = make_problem(Bowl(), sampling=Sampling(6, 1.0, 0.0))
    assert Rollover().unsupported(ode) is None  # its own noise is 1
    assert "with eta=0 a step is an ODE's" in str(Rollover(eta=None).unsupported(ode))
    assert Rollover(eta=None).unsupported(make_problem(Bowl(), sampling=SHORT)) is None
    exact = make_problem(Bowl(), sampling=Sampling(6, 1.0, 1.0, "exact"))
    assert "the exact kernel" in str(Rollover().unsupported(exact))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"starts": 0}, "starts must be at least 1, got 0"),
        ({"eta": 0.0}, r"eta must lie in \(0, 1\], got 0.0: without noise all candidates are alike"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Rollover(**fields)
