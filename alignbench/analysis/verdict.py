"""What a comparison says, in sentences: who is better than the baseline, on what, and what stays undecided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignbench.analysis.compare import DEFAULT_BASELINE, compare
from alignbench.analysis.comparison import Group, Versus
from alignbench.analysis.costs import CostRow
from alignbench.analysis.formats import number, percent
from alignbench.analysis.load import load, methods_of
from alignbench.analysis.picture_tables import sentence


def sentences(paths: Sequence[Path], baseline: str = DEFAULT_BASELINE) -> list[str]:
    """A few sentences on each evaluation of these files that has the baseline. Every one is computed."""
    optimised: dict[str, dict[str, str | None]] = {}
    for fingerprint, runs in load(paths).groups.items():
        optimised[fingerprint] = {m.label: m.first.configuration.reward for m in methods_of(runs)}
    found = []
    for group in compare(paths, baseline).groups:
        if group.versus:
            found += _of_group(group, optimised[group.evaluation.fingerprint])
    return found


def _of_group(group: Group, optimised: dict[str, str | None]) -> list[str]:
    e = group.evaluation
    lines = [f"On {e.prompts}/{e.split}, {group.versus[0].rate.prompts} prompts, against {group.baseline}:"]
    for scorer in group.scorers:
        items = [item for item in group.versus if item.scorer == scorer]
        aimed = any(optimised.get(item.method) == scorer for item in items)
        about = "the reward that was optimised" if aimed else "for which nothing was optimised"
        lines.append(f"  {scorer}, {about}: {_of_scorer(items)}")
    for method in group.methods:
        reward = optimised.get(method)
        if lost := lost_elsewhere(group, method, reward):
            lines.append(f"  {method} gains on {reward} and loses on {lost}: it may exploit the errors of its reward.")
    lines += [f"  {line}" for line in left_range(group)]
    lines.append(f"  Cost of an image, in evaluations of the denoiser: {'; '.join(map(_priced, group.costs))}.")
    if alone := sorted({item.method for item in group.versus if item.this_run}):
        lines.append(
            f"  {listed(alone)}: trained once, so undecided whatever that run won; another seed may come out otherwise."
        )
    return lines


def _of_scorer(items: Sequence[Versus]) -> str:
    better = sorted((item for item in items if item.wins), key=lambda item: -item.rate.rate)
    worse = [item for item in items if item.loses]
    others = [item.method for item in items if item not in better and item not in worse]
    parts = []
    if better:
        parts.append(f"{listed([_shown(item) for item in better])} {'is' if len(better) == 1 else 'are'} better.")
    if worse:
        parts.append(f"{listed([_shown(item) for item in worse])} {'is' if len(worse) == 1 else 'are'} worse.")
    if others:
        parts.append(f"Undecided: {listed(others)}." if parts else f"nothing is decided ({listed(others)}).")
    return " ".join(parts)


def lost_elsewhere(group: Group, method: str, reward: str | None) -> str:
    """The other scorers on which a method that gained on its reward lost; '' for none."""
    own = {item.scorer: item for item in group.versus if item.method == method}
    if reward not in own or not own[reward].wins:
        return ""
    lost = [name for name, item in own.items() if name != reward and item.loses]
    return listed(lost) if lost else ""


def left_range(group: Group) -> list[str]:
    """A sentence on each method whose reward rises while its pictures leave the baseline's range."""
    return [sentence(item, group.baseline) for item in group.hacked]


def _shown(item: Versus) -> str:
    r = item.rate
    return f"{item.method} (wins {percent(r.rate)} %, 95 % interval {percent(r.low)} to {percent(r.high)})"


def _priced(cost: CostRow) -> str:
    training = f" after {cost.alignment_seconds:.0f} s of training" if cost.alignment_denoiser else ""
    return f"{cost.method} {number(cost.image_denoiser)}{training}"


def listed(words: Sequence[str]) -> str:
    """One, two and three."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
