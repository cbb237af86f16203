"""The command that runs the contracts on anybody's plug-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from alignbench.choices import ToyName
from alignbench.cli.output import say
from alignbench.errors import InputError

if TYPE_CHECKING:
    from alignbench.contracts.contract import Finding
    from alignbench.plugins import Group

MARKS = {"holds": "holds  ", "broken": "BROKEN ", "not asked": "-      "}


def check(
    plugin: str,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    model: ToyName = "mixture",
) -> int:
    """Run the contracts on a plug-in: an algorithm, a reward or a prompt set. Prints what holds and what does not.

    alignbench check my_algorithm.py:MyAlgorithm --set rounds=3

    Parameters
    ----------
    plugin: str
        path/file.py:Name, package.module:Name, or a name from `alignbench list`.
    set_: str
        A hyper-parameter of an algorithm, such as --set rounds=3, so that it is quick; may be repeated.
    model: str
        What an algorithm is checked on: mixture (points, seconds), mixture_flow (the same as a flow model) or
        tiny (pictures, minutes).
    """
    from alignbench import plugins
    from alignbench.asking.options import assignments

    try:
        fields = assignments(set_ or [])
    except ValueError as error:
        raise InputError(f"--set {' '.join(set_ or [])}: {error}.") from None
    group, kind = plugins.find(plugin)
    say(f"{plugin}: {plugins.KINDS[group]}")
    broken = 0
    for finding in _findings(group, plugin, kind, fields, model):
        broken += finding.state == "broken"
        detail = f": {finding.detail}" if finding.detail else ""
        say(f"  {MARKS[finding.state]}  {finding.says}{detail}")
    if broken:
        say("1 contract is broken" if broken == 1 else f"{broken} contracts are broken")
    else:
        say("all contracts hold")
    return 1 if broken else 0


def _findings(group: Group, plugin: str, kind: Any, fields: dict[str, Any], model: ToyName) -> Iterator[Finding]:
    import tempfile

    from alignbench.contracts import algorithms, prompts, rewards
    from alignbench.contracts.contract import findings
    from alignbench.contracts.toys import toy
    from alignbench.plugins import reward_of, source_path

    if group != "algorithms" and fields:
        raise InputError("--set is for the hyper-parameters of algorithms; leave it out.")
    if group == "rewards":
        yield from findings(rewards.CONTRACTS, rewards.subject(reward_of(plugin)), source_path(kind))
    elif group == "benchmarks":
        yield from findings(prompts.CONTRACTS, prompts.subject(plugin, kind), source_path(kind))
    else:
        with tempfile.TemporaryDirectory() as folder:
            preset = model if plugin.isidentifier() else "other"
            subject = algorithms.subject(plugin, kind, toy(model), fields, Path(folder), preset)
            yield from findings(algorithms.CONTRACTS, subject, source_path(kind))
