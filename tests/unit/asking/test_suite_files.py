"""What a suite file says of its cells, and which of them a shard or a pattern takes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignbench.asking.suite import Resources, matches, read_suite, shard_of, suite_cells
from alignbench.errors import InputError


def test_what_a_cell_needs_of_a_machine_is_no_option_and_spans_no_grid(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(
        "defaults: {gpus: 4}\ncells:\n  - {algo: base, gpus: 0}\n  - {algo: ddpo, seed: [1, 2], processes: 4}\n"
    )
    cells = suite_cells(path)
    assert [cell.resources for cell in cells] == [Resources(1, 0), Resources(4, 4), Resources(4, 4)]
    assert [cell.options.seed for cell in cells] == [0, 1, 2]
    assert [cell.options for cell in cells] == read_suite(path)


def test_a_cell_that_says_nothing_needs_a_gpu_only_where_there_is_one(tmp_path):
    (tmp_path / "suite.yaml").write_text("cells: [{algo: base}]\n")
    assert suite_cells(tmp_path / "suite.yaml")[0].resources == Resources(1, None)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("gpus: -1", "cell 1: gpus -1: expected a whole number of at least 0."),
        ("gpus: two", "cell 1: gpus 'two': expected a whole number of at least 0."),
        ("gpus: [1, 2]", "cell 1: gpus [1, 2]: expected a whole number of at least 0."),
        ("gpus: true", "cell 1: gpus True: expected a whole number of at least 0."),
        ("processes: 0", "cell 1: processes 0: expected a whole number of at least 1."),
        ("processes: 3, gpus: 2", "cell 1: gpus 2: each of 3 processes takes one, or none do."),
        ("processes: 1.5", "cell 1: processes 1.5: expected a whole number of at least 1."),
    ],
)
def test_needs_that_cannot_be_are_refused_with_their_place(tmp_path, key, message):
    path = tmp_path / "suite.yaml"
    path.write_text(f"cells: [{{algo: base, {key}}}]\n")
    with pytest.raises(InputError, match=re.escape(f"{path}, {message}")):
        suite_cells(path)


@given(st.lists(st.integers(), max_size=40), st.integers(1, 12))
def test_shards_are_all_items_once_and_differ_in_size_by_one_at_most(items, n):
    shards = [shard_of(items, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(item for shard in shards for item in shard) == sorted(items)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_shard_takes_every_nth():
    assert shard_of("abcdefg", "1/3") == ["a", "d", "g"]
    assert shard_of("abcdefg", "3/3") == ["c", "f"]
    assert shard_of("ab", "3/3") == []


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1/0", "2", "a/b", "1/2/3", "-1/2", "1 / 2", "", "½", "1/9999999"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(InputError, match=f"^--shard {re.escape(shard)}: expected i/n with i from 1 to n, such as 1/8"):
        shard_of("abc", shard)


def test_a_pattern_is_the_whole_of_a_name():
    assert matches("ddpo", "ddpo", "mixture-grid-ddpo-seed1")
    assert not matches("dpo", "ddpo", "diffusion_dpo")
    assert matches("*-seed1", "ddpo", "mixture-grid-ddpo-seed1")
    assert not matches("*-seed1", "mixture-grid-ddpo-seed11")
    assert matches("[bd]*", "base")
