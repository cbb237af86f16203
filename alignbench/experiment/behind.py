"""Work that is done in a thread, behind the one that hands it over, where there is a core for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from alignbench.children import has_spare_core

T = TypeVar("T")
R = TypeVar("R")


class Behind(Generic[T, R]):
    """One piece after another, in order. Who hands over a piece waits for the one before, and is told its error; at the
    end all are done, also where the one that hands over fails. `results` are those of all pieces."""

    def __init__(self, work: Callable[[T], R]) -> None:
        self.results: list[R] = []
        self._work, self._last = work, list[Future[R]]()
        self._pool = ThreadPoolExecutor(1) if has_spare_core() else None

    def __enter__(self) -> Behind[T, R]:
        return self

    def __call__(self, piece: T) -> None:
        self._wait()
        if self._pool is None:
            self.results.append(self._work(piece))
        else:
            self._last.append(self._pool.submit(self._work, piece))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait()
        except Exception:
            if kind is None:  # else what went wrong first is what is raised
                raise
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def _wait(self) -> None:
        while self._last:
            self.results.append(self._last.pop().result())
