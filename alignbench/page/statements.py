"""What a comparison says, one labelled statement after the other. Every one is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignbench.analysis.comparison import Group, Versus
from alignbench.analysis.formats import number, percent
from alignbench.analysis.verdict import left_range, listed, lost_elsewhere

NAMED = 4  # methods that a statement names; the others are counted


@dataclass(frozen=True)
class Statement:
    """A line of the verdict: what it is about, and what is said."""

    about: str
    lines: list[str]
    detail: str = ""  # of what it is about
    alarming: bool = False


def statements(group: Group, aims: Mapping[str, str | None]) -> list[Statement]:
    """The verdict on one evaluation. `aims` says which scorer each method optimised."""
    if not group.versus:
        why = [note for note in group.notes if "baseline" in note or "no win rates" in note]
        return [
            Statement("No verdict", why or ["There is nothing beside the baseline that it could be compared with."])
        ]
    found = []
    for scorer in group.scorers:
        if items := [item for item in group.versus if item.scorer == scorer]:
            aimed = sum(aims.get(item.method) == scorer for item in items)
            detail = f"the reward of {aimed} of {len(items)}" if aimed else "nobody's reward"
            found.append(Statement(scorer, _of_scorer(items, str(group.baseline)), detail))
    found.append(_hacked(group, aims))
    if alone := sorted({item.method for item in group.versus if item.this_run}):
        lines = [f"{_some(alone)}: trained with one seed, so nothing is decided, whatever that run won."]
        found.append(Statement("Trained once", lines))
    if costs := _costs(group):
        found.append(Statement("Cost", [costs]))
    return found


def _of_scorer(items: Sequence[Versus], baseline: str) -> list[str]:
    better = sorted((item for item in items if item.wins), key=lambda item: -item.rate.rate)
    worse = sorted((item for item in items if item.loses), key=lambda item: item.rate.rate)
    open_ = [item.method for item in items if not item.wins and not item.loses]
    lines = []
    if better:
        first, most = better[0], max(better, key=_gain)
        higher = sum(item.difference_test.mark == "better" for item in better)
        if len(better) == 1:
            also = "" if higher else ", but not with a better mean"
            lines.append(f"1 of {len(items)} wins more often than {baseline}{also}: {_shown(first)}.")
        else:
            also = "" if higher == len(better) else f", {higher} of them with a better mean"
            lines.append(
                f"{len(better)} of {len(items)} win more often than {baseline}{also}. Most often: {_shown(first)}."
            )
        if _gain(most) > _gain(first):
            lines.append(f"By the most in the mean: {_shown(most)}.")
    if worse:
        lines.append(f"Worse than {baseline}: {_some([_shown(item) for item in worse])}.")
    if open_:
        lines.append(f"Undecided: {_some(open_)}." if lines else f"Nothing is decided ({_some(open_)}).")
    return lines


def _gain(item: Versus) -> float:
    return item.difference if item.higher_is_better else -item.difference


def _shown(item: Versus) -> str:
    r = item.rate
    interval = f"{percent(r.low)} to {percent(r.high)}"
    return f"{item.method}, {percent(r.rate)} % of pairs ({interval}), {item.difference:+.3g} in the mean"


def _hacked(group: Group, aims: Mapping[str, str | None]) -> Statement:
    """Who gains on its own reward and loses elsewhere, whose pictures leave the baseline's range meanwhile, and who
    gains there and nowhere else."""
    wins = {(item.method, item.scorer) for item in group.versus if item.wins}
    lines: list[str] = []
    alone: list[str] = []

    def elsewhere(aim: str | None) -> set[str]:
        return {method for method, scorer in wins if scorer != aim}

    for method in group.methods:
        aim = aims.get(method)
        if lost := lost_elsewhere(group, method, aim):
            lines.append(
                f"{method} wins on {aim}, its reward, and loses on {lost}: it may exploit errors of its reward."
            )
        elif (method, aim) in wins and len(group.scorers) > 1 and method not in elsewhere(aim):
            alone.append(method)
    lines += left_range(group)
    if alone:
        others = "the other scorer" if len(group.scorers) == 2 else "any other scorer"
        lines.append(f"{_some(alone)}: the gain on the reward is not seen by {others}, which may be the first sign.")
    fine = "Nobody who wins on its reward loses on another scorer." if len(group.scorers) > 1 else "There is one scorer"
    if len(group.scorers) == 1:
        fine += (
            " alone, so nobody can tell. Score the pictures with another: alignbench score FILE --scorers NAME --save."
        )
    detail = "wins its reward, loses elsewhere" + (", or leaves the range of pictures" if group.pictures else "")
    return Statement("What looks hacked", lines or [fine], detail, alarming=bool(lines))


def _costs(group: Group) -> str:
    known = [c for c in group.costs if not math.isnan(c.image_denoiser)]
    if not known:
        return ""
    cheap, dear = min(known, key=lambda c: c.image_denoiser), max(known, key=lambda c: c.image_denoiser)
    line = f"An image takes {number(cheap.image_denoiser)} evaluations of the denoiser"
    if dear.image_denoiser > cheap.image_denoiser:
        line += f" at least, and {number(dear.image_denoiser)} with {dear.method}"
    trained = [c for c in known if c.alignment_denoiser]
    if trained:
        low, high = (pick(c.alignment_denoiser for c in trained) for pick in (min, max))
        both = number(low) if low == high else f"{number(low)} to {number(high)}"
        line += f". Training took {both} of them, once"
    return f"{line}."


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return listed(names) if more < 2 else f"{', '.join(names[:NAMED])} and {more} more"
