"""How plug-ins are found, loaded and refused."""

from __future__ import annotations

import ast
import sys
import types
from importlib import metadata

import pytest
import torch
from places import ROOT, TOY

from alignbench import Prompt, plugins
from alignbench.asking.presets import build_algorithm
from alignbench.errors import InputError, UnknownName, Unsupported

PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(4)]


def test_a_field_that_may_be_none_is_set_to_none_by_the_word():
    demon = plugins.load("algorithms", "demon")
    fields = {"temperature": "none", "steps": "none", "stochasticity": "0.2"}
    built = build_algorithm("demon", demon, "other", fields)[0]
    assert (built.temperature, built.steps, built.stochasticity) == (None, None, 0.2)
    with pytest.raises(InputError, match="candidates='none': expected a whole number"):
        build_algorithm("demon", demon, "other", {"candidates": "none"})


GROUPS: tuple[plugins.Group, ...] = ("algorithms", "rewards", "benchmarks")


@pytest.mark.parametrize("group", GROUPS)
def test_every_plugin_file_has_a_headline_and_one_export(group):
    for name in plugins.own_names(group):
        text = (ROOT / group / f"{name}.py").read_text(encoding="utf-8")
        assert plugins.summary(group, name), name
        assert (ast.get_docstring(ast.parse(text)) or "").split("\n")[0].endswith((".", ":", "else is compared with."))
        assert plugins.load(group, name).__module__ == f"alignbench.{group}.{name}"


@pytest.mark.parametrize("group", GROUPS)
def test_listing_imports_no_plugin(group, monkeypatch):
    loaded = [name for name in sys.modules if name.startswith(f"alignbench.{group}.")]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    assert [plugins.summary(group, name) for name in plugins.names(group)]
    assert not [name for name in sys.modules if name.startswith(f"alignbench.{group}.")]


def test_an_unknown_name_lists_near_and_known_ones():
    with pytest.raises(
        UnknownName, match=r"no algorithm named 'best_of'. Did you mean best_of_n\? Known: awm, base, best_of"
    ):
        plugins.load("algorithms", "best_of")


def test_a_file_and_a_module_work_as_plugins(monkeypatch):
    from_file = plugins.load("rewards", f"{TOY}:FirstCoordinate")
    assert from_file().info().id == "first-coordinate-1"
    module = types.ModuleType("somebodys_rewards")
    module.Theirs = from_file
    monkeypatch.setitem(sys.modules, "somebodys_rewards", module)
    assert plugins.load("rewards", "somebodys_rewards:Theirs") is from_file


def test_an_entry_point_that_cannot_be_imported_is_named(monkeypatch, capsys):
    point = metadata.EntryPoint("theirs", "not_there.at_all:Theirs", "alignbench.algorithms")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == point.group else [])
    with pytest.raises(InputError, match=r"^not_there\.at_all:Theirs, which an installed package names, cannot be"):
        plugins.load("algorithms", "theirs")


def test_another_packages_entry_point_is_found_and_listed(monkeypatch):
    point = metadata.EntryPoint("theirs", "collections:OrderedDict", "alignbench.rewards")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == point.group else [])
    assert "theirs" in plugins.names("rewards")
    assert plugins.load("rewards", "theirs").__name__ == "OrderedDict"


def test_a_plugin_with_two_exports_is_refused(monkeypatch):
    module = types.ModuleType("alignbench.rewards.shapes_truth")
    module.__all__ = ["A", "B"]
    monkeypatch.setitem(sys.modules, "alignbench.rewards.shapes_truth", module)
    with pytest.raises(InputError, match="must export exactly one name in __all__"):
        plugins.load("rewards", "shapes_truth")


def test_a_reward_without_gradient_says_so():
    with pytest.raises(Unsupported, match="no gradient"):
        plugins.load("rewards", "shapes_truth")().with_grad(torch.zeros(1, 3, 32, 32), PROMPTS[:1])


BAD = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True, kw_only=True)
class Forgetful:
    trains: ClassVar[bool] = False

    def align(self, problem):
        return None

class Loose:
    pass
"""


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        (
            BAD,
            "bad.py:Forgetful",
            "'bad.py:Forgetful' lacks unsupported; see alignbench.Algorithm",
        ),
        (BAD, "bad.py:Loose", "is no dataclass; expected one, with its hyper-parameters as fields"),
        (BAD, "bad.py", r"say which object of the file: bad.py:Forgetful or bad.py:Loose\."),
        (BAD, "bad.py:Nothing", "bad.py has no 'Nothing'"),
        ("def broken(:", "bad.py:Any", "bad.py cannot be imported: SyntaxError: "),
        ("import not_a_module_of_anybody", "bad.py:Any", "cannot import 'not_a_module_of_anybody'"),
        ("raise RuntimeError('no\\nlicence')", "bad.py:Any", "cannot be imported: RuntimeError: no licence"),
        (None, "bad.py:Any", "there is no file bad.py"),
        (None, "bad.py", "there is no file bad.py"),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why_in_a_sentence(text, reference, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    with pytest.raises(InputError, match=message):
        build_algorithm(reference, plugins.load("algorithms", reference), "other", {})
