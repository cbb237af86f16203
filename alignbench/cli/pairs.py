"""Commands about preference pairs: `pairs`, `accuracy` and `train-reward`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from alignbench.asking.options import PairsOptions
from alignbench.cli.flags import Flag, takes
from alignbench.cli.output import check_ending, listing, print_json, report, say, typed
from alignbench.judging.options import AccuracyOptions, TrainRewardOptions


@takes(PairsOptions)
def pairs(given: dict[str, Any], *, force: Flag = False) -> int:
    """Make preference pairs: images of the model for a prompt, labelled by a reward. Typed again, it continues.

    Parameters
    ----------
    force: bool
        Replace pairs of another configuration, and those that cannot be continued.
    """
    from alignbench.analysis.formats import number
    from alignbench.experiment.pairs import make_for

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
