"""Shares of work, the votes' order of failures, and how the end of several processes is told."""

from __future__ import annotations

import signal

import pytest
import torch

from alignbench.devices import chunked
from alignbench.errors import CannotContinue, Diverged, InputError, RunError, Unsupported
from alignbench.launch import _ended
from alignbench.packed import digest_of, packed, unpacked
from alignbench.processes import (
    ALONE,
    KINDS,
    Processes,
    _common,
    _own_card,
    _status,
    _words,
)


def test_one_process_has_all_of_everything():
    items, value = [3, 1, 2], object()
    assert ALONE.shard(items) is items
    assert ALONE.gather(items) == items
    assert ALONE.told(value) is value
    assert ALONE.agree(7) == 7
    assert ALONE.total([1, 2]) == [1, 2]
    error = ValueError("mine")
    assert ALONE.common(error) is error


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_shares_are_all_of_the_items_once_and_differ_by_one_at_most(size, count):
    shares = [list(Processes(rank, size).shard(range(count))) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    # What `gather` does with them: part j of process r stands at place j · size + r.
    assert [own[j] for j in range(count) for own in shares if j < len(own)] == list(range(count))


def passes(size, count, batch):
    """The forward passes that each process makes of its share."""
    return [[list(part) for part in chunked(Processes(r, size).shard(range(count), batch), batch)] for r in range(size)]


@pytest.mark.parametrize(("size", "count", "batch"), [(2, 4, 2), (2, 9, 4), (3, 5, 2), (3, 22, 4), (5, 5, 1)])
def test_processes_share_the_forward_passes_of_one_wherever_each_has_one(size, count, batch):
    """Passes of the same items round alike. They come in order, and a process has one more than another at most."""
    (alone,) = passes(1, count, batch)
    shares = passes(size, count, batch)
    assert [own[j] for j in range(len(alone)) for own in shares if j < len(own)] == alone
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("size", "count", "batch"), [(2, 16, 16), (3, 4, 2), (8, 64, 16), (3, 2, 8), (2, 0, 4)])
def test_fewer_forward_passes_than_processes_are_cut_smaller_so_that_none_idles(size, count, batch):
    assert len(passes(1, count, batch)[0]) < size
    shares = passes(size, count, batch)
    assert [item for own in shares for part in own for item in part] == list(range(count))
    assert [len(own) for own in shares] == [1] * min(size, count) + [0] * max(0, size - count)
    sizes = [sum(map(len, own)) for own in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_a_digest_changes_with_any_bit_and_with_the_order_of_tensors(dtype):
    tensors = [torch.ones(3, 4, dtype=dtype), torch.zeros(5, dtype=dtype)]
    before = digest_of(tensors)
    assert digest_of([tensor.clone() for tensor in tensors]) == before
    assert digest_of(tensors[::-1]) != before
    tensors[0].view(torch.uint8).view(-1)[7] ^= 1
    assert digest_of(tensors) != before


def test_full_memory_outweighs_divergence_and_a_defect_outweighs_both():
    met = [Diverged("nan"), torch.OutOfMemoryError("CUDA out of memory"), Unsupported("no"), InputError("no")]
    met += [CannotContinue("torn"), KeyError("a defect")]
    assert [_status(error) for error in met] == [1, 2, 3, 4, 5, 6]
    assert _status(RunError("a full disk")) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_is_everybodys_is_of_the_same_kind_and_says_the_same(kind):
    error = kind("why")
    agreed = _common(kind)(_words(error) if issubclass(kind, Exception) and kind is not MemoryError else "why")
    assert isinstance(agreed, kind)
    assert str(agreed) == str(error)
    assert Processes(0, 2).common(agreed) is agreed  # nobody votes on it again


def test_what_processes_send_each_other_arrives():
    sent = [{"a": torch.arange(6.0).reshape(2, 3)}, (1, "two", None), Diverged("nan")]
    received = unpacked(packed(sent))
    assert torch.equal(received[0]["a"], sent[0]["a"])
    assert received[1] == sent[1]
    assert str(received[2]) == "nan"


@pytest.mark.parametrize(
    ("codes", "code", "line"),
    [
        ({0: 2, 1: 2}, 2, ""),  # each says the same, and the first one prints it
        ({1: -signal.SIGKILL, 0: -signal.SIGTERM}, 137, "alignbench: process 1 of 2 was ended by SIGKILL; "),
        ({0: -signal.SIGTERM}, 1, ""),
        ({1: 137, 0: -signal.SIGTERM}, 137, ""),  # it has said that the other one hangs
    ],
)
def test_the_end_of_several_processes_is_one_code_and_at_most_one_line(codes, code, line, capsys):
    assert _ended(codes, 2) == code
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert bool(said) == bool(line)


def test_each_process_takes_a_gpu_of_its_own_and_all_refuse_where_one_has_none(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert _own_card("cuda", 4) == 3
    monkeypatch.setenv("LOCAL_RANK", "0")  # which would have one
    with pytest.raises(InputError, match="4 processes on this machine need a GPU each, and it has 2"):
        _own_card("cuda", 2)
    with pytest.raises(InputError, match="--device cuda:1 names one GPU"):
        _own_card("cuda:1", 4)
