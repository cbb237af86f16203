"""Votes of a made-up electorate on pictures of the embedded model, and what Diffusion-DPO learns from them.

    PYTHONPATH=tests/support python tests/reference/simulate_voting.py --output results/statistics/voting.json

The electorate is the shapes world's simulated human with noise: a rater prefers picture x to y of caption c with

    P(x ≻ y) = 1 / (1 + exp(−w (u(x, c) − u(y, c)) − b)),                                                     (1)

u the human's utility (alignbench/shapes/style.py), w a rater's own weight around 1, b a draw to the left; who is
careless answers at random. They vote through the session of `alignbench vote`, on the two of eight pictures of a
training prompt that the learned reward likes best and least, without being told which. Of their votes `alignbench pairs
--from-votes` makes preference pairs, `audit` and `train-reward` read these, and Diffusion-DPO learns from them and
nothing else. Its pictures of the test prompts are compared with the unaligned model's on u itself, which no method ever
saw.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from electorate import by_utility, everybody
from places import TESTS

import alignbench
from alignbench import Key
from alignbench.analysis.load import load
from alignbench.analysis.statistics import WinRate
from alignbench.files import write_text
from alignbench.judging.audit import audit
from alignbench.judging.ballot import ground_of
from alignbench.judging.options import AuditOptions
from alignbench.judging.vote_pairs import pairs_from_votes
from alignbench.record.votes import Log, Served, Shown, read_log, suspects

HUMAN = f"{TESTS}/support/plugins/human.py:Human"
DISLIKED = f"{TESTS}/support/plugins/disliked.py:Disliked"
RATERS, EACH = 10, 20  # 200 votes, checks and repeats among them
LEFT, CARELESS = 0.5, 9  # the draw to the left of rater 8; the number of who answers at random
TIE = 0.2  # difference in utility below which a rater says that neither is better
CANDIDATES = 8  # pictures of a prompt, of which the best and the worst are voted on: what differs more teaches more
SETTINGS = {"rounds": 4, "updates_per_round": 10}  # seventeen looks at each pair
VOTED, TESTED, SEEDS = 200, 200, (1, 2, 3)


def electorate(files: Sequence[Path], path: Path) -> Log:
    """Everybody votes to the end, one after the other."""
    runs = [run for runs in load(files).groups.values() for run in runs]
    liked = {
        run.path.name: {(r.prompt, r.sample): float(r.scores["Human"] or 0) for r in run.result.rows} for run in runs
    }
    cells = ground_of(files).cells
    prompts = [{place: prompt for prompt, place in cell.places.items()} for cell in cells]

    def utility(one: Shown) -> float:
        return liked[cells[one.cell].path.name][prompts[one.cell][one.place], one.sample]

    people = []
    for number in range(RATERS):
        rng = Key("electorate", number).generator()
        weight, left = float(np.exp(0.3 * rng.standard_normal())), LEFT if number == RATERS - 2 else 0.0
        people.append((rng, by_utility(utility, weight, left, TIE, rng)))

    def choose(number: int, pair: Served) -> str:
        rng, chosen = people[number]
        return ("left", "right")[int(rng.random() < 0.5)] if number == CARELESS else chosen(pair)

    return everybody(files, path, RATERS, EACH, choose)


def measured(
    folder: Path, seeds: Sequence[int], voted: int, split: str, tested: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """All figures. `folder` keeps cells, votes and pairs, so that a call that was killed continues."""
    asked = {"model": "tiny", "scorers": [HUMAN], "quiet": True}
    on_training = {**asked, "split": "train", "limit": voted, "output": folder / "voted"}
    worst, best = [
        alignbench.run(algo="best_of_n", set={"n": CANDIDATES}, reward=reward, **on_training)
        for reward in (DISLIKED, "shapes_preference")
    ]
    files = [worst.path, best.path]
    log = folder / "votes.jsonl"
    votes = read_log(log) if log.exists() else electorate(files, log)
    made = pairs_from_votes(log, files, folder / "pairs")
    on_test = {**asked, "split": split, "limit": tested, "output": folder / "tested"}
    cells = [alignbench.run(algo="base", **on_test).path]
    for seed in seeds:
        learned = alignbench.run(
            algo="diffusion_dpo", pairs=folder / "pairs", set=settings, seed=seed, name=f"voted{seed}", **on_test
        )
        cells.append(learned.path)
    (group,) = alignbench.compare(cells).groups
    (human,) = [item for item in group.versus if item.scorer == "Human"]
    (disliked,) = [label for label in alignbench.compare(files).groups[0].methods if "Disliked" in label]
    column = alignbench.compare(files, disliked, votes=[log]).groups[0].votes[0]
    (preferred,) = column.versus
    heard = audit(
        AuditOptions.parse({"pairs": folder / "pairs", "scorers": ["shapes_style", "shapes_truth", HUMAN]}), True
    )
    return {
        "settings": {
            "raters": RATERS, "each": EACH, "voted prompts": voted, "test prompts": tested, "split": split,
            "best and worst of": CANDIDATES, "fields": settings, "seeds": list(seeds),
        },
        "votes": {
            "cast": len(votes.votes), "on new pairs": column.worth.votes, "agreement": column.worth.alpha.raw,
            "alpha": column.worth.alpha.alpha, "failed checks": sorted(suspects(votes)),
            "best preferred to worst": [preferred.rate.rate, preferred.shown.low, preferred.shown.high],
        },
        "pairs": {"pairs": made.pairs, "ties": made.ties},
        "agree with the labels": {name: _rates(one.accuracy.rates) for name, one in heard.scorers.items()},
        "human": {
            "win rate": human.rate.rate, "low": human.rate.low, "high": human.rate.high,
            "adjusted p": human.rate_test.adjusted, "difference": human.difference,
            "seeds": [rate for _, rate in human.seeds],
        },
    }  # fmt: skip


def _rates(rates: Mapping[str, WinRate | None]) -> dict[str, float | None]:
    """How often a scorer agrees with the labels, by definition."""
    return {name: None if rate is None else rate.rate for name, rate in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the figures, .json")
    parser.add_argument("--folder", type=Path, help="where cells and votes are kept; a temporary one if left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--voted", type=int, default=VOTED, help="training prompts that are voted on")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="dev to choose settings on")
    parser.add_argument("--tested", type=int, default=TESTED, help="prompts of it")
    parser.add_argument("--rounds", type=int, default=SETTINGS["rounds"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        settings = {**SETTINGS, "rounds": given.rounds}
        found = measured(given.folder or Path(temporary), given.seeds, given.voted, given.split, given.tested, settings)
    write_text(given.output, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
