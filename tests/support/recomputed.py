"""What `alignbench compare` says of result files, computed a second time by code that shares nothing with it.

Written from the definitions, not from `alignbench/analysis`, of which nothing is imported: files are read with `json`,
distributions and root finders are scipy's, sign flips are counted out. It is slow and plain on purpose.

What the definitions leave open was settled for both alike after the first comparison: the start from which missing
cells are filled, the grid of outcomes (`_grid`), the correlation where nothing varies, seeds that vary where prompts do
not, and what counts as rounding. There the two agree because they were told the same.

Arrays of a contest have the axes [image, seed of the method, seed of the baseline]; NaN is a pair that is not there.
What varies by less than `NOISE` of the largest score is taken not to vary: it is rounding.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats

Pair = tuple[str, int]  # prompt and image
LEVEL = 0.05
LEAST_P = 1e-12
PRIOR_CORRELATION, PRIOR_WEIGHT = 0.6, 0.75
ENOUGH = 10  # units that differ, below which a difference has no interval
BRUTE = 14  # units whose sign flips are all written out
FINEST, ALL_PARTS = 2520, 2**18  # parts of a win that are told apart: of one unit, and of all together
NOISE = 1e-12


@dataclass(frozen=True)
class File:
    """What one result file says."""

    seed: int | None
    trains: bool
    scorers: dict[str, dict[str, Any]]
    scores: dict[Pair, dict[str, float | None]]


def read(path: Path) -> File:
    with open(path, encoding="utf-8") as handle:
        content = json.load(handle)
    return File(
        content["configuration"]["seed"],
        content["trains"],
        content["scorers"],
        {(row["prompt"], row["sample"]): row["scores"] for row in content["rows"]},
    )


@dataclass(frozen=True)
class Contest:
    """All pairs of two methods on one scorer."""

    rows: list[Pair]
    units: list[Any]  # of every row: its prompt, or its image where there is one prompt
    won: np.ndarray  # [pairs, seeds, seeds]: 1, ½ or 0
    apart: np.ndarray  # the same: method minus baseline
    mine: np.ndarray  # the same: score of the method
    theirs: np.ndarray

    def by_unit(self, values: np.ndarray) -> dict[Any, np.ndarray]:
        """[images, seeds, seeds] of every unit."""
        places: dict[Any, list[int]] = {}
        for i, unit in enumerate(self.units):
            places.setdefault(unit, []).append(i)
        return {unit: values[own] for unit, own in places.items()}

    def cells(self, values: np.ndarray) -> np.ndarray:
        """[unit, seed, seed]: the mean over images."""
        blocks = self.by_unit(values).values()
        return np.array([[[_mean(column) for column in row] for row in b.transpose(1, 2, 0)] for b in blocks])

    def unit_means(self, values: np.ndarray) -> list[float]:
        """Of every unit: the mean over images, then over seeds and seeds."""
        return [_mean(cells.ravel()) for cells in self.cells(values)]

    @property
    def scale(self) -> float:
        """The largest score, to tell what is rounding."""
        return float(max(np.nanmax(np.abs(self.mine)), np.nanmax(np.abs(self.theirs))))


def _mean(values: np.ndarray) -> float:
    present = [x for x in values if not math.isnan(x)]
    return sum(present) / len(present) if present else math.nan


def contest(
    method: Sequence[File],
    baseline: Sequence[File],
    scorer: str,
    instead: tuple[float, float, float] | None = None,
) -> Contest | None:
    """Every pair of rows with scores on both sides. `instead` holds what stands for a failed score of the method, for
    one of the baseline, and for the outcome of their pair; without it, such pairs are left out."""
    about = (*baseline, *method)[0].scorers[scorer]
    rows = sorted({pair for file in (*method, *baseline) for pair in file.scores})

    def column(files: Sequence[File], failed: float) -> tuple[np.ndarray, np.ndarray]:
        """[rows, files] scores, NaN where there is none; and which of them failed."""
        found = [[file.scores.get(pair, {}).get(scorer, math.nan) for file in files] for pair in rows]
        return (
            np.array([[failed if x is None else x for x in own] for own in found], dtype=float),
            np.array([[x is None for x in own] for own in found]),
        )

    for_method, for_baseline, decided = instead or (math.nan, math.nan, math.nan)
    (one, one_failed), (other, other_failed) = column(method, for_method), column(baseline, for_baseline)
    missing = np.isnan(one)[:, :, None] | np.isnan(other)[:, None]
    mine, theirs = np.where(missing, np.nan, one[:, :, None]), np.where(missing, np.nan, other[:, None])
    failed = ~missing & (one_failed[:, :, None] | other_failed[:, None])
    there = ~np.isnan(mine)
    if not there.any():
        return None
    kept = [np.flatnonzero(there.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    mine, theirs = mine[np.ix_(*kept)], theirs[np.ix_(*kept)]
    pairs = [rows[k] for k in kept[0]]
    one_prompt = len({prompt for prompt, _ in pairs}) == 1
    apart = mine - theirs
    ahead = apart if about["higher_is_better"] else -apart
    epsilon = about["tie_epsilon"]
    won = np.where(np.isnan(apart), np.nan, np.where(ahead > epsilon, 1.0, np.where(ahead < -epsilon, 0.0, 0.5)))
    won[failed[np.ix_(*kept)]] = decided
    return Contest(pairs, [pair if one_prompt else pair[0] for pair in pairs], won, apart, mine, theirs)


# The variance of a mean over prompts and seeds, all drawn at random.


@dataclass(frozen=True)
class Spread:
    """The variance of the mean that prompts give, what seeds add, and degrees of freedom: of both and of the latter."""

    of_units: float
    of_seeds: float
    freedom: float
    freedom_of_seeds: float

    @property
    def variance(self) -> float:
        return self.of_units + self.of_seeds


def spread(cells: np.ndarray, scale: float = 1.0) -> Spread:
    filled, missing = _filled(cells)
    factors = [axis for axis in range(3) if cells.shape[axis] > 1]
    if not factors:
        return Spread(0.0, 0.0, 0.0, 0.0)
    parts: dict[tuple[int, ...], tuple[float, int]] = {}  # set of factors -> (mean square over N, its freedom)
    for size in range(1, len(factors) + 1):
        for chosen in itertools.combinations(factors, size):
            freedom = math.prod(cells.shape[axis] - 1 for axis in chosen)
            if size == len(factors) > 1:
                freedom = max(freedom - missing, 1)
            part = _sum_of_squares(filled, chosen) / freedom / filled.size
            parts[chosen] = (part if part > (NOISE * scale) ** 2 else 0.0, freedom)
    of_units, freedom = parts.get((0,), (0.0, 0))
    seeds = [parts[(axis,)] for axis in factors if axis > 0]
    both = sum(part for part, _ in seeds)
    of_seeds = sum((-1) ** (len(chosen) + 1) * part for chosen, (part, _) in parts.items()) - of_units
    if both == 0 or of_seeds <= 1e-9 * of_units:
        return Spread(of_units, 0.0, freedom, 0.0)
    of_both = both**2 / sum(part**2 / own for part, own in seeds)
    if of_units == 0:
        return Spread(0.0, of_seeds, of_both, of_both)
    wide = of_units * _quantile(freedom) ** 2 + of_seeds * _quantile(of_both) ** 2
    within = (min(freedom, of_both) / 2, max(freedom, of_both) * 2)
    alike = optimize.brentq(lambda f: _quantile(f) ** 2 * (of_units + of_seeds) - wide, *within, xtol=1e-12)
    return Spread(of_units, of_seeds, float(alike), of_both)


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf(1 - LEVEL / 2, freedom))


def _sum_of_squares(cells: np.ndarray, chosen: tuple[int, ...]) -> float:
    """Of the interaction of these factors (of the factor itself where it is one), by means over the others."""
    effect = np.zeros(cells.shape)
    for size in range(len(chosen) + 1):
        for kept in itertools.combinations(chosen, size):
            others = tuple(axis for axis in range(3) if axis not in kept)
            effect = effect + (-1) ** (len(chosen) - size) * cells.mean(axis=others, keepdims=True)
    return float((effect**2).sum())


def _filled(cells: np.ndarray) -> tuple[np.ndarray, int]:
    """Missing cells as the additive fit of units and seeds has them: what it comes to when they start from the mean of
    their unit and are fitted again and again.

    Fitting projects all cells; so the holes h become P h + f, with P the projection between holes and f what is seen.
    The limit is solved for, not iterated: it keeps of the start only what P leaves as it is.
    """
    holes = np.isnan(cells).ravel()
    if not holes.any():
        return cells, 0
    columns = []
    for axis, levels in enumerate(cells.shape):
        for level in range(levels):
            indicator = np.zeros(cells.shape)
            np.moveaxis(indicator, axis, 0)[level] = 1
            columns.append(indicator.ravel())
    design = np.stack(columns, axis=1)
    projection = design @ np.linalg.pinv(design)
    start = np.repeat([_mean(unit.ravel()) for unit in cells], cells[0].size)[holes]
    seen = projection[np.ix_(holes, ~holes)] @ cells.ravel()[~holes]
    among = np.eye(int(holes.sum())) - projection[np.ix_(holes, holes)]
    back = np.linalg.pinv(among, rcond=1e-9)
    filled = cells.ravel().copy()
    filled[holes] = back @ seen + start - back @ among @ start
    return filled.reshape(cells.shape), int(holes.sum())


# The win rate.


def correlation(groups: Sequence[np.ndarray]) -> float:
    """How alike pairs of one unit are: the estimate of one-way analysis of variance (1 where nothing varies), drawn to
    what is usual where few units tell."""
    sizes = [len(group) for group in groups]
    if max(sizes) == 1:
        return 0.0
    seen = min(sum(group.sum() > 0 for group in groups), sum(group.sum() < len(group) for group in groups))
    estimate = 1.0
    total, units = sum(sizes), len(groups)
    if units > 1:
        every = np.concatenate(groups)
        between = sum(len(g) * (g.mean() - every.mean()) ** 2 for g in groups) / (units - 1)
        within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (total - units)
        size = (total - sum(m * m for m in sizes) / total) / (units - 1)
        below = between + (size - 1) * within
        estimate = (between - within) / below if below > NOISE else 1.0
    drawn = (estimate * seen + PRIOR_CORRELATION * PRIOR_WEIGHT) / (seen + PRIOR_WEIGHT)
    return float(min(max(drawn, 0.0), 1.0))


def tango(wins: float, losses: float, count: float, quantile: float) -> tuple[float, float]:
    """Tango's score interval of P(win) - P(loss), on the scale of a win rate."""
    return (1 + _tango_low(wins, losses, count, quantile)) / 2, (1 - _tango_low(losses, wins, count, quantile)) / 2


def _tango_low(wins: float, losses: float, count: float, quantile: float) -> float:
    def beyond(delta: float) -> float:
        """Above 0 where the score test refuses this difference."""
        a, c = 2 * count, -losses * delta * (1 - delta)
        b = -wins - losses + (2 * count - wins + losses) * delta
        lost = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = count * (2 * lost + delta * (1 - delta))
        return wins - losses - count * delta - quantile * math.sqrt(max(variance, 0.0))

    estimate = (wins - losses) / count
    if 1 + estimate < 1e-12:
        return -1.0
    start = estimate - 1e-11 * (1 + estimate)
    return float(optimize.brentq(beyond, -1.0, start, xtol=1e-15, rtol=1e-14, maxiter=500))


def flips(values: Sequence[Fraction], grid: int | None = None) -> float:
    """The share of all choices of signs whose sum is at least as far from 0. Of many values, each is rounded to a
    multiple of 1 / `grid`, where there is one, away from 0 where two are as near."""
    values = [value for value in values if value]
    if grid is not None and len(values) > BRUTE:
        values = [Fraction(math.floor(abs(x) * grid + Fraction(1, 2)) * (1 if x > 0 else -1), grid) for x in values]
        values = [value for value in values if value]
    if not values:
        return 1.0
    common = math.lcm(*(value.denominator for value in values))
    whole = [int(value * common) for value in values]
    if len(whole) > BRUTE:
        return _counted(whole)
    sums = np.zeros(1, dtype=object)  # of whole numbers that may outgrow 64 bits
    for x in whole:
        sums = np.concatenate([sums + x, sums - x])
    return float(np.mean(np.abs(sums) >= abs(sum(whole))))


def _counted(whole: Sequence[int]) -> float:
    """The same with the chance of every sum, one number after the other."""
    total = sum(map(abs, whole))
    chance = np.zeros(2 * total + 1)
    chance[total] = 1.0
    for x in map(abs, whole):
        chance = (np.roll(chance, x) + np.roll(chance, -x)) / 2
    return float(chance[np.abs(np.arange(-total, total + 1)) >= abs(sum(whole))].sum())


def _outcome_flips(blocks: Sequence[np.ndarray]) -> float:
    """Of [images, seeds, seeds] of every unit: the flips of its mean less one half, in exact fractions."""
    means, parts = [], []
    for block in blocks:
        cells = [cell[~np.isnan(cell)] for row in block.transpose(1, 2, 0) for cell in row]
        cells = [cell for cell in cells if len(cell)]
        own = [Fraction(round(2 * float(cell.sum())), 2 * len(cell)) for cell in cells]
        means.append(sum(own, Fraction()) / len(own) - Fraction(1, 2))
        parts.append(2 * len(cells) * math.lcm(*(len(cell) for cell in cells)))
    return flips(means, _grid(parts))


def _grid(parts: Sequence[int]) -> int | None:
    """What outcomes are rounded to whose parts have no common multiple that is small enough: that of the most frequent
    parts at least, of the others as far as they fit, and then as fine as may be."""
    finest = min(FINEST, ALL_PARTS // len(parts))
    ordered = sorted(set(parts), key=lambda own: (-parts.count(own), own))
    if math.lcm(*ordered) <= max(ordered[0], finest):
        return None
    found = ordered[0]
    for own in ordered[1:]:
        if math.lcm(found, own) <= finest:
            found = math.lcm(found, own)
    return found * max(1, finest // found)


@dataclass(frozen=True)
class Quantity:
    """A mean with its interval and p."""

    value: float
    low: float
    high: float
    p: float


def win_rate(found: Contest) -> tuple[Quantity, float, float]:
    """The win rate, the share of ties, and the number of independent pairs it is worth."""
    blocks = list(found.by_unit(found.won).values())
    groups = [block[~np.isnan(block)] for block in blocks]
    rate, wins, losses = (
        sum(found.unit_means(np.where(np.isnan(found.won), np.nan, values))) / len(groups)
        for values in (found.won, found.won == 1, found.won == 0)
    )
    rho = correlation(groups)
    effective = 1 / sum((1 + (len(g) - 1) * rho) / len(g) / len(groups) ** 2 for g in groups)
    quantile = float(stats.norm.ppf(1 - LEVEL / 2))
    p = _outcome_flips(blocks)
    if max(found.won.shape[1:]) > 1:
        about = spread(found.cells(found.won))
        if about.of_seeds > 0:  # what seeds add is as if fewer pairs were there
            added = about.of_seeds * (_quantile(about.freedom_of_seeds) / quantile) ** 2
            effective = 1 / (1 / effective + added / ((wins + losses - (wins - losses) ** 2) / 4))
        p = max(p, _student(rate - 0.5, about))
    low, high = tango(wins * effective, losses * effective, effective, quantile)
    return Quantity(rate, low, high, max(p, LEAST_P)), 1 - wins - losses, effective


def _student(mean: float, about: Spread) -> float:
    if about.variance == 0:
        return 1.0 if abs(mean) <= NOISE else 0.0
    return float(2 * stats.t.sf(abs(mean) / math.sqrt(about.variance), about.freedom))


# The difference.


def difference(found: Contest) -> Quantity:
    means = found.unit_means(found.apart)
    units = len(means)
    mean = sum(means) / units
    about = spread(found.cells(found.apart), found.scale)
    moving = sum(abs(x) > NOISE * found.scale for x in means)
    least = min(1.0, max(2.0 ** (1 - moving), LEAST_P))
    if moving == 0:
        return Quantity(mean, math.nan, math.nan, 1.0)
    if about.variance == 0 or about.freedom == 0:
        return Quantity(mean, math.nan, math.nan, least)
    second = sum((x - mean) ** 2 for x in means) / units
    third = sum((x - mean) ** 3 for x in means) / units
    skew = third / second**1.5 / math.sqrt(units) if second > (NOISE * found.scale) ** 2 else 0.0
    skew *= (about.of_units / about.variance) ** 1.5
    error = math.sqrt(about.variance)
    t = mean / error
    corrected = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
    p = max(float(2 * stats.t.sf(abs(x), about.freedom)) for x in (t, corrected))
    quantile = _quantile(about.freedom)

    def inverse(x: float) -> float:
        inside = skew * (x - skew / 6)
        root = math.expm1(math.log1p(inside) / 3) if inside > -0.5 else float(np.cbrt(1 + inside)) - 1
        return 3 / skew * root if skew else x

    low = mean - error * max(quantile, inverse(quantile))
    high = mean - error * min(-quantile, inverse(-quantile))
    if moving < min(ENOUGH, units):
        low = high = math.nan
    return Quantity(mean, low, high, min(max(p, least), 1.0))


def effect(found: Contest, higher_is_better: bool) -> float:
    means = np.array(found.unit_means(found.apart))
    if len(means) < 2 or means.std(ddof=1) <= NOISE * found.scale:
        return math.nan
    return float(means.mean() / means.std(ddof=1)) * (1 if higher_is_better else -1)


# A table: rows, adjusted p values and marks.


@dataclass(frozen=True)
class Row:
    """One method against the baseline on one scorer."""

    method: str
    scorer: str
    rate: Quantity
    ties: float
    effective: float
    apart: Quantity
    effect: float
    mean: float
    baseline_mean: float
    pairs: int  # of files and rows
    units: int
    failed: int  # pairs in which a score failed
    if_failed: tuple[float, float] | None
    seeds: list[tuple[int | None, float]]
    one_seed: bool
    bounds: tuple[float, float]  # the p values if failed scores had gone the other way
    off: tuple[float, float]  # how far rate and difference are on the method's side


@dataclass(frozen=True)
class Marked:
    """A row with what Holm's method and failures leave of it: for the win rate and the difference."""

    row: Row
    adjusted: tuple[float, float]
    marks: tuple[str | None, str | None]
    family: int


def row(name: str, method: Sequence[File], baseline: Sequence[File], scorer: str, every: Sequence[File]) -> Row | None:
    found = contest(method, baseline, scorer)
    if found is None:
        return None
    higher = next(file for file in baseline if scorer in file.scorers).scorers[scorer]["higher_is_better"]
    rate, ties, effective = win_rate(found)
    apart = difference(found)
    means = [float(np.mean(found.unit_means(values))) for values in (found.mine, found.theirs)]
    off = (rate.value - 0.5, apart.value if higher else -apart.value)
    failed = _failed(method, baseline, scorer)
    adverse = _completed(method, baseline, scorer, every, higher) if failed else None
    return Row(
        name,
        scorer,
        rate,
        ties,
        effective,
        apart,
        effect(found, higher),
        means[0],
        means[1],
        int((~np.isnan(found.won)).sum()),
        len(set(found.units)),
        failed,
        (win_rate(adverse[0])[0].value, win_rate(adverse[1])[0].value) if adverse else None,
        _own_rates(method, baseline, scorer),
        any(side[0].trains and count == 1 for side, count in zip((method, baseline), found.won.shape[1:], strict=True)),
        _bounds(rate, apart, off, higher, adverse) if adverse else (rate.p, apart.p),
        off,
    )


def _failed(method: Sequence[File], baseline: Sequence[File], scorer: str) -> int:
    return sum(
        None in (one.scores[pair].get(scorer, 0), other.scores[pair].get(scorer, 0))
        for one, other in itertools.product(method, baseline)
        for pair in one.scores.keys() & other.scores.keys()
    )


def _own_rates(method: Sequence[File], baseline: Sequence[File], scorer: str) -> list[tuple[int | None, float]]:
    own = [(file.seed, contest([file], baseline, scorer)) for file in method]
    return [(seed, float(np.mean(found.unit_means(found.won)))) for seed, found in own if found is not None]


def _completed(
    method: Sequence[File], baseline: Sequence[File], scorer: str, every: Sequence[File], higher: bool
) -> tuple[Contest, Contest]:
    """The contest with every failed score against the method, and with every failed score for it."""
    known = [x for f in every for r in f.scores.values() if (x := r.get(scorer)) is not None]
    worst, best = (min(known), max(known)) if higher else (max(known), min(known))
    lost = contest(method, baseline, scorer, (worst, best, 0.0))
    won = contest(method, baseline, scorer, (best, worst, 1.0))
    assert lost is not None
    assert won is not None
    return lost, won


def _bounds(
    rate: Quantity, apart: Quantity, off: tuple[float, float], higher: bool, adverse: tuple[Contest, Contest]
) -> tuple[float, float]:
    against_rate = win_rate(adverse[0] if off[0] > 0 else adverse[1])[0]
    against_apart = difference(adverse[0] if off[1] > 0 else adverse[1])
    turned = (against_rate.value - 0.5, against_apart.value if higher else -against_apart.value)
    return (
        max(rate.p, against_rate.p) if turned[0] * off[0] > 0 else 1.0,
        max(apart.p, against_apart.p) if turned[1] * off[1] > 0 else 1.0,
    )


def holm(p: Sequence[float]) -> list[float]:
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, (len(p) - rank) * p[i])
        adjusted[i] = min(highest, 1.0)
    return adjusted


def marked(rows: Sequence[Row], family: str = "scorer") -> list[Marked]:
    """Rows with adjusted p values. `family` is what is adjusted together: rows of a `scorer`, the whole `table`, or
    `none`."""
    names = {
        "scorer": [row.scorer for row in rows],
        "table": ["" for _ in rows],
        "none": [str(i) for i in range(len(rows))],
    }[family]
    found: list[Marked | None] = [None] * len(rows)
    for name in dict.fromkeys(names):
        places = [i for i, own in enumerate(names) if own == name]
        members = [rows[i] for i in places]
        adjusted = [holm([row.rate.p for row in members]), holm([row.apart.p for row in members])]
        bounds = [holm([row.bounds[k] for row in members]) for k in range(2)]
        for n, (i, row) in enumerate(zip(places, members, strict=True)):
            marks: list[str | None] = []
            for k in range(2):
                kept = max(adjusted[k][n], bounds[k][n]) < LEVEL and row.off[k] != 0 and not row.one_seed
                marks.append(("better" if row.off[k] > 0 else "worse") if kept else None)
            found[i] = Marked(row, (adjusted[0][n], adjusted[1][n]), (marks[0], marks[1]), len(members))
    return [item for item in found if item is not None]


def table(methods: Mapping[str, Sequence[Path]], baseline: str, family: str = "scorer") -> list[Marked]:
    """Every method against the baseline, scorer after scorer. `methods` holds the files of each, a file per seed."""
    files = {name: [read(path) for path in paths] for name, paths in methods.items()}
    every = [file for runs in files.values() for file in runs]
    scorers = dict.fromkeys(name for file in every for name in file.scorers)
    rows = [
        found
        for scorer in scorers
        for name, runs in files.items()
        if name != baseline and (found := row(name, runs, files[baseline], scorer, every)) is not None
    ]
    return marked(rows, family)


# Ranks.


@dataclass(frozen=True)
class Strengths:
    """Bradley and Terry's model of all methods on one scorer."""

    theta: np.ndarray  # relative to the first method
    pooled: np.ndarray  # [methods, methods] win rates of row over column
    errors: np.ndarray  # standard errors where units alone are drawn at random
    units: int


def strengths(methods: Mapping[str, Sequence[Path]], scorer: str) -> Strengths | None:
    """Of methods of which every two share a pair; None where they do not."""
    files = [[read(path) for path in paths] for paths in methods.values()]
    scored = {
        prompt for own in files for file in own for (prompt, _), x in file.scores.items() if x.get(scorer) is not None
    }
    shares: dict[tuple[int, int], dict[Any, float]] = {}
    for i, j in itertools.combinations(range(len(files)), 2):
        found = contest(files[i], files[j], scorer)
        if found is None:
            return None
        found = replace(found, units=[row if len(scored) == 1 else row[0] for row in found.rows])
        shares[i, j] = dict(zip(dict.fromkeys(found.units), found.unit_means(found.won), strict=True))
    count = len(files)
    pooled = np.full((count, count), np.nan)
    for (i, j), own in shares.items():
        pooled[i, j] = sum(own.values()) / len(own)
        pooled[j, i] = 1 - pooled[i, j]
    theta, bread = _most_likely({pair: (len(s), sum(s.values())) for pair, s in shares.items()}, count)
    units = len({unit for own in shares.values() for unit in own})
    return Strengths(theta, pooled, _sandwich(shares, theta, bread, units), units)


def _expected(theta: np.ndarray, i: int, j: int) -> float:
    return float(1 / (1 + np.exp(theta[j] - theta[i])))


def _most_likely(won: Mapping[tuple[int, int], tuple[int, float]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method with half a win added to each side of every pair; and the inverse of the information."""
    theta = np.zeros(count)
    for _ in range(200):
        slope, curvature = np.zeros(count), np.zeros((count, count))
        for (i, j), (n, wins) in won.items():
            p = _expected(theta, i, j)
            pull, weight = wins + 0.5 - (n + 1) * p, (n + 1) * p * (1 - p)
            slope[i] += pull
            slope[j] -= pull
            curvature[np.ix_([i, j], [i, j])] += weight * np.array([[1, -1], [-1, 1]])
        bread = np.zeros((count, count))
        bread[1:, 1:] = np.linalg.inv(curvature[1:, 1:])
        step = bread @ slope
        theta = theta + step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-13:
            break
    return theta, bread


def _sandwich(
    shares: Mapping[tuple[int, int], Mapping[Any, float]], theta: np.ndarray, bread: np.ndarray, units: int
) -> np.ndarray:
    pull: dict[Any, np.ndarray] = {}
    for (i, j), own in shares.items():
        for unit, share in own.items():
            slope = pull.setdefault(unit, np.zeros(len(theta)))
            slope[i] += share - _expected(theta, i, j)
            slope[j] -= share - _expected(theta, i, j)
    meat = sum(np.outer(slope, slope) for slope in pull.values())
    return np.sqrt(np.maximum(0, np.diag(bread @ meat @ bread)) * units / max(1, units - 1))
