"""A made-up electorate whose wishes are known, which votes through the real session."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from alignbench import Key
from alignbench.judging.voting import begin
from alignbench.judging.voting_asked import Asked
from alignbench.record.votes import Log, Rules, Served, Shown, read_log

Choose = Callable[[int, Served], str]  # what the rater of a number chooses of a pair
BETTER = {"base": 0.0, "refl": 1.0, "draft": -0.5}  # in logits


def hold(files, log, people, rules=None, each=60, tie=0.15, sure=1.0, **asked):
    """Everybody votes. `people` says of each rater how far the left side draws (in logits), or "careless"."""
    session = begin(files, Asked(log, each=each, rules=rules or Rules(), **asked))
    rng = Key("electorate", len(people)).generator()
    taste = {name: 0.3 * float(rng.standard_normal()) for name in people}
    prompt = {text: 0.5 * float(rng.standard_normal()) for text in session.ground.texts}
    methods = [cell.voted.method for cell in session.ground.cells]
    while people:
        done = 0
        for name, kind in people.items():
            seen = session.next(name, "", [])["pair"]
            if seen is None:
                done += 1
                continue
            pair = session.log.served[seen["nonce"]]
            if kind == "careless":
                choice = ("left", "right")[int(rng.random() < 0.5)]
            elif pair.check == "same":
                choice = "tie"
            elif pair.wrong:
                choice = "right" if pair.wrong == "left" else "left"
            else:
                one, other = (methods[p.cell] for p in (pair.left, pair.right))
                gain = (BETTER[one] - BETTER[other]) * (1 + taste[name]) + kind
                gain = sure * gain + prompt[pair.prompt] * (1 if one < other else -1)
                choice = (
                    "tie" if rng.random() < tie else ("left" if rng.random() < 1 / (1 + math.exp(-gain)) else "right")
                )
            session.vote(name, "", seen["nonce"], choice, 1500)
        if done == len(people):
            break
    session.close()
    return read_log(log)


def everybody(
    files: Sequence[Path], log: Path, raters: int, each: int, choose: Choose, rules: Rules | None = None
) -> Log:
    """So many raters vote to the end, one after the other."""
    session = begin(files, Asked(log, each=each, rules=rules or Rules()))
    for number in range(raters):
        rater = f"rater {number}"
        while (seen := session.next(rater, "", [])["pair"]) is not None:
            pair = session.log.served[seen["nonce"]]
            session.vote(rater, "", seen["nonce"], choose(number, pair), 1500)
    session.close()
    return read_log(log)


def by_utility(utility: Callable[[Shown], float], weight: float, left: float, tie: float, rng: np.random.Generator):
    """A rater who prefers a picture with P = 1 / (1 + exp(−(weight times the gain in utility) − left)), says that
    neither is better where they differ by less than `tie`, and passes every check: a function of a pair."""

    def chosen(pair: Served) -> str:
        if pair.wrong:
            return "right" if pair.wrong == "left" else "left"
        gain = utility(pair.left) - utility(pair.right)
        drawn = rng.random() < 1 / (1 + math.exp(-weight * gain - left))
        return "tie" if abs(gain) < tie or pair.check == "same" else ("left" if drawn else "right")

    return chosen
