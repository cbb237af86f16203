"""What an image costs in closed form, and the largest setting of a method that a budget pays for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar, get_args

from alignbench.errors import Unsupported
from alignbench.meter import Cost, Resource

A = TypeVar("A")
LARGEST = 2**20
RESOURCES = get_args(Resource)


KINDS = ("nfe", "reward_evals", "seconds")


def spent(cost: Cost, kind: str, budget: Mapping[str, float]) -> float:
    """What a cost comes to in the unit of a budget. `nfe` and `reward_evals` count forward and backward evaluations;
    `seconds` weighs all evaluations by what one takes, which the budget holds as `seconds_per_<resource>`."""
    used = {
        resource: getattr(cost, f"{resource}_forward") + getattr(cost, f"{resource}_backward") for resource in RESOURCES
    }
    if kind == "seconds":
        return sum(n * budget[f"seconds_per_{resource}"] for resource, n in used.items())
    return used["denoiser"] if kind == "nfe" else used["reward"]


def largest(
    make: Callable[[int], A], cost_of: Callable[[A], Cost], budget: Mapping[str, float], what: str, least: int = 1
) -> A:
    """make(n) with the largest n whose cost per image stays within the budget; the cost grows with n.

    Raises Unsupported where not even `least` does.
    """
    kinds = [kind for kind in KINDS if kind in budget]

    def affordable(n: int) -> bool:
        cost = cost_of(make(n))
        return all(spent(cost, kind, budget) <= budget[kind] for kind in kinds)

    if not affordable(least):
        cost = cost_of(make(least))
        needs = ", ".join(f"{kind}={spent(cost, kind, budget):g}" for kind in kinds)
        asked = ", ".join(f"{kind}={budget[kind]:g}" for kind in kinds)
        raise Unsupported(
            f"an image costs at least {needs} ({what}={least}), and the budget is {asked}; raise --budget."
        )
    low, high = least, least + 1
    while high < LARGEST and affordable(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    return make(low)
