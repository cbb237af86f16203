"""Commands about preference pairs: `pairs`, `accuracy` and `train-reward`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignbench.asking.options import PairsOptions
from alignbench.cli.flags import Flag, takes
from alignbench.cli.output import check_ending, listing, print_json, report, say, typed
from alignbench.errors import InputError
from alignbench.judging.options import AccuracyOptions, TrainRewardOptions
from alignbench.printed import how_many


@takes(PairsOptions)
def pairs(
    given: dict[str, Any], *results: Path, from_votes: Path | None = None, task: str | None = None, force: Flag = False
) -> int:
    """Make preference pairs: images of the model for a prompt, labelled by a reward. Typed again, it continues.

    Or of what people chose: alignbench pairs results/*.json --from-votes votes.jsonl --output chosen

    Parameters
    ----------
    results: Path
        With --from-votes: the result files that were voted on, with their pictures beside them.
    from_votes: Path
        A log of `alignbench vote`: the picture that more votes chose is a pair's label. No model and no reward is
        used.
    task: str
        With --from-votes: which of its questions (by default the first).
    force: bool
        Replace pairs of another configuration, and those that cannot be continued.
    """
    from alignbench.analysis.formats import number
    from alignbench.experiment.pairs import make_for

    if from_votes is not None:
        return _pairs_from_votes(given, results, from_votes, task, force)
    if results or task is not None:
        raise InputError(
            "result files and --task are for pairs --from-votes; leave them out, or name the log of votes."
        )
    options = PairsOptions.parse(given)
    about, made = make_for(options, force)
    say(f"{made.pairs} pairs of {about}, in {made.folder}")
    say(f"  ties  {made.ties}")
    say(
        f"  cost  {number(made.cost.denoiser_forward)} denoiser evaluations, {number(made.cost.reward_forward)} reward "
        f"evaluations, {made.seconds:.1f} s"
    )
    say(f"learn from them with: alignbench run --algo NAME --model {options.model} --pairs {typed(made.folder)}")
    return 0


def _pairs_from_votes(given: dict[str, Any], results: Sequence[Path], log: Path, task: str | None, force: bool) -> int:
    if others := sorted(given.keys() - {"output"}):
        raise InputError(f"--{others[0].replace('_', '-')}: pairs from votes need no model; leave it out.")
    from alignbench.judging.vote_pairs import pairs_from_votes

    made = pairs_from_votes(log, results or (Path("results"),), Path(given.get("output", "pairs")), task, force)
    pairs_of, votes, raters = how_many(made.pairs, "pair"), how_many(made.votes, "vote"), how_many(made.raters, "rater")
    say(f"{pairs_of} from {votes} of {raters}, in {made.folder}")
    say(f"  ties  {made.ties}")
    if made.left_out:
        say(f"  left out, by the rule in the log  {', '.join(made.left_out)}")
    say(f"learn from them with: alignbench run --algo diffusion_dpo --model MODEL --pairs {typed(made.folder)}")
    return 0


@takes(AccuracyOptions)
def accuracy(given: dict[str, Any], *, json: Flag = False, output: Path | None = None) -> int:
    """How often scorers, and aligned models as implicit rewards, agree with the labels of preference pairs.

    Parameters
    ----------
    json: bool
        Print JSON instead of a table.
    output: Path
        Also write the JSON to this .json file.
    """
    check_ending("--output", output, (".json",))
    options = AccuracyOptions.parse(given)
    from alignbench.judging.accuracy import as_values, measure, text

    measured = measure(options, quiet=json)
    report(as_values(measured), partial(text, measured), json, output)
    return 0


@takes(TrainRewardOptions)
def train_reward(given: dict[str, Any], *, force: Flag = False, json: Flag = False) -> int:
    """Train the embedded model's reward on preference pairs, and measure it on held-out prompts.

    Typed again, it continues. The file it writes can be named wherever a reward can: --reward FILE.safetensors.

    Parameters
    ----------
    force: bool
        Replace the output, or a half-finished one, of another configuration.
    json: bool
        Print the report as JSON.
    """
    options = TrainRewardOptions.parse(given)
    from alignbench.judging import reward_training

    trained = reward_training.train_reward(options, force=force, quiet=json)
    if json:
        print_json(trained.as_values())
        return 0
    if trained.was_complete:
        say("already complete; --force trains it again")
    listing(*reward_training.text(trained).splitlines())
    say(f"use it with: alignbench run --algo NAME --model tiny --reward {typed(trained.path)}")
    return 0
