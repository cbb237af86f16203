"""`alignbench train-reward`: pairs to weights that `--reward FILE.safetensors` names, with a report on held-out pairs.

The file's metadata holds what was asked for and what came of it. While it is trained, a folder beside it holds the last
checkpoint: a killed call, made again, ends with the same file, byte for byte.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignbench import plugins
from alignbench.analysis.formats import percent
from alignbench.analysis.statistics import win_rate
from alignbench.errors import InputError
from alignbench.files import sha256_of
from alignbench.images import fitted
from alignbench.judging.options import TrainRewardOptions
from alignbench.keys import Key
from alignbench.pictures import Notes, PictureError
from alignbench.plugins import reward_of
from alignbench.preferences.choosing import Chosen, choose
from alignbench.preferences.source import open_pairs
from alignbench.printed import one_line
from alignbench.progress import Progress
from alignbench.record.resumable import Resumable
from alignbench.shapes import bradley_terry
from alignbench.shapes.bradley_terry import Judged, calibration_error, is_held_out, spoken, unknown_words
from alignbench.shapes.preference import WORDS, PreferenceNet, words_of
from alignbench.shapes.scene import SIDE

RECORD = "alignbench.training"  # in the metadata of the weights: what was asked for and what came of it
STATE = "training.json"  # in the folder beside them: what its checkpoint belongs to
SCHEMA = 1
PASSES = 3  # over the training pairs by default: on a few hundred, more make its chances worse than its start's
NAMED = 3  # pairs that are named when they cannot be used; the others are counted


@dataclass(frozen=True)
class Trained:
    """What the metadata of the weights says."""

    path: Path
    configuration: Mapping[str, Any]
    report: Mapping[str, Any]
    was_complete: bool = False

    def as_values(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "sha256": sha256_of(self.path),
            "was_complete": self.was_complete,
            "configuration": self.configuration,
            **self.report,
        }


def train_reward(options: TrainRewardOptions, force: bool = False, quiet: bool = False) -> Trained:
    """Train, or go on with it; finished weights of this configuration are left as they are.

    Raises InputError where the pairs cannot be learned from, or the output or the folder beside it is of anything else
    and `force` is not given.
    """
    chosen = choose(open_pairs(options.pairs), options.pair_ties, options.pair_models, ())
    key = Key("train-reward", options.seed)
    start, identity = _start(options, key)
    work = Resumable(
        options.folder,
        _configuration(options, chosen, identity),
        STATE,
        elsewhere="choose another --output",
        replace="use --force to replace it",
        own=(f"{bradley_terry.STAGE}.checkpoint.pt",),
    )
    if not force and (done := _finished(options.output, work)):
        return done
    with Progress(quiet) as progress:
        progress.say(chosen.summary())
        pairs, counts = read_pairs(chosen, progress)
    training, held_out = _split(pairs, options.held_out)
    steps = math.ceil(PASSES * len(training) / options.batch_size) if options.steps is None else options.steps

    def train(_: int) -> PreferenceNet:
        with contextlib.redirect_stdout(io.StringIO() if quiet else sys.stderr):  # the loop prints its steps
            return bradley_terry.train(
                start, training, steps, options.batch_size, options.learning_rate, key, work.folder
            )

    with work.alone():
        if not force and (done := _finished(options.output, work)):  # by a process that was waited for
            return done
        network = work.attempted(train, force)
        report = {
            "steps": steps,
            "pairs": counts | {"training": len(training), "held_out": len(held_out)},
            "prompts": {"training": _prompts(training), "held_out": _prompts(held_out)},
            "start": measured(start, training, held_out),
            "trained": measured(network, training, held_out),
        }
        record = {"schema": SCHEMA, "configuration": work.configuration, "report": report}
        metadata = {plugins.READER: bradley_terry.READER, RECORD: json.dumps(record, allow_nan=False)}
        bradley_terry.save(network, options.output, metadata)
        work.clear()
        work.remove()
    return Trained(options.output, work.configuration, report)


def read_pairs(chosen: Chosen, progress: Progress) -> tuple[Judged, dict[str, int]]:
    """Pictures of 32 x 32, resized and cropped as `fitted` does, and what became of all pairs. One whose images cannot
    be read, or most of whose caption's words the network was never taught, is left out.

    Raises InputError where that is so for most words of all captions, and where no pair is left.
    """
    usable = _understood(chosen)
    pictures = np.empty((len(usable), 2, SIDE, SIDE, 3), dtype=np.uint8)
    place = {i: row for row, i in enumerate(usable)}
    unreadable: dict[int, str] = {}
    notes = Notes(progress.say)
    progress.stage("read", len(usable))
    for i, contents in chosen.images(usable):
        try:
            for side, content in enumerate(contents):
                image = fitted(content, (SIDE, SIDE), None, notes, chosen.pair(i).place)
                pictures[place[i], side] = (image * 255).round().byte().permute(1, 2, 0).numpy()
        except PictureError as error:
            unreadable[i] = str(error)
            if len(unreadable) <= NAMED:
                progress.say(f"pair skipped: {chosen.pair(i).place}: {unreadable[i]}")
        progress.advance()
    if len(unreadable) == len(usable):
        raise InputError(f"not one of {len(usable)} pairs has images that can be read; first {unreadable[usable[0]]}.")
    if unreadable:
        usable = [i for i in usable if i not in unreadable]
        pictures = pictures[[place[i] for i in usable]]
    rows = [chosen.pair(i) for i in usable]
    counts = {
        **chosen.counts,
        "used": len(rows),
        "unreadable": len(unreadable),
        "unknown_words": len(chosen) - len(place),
    }
    label = np.array([row.label for row in rows])
    counts["ties_kept"] = int((label == 0.5).sum())
    return Judged(pictures, [row.prompt.text for row in rows], label), counts


def measured(network: PreferenceNet, training: Judged, held_out: Judged) -> dict[str, Any]:
    """How well a network predicts the pairs it may have learned from, and those held out."""
    margins, label = bradley_terry.margins(network, held_out), held_out.label
    curve = bradley_terry.reliability(margins, label)
    _, prompts = np.unique([" ".join(spoken(text)) for text in held_out.captions], return_inverse=True)
    accuracy = win_rate(bradley_terry.agreement(margins, label), prompts)
    return {
        "training_loss": bradley_terry.log_loss(bradley_terry.margins(network, training), training.label),
        "accuracy": {"value": accuracy.rate, "low": accuracy.low, "high": accuracy.high},
        "log_loss": bradley_terry.log_loss(margins, label),
        "brier_score": bradley_terry.brier_score(margins, label),
        "calibration_error": calibration_error(curve),
        "reliability": [point._asdict() for point in curve],
    }


def text(trained: Trained) -> str:
    """The report for people."""
    c, pairs, prompts = trained.configuration, trained.report["pairs"], trained.report["prompts"]
    left_out = {
        "ties dropped": pairs["ties_dropped"],
        "of other models": pairs["other_models"],
        "without a label": pairs["unlabelled"],
        "with unknown words": pairs["unknown_words"],
        "unreadable": pairs["unreadable"],
    }
    used = f"{pairs['used']} of {pairs['total']} used"
    parts = [f"{pairs['ties_kept']} of them ties"] if pairs["ties_kept"] else []
    parts += [f"left out: {n} {why}" for why, n in left_out.items() if n]
    both = [trained.report[name] for name in ("start", "trained")]
    size = f"{trained.report['steps']} steps of {c['batch_size']} pairs"
    lines = [
        f"{c['pairs']}: {size} from {c['start'] or 'nothing'}, seed {c['seed']}",
        f"  pairs       {'; '.join([used, *parts])}",
        f"  trained on  {pairs['training']} pairs of {prompts['training']} prompts",
        f"  held out    {pairs['held_out']} pairs of {prompts['held_out']} prompts",
        f"  {'':18}{'start':>22}{'trained':>22}",
    ]
    for name, shown in (
        ("training loss", [f"{m['training_loss']:.4f}" for m in both]),
        ("accuracy %", [_interval(m["accuracy"]) for m in both]),
        ("log loss", [f"{m['log_loss']:.4f}" for m in both]),
        ("Brier score", [f"{m['brier_score']:.4f}" for m in both]),
        ("calibration error", [f"{m['calibration_error']:.4f}" for m in both]),
    ):
        lines.append(f"  {name:18}{shown[0]:>22}{shown[1]:>22}")
    lines.append("  reliability, predicted: observed %")
    for name, m in zip(("start", "trained"), both, strict=True):
        upper = m["reliability"][len(m["reliability"]) // 2 :]  # the lower half mirrors it
        points = (f"{percent(p['predicted'])}: {percent(p['observed'])}" for p in upper)
        lines.append(f"    {name:8}{'  '.join(points)}")
    lines += [
        "  All but the training loss is of held-out pairs, ties half; the accuracy's 95 % interval clusters by prompt.",
        f"  A network that knows nothing has log loss {math.log(2):.4f} and Brier score 0.25.",
        f"  file        {trained.path}",
    ]
    return "".join(f"{one_line(text)}\n" for text in lines)


def _interval(accuracy: Mapping[str, float]) -> str:
    return f"{percent(accuracy['value'])} ({percent(accuracy['low'])} to {percent(accuracy['high'])})"


def _start(options: TrainRewardOptions, key: Key) -> tuple[PreferenceNet, dict[str, str | None]]:
    """The network to start from, and what identifies it."""
    if options.start == "none":
        return bradley_terry.fresh(key("init")), {"start": None, "start_sha256": None}
    reward = reward_of(options.start)
    network = getattr(reward, "network", None)
    if not isinstance(network, PreferenceNet):
        raise InputError(
            f"--start {options.start}: this reward has no network to train; expected {bradley_terry.READER}, none, or "
            f"a {plugins.WEIGHTS} file that `alignbench train-reward` wrote."
        )
    info = reward.info()
    return network, {"start": info.id, "start_sha256": next(iter(info.files.values()), None)}


def _configuration(options: TrainRewardOptions, chosen: Chosen, start: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "pairs": options.pairs.resolve().name,
        "pairs_sha256": chosen.sha256,
        "pair_ties": options.pair_ties,
        "pair_models": options.pair_models,
        **start,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "held_out": options.held_out,
        "seed": options.seed,
    }


def _understood(chosen: Chosen) -> list[int]:
    """The pairs whose captions the network was taught most words of."""
    texts = dict.fromkeys(chosen.pair(i).prompt.text for i in range(len(chosen)))
    unknown = {text: unknown_words(text) for text in texts}
    said, foreign = sum(len(spoken(text)) for text in texts), sum(map(len, unknown.values()))
    understood = {text for text in texts if 2 * len(unknown[text]) <= len(spoken(text)) and words_of([text]).any()}
    if 2 * foreign > said or not understood:
        examples = list(dict.fromkeys(repr(word) for words in unknown.values() for word in words))[:3]
        raise InputError(
            f"{percent(foreign / said) if said else 100} % of the words of the prompts are unknown to the "
            f"network{', such as ' if examples else ''}{', '.join(examples)}; it was taught the {len(WORDS) - 1} "
            "words of the shapes world, so give it pairs with prompts like 'a large red circle left of a blue star'."
        )
    return [i for i in range(len(chosen)) if chosen.pair(i).prompt.text in understood]


def _split(pairs: Judged, share: float) -> tuple[Judged, Judged]:
    """Pairs to train on, and those of held-out prompts."""
    held_out = [is_held_out(text, share) for text in pairs.captions]
    rows = {side: [i for i, out in enumerate(held_out) if out is side] for side in (False, True)}
    for side, what, remedy in ((False, "to train on", "smaller"), (True, "held out", "larger")):
        if not rows[side]:
            raise InputError(
                f"--held-out {share}: of {_prompts(pairs)} prompts none is {what}; give pairs of more prompts, or a "
                f"{remedy} share."
            )
    return pairs[rows[False]], pairs[rows[True]]


def _prompts(pairs: Judged) -> int:
    return len({" ".join(spoken(text)) for text in pairs.captions})


def _finished(output: Path, work: Resumable) -> Trained | None:
    """What is already there, if it is of this configuration. Raises InputError if it is of another, or foreign."""
    if not output.exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(output, framework="numpy") as handle:
            record = json.loads((handle.metadata() or {})[RECORD])
        trained = Trained(output, record["configuration"], record["report"], was_complete=True)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{output} is not what `alignbench train-reward` writes; choose another --output, or --force to replace it."
        ) from None
    work.check_same(trained.configuration, output)
    return trained
