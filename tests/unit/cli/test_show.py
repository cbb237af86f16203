"""What is shown of an algorithm, and suites by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignbench.asking.suite import find_suite, read_suite
from alignbench.cli.app import run_command_line
from alignbench.errors import UnknownName


def test_an_algorithm_is_shown_with_its_paper_its_fields_and_what_presets_change(capsys):
    assert run_command_line(["show", "steering"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("steering (at test time)\n")
    assert "https://arxiv.org/abs/" in out
    (line,) = [line for line in out.splitlines() if line.strip().startswith("beta")]
    assert line.split()[3:] == "mixture: 1.0 mixture_flow: 1.0 tiny: 0.3 tiny_flow: 0.3".split()


def test_the_same_as_json(capsys):
    assert run_command_line(["show", "ddpo", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    fields = {field["name"]: field for field in shown["fields"]}
    assert (shown["name"], shown["trains"]) == ("ddpo", True)
    assert fields["clip"]["default"] == 1e-4
    assert fields["clip"]["presets"]["tiny"] == 1e-2
    assert fields["rounds"]["type"] == "int"


def test_rewards_and_prompt_sets_are_shown_too_and_own_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("blue.py").write_text(
        '"""How blue a picture is."""\n\nclass Blue:\n    def with_grad(self, images, prompts): ...\n'
        "    def info(self): ...\n"
    )
    for what, first, words in (
        ("shapes_truth", "shapes_truth (reward)", "judge"),
        ("hpsv2", "hpsv2_1 (reward)", "arxiv"),
        ("parti", "parti (prompt set)", "PartiPrompts"),
        ("blue.py:Blue", "blue.py:Blue (reward)", "How blue a picture is."),
    ):
        assert run_command_line(["show", what]) == 0
        out = capsys.readouterr().out
        assert out.splitlines()[0] == first
        assert words in out


def test_an_algorithm_of_ones_own_has_no_paper_and_none_is_written_as_it_is_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True, kw_only=True)\nclass Own:\n    trains = False\n"
        "    n: int | None = None\n    def align(self, problem): ...\n    def unsupported(self, problem): ...\n"
    )
    assert run_command_line(["show", "own.py:Own"]) == 0
    out = capsys.readouterr().out
    assert "paper" not in out
    assert "  n = none\n" in out
    Path("own.py").write_text("class Own:\n    trains = False\n    def align(self, problem): ...\n")
    assert run_command_line(["show", "own.py:Own"]) == 2
    assert "is no dataclass" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("stearing", "no plug-in named 'stearing'. Did you mean steering"),
        ("no.json", "no.json: there is no such file"),
        ("no.py:Name", "there is no file no.py."),
    ],
)
def test_what_is_neither_is_wrong_input(what, message, capsys):
    assert run_command_line(["show", what]) == 2
    assert message in capsys.readouterr().err


def test_a_suite_is_a_shipped_name_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [options.algo for options in read_suite(find_suite("quick"))] == ["base", "best_of_n", "refl", "steering"]
    (tmp_path / "tiny").mkdir()  # a folder of that name is in nobody's way
    assert find_suite("tiny").name == "tiny.yaml"
    (tmp_path / "own.yaml").write_text("cells: [{algo: base}]\n")
    assert find_suite("own.yaml") == Path("own.yaml")
    assert {options.output for options in read_suite(find_suite("quick"), Path("here"))} == {Path("here")}
    assert run_command_line(["suite"]) == 2
    with pytest.raises(UnknownName, match=r"no suite named 'quik'\. Did you mean quick"):
        find_suite("quik")


def test_what_was_published_stands_below_the_fields_with_its_source(capsys):
    assert run_command_line(["show", "svdd"]) == 0
    out = capsys.readouterr().out
    assert "experiments (inference_decoding_nonp.py of masa-ue/SVDD-image)" in out
    assert "choose=argmax" in out
    assert "sampling  steps=50, guidance=7.5, eta=1.0" in out
    assert run_command_line(["show", "svdd", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["published"]
    assert (first["fields"]["choose"], second["fields"]["choose"]) == ("argmax", "softmax")


def test_a_result_says_what_differs_from_what_was_published_and_an_older_one_what_is_not_default(make_result, capsys):
    differs = {"n": {"value": 4, "paper": 20}, "sampling.guidance": {"value": 3.0, "paper": 7.5}}
    new = make_result("new", [1.0], published="experiments (somewhere)", differs_from_paper=differs)
    old = make_result("old", [1.0], differs_from_paper={"n": {"value": 4, "paper": 8}})
    assert run_command_line(["show", str(new)]) == 0
    out = capsys.readouterr().out
    assert "  paper       experiments (somewhere)\n  differs     n=4 (20), sampling.guidance=3.0 (7.5)\n" in out
    assert run_command_line(["show", str(old)]) == 0
    out = capsys.readouterr().out
    assert "  not default n=4\n" in out  # what it calls the paper's was its own default
    assert "(8)" not in out
