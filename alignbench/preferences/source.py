"""Preference pairs on disk, in one of three layouts: Pick-a-Pic's parquet files, HPDv2's JSON, a folder of our own.

Only the light columns (text, label, source models) are held in memory, of a folder of our own not even those. Images
are read when asked for, stay encoded, and come in the order the disk has them. Nothing in a file is trusted: paths stay
in their folder, and what is not as the layout says is an InputError naming the file and the row (from 0, as parquet
readers count), entry (from 0) or line (from 1).
"""

from __future__ import annotations

from pathlib import Path

from alignbench.errors import InputError
from alignbench.preferences.columns import PairSource
from alignbench.preferences.lines import FOLDER_FILE, LinePairs
from alignbench.preferences.parquet import ParquetPairs, check_splits, split_files
from alignbench.preferences.picture_files import read_hpd

LAYOUTS = (
    "Pick-a-Pic's .parquet file or a folder of them, HPDv2's train.json or test.json beside its images, "
    f"or a folder with {FOLDER_FILE}"
)


def open_pairs(path: Path) -> PairSource:
    """The pairs at a path. Raises InputError where there are none or the layout is not one of the three."""
    if path.name == FOLDER_FILE:
        path = path.parent
    files = sorted(path.glob("*.parquet")) if path.is_dir() else split_files(path)
    if not path.exists() and not files:
        raise InputError(
            f"there are no preference pairs at {path}. The copies of Pick-a-Pic on the hub are gone, so local files "
            f"are the road: {LAYOUTS}; `alignbench pairs` makes such a folder."
        )
    if (path / FOLDER_FILE).is_file():
        return LinePairs(path)
    if path.suffix == ".json":
        return read_hpd(path)
    if path.is_dir() and files:
        check_splits(path, files)
    if path.suffix == ".parquet" or files:
        return ParquetPairs(files or [path])
    raise InputError(f"{path} holds no preference pairs; expected {LAYOUTS}.")
