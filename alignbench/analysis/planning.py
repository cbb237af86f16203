"""How small a difference a comparison can show, told from what existing results vary by, and what to add first.

A value, of a win or of a difference of scores, is taken for a sum of independent random parts: of its prompt p, of its
image i within the prompt, of the training seed s, and of what they have together. All seeds draw an image from the same
noise, so its part is the same under each of them. With n prompts × k images × s seeds the mean has

    V = σ²_p / n + σ²_i / (n k) + σ²_s / s + σ²_ps / (n s) + σ²_is / (n k s)                                         (1)

Of the test, whose error is that of `random_effects`, T_p is expected to be found of the prompts, where T_x sums the
terms of (1) that contain x, and T_s of the seeds, from which it takes what they have by chance, T_p + T_s − V. With few
seeds their mean square may lie far from that, so 32 quantiles of it, a multiple of a chi-square, are gone through. The
smallest difference δ, with f = n − 1 and the half width of a two-sided test, one of m by Bonferroni, has

    mean over quantiles of P(t_f ≤ (δ − half width) / √V) = power                                                    (2)

and is (t_{1 − α / 2m} + t_power) √V where no seeds are drawn. Where the baseline has several training seeds, they are a
third factor with terms like those of s. The variances are estimated from mean squares (Searle, Casella and McCulloch,
Variance Components, 1992, ch. 4); a negative estimate is 0. One seed tells no variance of seeds, and one image per
prompt none of images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignbench.analysis.pairing import Meeting
from alignbench.analysis.random_effects import UPPER, Array, filled_in, mean_squares

PROMPTS, SEEDS, BASELINE_SEEDS = range(3)  # axes
Factors = tuple[int, ...]
Quantity = Literal["rate", "difference"]
Addition = Literal["prompts", "images", "seeds"]
FARTHEST = 0.5  # of a win rate from a half
QUANTILES = 32  # of the mean square of seeds that are gone through
LEAST_SHARE = 1e-9  # of the variance at a rate of a half, below which how it divides is not to be told


class Size(NamedTuple):
    """How much is evaluated. Infinite stands for as many as one likes."""

    prompts: float
    images: float  # per prompt
    seeds: float  # of the method; 1 where its seed is not drawn at random
    baseline_seeds: float

    @property
    def levels(self) -> tuple[float, float, float]:
        """Of the three axes."""
        return self.prompts, self.seeds, self.baseline_seeds

    def times(self, factor: float, of: Addition) -> Size:
        """With more of one thing; seeds are added where there are several."""
        if of == "prompts":
            return self._replace(prompts=self.prompts * factor)
        if of == "images":
            return self._replace(images=self.images * factor)
        seeds, others = (count * factor if count > 1 else count for count in (self.seeds, self.baseline_seeds))
        return self._replace(seeds=seeds, baseline_seeds=others)


@dataclass(frozen=True)
class Components:
    """Variances of the parts of a value, by the factors that a part belongs to. Of win rates they are in shares of a
    win, of differences in the scorer's units, squared."""

    of_prompts: Mapping[Factors, float]  # what images of a prompt have in common, and what seeds add
    of_images: Mapping[Factors, float] | None  # beside it, of single images; None with one image per prompt
    differing: float  # share of prompts whose mean is not 0
    size: Size  # what they were estimated from

    def spread(self, *factors: int) -> float:
        """Standard deviation of what these factors make, NaN where one of them has no levels to tell it from."""
        return math.sqrt(self.of_prompts.get(factors, math.nan))

    @property
    def spread_of_images(self) -> float:
        """Standard deviation of images within a prompt, NaN where it is not known."""
        return math.nan if self.of_images is None else math.sqrt(self.of_images.get((PROMPTS,), 0.0))


def components(met: Meeting, of: Quantity) -> Components:
    """Variances of wins, about a half, or of differences.

    Those of wins are told as they would be at a rate of a half, where a difference is smallest that can be shown: a
    method that wins 95 % of its pairs varies little because it wins. All parts grow by the one factor that makes their
    sum the mean square distance from a half.
    """
    values = met.won - 0.5 if of == "rate" else met.mine - met.theirs
    by_unit, missing = filled_in(met.by_unit(values))
    own = np.moveaxis(values[:, :, met.present], 2, 0)  # [images, seeds, baseline seeds]
    units, places, images = np.unique(met.units[met.present], return_inverse=True, return_counts=True)
    each = 1 / float((1 / images).mean())  # of images per prompt, as they enter the variance of a mean
    of_images = _within(own, places)
    shared = dict(_variances(mean_squares(by_unit, missing), by_unit.shape))
    for factors, variance in (of_images or {}).items():
        shared[factors] = shared.get(factors, 0.0) - variance / each
    shared = {factors: max(0.0, variance) for factors, variance in shared.items()}
    found = Components(
        shared,
        of_images,
        differing=float((np.abs(by_unit.mean((1, 2))) > 1e-12).mean()),
        size=Size(len(units), each, *by_unit.shape[1:]),
    )
    return _at_a_half(found, met.by_unit(values**2), float(by_unit.mean())) if of == "rate" else found


def _at_a_half(found: Components, squares: Array, mean: float) -> Components:
    """See `components`; where all is won or lost, all that may vary is put down to prompts."""
    wanted = float(np.nanmean(squares, (1, 2)).mean())
    if wanted - mean**2 <= LEAST_SHARE * wanted:
        return replace(found, of_prompts={(PROMPTS,): wanted}, of_images=found.of_images and {})
    factor = wanted / (wanted - mean**2)

    def grown(parts: Mapping[Factors, float]) -> dict[Factors, float]:
        return {factors: factor * variance for factors, variance in parts.items()}

    images = None if found.of_images is None else grown(found.of_images)
    return replace(found, of_prompts=grown(found.of_prompts), of_images=images)


def _within(own: Array, places: NDArray[np.int64]) -> dict[Factors, float] | None:
    """Variances of images [images, seeds, baseline seeds] within their prompts, from those that every seed has; None
    where no prompt has two."""
    whole = ~np.isnan(own).any((1, 2))
    own = own[whole]
    _, places, sizes = np.unique(places[whole], return_inverse=True, return_counts=True)
    free = len(own) - len(sizes)
    if free < 1:
        return None
    sums = np.zeros((len(sizes), *own.shape[1:]))
    np.add.at(sums, places, own)
    squares = mean_squares(own - (sums / sizes[:, None, None])[places])
    degrees = (len(own) - 1) / free  # each prompt's mean took one
    found = _variances({factors: (square * degrees, df) for factors, (square, df) in squares.items()}, own.shape)
    return {factors: max(0.0, variance) for factors, variance in found.items() if PROMPTS in factors}


def _variances(squares: Mapping[Factors, tuple[float, float]], shape: tuple[int, ...]) -> dict[Factors, float]:
    """Variances of the parts, whose sum over all sets of factors around X, each by the number of cells that share it,
    is what the mean square of X is expected to be."""
    found = {}
    for inner in squares:
        around = (set_ for set_ in squares if set(inner) <= set(set_))
        signed = sum((-1) ** (len(outer) - len(inner)) * squares[outer][0] for outer in around)
        found[inner] = signed * math.prod(shape[axis] for axis in inner) / math.prod(shape)
    return found


class Error(NamedTuple):
    """What a mean at a size is expected to vary by, as a test sees it."""

    of_units: float  # T_p
    of_seeds: float  # T_s
    by_chance: float  # of both, what is counted twice
    df_units: float
    df_seeds: float

    @property
    def scale(self) -> float:
        """Standard error of the mean: (1)."""
        return math.sqrt(max(0.0, self.of_units + self.of_seeds - self.by_chance))

    def half_widths(self, level: float) -> Array:
        """Of the interval, at equally likely mean squares of seeds."""
        from scipy.special import chdtri, stdtridf, stdtrit

        if not self.of_seeds:
            return np.array([self.scale * float(stdtrit(self.df_units, 1 - level / 2))])
        chances = (np.arange(QUANTILES) + 0.5) / QUANTILES
        added = np.maximum(0, self.of_seeds * chdtri(self.df_seeds, chances) / self.df_seeds - self.by_chance)
        t_units, t_seeds = (float(stdtrit(df, UPPER)) for df in (self.df_units, self.df_seeds))
        share = added / np.maximum(self.of_units + added, LEAST_SHARE * self.scale**2)  # of the variance, seen of seeds
        df = stdtridf(UPPER, np.sqrt((1 - share) * t_units**2 + share * t_seeds**2))
        return np.asarray(np.sqrt(self.of_units + added) * stdtrit(df, 1 - level / 2), dtype=np.float64)


def error(parts: Components, size: Size) -> Error:
    """Of the mean at a size. Factors with one level are not drawn at random: the mean is about that one."""
    terms: dict[Factors, float] = {}
    for source, images in ((parts.of_prompts, 1.0), (parts.of_images or {}, size.images)):
        for factors, variance in source.items():
            drawn = tuple(axis for axis in factors if size.levels[axis] > 1)
            if drawn:
                shared = math.prod(size.levels[axis] for axis in drawn) * images
                terms[drawn] = terms.get(drawn, 0.0) + variance / shared
    around = [sum(term for factors, term in terms.items() if axis in factors) for axis in range(3)]
    of_seeds = around[SEEDS] + around[BASELINE_SEEDS]
    seeds = [(around[axis] / of_seeds, size.levels[axis] - 1) for axis in (SEEDS, BASELINE_SEEDS) if around[axis] > 0]
    return Error(
        around[PROMPTS],
        of_seeds,
        around[PROMPTS] + of_seeds - sum(terms.values()),
        df_units=size.prompts - 1 if around[PROMPTS] > 0 else math.inf,
        df_seeds=1 / sum(share**2 / df for share, df in seeds) if seeds else 0.0,
    )


def smallest(parts: Components, size: Size, level: float, power: float) -> float:
    """The smallest difference (2) that a two-sided test at this level shows with this power: of a win rate from a half,
    of a mean from 0. Infinite where so few prompts can show none, NaN where nothing was seen to vary."""
    from scipy.special import stdtr, stdtrit

    if not any(variance > 0 for source in (parts.of_prompts, parts.of_images or {}) for variance in source.values()):
        return math.nan
    if 2.0 ** (1 - parts.differing * size.prompts) > level:  # the least p that the signs of so many prompts give
        return math.inf
    found = error(parts, size)
    if found.scale == 0:
        return 0.0
    widths = found.half_widths(level)
    low, high = (
        float(end) + found.scale * float(stdtrit(found.df_units, power)) for end in (widths.min(), widths.max())
    )
    while high - low > 1e-9 * found.scale:
        middle = (low + high) / 2
        shown = float(stdtr(found.df_units, (middle - widths) / found.scale).mean())
        low, high = (middle, high) if shown < power else (low, middle)
    return high


@dataclass(frozen=True)
class Plan:
    """What one quantity of a method can show against the baseline on a scorer."""

    parts: Components
    size: Size  # what is planned
    now: float  # the smallest difference that the results can show
    smallest: float  # the same at the size that is planned
    doubled: Mapping[Addition, float]  # the same with twice as much of one thing
    fixed: Mapping[Addition, float]  # what no number of the other things gets below

    @property
    def first(self) -> Addition | None:
        """What to double first; None where it does not matter."""
        best = min(self.doubled, key=lambda of: self.doubled[of])
        return best if self.doubled[best] < self.smallest else None


def plan_for(parts: Components, size: Size, level: float, power: float) -> Plan:
    """Of variances and a size; see `Plan`."""
    additions: list[Addition] = ["prompts"]
    additions += ["images"] if parts.of_images is not None else []
    additions += ["seeds"] if any(count > 1 for count in size.levels[1:]) else []
    now = smallest(parts, size, level, power)

    def with_more(factor: float, of: Iterable[Addition]) -> float:
        larger = size
        for addition in of:
            larger = larger.times(factor, addition)
        return min(now, smallest(parts, larger, level, power))

    doubled = {of: with_more(2, [of]) for of in additions}
    fixed = {}
    for of in additions if len(additions) > 1 else ():
        fixed[of] = with_more(math.inf, [other for other in additions if other != of])
    return Plan(parts, size, smallest(parts, parts.size, level, power), now, doubled, fixed)
