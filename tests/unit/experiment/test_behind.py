"""Work that is done in a thread behind the one that hands it over."""

from __future__ import annotations

import threading

import pytest

from alignbench.experiment import behind
from alignbench.experiment.behind import Behind


@pytest.fixture(autouse=True, params=[True, False], ids=["a spare core", "none"])
def spare(request, monkeypatch):
    """Whether there is a core for the thread."""
    monkeypatch.setattr(behind, "has_spare_core", lambda: request.param)
    return request.param


def handed(work, pieces, ends=None):
    """Hand over pieces, perhaps with an error of one's own at the end."""
    with Behind(work) as later:
        for piece in pieces:
            later(piece)
        if ends is not None:
            raise ends


def full(_):
    raise OSError("disk full")


def test_pieces_are_done_in_order_by_another_thread_where_a_core_is_left_for_it(spare):
    threads = []

    def work(piece):
        threads.append(threading.current_thread())
        return 2 * piece

    with Behind(work) as later:
        for piece in range(4):
            later(piece)
    assert later.results == [0, 2, 4, 6]
    assert (threading.main_thread() not in threads) is spare


def test_the_next_piece_is_made_while_one_is_worked_on(monkeypatch):
    monkeypatch.setattr(behind, "has_spare_core", lambda: True)
    begun, made = threading.Event(), threading.Event()

    def work(_):
        begun.set()
        assert made.wait(5)

    with Behind(work) as later:
        later("first")
        assert begun.wait(5)
        made.set()


def test_an_error_reaches_who_hands_over_the_next_piece_and_nothing_is_done_after_it():
    done = []

    def work(piece):
        if piece == 1:
            raise OSError("disk full")
        done.append(piece)

    with pytest.raises(OSError, match="disk full"):
        handed(work, range(4))
    assert done == [0]


def test_the_error_of_the_last_piece_is_raised_at_the_end():
    with pytest.raises(OSError, match="disk full"):
        handed(full, ["only"])


def test_what_was_handed_over_is_done_where_the_one_that_hands_over_fails():
    done = []
    with pytest.raises(KeyboardInterrupt):
        handed(done.append, ["first"], KeyboardInterrupt())
    assert done == ["first"]


def test_of_two_errors_the_first_is_raised(spare):
    """Where nothing is done behind, the first is that of the work."""
    with pytest.raises(ValueError if spare else OSError, match="drawing" if spare else "disk full"):
        handed(full, ["first"], ValueError("drawing"))
