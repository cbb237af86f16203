"""How processes hear of each other, with threads in their place."""

import queue
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed

from alignbench.errors import RunError
from alignbench.processes import Processes


@pytest.fixture
def posted(monkeypatch):
    """Messages between threads in place of a network: what was sent, as (from, to)."""
    own, boxes, sent = threading.local(), defaultdict(queue.Queue), []

    def isend(tensor, to):
        sent.append((own.rank, to))
        boxes[own.rank, to].put(tensor.clone())

    def recv(tensor, came_from):
        tensor.copy_(boxes[came_from, own.rank].get(timeout=10))

    monkeypatch.setattr(torch.distributed, "isend", isend)
    monkeypatch.setattr(torch.distributed, "recv", recv)

    def of_all(size, say):
        """What `say` returns on each of so many processes."""

        def one(rank):
            own.rank = rank
            return say(Processes(rank, size))

        with ThreadPoolExecutor(size) as pool:
            return [*pool.map(one, range(size))]

    of_all.sent = sent
    return of_all


@pytest.mark.parametrize(("size", "rounds"), [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (13, 4)])
def test_every_process_has_the_numbers_of_all_by_rank_after_the_logarithm_of_exchanges(size, rounds, posted):
    heard = posted(size, lambda own: (own.total([10**own.rank, 1]), own.agree(7 + own.rank)))
    assert heard == [([int("1" * size), size], 7)] * size
    assert len(posted.sent) == 2 * rounds * size  # of two votes
    assert all(to != rank for rank, to in posted.sent)


@pytest.mark.parametrize("failed", range(5))
def test_all_raise_what_one_of_them_met(failed, posted, monkeypatch):
    monkeypatch.setattr(
        torch.distributed, "broadcast_object_list", lambda words, src, device: words.__setitem__(0, "no")
    )

    def vote(own):
        error = RunError("no")
        try:
            if own.rank == failed:
                return str(own.common(error))
            return str(own.total([1]))
        except RunError as agreed:
            return str(agreed)

    said = "no" if failed == 0 else f"process {failed} of 5: no"
    assert posted(5, vote) == [said] * 5
