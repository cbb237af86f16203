"""Jobs as orders to a process, which may be on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alignbench import children
from alignbench.suites.child import Order
from alignbench.suites.plan import Job


@dataclass(frozen=True)
class Orders:
    """What all orders of a suite share: the folder that it was typed in, and where modules are looked for."""

    folder: Path
    safe_path: bool

    @classmethod
    def from_here(cls) -> Orders:
        return cls(Path.cwd(), children.has_safe_path())

    def of(self, job: Job, attempt: int, threads: int | None, cards: tuple[str, ...] | None) -> Order:
        """The order for a try at a job."""
        return Order(
            text=job.text,
            options=job.options.model_dump(mode="json", exclude_unset=True),
            folder=self.folder,
            log=self.folder / job.log,
            cell=self.folder / job.work.folder,
            safe_path=self.safe_path,
            attempt=attempt,
            threads=threads,
            cards=cards,
            processes=job.resources.processes,
        )
