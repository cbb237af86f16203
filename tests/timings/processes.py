"""Prints how far training in two and three processes ends from training in one, for every algorithm.

    python tests/timings/processes.py [--output results/timings/processes.json]
    python tests/timings/processes.py --toy tiny
    python tests/timings/processes.py --kills 40

The largest difference of a weight and of a number of the curve, and whether the cost is the same: on the exact
testbeds, and on the embedded model with two pictures in a forward pass, with sizes that do not divide. With `--kills`,
a run of two or three processes is killed at random moments (a process, the launcher, or all at once), continued with
another number of them, and compared with one that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "system")]

from several import Came, trained  # noqa: E402
from warm import execute  # noqa: E402

CASES = {"mixture": ("none", (2, 3)), "mixture_flow": ("none", (2, 3)), "tiny": ("least", (2, 3))}  # sizes, processes


def of_curves(one: Came, other: Came) -> float:
    """The largest difference of a number that was logged."""
    lines = zip(one.curve, other.curve, strict=True)
    return max(abs(a[name] - b[name]) for a, b in lines for name in a if isinstance(a[name], float))


def differences(toy: str) -> dict[str, dict[str, Any]]:
    """By algorithm: the differences of weights and curves, by the number of processes, and whether costs are equal."""
    from alignbench import plugins

    names = [name for name in plugins.own_names("algorithms") if plugins.load("algorithms", name).trains]
    fault, numbers = CASES[toy]
    with tempfile.TemporaryDirectory() as folder:
        found = {n: trained(Path(folder) / str(n), n, names, toy, fault) for n in (1, *numbers)}
    print(f"{toy}\n{'algorithm':28}{'processes':>10}{'weights':>10}{'curve':>10}  cost")
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        one = found[1][name]
        rows[name] = {"cost": all(found[n][name].cost == one.cost for n in numbers)}
        for n in numbers:
            other = found[n][name]
            rows[name][str(n)] = {"weights": other.distance(one), "curve": of_curves(one, other)}
            weights, curve = rows[name][str(n)].values()
            cost = "the same" if other.cost == one.cost else "differs"
            print(f"{name:28}{n:10}{weights:10.0e}{curve:10.0e}  {cost}", flush=True)
    return rows


def kills(count: int, rounds: int) -> None:
    from test_deaths_of_processes import asked, begun, curve

    from alignbench.record import result as results

    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed, done, runs = Path(folder) / "whole", Path(folder) / "killed", 0, 0
        assert execute(asked(whole, rounds)).returncode == 0
        one = results.read(next(whole.glob("*.json")))
        while done < count:
            runs += 1
            target = killed / str(runs)
            while done < count and curve(target) < rounds - 3:
                processes = chance.choice((2, 3))
                run, pids = begun(target, processes, rounds, curve(target) + 1)
                time.sleep(chance.uniform(0, 1))
                victims = chance.choice(([chance.choice(pids)], [run.process.pid], [run.process.pid, *pids]))
                for pid in victims:
                    os.kill(pid, signal.SIGKILL)
                run.ended()
                done += 1
            assert execute([*asked(target, rounds), "--processes", str(chance.choice((2, 3)))]).returncode == 0
            other = results.read(next(target.glob("*.json")))
            pairs = [(a.scores[k], b.scores[k]) for a, b in zip(one.rows, other.rows, strict=True) for k in a.scores]
            apart = [abs(a - b) for a, b in pairs]  # type: ignore[operator]  # no score failed
            same = other.cost is not None and one.cost is not None and other.cost.alignment == one.cost.alignment
            print(
                f"after {done} kills: {other.attempts} attempts, cost {'the same' if same else 'differs'}, "
                f"largest difference of a score {max(apart):.1e}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, metavar="N", help="how many kills, instead of the table")
    parser.add_argument("--rounds", type=int, default=60, help="of the run that is killed")
    parser.add_argument("--toy", choices=CASES, help="the only one to train on")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.kills:
        kills(options.kills, options.rounds)
    else:
        content = {toy: differences(toy) for toy in ([options.toy] if options.toy else CASES)}
        if options.output:
            options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
