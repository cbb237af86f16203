"""Randomness depends on a key's path alone."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from alignbench.keys import Key, epochs, normal, resample_counts


def test_the_same_path_gives_the_same_draw_and_another_path_another():
    key = Key("align", 0)("round", 3)
    assert torch.equal(key.normal(4, 5), Key("align", 0, "round", 3).normal(4, 5))
    assert not torch.equal(key.normal(4, 5), Key("align", 0)("round", 4).normal(4, 5))


def test_a_draw_does_not_shift_the_draws_after_it():
    first, second = Key("a"), Key("b")
    alone = second.normal(3)
    first.normal(1000)
    assert torch.equal(second.normal(3), alone)


@pytest.mark.parametrize(("one", "other"), [(("ab",), ("a", "b")), ((1,), ("1",)), (("a", 1), ("a1",)), ((), ("",))])
def test_paths_that_read_alike_are_different_keys(one, other):
    assert Key(*one) != Key(*other)
    assert Key(*one).integer != Key(*other).integer


def test_draws_are_standard_normal_and_uniform():
    draws = Key("moments").normal(100_000).numpy()
    assert abs(draws.mean()) < 0.01
    assert abs(draws.std() - 1) < 0.01
    uniform = Key("moments").uniform(100_000).numpy()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.005


def test_draws_of_different_keys_are_uncorrelated():
    rows = normal([Key("row", i) for i in range(200)], (500,)).numpy()
    correlation = np.corrcoef(rows)[np.triu_indices(200, 1)]
    assert abs(correlation.mean()) < 0.001
    assert abs(correlation.std() - 500**-0.5) < 0.003


@pytest.mark.parametrize("shape", [(), (2,), (4, 8, 8)])
def test_a_row_of_a_batch_equals_the_row_alone(shape):
    keys = [Key("batch", i) for i in range(20)]
    drawn = normal(keys, shape)
    for key, row in zip(keys, drawn, strict=True):
        assert torch.equal(key.normal(*shape), row)
    assert torch.equal(normal(keys[7:9], shape), drawn[7:9])


def test_sample_repeats_nothing_while_items_last():
    drawn = Key("prompts").sample("abcdefgh", 8)
    assert sorted(drawn) == list("abcdefgh")
    assert sorted(Key("prompts").sample("abc", 6)) == list("aabbcc")
    with pytest.raises(ValueError, match="empty sequence"):
        Key("prompts").sample([], 1)


def test_an_order_of_epochs_goes_through_everything_pass_by_pass_and_may_be_entered_anywhere():
    key = Key("order")
    whole = epochs(key, 5, 0, 20)
    passes = [whole[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(part) == [0, 1, 2, 3, 4] for part in passes)
    assert len({tuple(part) for part in passes}) > 1
    for start in range(15):
        assert epochs(key, 5, start, 5) == whole[start : start + 5]
    assert epochs(key, 5, 3, 11) == epochs(key, 5, 3, 2) + epochs(key, 5, 5, 9)
    with pytest.raises(ValueError, match="no order of nothing"):
        epochs(key, 0, 0, 1)


def test_values_are_pinned_so_that_committed_results_stay_reproducible():
    assert Key("pinned", 1).integer == 1817153884017479489
    np.testing.assert_allclose(Key("pinned", 1).normal(3).numpy(), [-2.2686825, 0.25221828, -0.16198641], rtol=1e-6)


def test_a_key_below_a_key_is_the_key_of_the_whole_path_and_leaves_its_parent_as_it_was():
    parent = Key("a", 1)
    before = parent.integer
    assert parent("b", 2)("c") == Key("a", 1, "b", 2, "c")
    assert parent("b") != parent("c")
    assert parent.integer == before
    assert parent() == parent


def test_a_key_survives_copying_and_pickling():
    key = Key("a", 1)("b")
    for other in (pickle.loads(pickle.dumps(key)), copy.deepcopy(key)):
        assert (other, other.path, other("c")) == (key, key.path, key("c"))


def test_a_resample_draws_as_many_things_as_there_are_and_the_same_ones_from_one_key():
    counts = resample_counts(Key("counts").generator(), 5, 400)
    assert counts.shape == (400, 5)
    assert (counts.sum(1) == 5).all()
    assert (np.abs(counts.mean(0) - 1) < 0.2).all()
    assert (counts == resample_counts(Key("counts").generator(), 5, 400)).all()
    drawn = Key("counts").generator().integers(0, 5, size=(400, 5))
    assert counts[7].tolist() == [int((drawn[7] == i).sum()) for i in range(5)]
