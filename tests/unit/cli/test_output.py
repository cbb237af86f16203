"""What commands print: names as they are, in every encoding, on every width, and data without notes in between."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from result_files import writer
from rich.cells import cell_len

from alignbench.__main__ import main
from alignbench.analysis.labels import written_out
from alignbench.cli.app import run_command_line
from alignbench.cli.output import as_json, print_json, typed

EVIL = "\x1b[2J\u202e\x9b"


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Results in a folder with a bad name, whose texts are bad as well, beside a file that is no result."""
    folder = tmp_path / f"results{EVIL}"
    folder.mkdir()
    make_result = writer(folder)
    prompts = [{"id": f"p{i}", "text": EVIL, "category": EVIL} for i in range(4)]
    both = {"evaluation": {"prompts": f"set{EVIL}"}, "prompts": prompts, "sampler": {"kind": EVIL}}
    make_result("base", {EVIL: [0.0] * 4}, **both)
    make_result("one", {EVIL: [1.0] * 4}, f"algo{EVIL}", {"text": EVIL}, **both)
    make_result("two", {EVIL: [1.0] * 4}, "x", status="failed", reason=f"no\n{EVIL}", **both)
    (folder / f"bad{EVIL}.json").write_text('{"status": 1}')
    monkeypatch.chdir(tmp_path)
    return folder


def hidden(text: str) -> list[str]:
    return [c for c in text if not c.isprintable() and c != "\n"]


COMMANDS = [
    ["compare", "FOLDER"],
    ["compare", "FOLDER", "--skip-bad"],
    ["compare", "FOLDER", "--skip-bad", "--format", "csv"],
    ["compare", "FOLDER", "--skip-bad", "--format", "markdown"],
    ["compare", "FOLDER", "--skip-bad", "--format", "latex"],
    ["compare", "FOLDER", "--skip-bad", "--format", "json"],
    ["compare", "FOLDER/one.json", "FOLDER/base.json", "--by", "category"],
    ["report", "FOLDER", "--skip-bad"],
    ["report", "FOLDER/one.json", "FOLDER/base.json", "--output", f"{EVIL}.html"],
    ["plan", "FOLDER", "--skip-bad"],
    ["plan", "FOLDER/one.json", "FOLDER/base.json"],
    ["plan", "FOLDER/one.json", "FOLDER/base.json", "--format", "csv"],
    ["plan", "FOLDER/one.json", "FOLDER/base.json", "--format", "json"],
    ["show", "FOLDER/one.json"],
    ["show", "FOLDER/one.json", "--json"],
    ["show", EVIL],
    ["ls", "FOLDER"],
    ["ls", "FOLDER", "--json"],
    ["plot", "FOLDER/one.json"],
    ["frontier", "FOLDER/one.json", "--format", "csv"],
    ["run", "--algo", EVIL],
    ["run", "--prompts", f"{EVIL}.txt"],
    ["run", f"--{EVIL}"],
    ["suite", f"{EVIL}.yaml"],
    ["score", "FOLDER", "--scorers", EVIL],
    ["sheet", "FOLDER", "--method", EVIL, "--output", f"{EVIL}.png"],
    [EVIL],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_prints_what_is_hidden(hostile, capsys, command):
    run_command_line([word.replace("FOLDER", hostile.name) for word in command])
    printed = capsys.readouterr()
    assert not hidden(printed.out + printed.err)
    assert printed.out + printed.err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize(
    "command", [*COMMANDS, ["list"], ["show", "diffusion_dpo"], ["env"], ["run", "--help"]], ids=" ".join
)
def test_every_command_prints_in_every_encoding(hostile, monkeypatch, command, encoding):
    written = [io.BytesIO(), io.BytesIO()]
    for name, to in zip(("stdout", "stderr"), written, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(to, encoding=encoding, write_through=True))
    run_command_line([word.replace("FOLDER", hostile.name) for word in command])
    text = "".join(to.getvalue().decode(encoding) for to in written)
    assert "unexpected" not in text
    assert text


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize(
    "command", ["compare results", "plan results", "ls results", "list", "show results/base.json", "cache"]
)
def test_commands_stay_within_the_width_of_the_screen(tmp_path, monkeypatch, capsys, width, command):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    Path("results").mkdir()
    make_result = writer(Path("results"))
    make_result("base", {"r": [0.0] * 12, "s": [0.0] * 12})
    for i in range(4):
        make_result(f"a-name-that-is-long-enough-{i}", {"r": [1.0] * 12, "s": [0.5] * 12}, f"algorithm_{i}", {"n": i})
    assert run_command_line(command.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    too_long = [line for line in lines if cell_len(line) > width and " " in line.strip()]  # a path is not broken
    assert not [line for line in too_long if "alignbench " not in line], "nor is a command that can be copied"


def test_to_a_file_lines_are_as_long_as_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    make_result = writer(tmp_path)
    make_result("base", [0.0] * 12)
    make_result("one", [1.0] * 12, "best_of_n", {"n": 4})
    assert run_command_line(["compare", "."]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) > 120


def test_a_traceback_hides_nothing_either(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["alignbench", "show", EVIL, "--debug"])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in printed
    assert not hidden(printed)


def test_pictures_are_labelled_with_what_is_visible():
    assert written_out(f"a{EVIL}\n$b$\udcff") == r"a\x1b[2J\u202e\x9b \$b\$\udcff"


def test_csv_goes_to_stdout_alone_and_its_notes_to_stderr(hostile, capsys):
    assert run_command_line(["compare", hostile.name, "--skip-bad", "--format", "csv"]) == 0
    printed = capsys.readouterr()
    blocks = printed.out.split("\n\n")
    for block in blocks:
        assert len({len(row) for row in csv.reader(io.StringIO(block))}) == 1
    assert "Ties count half" in printed.err
    assert "skipped: " in printed.err
    assert "Ties count half" not in printed.out


def test_json_says_the_same_in_every_encoding(monkeypatch):
    values = {"text": "猫 ≥ \x1b\x7f\x85\u202e\u2028 \udcff é"}
    assert json.loads(as_json(values)) == values
    assert not hidden(as_json(values))
    assert "猫 ≥" in as_json(values)
    for encoding in ("ascii", "cp1252", "utf-8"):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
        print_json(values)
        assert json.loads(written.getvalue().decode(encoding)) == values


def test_a_command_to_copy_names_the_file_that_is_meant():
    assert typed("a b", "c") == "'a b' c"
    assert typed("it's\x1b[2J\u202e\n") == r"$'it\'s\x1b[2J\xe2\x80\xae\x0a'"


def test_an_error_that_an_interrupt_led_to_is_the_interrupt(monkeypatch, capsys):
    def cut_short(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr("alignbench.analysis.compare.compare", cut_short)
    assert run_command_line(["compare"]) == 130
    assert capsys.readouterr().err == "alignbench: interrupted; the same command continues where it stopped.\n"
