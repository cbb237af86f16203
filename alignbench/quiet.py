"""Keeping the model libraries' progress bars and advice off the terminal."""

from __future__ import annotations

import importlib
import logging
import warnings


def quieten(*libraries: str) -> None:
    """Silence libraries that are about to be used, by name; importing them takes seconds, so not before."""
    warnings.filterwarnings("ignore", "IProgress not found")  # notebooks: what draws bars is not asked to
    for library in libraries:
        logging = importlib.import_module(f"{library}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def quieten_drawing() -> None:
    """Keep to itself where matplotlib keeps its fonts, which it says at length where that is not at home."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
