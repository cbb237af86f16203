"""Every option of every command: what is no whole number is not rounded, and none is typed without a value."""

from __future__ import annotations

from typing import get_args

import pytest

from alignbench.cli.app import COMMANDS, app, run_command_line

NAMES = [place.partition(":")[2].strip("_").replace("_", "-") for place in COMMANDS]


def options(kind: type) -> list[tuple[str, str]]:
    """Commands, and their options whose type is or has this one."""
    return [
        (command, argument.name)
        for command in NAMES
        for argument in app[command].assemble_argument_collection()
        if argument.name.startswith("--") and kind in (argument.hint, *get_args(argument.hint), *inner(argument.hint))
    ]


def inner(hint: object) -> list[object]:
    """What a type such as `tuple[str, ...] | None` is made of."""
    return [getattr(part, "__origin__", None) for part in (hint, *get_args(hint))]


def needed(command: str, option: str) -> list[str]:
    """What else has to be typed before a command looks at an option."""
    asked = [a for a in app[command].assemble_argument_collection() if a.required and a.name != option]
    return [word for a in asked for word in ([a.name, "x"] if a.name.startswith("--") else ["x"])]


def test_options_of_both_kinds_are_found():
    assert {("suite", "--jobs"), ("run", "--limit"), ("run", "--processes"), ("vote", "--port")} <= set(options(int))
    assert {("run", "--scorers"), ("compare", "--votes"), ("sheet", "--method")} <= set(options(tuple))


@pytest.mark.parametrize(("command", "option"), options(int))
def test_a_whole_number_is_not_made_of_another_one(command, option, capsys):
    assert run_command_line([command, *needed(command, option), option, "1.5"]) == 2
    said = capsys.readouterr().err
    assert option in said
    assert "'1.5'; expected a whole number" in said


@pytest.mark.parametrize(("command", "option"), options(tuple))
def test_an_option_of_several_values_needs_one(command, option, capsys):
    assert run_command_line([command, *needed(command, option), option]) == 2
    said = capsys.readouterr().err
    assert option in said
    assert "at least 1" in said


@pytest.mark.parametrize("command", ["compare", "report", "plan", "plot", "frontier", "sheet", "vote"])
def test_a_bad_file_may_be_skipped_where_there_is_an_option_for_it(command, tmp_path, capsys):
    (tmp_path / "bad.json").write_text("")
    assert run_command_line([command, str(tmp_path / "bad.json")]) == 2
    said = capsys.readouterr().err
    has = any(argument.name == "--skip-bad" for argument in app[command].assemble_argument_collection())
    assert ("--skip-bad leaves such files out" in said) == has
    assert ("Name the other files" in said) != has


def test_more_processes_than_the_machine_could_hold_are_refused_before_any_starts(monkeypatch, capsys):
    monkeypatch.setattr("alignbench.children.cores", lambda: 4)
    monkeypatch.setattr("alignbench.launch.launch", lambda *_: 0)
    assert run_command_line(["run", "--algo", "base", "--processes", "32"]) == 0
    assert run_command_line(["run", "--algo", "base", "--processes", "33"]) == 2
    said = capsys.readouterr().err
    assert said == "alignbench: --processes 33: expected at most 32, which is 8 for each core here.\n"
