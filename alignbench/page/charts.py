"""The charts of the page as places on it: the template draws them, so that no style or script is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignbench.analysis.comparison import Group, Versus
from alignbench.analysis.formats import Mark, number, percent
from alignbench.analysis.labels import Box, place
from alignbench.analysis.load import Method
from alignbench.analysis.plots import Curve, curves_of
from alignbench.analysis.statistics import WinRate
from alignbench.analysis.votes import VoteVersus
from alignbench.plugins import label

Height = Callable[[float], float]  # where a value stands

RIVAL = "best_of_n"
SPREAD_OVER = 1000  # images over which the cost of training is spread in the chart of costs


@dataclass(frozen=True)
class Strip:
    """A win rate with its interval, in percent of the strip's width."""

    rate: str
    low: str
    high: str
    at: float
    start: float
    end: float
    mark: Mark | None
    difference: str
    alone: str  # what the claim is about and nothing else; '' where it is about more


@dataclass(frozen=True)
class Row:
    """A method in the chart of win rates: a strip per scorer and per question to people, None where it has none."""

    method: str
    strips: list[Strip | None]


def forest(group: Group) -> list[Row]:
    """Every method with its win rates, the most frequent winner on the first scorer first."""
    by = {(item.method, item.scorer): item for item in group.versus}
    first = group.scorers[0] if group.scorers else ""
    methods = [name for name in group.methods if name != group.baseline]
    methods.sort(key=lambda name: -by[name, first].rate.rate if (name, first) in by else 1.0)
    votes = [{item.method: item for item in column.versus} for column in group.votes]
    return [
        Row(
            name,
            [
                *(_strip(by.get((name, scorer))) for scorer in group.scorers),
                *(_strip_of_votes(column.get(name)) for column in votes),
            ],
        )
        for name in methods
    ]


def _strip(item: Versus | None) -> Strip | None:
    if item is None:
        return None
    return _drawn(item.rate, item.rate_test.mark, f"{item.difference:+.3g}", "this run" if item.this_run else "")


def _strip_of_votes(item: VoteVersus | None) -> Strip | None:
    """With the interval of people where it is known, else of these raters."""
    if item is None:
        return None
    alone = [*(["these raters"] if item.people is None else []), *(["this run"] if item.this_run else [])]
    return _drawn(item.shown, item.test.mark, "", ", ".join(alone))


def _drawn(r: WinRate, mark: Mark | None, change: str, alone: str) -> Strip:
    at, start, end = (round(100 * x, 2) for x in (r.rate, r.low, r.high))
    return Strip(percent(r.rate), percent(r.low), percent(r.high), at, start, end, mark, change, alone)


@dataclass(frozen=True)
class Point:
    """A method by cost and gain. `reach` is where it stands with its training spread over images."""

    method: str
    x: float
    y: float
    reach: float | None
    mark: Mark | None
    about: str
    label_x: float
    label_y: float
    leader: tuple[float, float] | None


@dataclass(frozen=True)
class CostChart:
    """Win rate over denoiser evaluations per image, for one scorer."""

    scorer: str
    points: list[Point]
    baseline: tuple[float, float] | None
    rates: list[tuple[float, int]]  # where the lines of win rates are, in percent
    rival: str  # places of best-of-n, as a line through them; '' where there are not two
    ticks: list[tuple[float, str]]
    budgets: list[tuple[float, str]]  # equal compute that was asked for


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900.0, 440.0, 46.0, 12.0, 14.0, 44.0
LETTER, TALL, DOT = 6.4, 14.0, 6.0  # of a label at 12 pixels, and a point's radius


def cost_charts(group: Group, methods: Sequence[Method]) -> list[CostChart]:
    """One chart per scorer; none where no cost is known."""
    costs = {cost.method: cost for cost in group.costs if cost.image_denoiser > 0}
    reach = {
        name: cost.image_denoiser + cost.alignment_denoiser / SPREAD_OVER
        for name, cost in costs.items()
        if cost.alignment_denoiser > 0
    }
    if not costs or not group.versus:
        return []
    budgets = {budget["nfe"] for m in methods if "nfe" in (budget := m.first.configuration.budget or {})}
    every = [*(cost.image_denoiser for cost in costs.values()), *reach.values(), *budgets]
    low, high = math.log10(min(every)) - 0.06, math.log10(max(every)) + 0.25

    def across(cost: float) -> float:
        return round(LEFT + (math.log10(cost) - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    algorithms = {m.label: m.first.configuration.algorithm for m in methods}
    own = costs.get(str(group.baseline))
    found = []
    for scorer in group.scorers:
        items = [item for item in group.versus if item.scorer == scorer and item.method in costs]
        up = _scale([item.rate.rate for item in items])
        rivals = sorted(
            (costs[item.method].image_denoiser, item.rate.rate) for item in items if algorithms[item.method] == RIVAL
        )
        baseline = (across(own.image_denoiser), up(0.5)) if own else None
        path = [*([baseline] if baseline else []), *((across(cost), up(rate)) for cost, rate in rivals)]
        places = {item.method: (across(costs[item.method].image_denoiser), up(item.rate.rate)) for item in items}
        lines = [(up(percent / 100), percent) for percent in range(0, 101, 10)]
        found.append(
            CostChart(
                scorer=scorer,
                points=_labelled(items, places, {name: across(cost) for name, cost in reach.items()}, path),
                baseline=baseline,
                rates=[(y, percent) for y, percent in lines if TOP <= y <= HEIGHT - BOTTOM],
                rival=" ".join(f"{x},{y}" for x, y in path) if rivals and len(path) > 1 else "",
                ticks=[(across(tick), number(tick)) for tick in _ticks(10**low, 10**high)],
                budgets=[(across(budget), number(budget)) for budget in sorted(budgets)],
            )
        )
    return found


def _scale(rates: Sequence[float]) -> Height:
    """Where win rates stand, on a scale that holds these and one half."""
    low, high = min(0.5, *rates, 1.0) - 0.06, max(0.5, *rates, 0.0) + 0.06

    def up(rate: float) -> float:
        return round(HEIGHT - BOTTOM - (rate - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    return up


def _ticks(low: float, high: float) -> list[float]:
    steps = [
        m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    return [step for step in steps if low <= step <= high]


def _labelled(
    items: Sequence[Versus],
    places: Mapping[str, tuple[float, float]],
    reach: Mapping[str, float],
    path: Sequence[tuple[float, float]],
) -> list[Point]:
    """Points with a label each that covers no other."""
    if not items:
        return []
    points = np.array([places[item.method] for item in items])
    sizes = [(LETTER * len(item.method) + 4, TALL) for item in items]
    frame = Box(LEFT + 2, TOP - 6, WIDTH - 2, HEIGHT - BOTTOM - 2)
    whiskers = [(x, places[name][1]) for name, end in reach.items() if name in places
                for x in np.arange(places[name][0], end, 2 * LETTER)]  # fmt: skip
    rims = [point + step for point in points for step in DOT * np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])]
    avoid = np.array([*points, *rims, *whiskers, *path])
    taken = [Box(x - 10, y - 8, x + 4 + LETTER * 5, y + 20) for x, y in path[:1]]  # the baseline's own label
    found = []
    for item, (x, y), box in zip(items, points.tolist(), place(points, sizes, frame, avoid, taken), strict=True):
        near = (min(max(x, box.left), box.right), min(max(y, box.bottom), box.top))
        far = math.hypot(near[0] - x, near[1] - y) > 14
        found.append(
            Point(
                method=item.method,
                x=x,
                y=y,
                reach=reach.get(item.method),
                mark=item.rate_test.mark,
                about=f"{item.method}: wins {percent(item.rate.rate)} %, mean difference {item.difference:+.3g}",
                label_x=round(box.left + 2, 1),
                label_y=round(box.top - 3, 1),
                leader=(round(near[0], 1), round(near[1], 1)) if far else None,
            )
        )
    return found


@dataclass(frozen=True)
class Line:
    """A scorer while a method trains."""

    scorer: str
    number: int  # of the scorer, which is its colour
    proxy: bool  # whether it is the reward that is optimised
    path: str
    band: str  # the range over seeds; '' for one seed
    end: str  # what it changed by at the end


@dataclass(frozen=True)
class Training:
    """The curves of one method."""

    method: str
    seeds: int
    rounds: str
    lines: list[Line]


Scaled = tuple[Curve, list[float], list[float], list[float]]  # with mean, lowest and highest change
SMALL_WIDTH, SMALL_HEIGHT, PAD = 240.0, 130.0, 8.0


@dataclass(frozen=True)
class Trainings:
    """All of them, on one scale."""

    charts: list[Training]
    zero: float  # where no change is
    lowest: str
    highest: str


def trainings(group: Group, methods: Sequence[Method]) -> Trainings | None:
    """The change of every scorer on held-out prompts while methods train, in standard deviations of the baseline's
    scores and upwards where it is better, so that reward and truth stand on one scale. None where nothing trains."""
    spread = _spread(group, methods)
    found: list[tuple[Method, list[Scaled]]] = []
    for method in methods:
        scaled: list[Scaled] = []
        for curve in curves_of(method, method.label):
            if curve.scorer in spread and np.isfinite(curve.mean).all():
                unit = spread[curve.scorer]
                changes = [((x - curve.mean[0]) / unit).tolist() for x in (curve.mean, curve.low, curve.high)]
                scaled.append((curve, changes[0], changes[1], changes[2]))
        if scaled:
            found.append((method, scaled))
    if not found:
        return None
    every = [x for _, scaled in found for _, *changes in scaled for values in changes for x in values]
    low, high = min(0.0, *every), max(0.0, *every)
    room = 0.05 * (high - low) or 1.0

    def height(x: float) -> float:
        return round(SMALL_HEIGHT - PAD - (x - low + room) / (high - low + 2 * room) * (SMALL_HEIGHT - 2 * PAD), 1)

    charts = [_training(method, scaled, group.scorers, height) for method, scaled in found]
    return Trainings(charts, height(0.0), f"{low:+.2g}", f"{high:+.2g}")


def _spread(group: Group, methods: Sequence[Method]) -> dict[str, float]:
    """Standard deviation of each scorer over the baseline's images, below 0 where lower is better."""
    first = next((m for m in methods if m.label == group.baseline), methods[0]).first
    found = {}
    for name in group.scorers:
        values = [score for row in first.rows if (score := row.scores.get(name)) is not None]
        with np.errstate(over="ignore", invalid="ignore"):
            deviation = float(np.std(values)) if values else 0.0
        if 0 < deviation < np.inf:
            found[name] = deviation if first.scorers[name].higher_is_better else -deviation
    return found


def _training(method: Method, scaled: Sequence[Scaled], scorers: Sequence[str], height: Height) -> Training:
    aim = method.first.configuration.reward
    lines = []
    for curve, mean, low, high in scaled:
        last = float(curve.x[-1]) or 1.0
        x = [round(PAD + (SMALL_WIDTH - 2 * PAD) * float(at) / last, 1) for at in curve.x]
        band = [*_path(x, high, height), *reversed(_path(x, low, height))] if curve.seeds > 1 else []
        proxy = aim is not None and label(aim) == curve.scorer
        path = " ".join(_path(x, mean, height))
        lines.append(
            Line(curve.scorer, scorers.index(curve.scorer) % 6, proxy, path, " ".join(band), f"{mean[-1]:+.2f}")
        )
    lines.sort(key=lambda line: not line.proxy)
    return Training(method.label, scaled[0][0].seeds, number(float(scaled[0][0].x[-1])), lines)


def _path(x: Iterable[float], y: Iterable[float], height: Height) -> list[str]:
    return [f"{at},{height(value)}" for at, value in zip(x, y, strict=True)]
