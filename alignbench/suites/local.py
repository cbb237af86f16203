"""Cells on this machine: a GPU for each, or so many at once on the processor, with its threads divided."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from alignbench import children
from alignbench.errors import InputError
from alignbench.suites.child import GRACE, Child, Ended
from alignbench.suites.orders import Orders
from alignbench.suites.plan import Job


class Engine(Protocol):
    """What runs cells, and knows which machines there are."""

    def check(self, jobs: Sequence[Job]) -> None:
        """Raise InputError for a job that no machine can hold."""

    def describe(self) -> str:
        """Where cells are run, in a few words."""

    def fits(self, job: Job) -> bool:
        """Whether a job can be started now."""

    def start(self, job: Job, attempt: int) -> None:
        """Start a job that fits."""

    def is_running(self, job: Job) -> bool:
        """Whether a job that was started runs, and does not wait for a machine."""

    def ended(self) -> list[tuple[Job, Ended]]:
        """The jobs that have ended since this was asked last."""

    def stop(self) -> None:
        """End all jobs, and wait until no process is left."""


class Local:
    """This machine."""

    def __init__(self, orders: Orders, jobs: int | None = None) -> None:
        """With `jobs` cells at once; by default as many as there are GPUs, and one without."""
        self._orders = orders
        self._cards = children.cards()
        self._at_once = jobs or len(self._cards) or 1
        self._threads = max(1, children.cores() // self._at_once) if self._at_once > 1 else None
        self._running: list[tuple[Job, Child, tuple[str, ...]]] = []

    def describe(self) -> str:
        gpus = f"{len(self._cards)} GPUs" if len(self._cards) != 1 else "1 GPU"
        threads = f" with {self._threads} of {children.cores()} threads each" if self._threads else ""
        return f"on this machine ({gpus}), {self._at_once} at once{threads}"

    def check(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if (wanted := job.gpus(bool(self._cards))) > len(self._cards):
                raise InputError(f"{job.text} asks for {wanted} GPUs, and this machine has {len(self._cards)}.")

    def fits(self, job: Job) -> bool:
        if len(self._running) >= self._at_once or any(self._is_alone(other) for other, _, _ in self._running):
            return False
        if self._is_alone(job) and self._running:
            return False
        return job.gpus(bool(self._cards)) <= len(self._free())

    def start(self, job: Job, attempt: int) -> None:
        cards = tuple(self._free()[: job.gpus(bool(self._cards))])
        threads = None if self._is_alone(job) else self._threads
        order = self._orders.of(job, attempt, threads, cards if self._cards else None)
        self._running.append((job, Child(order), cards))

    def is_running(self, job: Job) -> bool:
        return True

    def ended(self) -> list[tuple[Job, Ended]]:
        found = [(job, ended) for job, child, _ in self._running if (ended := child.poll()) is not None]
        gone = {id(job) for job, _ in found}
        self._running = [entry for entry in self._running if id(entry[0]) not in gone]
        return found

    def stop(self) -> None:
        for _, child, _ in self._running:
            child.ask_to_end()
        until = time.monotonic() + GRACE
        try:
            for _, child, _ in self._running:
                child.end(until)
        finally:  # somebody has lost patience
            for _, child, _ in self._running:
                child.end(0.0)
            self._running = []

    def _is_alone(self, job: Job) -> bool:
        """Whether a job is timed on the processor, which it must have for itself; a GPU is a cell's own anyway."""
        return job.is_timed and not job.gpus(bool(self._cards))

    def _free(self) -> list[str]:
        taken = {card for _, _, cards in self._running for card in cards}
        return [card for card in self._cards if card not in taken]
