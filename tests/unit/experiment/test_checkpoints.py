"""How often a run writes its checkpoint, by a clock that only the test moves."""

import contextlib

import pytest
import torch

from alignbench.experiment import problem as problems

ROUNDS, SECONDS = 12, 30.0  # of a run, and of one of its rounds


class Stopped(Exception):
    pass


@pytest.fixture
def run(monkeypatch, make_problem):
    """A function that counts through the rounds of a run whose checkpoints take so many seconds, from the last one on,
    and returns those after which one was written, and the count."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    def count(takes: float, stop_in: int | None = None, rounds: int = ROUNDS) -> tuple[list[int], float]:
        clock, written, real = Clock(), [], torch.save
        counter = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(counter.weight)

        def save(content, file) -> None:
            clock.now += takes
            written.append(content["done"])
            real(content, file)

        with monkeypatch.context() as patch, contextlib.suppress(Stopped):
            patch.setattr(problems, "time", clock)
            patch.setattr(torch, "save", save)
            for current in make_problem(lambda images, prompts: images[:, 0]).rounds(rounds, {"counter": counter}):
                if current.index == stop_in:
                    raise Stopped
                clock.now += SECONDS
                counter.weight.data += current.key.normal(1, 1)
        return written, float(counter.weight.detach())

    return count


def test_a_checkpoint_that_is_written_at_once_is_written_after_every_round(run):
    assert run(0.9)[0] == [*range(1, ROUNDS + 1)]


@pytest.mark.parametrize(("takes", "after"), [(1.5, [1, 2, 3]), (6.0, [1, 5, 9, 12]), (60.0, [1, 11, 12])])
def test_a_large_checkpoint_is_written_after_twenty_times_as_long_or_five_minutes_and_at_the_end(takes, after, run):
    """A round takes 30 seconds: 1.5 are a twentieth of it, 6 of four rounds, and 60 of forty."""
    rounds = 3 if takes == 1.5 else ROUNDS
    assert run(takes, rounds=rounds)[0] == after


def test_a_run_that_was_stopped_between_two_checkpoints_ends_as_if_it_had_not_been(run, tmp_path):
    assert run(6.0, stop_in=8)[0] == [1, 5]
    written, continued = run(6.0)
    assert written[0] == 6  # round 6 was the first that was repeated
    (tmp_path / problems.CHECKPOINT).unlink()
    assert run(0.0) == ([*range(1, ROUNDS + 1)], continued)
