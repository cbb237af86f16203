"""Simulates how often the table's intervals cover and how often its marks are false, setting by setting.

    python tests/reference/simulate_inference.py --output results/statistics/coverage.json

Each replicate is a comparison of one method with one baseline on p prompts with i images each, by k training seeds of
the method. It is given to the code that `alignbench compare` uses. The score difference of a pair of images is

    y = μ + seed + prompt + image + prompt × seed + rest,                                                     (1)

normal, with variances in SHARES that sum to 1 without the seed's. `image` is what the common noise of an evaluation
makes, so all seeds share it. With ties, what is seen is y drawn towards 0 by t, and 0 where |y| < t. The skewed
settings have an exponential (skewness 2) or a lognormal (6.2) prompt effect, with more of the variance, and concern
differences only.

`sd` is the standard deviation, over training seeds, of a method's own win rate; of a skewed difference, of its mean, in
the units in which a win rate of one half has that standard deviation. What is true is the expectation over prompts,
images and seeds, known in closed form: with s² = 1 + variance of the seed, P(win) = Φ((μ − t) / s), and so on. μ, t and
the seed's variance are solved for, the standard deviation of the rate by quadrature (an error below 1e-6). A single
seed says nothing of other seeds: there the truth is that of the run itself, and sd = 0 is all there is to simulate.

Figures are shares of replicates in %, but for the median width of a win rate's interval, in points. `told` is the share
with an interval of the difference; its coverage is among those, and not given where they are under a twentieth. The
same key gives the same figures.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from alignbench.analysis.pairing import Meeting
from alignbench.analysis.statistics import outcomes
from alignbench.files import write_text
from alignbench.keys import Key

Array = NDArray[np.float64]

KEY = "simulation of the inference"
REPLICATES = 2000
LEVEL = 0.05  # of the tests
SHARES = {"prompt": 0.4, "image": 0.1, "prompt × seed": 0.2, "rest": 0.3}  # of the variance
SKEWED_SHARES = {"prompt": 0.8, "image": 0.04, "prompt × seed": 0.06, "rest": 0.1}
ALTERNATIVE = 0.3  # the mean of a skewed difference, in standard deviations, at which power is told
DENSITY = 1 / math.sqrt(2 * math.pi)  # of the normal distribution at 0: points of win rate in one of y
LEAST_TOLD = 5.0  # % of replicates
BATCH = 100  # replicates drawn at once


@dataclass(frozen=True)
class Setting:
    seeds: int
    sd: float  # of the win rate over training seeds
    prompts: int
    images: int
    kind: str  # "no ties", "90 % ties", "skewness 2", "skewness 6"
    won: float  # of the pairs that differ

    @property
    def name(self) -> str:
        won = "" if self.skewed else f", {100 * self.won:g} % won"
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds of sd {100 * self.sd:g}"
        return f"{seeds}, {self.prompts} prompts × {self.images}, {self.kind}{won}"

    @property
    def skewed(self) -> bool:
        return self.kind.startswith("skewness")

    @property
    def null(self) -> bool:
        return self.won == 0.5

    @property
    def ties(self) -> float:
        return 0.9 if self.kind == "90 % ties" else 0.0

    @property
    def rate(self) -> float:
        """The true win rate."""
        return 0.5 + (1 - self.ties) * (self.won - 0.5)


def settings() -> Iterator[Setting]:
    """All of them, those with few prompts first."""
    seeds = [(1, 0.0), *itertools.product((3, 5), (0.0, 0.02, 0.04, 0.06))]
    for prompts, images, kind in itertools.product((10, 30, 200), (1, 4), ("no ties", "90 % ties")):
        rates = (0.5, 0.8, 0.95) if prompts == 200 and kind == "no ties" else (0.5, 0.8)
        yield from (Setting(k, sd, prompts, images, kind, won) for won in rates for k, sd in seeds)
    for prompts, images, kind in itertools.product((10, 30, 200), (1, 4), ("skewness 2", "skewness 6")):
        yield from (Setting(k, sd, prompts, images, kind, 0.5) for k, sd in seeds)


class Truth(NamedTuple):
    mu: float
    tie: float  # t: the difference below which a pair ties
    seed: float  # standard deviation of the seed's effect
    difference: float  # mean of what is seen of y


@functools.cache
def truth(setting: Setting) -> Truth:
    """What (1) must be for the win rate, the ties and the seeds of a setting."""
    if setting.skewed:
        return Truth(0.0, 0.0, setting.sd / DENSITY, 0.0)

    def at(seed: float) -> Truth:
        scale = math.hypot(1, seed)
        win, loss = ((1 - setting.ties) * share for share in (setting.won, 1 - setting.won))
        above, below = scale * float(ndtri(win)), scale * float(ndtri(loss))  # μ − t and −μ − t
        mu, tie = (above - below) / 2, -(above + below) / 2 if setting.ties else 0.0
        return Truth(mu, tie, seed, _above(mu - tie, scale) - _above(-mu - tie, scale))

    def excess(seed: float) -> float:
        return _rate_sd(at(seed)) - setting.sd

    return at(brentq(excess, 0, 5, xtol=1e-10) if setting.sd else 0.0)


def _above(mean: float, scale: float) -> float:
    """E[max(0, x)] of a normal x."""
    z = mean / scale
    return scale * DENSITY * math.exp(-z * z / 2) + mean * float(ndtr(z))


def _rate_sd(true: Truth) -> float:
    """Standard deviation of Φ(μ + seed − t) / 2 − Φ(−μ − seed − t) / 2 over seeds."""
    at, weights = np.polynomial.hermite_e.hermegauss(100)
    shifted = true.mu + true.seed * at
    rates = (ndtr(shifted - true.tie) - ndtr(-shifted - true.tie)) / 2
    weights = weights / weights.sum()
    return math.sqrt(float(weights @ rates**2 - (weights @ rates) ** 2))


def draw(setting: Setting, rng: np.random.Generator, n: int) -> Array:
    """What is seen of y, in n replicates: [n, seeds, pairs]."""
    true, shares = truth(setting), SKEWED_SHARES if setting.skewed else SHARES
    k, p, i = setting.seeds, setting.prompts, setting.images
    shapes = {"prompt": (n, 1, p, 1), "image": (n, 1, p, i), "prompt × seed": (n, k, p, 1), "rest": (n, k, p, i)}
    parts = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    if setting.kind == "skewness 2":
        parts["prompt"] = -np.log(ndtr(parts["prompt"])) - 1
    elif setting.kind == "skewness 6":
        parts["prompt"] = (np.exp(parts["prompt"]) - math.exp(0.5)) / math.sqrt(math.e * (math.e - 1))
    y = true.mu + true.seed * rng.standard_normal((n, k, 1, 1))
    for name, part in parts.items():
        y = y + math.sqrt(shares[name]) * part
    return (np.sign(y) * np.maximum(np.abs(y) - true.tie, 0)).reshape(n, k, p * i)


def meeting(y: Array, setting: Setting) -> Meeting:
    mine = y[:, None]
    prompts = np.repeat(np.arange(setting.prompts), setting.images)
    theirs = np.zeros((1, 1, mine.shape[2]))
    return Meeting(mine, theirs, outcomes(mine, theirs), prompts)


def simulate(setting: Setting, replicates: int) -> dict[str, Any]:
    """The figures of one setting, in %, in the order of the file."""
    rng = Key(KEY, setting.name).generator()
    true = truth(setting)
    rates, differences, p_rate, p_difference, shifted = [], [], [], [], []
    for start in range(0, replicates, BATCH):
        for y in draw(setting, rng, min(BATCH, replicates - start)):
            met = meeting(y, setting)
            differences.append(met.difference_interval())
            p_difference.append(met.difference_p())
            if setting.skewed:
                shifted.append(meeting(y + ALTERNATIVE, setting).difference_p())
            else:
                found = met.rate()
                rates.append((found.low, found.high))
                p_rate.append(met.rate_p())
    marks = "false marks" if setting.null else "power"
    figures: dict[str, Any] = asdict(setting) | {"replicates": replicates}
    if not setting.skewed:
        low, high = np.array(rates).T
        figures |= {"rate": setting.rate, "rate coverage": _percent((low <= setting.rate) & (setting.rate <= high))}
        figures |= {"rate width": round(100 * float(np.median(high - low)), 2)}
        figures |= {f"rate {marks}": _percent(np.array(p_rate) < LEVEL)}
    low, high = np.array(differences).T
    told = ~np.isnan(low)
    inside = ((low <= true.difference) & (true.difference <= high))[told]
    figures |= {"difference told": _percent(told)}
    figures |= {"difference coverage": _percent(inside) if _percent(told) >= LEAST_TOLD else None}
    figures |= {f"difference {marks}": _percent(np.array(p_difference) < LEVEL)}
    return figures | ({"difference power": _percent(np.array(shifted) < LEVEL)} if shifted else {})


def _percent(those: NDArray[np.bool_]) -> float:
    return round(100 * float(those.mean()), 2)


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["settings"] if path.exists() else []


def named(figures: dict[str, Any]) -> str:
    return Setting(**{name: figures[name] for name in Setting.__dataclass_fields__}).name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="", help="only those with this in their name, such as '3 seeds of sd 4'")
    parser.add_argument("--replicates", type=int, default=REPLICATES)
    parser.add_argument("--output", type=Path, help="the file to write; settings it holds are not simulated again")
    asked = parser.parse_args()
    held = {named(figures): figures for figures in (read(asked.output) if asked.output else [])}
    wanted = [s for s in settings() if asked.settings in s.name]
    began = time.monotonic()
    for number, setting in enumerate(wanted, 1):
        if held.get(setting.name, {}).get("replicates") == asked.replicates:
            continue
        figures = held[setting.name] = simulate(setting, asked.replicates)
        seen = ", ".join(f"{name} {figures[name]}" for name in list(figures)[len(asdict(setting)) + 1 :])
        print(f"{number}/{len(wanted)} {time.monotonic() - began:.0f} s  {setting.name}: {seen}", flush=True)
        if asked.output is not None:
            rows = [json.dumps(held[s.name], ensure_ascii=False) for s in settings() if s.name in held]
            write_text(asked.output, f'{{"key": "{KEY}", "settings": [\n' + ",\n".join(rows) + "\n]}\n")


if __name__ == "__main__":
    main()
