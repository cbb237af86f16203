"""An audit of scorers on preference pairs: their accuracy, their agreement with each other, and their sensitivity to
what ought not to matter (`alterations`): the mean change of a score over the standard deviation of the unchanged
scores, and the share of pairs about which the scorer decides otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from alignbench.analysis.agreement import Agreement, Array, Places, Sensitivity, agreements, sensitivity
from alignbench.devices import chunked, device_of
from alignbench.errors import InputError, Unsupported
from alignbench.interface import Prompt, Reward
from alignbench.judging.alterations import CHANGES, altered, shortened
from alignbench.judging.judgements import Judgements, OwnSizes, by_shape, row_of, scored
from alignbench.judging.judgements import Row as AccuracyRow
from alignbench.judging.options import AuditOptions
from alignbench.keys import Key
from alignbench.plugins import rewards_of
from alignbench.preferences.choosing import Chosen, choose, preference
from alignbench.preferences.source import open_pairs
from alignbench.progress import Progress
from alignbench.record.environment import environment
from alignbench.record.result import identity

LABELS = "labels"  # the judge that preferences themselves are


@dataclass
class Audited:
    """What one scorer said: scores [pairs, 2] by change ("" for none); NaN where there is none."""

    name: str
    reward: Reward
    identity: Mapping[str, Any]
    scores: dict[str, Array]
    failed: dict[int, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)  # by change: why some or all were not scored


@dataclass(frozen=True)
class ScorerAudit:
    """The findings about one scorer."""

    accuracy: AccuracyRow
    sensitivity: Mapping[str, Sensitivity | None]  # by change
    reasons: Mapping[str, str]  # by change: why some or all pictures were not scored


@dataclass(frozen=True)
class Report:
    """Everything that is printed, drawn or written."""

    options: AuditOptions
    pairs: Mapping[str, Any]
    scorers: Mapping[str, ScorerAudit]
    agreement: Mapping[tuple[str, str], Agreement]  # of every two judges; the labels are one
    environment: Mapping[str, Any]


def audit(options: AuditOptions, quiet: bool = False) -> Report:
    """Score the pairs as they are and under every change. Raises InputError for what cannot be read."""
    rewards = rewards_of(options.scorers, options.scoring)
    if LABELS in rewards:
        raise InputError(f"a scorer called {LABELS!r} cannot be told from the labels; rename it.")
    device = device_of(options.device)
    chosen = choose(open_pairs(options.pairs), options.pair_ties, options.pair_models, ())
    n = min(len(chosen), options.limit or len(chosen))
    with Progress(quiet) as progress:
        source = OwnSizes(chosen, progress.say)
        audited = [
            Audited(name, r, identity(r.info()).model_dump(), {c: np.full((n, 2), math.nan) for c in ("", *CHANGES)})
            for name, r in rewards.items()
        ]
        _score(audited, source, chosen, n, options, device, progress)
    texts = [chosen.pair(i).prompt.text for i in range(n)]
    place = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    prompts = np.array([place[text] for text in texts], np.int64)
    judged = {LABELS: np.array([chosen.pair(i).label for i in range(n)], float)}
    judged |= {item.name: decisions(item.scores[""], item.reward) for item in audited}
    return Report(
        options=options,
        pairs={
            "path": str(options.pairs),
            "sha256": chosen.sha256,
            "used": n,
            "prompts": len(place),
            "ties": int((judged[LABELS] == 0.5).sum()),
            "skipped": {chosen.pair(i).place: why for i, why in sorted(source.skipped.items())},
            "pictures": source.notes.counts,
            "summary": chosen.summary(n),
        },
        scorers={item.name: _findings(item, judged[item.name], chosen, prompts) for item in audited},
        agreement=agreements(judged, prompts, Key("audit", options.seed)("bootstrap")),
        environment=environment(device),
    )


def _findings(item: Audited, decided: Array, chosen: Chosen, prompts: Places) -> ScorerAudit:
    known = {int(i): float(decided[i]) for i in np.flatnonzero(~np.isnan(decided))}
    judged = Judgements(item.name, item.identity, known, item.failed, item.unsupported.get("") if not known else None)
    found = {}
    for change in CHANGES:
        after = item.scores[change]
        found[change] = sensitivity(change, item.scores[""], after, (decided, decisions(after, item.reward)), prompts)
    return ScorerAudit(row_of(judged, chosen), found, item.unsupported)


def decisions(scores: Array, reward: Reward) -> Array:
    """P(first picture preferred) of scores [pairs, 2]; NaN where one is missing."""
    info = reward.info()
    found = [
        math.nan if math.isnan(first + second) else preference(first, second, info) for first, second in scores.tolist()
    ]
    return np.array(found, np.float64)


def _score(
    audited: Sequence[Audited],
    source: OwnSizes,
    chosen: Chosen,
    n: int,
    options: AuditOptions,
    device: str,
    progress: Progress,
) -> None:
    """Fill in every scorer's scores, change by change."""
    progress.stage("audit", n)
    for part in chunked(range(n), max(1, options.batch_size // 2)):
        read = [(i, images) for i, images in source.images(part) if images is not None]
        for change in ("", *CHANGES):
            key = Key("audit", options.seed)("noise")
            made = [(i, altered(change, images, key(chosen.numbers[i]))) for i, images in read]
            for members, images in by_shape(made):
                prompts = [shortened(chosen.pair(i).prompt, change) for i, _ in members]
                for item in audited:
                    _keep(item, change, members, images.to(device), prompts)
        progress.advance(len(part))


def _keep(
    item: Audited, change: str, members: Sequence[tuple[int, int]], images: Tensor, prompts: Sequence[Prompt]
) -> None:
    """Score pictures of one shape. Where a text is none that the scorer reads, the others are scored without it."""
    places = [
        k for k, prompt in enumerate(prompts) if item.reward.unsupported([prompt], tuple(images.shape[1:])) is None
    ]
    if len(places) < len(prompts):
        first = next(k for k in range(len(prompts)) if k not in places)
        item.unsupported.setdefault(change, item.reward.unsupported([prompts[first]], tuple(images.shape[1:])) or "")
    if not places:
        return
    try:
        values = scored(item.name, item.reward, images[places], [prompts[k] for k in places])
    except Unsupported as error:
        item.unsupported.setdefault(change, str(error))
        return
    for k, (value, reason) in zip(places, values, strict=True):
        i, side = members[k]
        if reason is None:
            item.scores[change][i, side] = value
        elif change == "":
            item.failed.setdefault(i, reason)
        else:
            item.unsupported.setdefault(change, reason)
