"""Prints the simulated coverage of the 95 % interval of a win rate: `python tests/timings/coverage_of_win_rates.py`.

Probit-normal wins, as in tests/unit/analysis/test_statistics.py, with more repeats; beside it plain Wilson over all
images, the usual practice.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
import scipy.stats

from alignbench.analysis.statistics import wilson, win_rate
from alignbench.keys import Key


def coverage(prompts: int, samples: int, effect: float, rate: float, repeats: int) -> tuple[float, float]:
    rng = Key("coverage", prompts, samples, str(effect), str(rate)).generator()
    mu = scipy.stats.norm.ppf(rate) * np.sqrt(1 + effect**2)
    clusters = np.repeat(np.arange(prompts), samples)
    ours = plain = 0
    for _ in range(repeats):
        threshold = mu + effect * rng.standard_normal((prompts, 1))
        wins = (rng.standard_normal((prompts, samples)) < threshold).astype(float).ravel()
        interval = win_rate(wins, clusters)
        ours += interval.low <= rate <= interval.high
        low, high = wilson(float(wins.mean()), len(wins), 1.959964)
        plain += low <= rate <= high
    return ours / repeats, plain / repeats


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print(f"{repeats} repeats; prompts, images per prompt, prompt effect, true rate: ours, plain Wilson")
    for setting in itertools.product((30, 200), (1, 4, 8), (0.5, 1.5), (0.5, 0.95)):
        ours, plain = coverage(*setting, repeats)
        print(*setting, f"{100 * ours:.2f} %", f"{100 * plain:.2f} %", sep="  ", flush=True)


if __name__ == "__main__":
    main()
