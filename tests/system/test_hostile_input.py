"""Whatever a user hands to a command, it ends in what was foreseen: done, or one line that says what was wrong."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import hostile
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from result_files import writer

from alignbench import shapes
from alignbench.asking import prompts
from alignbench.asking.suite import read_suite
from alignbench.errors import AlignbenchError, InputError
from alignbench.preferences.source import open_pairs
from alignbench.record.result import RESOURCES


def times(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )


QUICK, THOROUGH = times(40), times(300)


@functools.cache
def good() -> dict[str, object]:
    """The content of a result that every command takes, with all kinds of entries."""
    with tempfile.TemporaryDirectory() as folder:
        spent = dict.fromkeys(RESOURCES, 10) | {"seconds": 1.0}
        curve = [
            {"round": i, "reward": 0.1 * i, "kl": 0.01, "held_out": {"r": 0.1, "s": 0.2}, **spent} for i in range(3)
        ]
        metric = {"value": 0.5, "kind": "exact", "about": "x", "low": 0.4, "high": 0.6}
        path = writer(Path(folder))(
            "one", {"r": [0.1, 0.2, 0.3, 0.4], "s": [1.0, 2.0, 3.0, 4.0]}, "ddpo", fields={"clip": 0.1}, seed=0,
            curve=curve, metrics={"kl": metric, "r_regret": metric, "r_mean": metric}, truncated={"r": 1},
            frontiers={"r": {"beta": 0.1, "points": [[1.0, 0.2, 0.1], [2.0, 0.3, 0.4]]}},
            budget={"nfe": 10.0}, configuration={"budget": {"nfe": 10.0}},
        )  # fmt: skip
        return json.loads(path.read_text())


def commands(file: Path, beside: Path) -> list[list[object]]:
    return [
        ["compare", file, beside], ["compare", file, beside, "--format", "json", "--skip-bad"],
        ["compare", file, beside, "--format", "latex", "--by", "category", "--skip-bad"], ["show", file],
        ["show", file, "--json"], ["ls", file.parent], ["plot", file, "--output", file.parent / "c.svg"],
        ["frontier", file, "--format", "csv"], ["sheet", file, "--output", file.parent / "s.png"],
        ["score", file, "--scorers", "jpeg_compressibility"], ["plan", file, beside],
        ["report", file, beside, "--skip-bad", "--output", file.parent / "r.html"],
    ]  # fmt: skip


def survives(content: bytes, *numbers: int) -> None:
    """These commands that read results end as foreseen."""
    with tempfile.TemporaryDirectory() as folder:
        beside = writer(Path(folder))("base", {"r": [0.1, 0.2, 0.3, 0.5], "s": [1.0, 2.0, 3.0, 4.5]})
        file = Path(folder) / "one.json"
        file.write_bytes(content)
        asked = commands(file, beside)
        for number in numbers:
            hostile.said(asked[number])


def edited(data: st.DataObject) -> bytes:
    content = data.draw(hostile.changed(good()))
    content = hostile.signed(content) if data.draw(st.sampled_from((True, True, False))) else content
    try:
        return json.dumps(content).encode()
    except ValueError:
        return b"{}"


def skipped(files: Sequence[Path], folder: Path) -> None:
    """Each file is refused, and all are left out of a comparison that may skip what is bad."""
    beside = writer(folder)("base", [0.1, 0.2])
    for file in files:
        assert hostile.said(["compare", beside, file])[0] == 2
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert hostile.said(["compare", beside, *files, "--skip-bad"])[0] == 0
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@QUICK
@given(data=st.data())
def test_a_result_that_was_edited_ends_no_command(data):
    survives(edited(data), data.draw(st.integers(0, 10)))


THIRDS = tuple(range(i, 12, 3) for i in range(3))  # of the commands: each edit meets four of twelve


@pytest.mark.slow
@THOROUGH
@given(data=st.data())
def test_results_that_were_edited_end_no_command(data):
    survives(edited(data), *data.draw(st.sampled_from(THIRDS)))


@pytest.mark.parametrize("content", hostile.BYTES, ids=lambda content: repr(content[:12]))
def test_a_comparison_that_may_skip_what_is_bad_skips_it(content, tmp_path):
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    skipped([file], tmp_path)
    hostile.said(["show", file])
    hostile.said(["ls", tmp_path])


def test_what_is_no_file_is_skipped_too_and_named_within_a_second(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to("/dev/zero")
    (tmp_path / "circle.json").symlink_to(tmp_path / "circle.json")
    (tmp_path / "nowhere.json").symlink_to(tmp_path / "gone.json")
    (tmp_path / "sparse.json").touch()
    os.truncate(tmp_path / "sparse.json", 2**40)
    bad = [tmp_path / f"{name}.json" for name in ("pipe", "link", "circle", "nowhere", "sparse")]
    (tmp_path / "good").mkdir()
    skipped([*bad, Path("/dev/zero"), tmp_path / ("x" * 300 + ".json")], tmp_path / "good")
    hostile.said(["ls", tmp_path])


LONG = ("x" * 300 + ".json", "x" * 300 + ".yaml", "x" * 300 + ".py:Y", "x" * 90 + "/" + "y" * 90)
NAMES = (
    *(value for value in hostile.AWKWARD if isinstance(value, str)),
    *LONG,
    *"/dev/zero /dev/stdin/x.json http://[ http://a:99999999 http:// x.py:Y .. /etc ~ os:getcwd os.path : = a=".split(),
    *"a.b.c:D [x hpsv2.1=x jpeg_compressibility=x - -- a:b:c x/y * ddpo.py d\u0434po clip= n=1e999".split(),
    "base=\x00", "x=http://\x00", "\x00.py:Y", " ", "\udcff",
)  # fmt: skip
RUN = ["run", "--model", "mixture", "--dry-run"]
PLACES = (
    lambda name: [*RUN, "--algo", name],
    lambda name: [*RUN[:1], "--dry-run", "--algo", "base", "--model", name],
    lambda name: [*RUN, "--algo", "base", "--prompts", name],
    lambda name: [*RUN, "--algo", "ddpo", "--train-prompts", name],
    lambda name: [*RUN, "--algo", "base", "--reward", name],
    lambda name: [*RUN, "--algo", "base", "--scorers", name],
    lambda name: [*RUN, "--algo", "base", "--adapter", name],
    lambda name: [*RUN, "--algo", "best_of_n", "--set", name],
    lambda name: [*RUN, "--algo", "best_of_n", "--budget", name],
    lambda name: [*RUN, "--algo", "base", "--name", name],
    lambda name: [*RUN, "--algo", "base", "--output", name],
    lambda name: [*RUN, "--algo", "base", "--split", name],
    lambda name: [*RUN, "--algo", "base", "--device", name],
    lambda name: [*RUN, "--algo", "base", "--config", name],
    lambda name: [*RUN, "--algo", "base", "--vae", name],
    lambda name: [*RUN, "--algo", "base", "--resolution", name],
    lambda name: [*RUN, "--algo", "base", "--seed", name],
    lambda name: ["suite", name, "--dry-run"],
    lambda name: ["show", name],
    lambda name: ["check", name],
    lambda name: ["compare", name, "--skip-bad"],
    lambda name: ["compare", "--baseline", name, "--scorer", name, name],
    lambda name: ["ls", name],
    lambda name: ["score", name, "--scorers", name, "--prompts", name],
    lambda name: ["accuracy", "--pairs", name, "--scorers", "jpeg_compressibility"],
    lambda name: ["train-reward", "--pairs", name, "--output", name],
    lambda name: ["pairs", "--model", name, "--count", "1", "--candidates", name],
    lambda name: [name],
)


def takes(name: str, place: int) -> None:
    hostile.said([f"./{word}" if word.startswith("-") and word == name else word for word in PLACES[place](name)])


@times(60)
@given(name=st.one_of(st.sampled_from(NAMES), hostile.texts), place=st.integers(0, len(PLACES) - 1))
@example(name="http://[", place=4)
@example(name="hpsv2.1=x", place=4)
@example(name="\udcff", place=1)
@example(name="x" * 300 + ".yaml", place=17)
@example(name="a" * 5000, place=18)
@example(name="9" * 5000, place=16)
def test_a_name_of_any_characters_is_known_or_refused(name, place, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.getbasetemp())
        takes(name, place)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:12]))
def test_names_that_were_hard_are_known_or_refused_in_every_place(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in range(len(PLACES)):
        takes(name, place)


SUITE = {
    "defaults": {"model": "mixture", "output": "r", "limit": 4},
    "cells": [{"algo": "base"}, {"algo": "best_of_n", "set": {"n": [2, 4]}, "seed": [1, 2], "scorers": ["r"]}],
}


def suite_survives(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "s.yaml"
        file.write_bytes(content)
        with contextlib.suppress(InputError):
            read_suite(file)


@QUICK
@given(content=hostile.changed(SUITE))
def test_a_suite_that_was_edited_is_read_or_refused(content):
    suite_survives(yaml.safe_dump(content).encode())


def bomb(name: str) -> bytes:
    rows = [f"a: &a {'[1, 2]' if name == 'list' else '{x: 1}'}"]
    for before, own in zip("abcdefghijkl", "bcdefghijklm", strict=True):
        many = ", ".join([f"*{before}"] * 9)
        rows.append(f"{own}: &{own} " + (f"[{many}]" if name == "list" else f"{{<<: [{many}]}}"))
    return "\n".join([*rows, "cells: [*m]"]).encode()


@QUICK
@given(content=hostile.contents.filter(lambda content: len(content) < 10_000))
@example(b"cells: " + b"[" * 50_000)
@example(b"cells: " + b"{a: " * 5000)
@example(b"cells: [{algo: base, seed: 2026-99-99}]")
@example(b"cells: [{algo: base, seed: " + b"9" * 5000 + b"}]")
@example(b"cells: &a [*a]")
@example(b"cells: [{? [1] : 2}]")
@example(b"cells: [{1: 2}]")
@example(b"cells: [{algo: base, seed: !!binary abc$}]")
@example(b"cells: [!!python/object/apply:os.system [ls]]")
@example(b"- " * 5000)
def test_bytes_as_a_suite_are_read_or_refused(content):
    suite_survives(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bomb("list"), "repeated values make more than 200,000"),
        (bomb("merge"), "repeated values make more than 200,000"),
        (b"a: &a [*a]", "a value holds itself"),
        (b"cells: [{algo: base, seed: 1, seed: 2}]", "'seed' stands twice in one mapping"),
        (
            b"cells: [{algo: base, set: {" + b", ".join(b"f%d: [0,1,2,3,4,5,6,7,8,9]" % i for i in range(9)) + b"}}]",
            "cell 1: spans a grid of 1,000,000,000 cells; expected 10,000 at most",
        ),
        (b"cells: [{algo: base, seed: []}]", "cell 1: 'seed' is an empty list"),
        (b"cells: [{algo: base}]" + b" " * 300_000, "has more than 262,144 bytes"),
        (b"cells: " + b"[" * 200_000, "is nested too deeply"),
    ],
    ids=["list bomb", "merge bomb", "circle", "twice", "grid", "empty", "long", "deep"],
)  # fmt: skip
def test_a_suite_that_stands_for_too_much_is_one_line_within_seconds(content, message, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_bytes(content)
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for arguments in (["suite", file], ["run", "--algo", "base", "--config", file]):
        code, line = hostile.said(arguments)
        assert code == 2
        assert message in line or arguments[0] == "run"
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    "option", ["suite", "config", "prompts", "pairs", "score", "images", "show", "reward", "adapter"]
)
def test_a_pipe_a_device_and_a_folder_are_one_line_within_seconds(option, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    run = ["run", "--algo", "base", "--model", "mixture", "--dry-run"]
    for name in (tmp_path / "pipe.yaml", Path("/dev/zero"), Path("/dev/tty"), tmp_path):
        arguments = {
            "suite": ["suite", name], "config": [*run, "--config", name], "prompts": [*run, "--prompts", name],
            "pairs": ["accuracy", "--pairs", name, "--scorers", "jpeg_compressibility"],
            "score": ["score", name, "--scorers", "jpeg_compressibility", "--prompts", name],
            "images": [*run[:4], "tiny", "--task", "sdedit", "--images", name, "--dry-run"], "show": ["show", name],
            "reward": [*run, "--reward", f"hpsv2.1={name}"], "adapter": [*run, "--adapter", name],
        }[option]  # fmt: skip
        started = time.process_time()
        assert hostile.said(arguments)[0] == 2
        assert time.process_time() - started < 10


@QUICK
@given(content=hostile.contents, ending=st.sampled_from([".txt", ".tsv", ".csv", ".jsonl"]))
@example(b"prompt,category\n" + b"x" * 200_000, ".csv")
@example(b"[" * 100_000, ".jsonl")
@example(b'{"prompt": "\\ud800"}', ".jsonl")
@example(b'{"prompt": ' + b"9" * 5000 + b"}", ".jsonl")
def test_bytes_as_a_prompt_file_are_read_or_refused(content, ending):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"p{ending}"
        file.write_bytes(content)
        with contextlib.suppress(AlignbenchError):
            prompts.take(str(file), "test")


PAIR = {"prompt": "a red circle", "images": ["a.png", "b.png"], "label": 1, "models": ["x", "y"], "id": "p0"}


@QUICK
@given(content=st.one_of(hostile.contents, hostile.changed(PAIR).map(lambda row: json.dumps(row).encode())))
@example(b"[" * 100_000)
@example(b'{"prompt": "\\ud800", "images": ["a.png", "b.png"], "label": 1}')
@example(b'{"prompt": "x", "images": ["a.png", "b.png"], "label": 1e999}')
def test_bytes_as_pairs_are_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.png", "b.png"):
            (Path(folder) / name).write_bytes(content)
        (Path(folder) / "pairs.jsonl").write_bytes(content)
        for name in ("train.json", "x.parquet"):
            (Path(folder) / "other").mkdir(exist_ok=True)
            (Path(folder) / "other" / name).write_bytes(content)
        for place in (Path(folder), Path(folder) / "other" / "train.json", Path(folder) / "other" / "x.parquet"):
            with contextlib.suppress(AlignbenchError):
                source = open_pairs(place)
                for i in range(len(source)):
                    source.pair(i)


TINY = Path(shapes.__file__).parent / "weights" / "tiny"
CONFIGURATIONS = (
    *"model_index.json scheduler/scheduler_config.json unet/config.json vae/config.json".split(),
    *"text_encoder/config.json tokenizer/tokenizer_config.json tokenizer/special_tokens_map.json".split(),
)


def a_model_survives(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(CONFIGURATIONS))
    content = json.loads((TINY / name).read_text())
    text = data.draw(
        st.one_of(hostile.changed(content).map(lambda other: json.dumps(other).encode()), hostile.contents)
    )
    with tempfile.TemporaryDirectory() as folder:
        model, prompts_file = Path(folder) / "model", Path(folder) / "p.txt"
        shutil.copytree(TINY, model)
        (model / name).write_bytes(text)
        prompts_file.write_text("a red circle\n")
        run = ["run", "--algo", "base", "--model", model, "--prompts", prompts_file, "--reward", "jpeg_compressibility"]
        hostile.said([*run, "--steps", "1", "--output", Path(folder) / "results"])


@times(8)
@given(data=st.data())
def test_a_model_folder_that_was_edited_is_sampled_from_or_refused(data):
    a_model_survives(data)


@pytest.mark.slow
@times(60)
@given(data=st.data())
def test_model_folders_that_were_edited_are_sampled_from_or_refused(data):
    a_model_survives(data)
