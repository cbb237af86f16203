"""A scorer server that runs while a test does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from alignbench.remote.server import ScorerServer


@contextlib.contextmanager
def running(made: ScorerServer) -> Iterator[str]:
    """The URL of our server while it runs in a thread."""
    thread = threading.Thread(target=made.serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.port}"
    finally:
        made.stop()
        thread.join()
