"""A result in a few lines of text, or as plain values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from alignbench.analysis.compare import FEW_PROMPTS, compare
from alignbench.analysis.comparison import SIGNIFICANT, Versus
from alignbench.analysis.formats import number, p_value, percent
from alignbench.analysis.load import drawn_otherwise, is_aligned
from alignbench.analysis.picture_shifts import picture_means
from alignbench.analysis.picture_tables import NAMES
from alignbench.analysis.plan import needed
from alignbench.analysis.planning import FARTHEST
from alignbench.errors import AlignbenchError
from alignbench.printed import one_line
from alignbench.record.contents import content_of
from alignbench.record.result import Metric, Result, read


def means(result: Result) -> dict[str, float | None]:
    """Mean score per scorer; None where every score failed."""
    found: dict[str, float | None] = {}
    for name in result.scorers:
        values = [row.scores[name] for row in result.rows if row.scores.get(name) is not None]
        found[name] = float(np.mean(np.array(values, float))) if values else None
    return found


def as_values(result: Result, path: Path) -> dict[str, Any]:
    """What `alignbench run --json` prints."""
    failed = {name: sum(row.scores.get(name) is None for row in result.rows) for name in result.scorers}
    return {
        "path": str(path),
        "status": result.status,
        "reason": result.reason,
        "images": len(result.rows),
        "means": means(result),
        "pictures": picture_means(result),
        "failed_scores": {name: n for name, n in failed.items() if n},
        "truncated_prompts": {name: n for name, n in result.truncated.items() if n},
        "truncated_by_the_model": result.model_truncated,
        "metrics": {name: metric.model_dump() for name, metric in result.metrics.items()},
        "cost": result.cost.model_dump() if result.cost else None,
        "attempts": result.attempts,
    }


def text(result: Result, path: Path, details: bool = False) -> str:
    """A result for people: what was run, how it scored, what it cost; with details also settings and protocol."""
    c = result.configuration
    seed = "" if c.seed is None else f", seed {c.seed}"
    lines = [f"{c.algorithm} on {c.model}, {c.prompts}/{c.split}{seed}: {result.status}"]
    if result.reason:
        lines.append(f"  reason      {result.reason}")
    if result.rows:
        shown = (f"{name} {number(mean)}" for name, mean in means(result).items() if mean is not None)
        lines.append(f"  scores      {'   '.join(shown)}   ({len(result.rows)} images)")
        for name in result.scorers:
            failed = [row.failures.get(name, "") for row in result.rows if row.scores.get(name) is None]
            if failed:
                lines.append(f"  failed      {len(failed)} scores of {name}, first: {failed[0]}")
        lines += [
            f"  cut off     {name} reads {n} of {len(result.prompts)} prompts to its longest and no further"
            for name, n in result.truncated.items()
            if n
        ]
    if details and (like := picture_means(result)):
        lines.append(f"  pictures    {'   '.join(f'{NAMES[name]} {number(mean)}' for name, mean in like.items())}")
    if cut := ", ".join(f"{n} {use} prompts" for use, n in result.model_truncated.items()):
        lines.append(f"  cut off     the model reads to its longest and no further: {cut}")
    lines += _optimality_lines(result)
    if result.cost:
        k = result.cost
        aligned = float(k.alignment["denoiser_forward"] + k.alignment["denoiser_backward"])
        per_image = k.per_image["denoiser_forward"] + k.per_image["denoiser_backward"]
        lines.append(
            f"  cost        alignment {number(aligned)} denoiser evaluations, {k.alignment_seconds:.0f} s; "
            f"per image {number(per_image)}, {k.per_image_seconds:.2g} s"
        )
    if details:
        e = result.evaluation
        lines += [
            f"  evaluation  {e.fingerprint}: prompts sha256 {e.prompts_sha256[:12]}, seed {e.eval_seed}",
            f"  model       {_pairs(e.model)}",
            f"  sampler     {_pairs(result.sampler)}",
            f"  fields      {_pairs(c.fields)}",
            *_beside_paper(result),
            f"  scorers     {', '.join(s.id for s in result.scorers.values())}",
            *([f"  weights     of {result.origin}, evaluated once more"] if result.origin else []),
            *([f"  added       {_pairs(result.added)}"] if result.added else []),
            f"  made        {result.finished}, {result.environment.get('device')}, commit "
            f"{result.environment.get('commit')}, attempt {result.attempts}",
        ]
    lines.append(f"  file        {path}")
    return "".join(f"{one_line(text)}\n" for text in lines)


def _beside_paper(result: Result) -> list[str]:
    """What is not as published. Files that name no configuration were compared with the algorithm's own defaults."""
    entries = result.differs_from_paper.items()
    preset = f" (preset {result.preset})" if result.preset else ""
    if result.published is None:
        return [f"  not default {_pairs({name: entry['value'] for name, entry in entries})}{preset}"]
    differs = _pairs({name: f"{entry['value']} ({entry['paper']})" for name, entry in entries})
    return [f"  paper       {result.published}", f"  differs     {differs}{preset}"]


def _optimality_lines(result: Result) -> list[str]:
    """The distance from the optimum, where it is known."""
    shown = []
    for scorer in result.frontiers:
        named = {"regret": f"{scorer}.regret", "excess KL": f"{scorer}.excess_kl", "KL": "kl"}
        parts = [f"{label} {_metric(result.metrics[name])}" for label, name in named.items() if name in result.metrics]
        shown.append(f"  optimum     {scorer}: {', '.join(parts)} (nats)")
    return shown


def _metric(metric: Metric) -> str:
    if metric.value is None:
        return "not known"
    interval = f" ({metric.low:.3f} to {metric.high:.3f})" if metric.low is not None and metric.high is not None else ""
    return f"{metric.value:.3f}{interval if metric.kind != 'exact' else ' exactly'}"


def against_base(path: Path) -> tuple[list[str], Path | None]:
    """Lines on the win rate against a complete `base` result beside this one with the same evaluation, and its path."""
    versus, base, otherwise = versus_base(path)
    apart = f"; that base was drawn with other {', '.join(otherwise)}" if otherwise else ""
    farthest = needed(base, path) if base else {}
    return [
        f"  against base  {v.scorer}: wins {percent(v.rate.rate)} % ({percent(v.rate.low)} to {percent(v.rate.high)}), "
        f"p {p_value(v.rate_test.p)}: {_said(v, farthest.get(v.scorer, math.nan))}{apart}"
        for v in versus
    ], base


def versus_base(path: Path) -> tuple[list[Versus], Path | None, list[str]]:
    """The comparison of `against_base`, a row for each scorer; of several, with the one that is sampled as this one
    was and shares most scorers and pictures with it. Last, in what that one is sampled otherwise."""
    mine = read(path)
    found: list[tuple[tuple[bool, int, int], Path, list[str]]] = []
    for other in sorted(path.parent.glob("*.json")):
        try:
            if not _may_be_base(content_of(other)):  # the others need not be read whole
                continue
            theirs = read(other)
        except AlignbenchError:
            continue
        same = theirs.evaluation == mine.evaluation and theirs.status == "complete"
        if not same or theirs.configuration.algorithm != "base" or is_aligned(theirs) or other == path:
            continue
        otherwise = drawn_otherwise(theirs, mine)
        found.append(((not otherwise, *_shared(theirs, mine)), other, otherwise))
    if not found:
        return [], None, []
    _, base, otherwise = max(found, key=lambda item: item[0])
    return compare([base, path]).groups[0].versus, base, otherwise


def _shared(base: Result, other: Result) -> tuple[int, int]:
    """How many scorers, and how many pictures, both have."""
    pictures = {(row.prompt, row.sample) for row in base.rows} & {(row.prompt, row.sample) for row in other.rows}
    return len(base.scorers.keys() & other.scorers.keys()), len(pictures)


def _may_be_base(content: dict[str, Any]) -> bool:
    configuration = content.get("configuration")
    return isinstance(configuration, dict) and configuration.get("algorithm") == "base"


def _said(v: Versus, needed: float) -> str:
    """What a win rate says of a method, in words; `needed` is how far from a half it had to be to say more."""
    if v.rate_test.mark is not None:
        return f"{v.rate_test.mark} than base"
    wins = "wins" if v.rate.rate > 0.5 else "loses"
    if v.rate_test.p < SIGNIFICANT and v.this_run:
        return f"this run {wins} more often than base; another seed may not"
    if v.rate_test.p < SIGNIFICANT:
        return f"{wins} more often than base, but for the scores that failed ({v.failed})"
    drawn = f"{v.rate.prompts} {'images' if v.random.startswith('images') else 'prompts'}"
    alone = "this run alone: " if v.this_run else ""
    if not needed <= FARTHEST:
        showing = "could show none" if v.rate.prompts < FEW_PROMPTS else "could hardly show one"
        return f"{alone}no difference from base, and {drawn} {showing}"
    points = 100 * needed
    return (
        f"{alone}no difference from base that {drawn} could show "
        f"(it would need ±{f'{points:.0f}' if points >= 1 else f'{points:.1g}'} points)"
    )


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "none"
