"""What pictures are like, as a table, and how it is said that a method looks hacked."""

from __future__ import annotations

from alignbench.analysis.comparison import Group
from alignbench.analysis.formats import Table, number, p_value, signed
from alignbench.analysis.picture_shifts import DIVERSITY, OF_A_PICTURE, Hacked, Shift

NAMES = {name: name.replace("_", " ") for name in (*OF_A_PICTURE, *DIVERSITY)}


def pictures_table(group: Group) -> Table:
    """Every method's mean of each statistic, how far it moved from the baseline's in standard deviations of the
    baseline's prompts, and the statistics in which it leaves their range."""
    found = {(shift.method, shift.statistic): shift for shift in group.pictures}
    shown = [name for name in NAMES if any(statistic == name for _, statistic in found)]
    rows = [[str(group.baseline), *(cell for name in shown for cell in _of_baseline(group, name)), ""]]
    for method in dict.fromkeys(shift.method for shift in group.pictures):
        own = [found.get((method, name)) for name in shown]
        left = ", ".join(NAMES[shift.statistic] for shift in own if shift and shift.leaves)
        rows.append([method, *(cell for shift in own for cell in _cells(shift)), left])
    header = ["method", *(cell for name in shown for cell in (NAMES[name], "moved")), "out of range"]
    return Table(f"Pictures, without a scorer: against {group.baseline} (m = {group.pictures[0].family})", header, rows)


def _of_baseline(group: Group, name: str) -> list[str]:
    return [number(next(shift.baseline_mean for shift in group.pictures if shift.statistic == name)), "–"]


def _cells(shift: Shift | None) -> list[str]:
    return ["–", "–"] if shift is None else [number(shift.mean), signed(shift.distance)]


def how(item: Hacked) -> str:
    """What of its pictures moved the farthest, and how many other statistics are out of range."""
    first, *others = _ordered(item)
    more = f", {len(others)} more" if others else ""
    return f"{NAMES[first.statistic]} {first.distance:+.1f}{more}"


def _ordered(item: Hacked) -> list[Shift]:
    return sorted(item.shifts, key=lambda shift: -abs(shift.distance))


def sentence(item: Hacked, baseline: str | None) -> str:
    """Who looks hacked, and why, with numbers."""
    said = [
        f"{NAMES[s.statistic]} {number(s.mean)} instead of {number(s.baseline_mean)} ({s.distance:+.1f} standard "
        f"deviations of its prompts, p adj. {p_value(s.adjusted)})"
        for s in _ordered(item)
    ]
    run = ", in this run" if item.this_run else ""
    return (
        f"{item.method} gains on {item.reward}, its reward{run}, and its pictures leave {baseline}'s range: "
        f"{', '.join(said)}. Look at them."
    )


def picture_reading(group: Group, table: bool = False) -> list[str]:
    """Who looks hacked, and by which rule; with the table also how to read that."""
    lines = [f"Looks hacked: {sentence(item, group.baseline)}" for item in group.hacked]
    if group.pictures and (lines or table):
        lines.append(
            "A method looks hacked where its own reward is better than the baseline's (marked, or trained once and "
            "marked but for that) and a statistic of its pictures leaves the baseline's range: it moved by at least "
            "one standard deviation of the baseline's prompts, and p of that difference, tested as those of scores "
            "are, is below 0.05 after Holm over all methods and statistics. It may be the style that was asked for."
        )
    if group.pictures and table:
        lines.append(
            "Pictures: edge density is the share of neighbours that differ by more than a tenth, colour entropy in "
            "bits of 512 colours, saturation HSV's weighted by value, darkness one minus the mean luma, diversity the "
            "root mean square difference of a prompt's pictures, or of their latents. Moved: in standard deviations "
            "of the baseline's prompts."
        )
    return lines
