"""Whatever reads preference pairs reads those from votes: a made-up electorate votes, and what it likes is found."""

from __future__ import annotations

import json

import numpy as np
import pytest
from electorate import by_utility, everybody
from PIL import Image
from places import COLOURS
from result_files import writer

from alignbench import Key
from alignbench.cli.app import run_command_line
from alignbench.judging import voting_log
from alignbench.judging.audit import audit
from alignbench.judging.options import AuditOptions
from alignbench.record.digests import digest, digest_of, picture_of
from alignbench.shapes.render import render_batch, sample_scene
from alignbench.shapes.scene import sample_caption

KEY = Key("test", "learning from votes")
PROMPTS, RATERS, EACH = 60, 4, 30
CARELESS = 3


def redness(picture: np.ndarray) -> float:
    """In tens of levels of the red channel, which is what the scorer `Red` measures."""
    return float(picture[..., 0].mean()) / 10


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A folder of pairs: two cells of rendered shapes, on which four raters voted for the redder picture, one of them
    for the left one alone."""
    folder = tmp_path_factory.mktemp("votes")
    captions = [sample_caption(KEY("caption", i), "train", "single") for i in range(PROMPTS)]
    files, pictures = [], {}
    for cell, method in enumerate(("base", "refl")):
        path = folder / f"{method}.json"
        (folder / method / "images").mkdir(parents=True)
        drawn = render_batch([sample_scene(KEY("scene", method, i), caption) for i, caption in enumerate(captions)])
        own = {}
        for place, picture in enumerate(drawn):
            pictures[cell, place] = picture
            Image.fromarray(picture).save(picture_of(path, place, 0))
            own[place, 0] = digest(picture_of(path, place, 0), pixels=True)
        prompts = [{"id": f"p{i}", "text": caption.text} for i, caption in enumerate(captions)]
        kept = {"pictures": digest_of(own)}
        write = writer(folder)
        files.append(
            write(method, [0.0] * PROMPTS, algorithm=method, kept=kept, prompts=prompts, digests=list(own.values()))
        )
    honest = [
        by_utility(lambda one: redness(pictures[one.cell, one.place]), 3.0, 0.0, 0.0, KEY("rater", i).generator())
        for i in range(RATERS)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voting_log.os, "fsync", lambda descriptor: None)
        everybody(
            files,
            folder / "votes.jsonl",
            RATERS,
            EACH,
            lambda number, pair: "left" if number == CARELESS else honest[number](pair),
        )
    pairs = folder / "pairs"
    command = ["pairs", *map(str, files), "--from-votes", str(folder / "votes.jsonl"), "--output", str(pairs)]
    assert run_command_line(command) == 0
    return pairs


def test_an_audit_finds_the_scorer_that_people_agree_with(chosen):
    scorers = [f"{COLOURS}:Red", f"{COLOURS}:Darkness"]
    found = audit(AuditOptions.parse({"pairs": chosen, "scorers": scorers}), quiet=True)
    labels = [json.loads(line)["label"] for line in (chosen / "pairs.jsonl").read_text().splitlines()]
    assert found.pairs["used"] == len(labels) - labels.count(0.5) > 30
    rates = {name: one.accuracy.rates["half"].rate for name, one in found.scorers.items()}
    assert rates["Red"] > 0.75
    assert rates["Darkness"] < 0.4


def test_a_reward_is_trained_on_votes(chosen, tmp_path, capsys):
    output = tmp_path / "reward.safetensors"
    short = ("--held-out", "0.3", "--steps", "3", "--batch-size", "8")
    assert run_command_line(["train-reward", "--pairs", str(chosen), "--output", str(output), *short]) == 0
    assert output.is_file()
    assert "held out" in capsys.readouterr().out
