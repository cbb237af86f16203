"""The table of how time, memory and files grow, from what tests/timings/growth.py found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def growth_rows(content: dict[str, Any]) -> list[list[str]]:
    """What was done, on how much, what it needed, and how large its file is."""
    return [
        *(["a whole cell", f"{f['prompts']:,} prompts", _used(f), _size(f["result_bytes"])] for f in content["cells"]),
        *(row for found in content["results"] for row in _of_results(found)),
        *(row for found in content["pairs"] for row in _of_pairs(found)),
    ]


def _of_results(found: dict[str, Any]) -> Iterator[list[str]]:
    rows = f"{found['rows']:,} rows"
    yield ["writing a result", rows, _used(found["write"]), _size(found["bytes"]["all"])]
    yield ["reading it", rows, _used(found["read"]), ""]
    for count, used in found["compare"].items():
        yield [f"`compare` of {count}", f"{rows} each", _used(used), ""]
    yield ["`report` of 2", f"{rows} each", _used(found["report"]), _size(found["report_bytes"])]


def _of_pairs(found: dict[str, Any]) -> Iterator[list[str]]:
    pairs = f"{found['pairs']:,} pairs"
    yield ["opening a folder", pairs, _used(found["open"]), _size(found["bytes"])]
    yield ["choosing by prompts and models", pairs, _used(found["choose"]), ""]
    yield ["the digest of those", pairs, _used(found["digest"]), ""]


def _used(found: dict[str, float]) -> str:
    """A whole process has a peak; a part of one, what it added to that."""
    memory = f"{found['peak_mib']:,.0f} MiB" if "peak_mib" in found else f"+{found['added_mib']:,.0f} MiB"
    return f"{found['processor_seconds']:.1f} s, {memory}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
