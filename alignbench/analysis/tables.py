"""What the tables of a comparison hold, and a whole comparison as text or JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np

from alignbench.analysis.comparison import Comparison, Group, Versus
from alignbench.analysis.contest_tables import duels_table, ranks_table, reading, versus_table
from alignbench.analysis.formats import Table, csv_block, folded, markdown, noted, number, percent, written
from alignbench.analysis.frontier import Pooled
from alignbench.analysis.picture_shifts import Shift
from alignbench.analysis.picture_tables import picture_reading, pictures_table
from alignbench.analysis.vote_tables import vote_reading, vote_tables
from alignbench.analysis.votes import VoteColumn
from alignbench.choices import Format
from alignbench.printed import WHOLE, Screen, one_line

WIDEST_MATRIX = 12  # methods; larger pairwise matrices are only in the JSON, and every pair of theirs with --duels


def render(comparison: Comparison, form: Format, screen: Screen = WHOLE, pictures: bool = False) -> str:
    """The whole comparison as text in one of the formats; a table of plain text as wide as the screen. With `pictures`
    it has the table of what pictures are like."""
    if form == "json":
        return json.dumps(_plain(comparison), indent=1, allow_nan=False) + "\n"
    parts = []
    for group in comparison.groups:
        tables = group_tables(group, pictures)
        if form == "csv":
            parts += [csv_block(group.evaluation.fingerprint, table) for table in tables]
            continue
        parts.append(_heading(group, form, screen))
        parts += [written(table, form, screen) for table in tables]
        parts.append(noted([*_reading(group, pictures), *group.notes], form, screen))
    if comparison.unfinished:
        rows = [[str(item.path), item.status, item.reason] for item in comparison.unfinished]
        table = Table("Not in the tables", ["file", "status", "reason"], rows)
        parts.append(csv_block("", table) if form == "csv" else written(table, form, screen))
    if form != "csv":
        parts.append(noted(_remarks(comparison), form, screen))
    if not parts:
        parts.append("no complete results to compare.\n")
    return "\n".join(part for part in parts if part)


def notes(comparison: Comparison, pictures: bool = False) -> list[str]:
    """What stands beside the tables: how to read them, and what is not in them. In CSV it has no place."""
    of_groups = [text for group in comparison.groups for text in (*_reading(group, pictures), *group.notes)]
    return of_groups + _remarks(comparison)


def _remarks(comparison: Comparison) -> list[str]:
    return [f"skipped: {item.reason}" for item in comparison.skipped] + comparison.notes


def group_tables(group: Group, pictures: bool = False) -> list[Table]:
    """The tables of one evaluation, in the order they are shown."""
    tables = [_optimality_table(group, scorer) for scorer in group.targets]
    tables += [versus_table(group, scorer) for scorer in group.scorers] if group.baseline else [_means_table(group)]
    tables += vote_tables(group)
    if pictures and group.pictures:
        tables.append(pictures_table(group))
    if group.published:
        tables.append(_published_table(group))
    if group.parts:
        tables += [_parts_table(group, scorer) for scorer in group.scorers]
    if 2 < len(group.methods) <= WIDEST_MATRIX:
        tables += [_pairwise_table(group, scorer) for scorer in group.scorers]
    if group.duels:
        tables += [duels_table(group, scorer) for scorer in group.scorers]
    if len(group.methods) > 1:
        tables.append(ranks_table(group))
    tables.append(costs_table(group))
    return tables


def _optimality_table(group: Group, scorer: str) -> Table:
    """Distances in nats, with what they are measured against in the first row."""
    target = group.targets[scorer]
    placed = [s for s in group.optimality if s.scorer == scorer]
    header = [
        "method", "mean reward", "KL", "regret", "95 % interval", "excess KL", "95 % interval", "mode TV", "covariance",
    ]  # fmt: skip
    extra = [name for name in ("nuisance", "path_kl") if any(name in s.metrics for s in placed)]
    header += [{"nuisance": "nuisance", "path_kl": "path KL"}[name] for name in extra]
    header += ["align NFE", "NFE/image", "regret by seed"]
    optimum = [f"optimum at β = {target.beta:g}", number(target.reward), _nats(target.kl), "0", "", "0", "", "0", "1"]
    rows = [[*optimum, *("0" if name == "nuisance" else "" for name in extra), "", "", ""]]
    for standing in placed:
        m = standing.metrics
        row = [standing.method, number(m["reward"].value), _nats_of(m.get("kl"))]
        for name in ("regret", "excess_kl"):
            row += [_nats_of(m.get(name)) + _at_floor(m.get(name)), _interval(m.get(name))]
        row += [
            _nats_of(m.get("mode_tv")),
            _nats_of(m.get("covariance")),
            *(_nats_of(m.get(name)) + _at_floor(m.get(name), name == "nuisance") for name in extra),
        ]
        seeds = m["regret"].seeds if "regret" in m and len(m["regret"].seeds) > 1 else []
        row += [number(standing.alignment_nfe), number(standing.image_nfe), " ".join(map(_nats, seeds))]
        rows.append(row)
    return Table(f"{scorer}: distance from the optimum (nats)", header, rows)


def _nats(x: float) -> str:
    return f"{round(x, 3) + 0.0:.3f}" if abs(x) < 100 else f"{x:.0f}"


def _nats_of(metric: Pooled | None) -> str:
    return "–" if metric is None else _nats(metric.value)


def _at_floor(metric: Pooled | None, wanted: bool = True) -> str:
    """≈ where an exact optimum would score as much once in twenty times, or more often."""
    return "≈" if wanted and metric is not None and metric.floor is not None and metric.value <= metric.floor else ""


def _interval(metric: Pooled | None) -> str:
    if metric is None or metric.low is None or metric.high is None:
        return ""
    return f"{_nats(metric.low)} to {_nats(metric.high)}"


def _means_table(group: Group) -> Table:
    rows = [[method, *(number(group.means[s][method]) for s in group.scorers)] for method in group.methods]
    return Table("Mean scores", ["method", *group.scorers], rows)


def _published_table(group: Group) -> Table:
    header = ["method", "judge", "quantity", "published", "ours", "their sampling", "our sampling", "source"]
    rows = [
        [
            row.method,
            row.judge,
            row.quantity,
            f"{row.published:g}",
            "–" if row.ours is None else number(row.ours),
            row.their_sampling,
            row.our_sampling,
            row.source,
        ]
        for row in group.published
    ]
    return Table("Published numbers (P: read in the paper, S: in another's table)", header, rows)


def _parts_table(group: Group, scorer: str) -> Table:
    parts = [p for p in group.parts if p.scorer == scorer]
    several = len({p.against for p in parts}) > 1
    rows = [
        [
            p.method,
            p.part,
            *([p.against] if several else []),
            str(p.rate.prompts),
            percent(p.rate.rate),
            f"{percent(p.rate.low)} to {percent(p.rate.high)}",
        ]
        for p in parts
    ]
    against = "" if several else f", against {group.baseline}"
    columns = ["method", "part", *(["against"] if several else []), "prompts", "win rate %", "95 % interval"]
    return Table(f"{scorer}: by part{against} (exploratory, not corrected)", columns, rows)


def _pairwise_table(group: Group, scorer: str) -> Table:
    matrix = group.pairwise[scorer]
    rows = [
        [method, *("·" if i == j else percent(float(matrix[i, j])) for j in range(len(group.methods)))]
        for i, method in enumerate(group.methods)
    ]
    return Table(f"{scorer}: win rate % of row over column", ["", *group.methods], rows)


def costs_table(group: Group) -> Table:
    header = [
        "method",
        "runs",
        "align NFE",
        "align rewards",
        "align s",
        "NFE/image",
        "rewards/image",
        "s/image",
        "peak MiB",
    ]
    rows = [
        [
            c.method,
            str(c.runs),
            *(
                number(x)
                for x in (
                    c.alignment_denoiser, c.alignment_reward, c.alignment_seconds,
                    c.image_denoiser, c.image_reward, c.image_seconds, c.memory_bytes / 2**20,
                )
            ),
        ]
        for c in group.costs
    ]  # fmt: skip
    return Table("Cost (NFE: denoiser evaluations, forward and backward; mean over runs)", header, rows)


def _heading(group: Group, form: Format, screen: Screen) -> str:
    e = group.evaluation
    size = "x".join(map(str, e.model.get("image_shape", [])[1:])) or "points"
    text = one_line(
        f"{e.model['name']} ({size}) on {e.prompts}/{e.split}, noise seed {e.eval_seed}, evaluation {e.fingerprint}"
    )
    samplers = one_line(
        "; ".join(f"{', '.join(methods)}: {description}" for description, methods in _by_sampler(group).items())
    )
    if form == "markdown":
        return f"## {markdown(text)}\n\nSamplers. {markdown(samplers)}\n"
    if form == "latex":
        return f"% {text}\n% samplers: {samplers}\n"
    return f"{folded(text, screen.width)}\n{folded(f'samplers  {samplers}', screen.width)}\n"


def _by_sampler(group: Group) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for method, sampler in group.samplers.items():
        description = " ".join(f"{name}={value}" for name, value in sampler.items())
        found.setdefault(description, []).append(method)
    return found


def _reading(group: Group, pictures: bool) -> list[str]:
    """How to read the numbers, next to the numbers."""
    lines = picture_reading(group, pictures)
    if group.targets:
        lines += [f"{s.method}: {s.scorer} {name}: {why}." for s in group.optimality for name, why in s.missing.items()]
        if any("nuisance" in s.metrics for s in group.optimality):
            lines.append(
                "KL, regret and excess KL are those in the problem's plane, lower bounds of all axes'; nuisance is "
                "what the means and variances of the other axes add."
            )
        lines.append(
            "Optimum: p* ∝ p_ref exp(r/β). Regret: β KL(q ‖ p*), what is missed of the best E r − β KL. Excess KL: "
            "what is spent beyond the frontier's KL at the same reward, free of β. ≈: not to be told from an exact "
            "optimum, which with as many images would score as much one time in twenty, or more often. Covariance: "
            "within modes, over p*'s. Path KL bounds the divergence from the reference's own chain of as many steps. "
            "Intervals contain the training seeds where a method has two or more; of one that trained once, they are "
            "of this run."
        )
    return [*lines, *reading(group), *vote_reading(group)]


def _plain(value: Any) -> Any:
    """Dataclasses, named tuples, arrays and paths as JSON values; NaN as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        content = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Versus):
            content |= {"wins": value.wins, "loses": value.loses}
        if isinstance(value, Shift):
            content |= {"distance": _plain(value.distance), "leaves": value.leaves}
        if isinstance(value, VoteColumn):
            content["pictures"] = [
                {"result": str(path), "prompt": prompt, "sample": sample, **counts._asdict()}
                for (path, prompt, sample), counts in value.pictures.items()
            ]
        if isinstance(value, Group):
            content |= {"fingerprint": value.evaluation.fingerprint}
        return content
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump())
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, frozenset, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None  # NaN, and ends that nothing bounds
    if isinstance(value, np.integer):
        return int(value)
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
