"""The parity table of algorithms/README.md: our code beside official code, measured when the table is made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from official.compare import UNDONE, Entry, entries

STORED = 1e-11  # the golden numbers have twelve digits: what is nearer cannot be told


def rows() -> list[list[str]]:
    """A row per quantity of an algorithm; one that departs from official code stands alone."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries():
        own = entry.name if entry.departs else "/".join(entry.name.split("/")[:2])
        groups.setdefault((entry.algorithm, own, entry.content["run"]), []).append(entry)
    return [_row(name, group) for (_, name, _), group in sorted(groups.items(), key=lambda item: item[0][:2])]


def _row(name: str, group: Sequence[Entry]) -> list[str]:
    first, *quantity = name.split("/")
    algorithm = group[0].algorithm
    shown = " ".join([*([] if first == algorithm else [first]), *quantity]).replace("_", " ")
    apart, verdict = _shown(max(entry.difference() for entry in group)), "equal"
    if group[0].departs:
        apart += f", {_shown(group[0].difference(UNDONE[name]))} without the departure"
        verdict = f"departs: {group[0].content['remark']}"
    by_hand = " (copied by hand)" if group[0].content["run"] == "transcribed" else ""
    links = ", ".join(dict.fromkeys(_link(source) for entry in group for source in entry.content["source"]))
    return [f"`{algorithm}`", shown, f"{links}{by_hand}", str(len(group)), apart, verdict]


def _shown(difference: float) -> str:
    return "< 1e-11" if difference < STORED else f"{difference:.0e}"


def _link(source: Mapping[str, Any]) -> str:
    commit = re.sub(r"^(?=\d+\.\d+\.\d+$)", "v", source["commit"])
    file = source["file"]
    return f"[{file.rpartition('/')[2]}](https://github.com/{source['repo']}/blob/{commit}/{file})"
