"""`alignbench check`: the contracts on anybody's plug-in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import PLUGINS

from alignbench.cli.app import run_command_line

MINE = '''
"""Somebody's algorithm."""
from dataclasses import dataclass
from typing import ClassVar
import torch
from alignbench import Key, LoRA, PipelineSampler, Problem, Sampler, Unsupported


@dataclass(frozen=True, kw_only=True)
class Mine:
    trains: ClassVar[bool] = False
    strength: float = 0.5

    def align(self, problem: Problem) -> Sampler:
        return Pushed(PipelineSampler(problem.pipeline, problem.sampling), self.strength)

    def unsupported(self, problem: Problem) -> str | None:
        return None


class Pushed:
    """Moves every point to the right."""
    particles = 1

    def __init__(self, sampler, strength):
        self.sampler, self.strength = sampler, strength

    def describe(self):
        return {**self.sampler.describe(), "strength": self.strength}

    def save(self, folder):
        pass

    def __call__(self, prompts, keys, start=None):
        samples = self.sampler(prompts, keys, start)
        return type(samples)(PUSH, samples.latents)
'''
GOOD = "samples.images + self.strength"
BREAKS = {
    "the same keys give the same images": "samples.images + Key(str(id(samples))).uniform(1)",
    "an image depends on its own key and not on its batch": "samples.images + samples.images.mean()",
    "other keys give other images": "torch.arange(2.0 * len(prompts)).reshape(-1, 2)",
    "its images are finite and of the model's shape": "samples.images[:, :1]",
    "it improves the reward that it is given": "samples.images - self.strength",
}


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """A function that writes a plug-in, checks it, and returns the exit code with what was printed and said."""
    monkeypatch.chdir(tmp_path)

    def of(text: str, *arguments: str, name: str = "mine.py:Mine") -> tuple[int, str, str]:
        Path("mine.py").write_text(text)
        code = run_command_line(["check", name, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return of


def test_a_good_algorithm_keeps_all_contracts(check):
    code, out, _ = check(MINE.replace("PUSH", GOOD))
    assert code == 0
    assert out.startswith("mine.py:Mine: algorithm\n")
    assert out.endswith("all contracts hold\n")
    assert out.count("\n  holds ") == 12
    assert "it has no for_budget" in out


def broken(out: str, contract: str) -> str:
    """The line of a contract that does not hold."""
    (line,) = [line for line in out.splitlines() if contract in line]
    assert line.startswith("  BROKEN ")
    return line


@pytest.mark.parametrize("contract", BREAKS)
def test_a_broken_contract_is_named_with_what_was_found(check, contract):
    code, out, _ = check(MINE.replace("PUSH", BREAKS[contract]))
    assert code == 1
    assert len(broken(out, contract).split(contract)[1]) > 8
    assert re.fullmatch(r"1 contract is broken|\d+ contracts are broken", out.splitlines()[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return Pushed(PipelineSampler", "Pushed(PipelineSampler"), "align returned None, which lacks __call__"),
        (
            ("return type(samples)(PUSH, samples.latents)", "return PUSH"),
            "its sampler returned Tensor; expected Samples",
        ),
        (("samples = self.sampler(", "samples = self.smapler("), "has no attribute 'smapler'"),
        (("PUSH", "(samples.images + self.strength)[:1]"), "gave images of shape (1, 2); expected ("),
    ],
)
def test_what_the_others_lean_on_is_told_once(check, change, message):
    code, out, _ = check(MINE.replace(*change).replace("PUSH", GOOD))
    assert code == 1
    (line,) = [line for line in out.splitlines() if "BROKEN" in line]
    assert message in line
    assert "see above" in out
    assert out.splitlines()[-1] == "1 contract is broken"


def test_the_line_of_the_plugin_in_which_an_error_arose_is_named(check):
    text = MINE.replace("PUSH", "samples.images + self.strenght")
    number = next(i for i, line in enumerate(text.splitlines(), 1) if "strenght" in line)
    _, out, _ = check(text)
    assert f"has no attribute 'strenght' (mine.py, line {number})" in out


def test_one_that_says_it_reads_no_reward_must_read_none(check):
    free = MINE.replace("PUSH", GOOD).replace(
        "    strength: float", "    reads_reward: ClassVar[bool] = False\n    strength: float"
    )
    _, out, _ = check(free)
    assert "  holds    where it says that it reads no reward, it reads none" in out
    asks = "        images = problem.pipeline.decode(problem.pipeline.initial_noise([problem.key]))\n"
    asks += "        problem.reward(images, problem.prompts.sample(problem.key, 1))\n        return Pushed("
    _, out, _ = check(free.replace("        return Pushed(", asks))
    line = broken(out, "where it says that it reads no reward, it reads none")
    assert "it says reads_reward=False, and then: the algorithm asks for a reward, and this cell has none" in line


def test_randomness_without_a_key_is_suspected(check):
    _, out, _ = check(MINE.replace("PUSH", "samples.images + self.strength + torch.randn(()) / 9"))
    assert "is something drawn without a key, as torch.randn does?" in out


def test_a_hyper_parameter_without_an_annotation_is_no_field(check):
    code, out, _ = check(
        MINE.replace("PUSH", GOOD).replace("    strength: float", "    rounds = 3\n    strength: float")
    )
    assert code == 1
    assert "rounds has no annotation, so it is no field and cannot be set; write rounds: int = 3" in out


def test_a_plugin_that_raises_breaks_what_it_raises_in_and_shows_no_traceback(check):
    code, out, err = check(MINE.replace("PUSH", "1 / 0"))
    assert code == 1
    assert "ZeroDivisionError: division by zero" in out
    assert "holds    its fields survive JSON" in out
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("    def unsupported(self, problem: Problem) -> str | None:\n        return None\n", ""),
            "lacks unsupported",
        ),
        (("@dataclass(frozen=True, kw_only=True)\n", ""), "is no dataclass"),
        (("    trains: ClassVar[bool] = False\n", ""), "lacks trains"),
    ],
)
def test_what_was_forgotten_is_named(check, change, message):
    code, _, err = check(MINE.replace("PUSH", GOOD).replace(*change))
    assert code == 2
    assert message in err


def test_fields_are_set_and_wrong_ones_refused(check):
    code, _, err = check(MINE.replace("PUSH", GOOD), "--set", "strenght=1")
    assert code == 2
    assert "no field named 'strenght'. Did you mean strength" in err
    code, out, _ = check(MINE.replace("PUSH", GOOD), "--set", "strength=-1")
    assert code == 1
    assert "BROKEN   it improves the reward" in out


REWARD = """
import torch
from alignbench import RewardInfo, Unsupported

class Blue:
    differentiable = True
    infos = 0

    def __call__(self, images, prompts):
        with torch.no_grad():
            return self.with_grad(images, prompts)

    def with_grad(self, images, prompts):
        return VALUES

    def info(self):
        return INFO

    def unsupported(self, prompts, image_shape):
        return REASON
"""
USUAL = {"VALUES": "images.flatten(1).mean(1)", "INFO": 'RewardInfo("blue")', "REASON": "None"}
BROKEN_REWARDS = {
    "it gives one finite number per image": ({"VALUES": "images.mean((2, 3))"}, "6 images gave shape (6, 3)"),
    "it gives the same number again": ({"VALUES": "torch.rand(len(images)) + images.mean()"}, "two calls differ by"),
    "a value depends on its own image": (
        {"VALUES": "images.mean() + images.flatten(1).mean(1)"},
        "alone, an image",
    ),
    "it leaves the images as they are": (
        {"VALUES": "images.detach().clamp_(0.2, 0.3).flatten(1).mean(1)"},
        "it changed",
    ),
    "it says what identifies it": ({"INFO": 'RewardInfo("")'}, "its id is empty"),
    "what it cannot score is a sentence": ({"REASON": '"no" if image_shape == (3, 7, 7) else None'}, "is no sentence"),
    "it has a gradient exactly where": (
        {"VALUES": "images.flatten(1).round().mean(1)"},
        "gradient of 6 of 6",
    ),
}


@pytest.mark.parametrize("contract", BROKEN_REWARDS)
def test_a_broken_contract_of_a_reward_is_named(check, contract):
    changes, message = BROKEN_REWARDS[contract]
    text = REWARD
    for name, words in (USUAL | changes).items():
        text = text.replace(name, words)
    code, out, _ = check(text, name="mine.py:Blue")
    assert code == 1
    assert message in broken(out, contract)


PROMPTS = """
import itertools
from alignbench import Prompt

class Own:
    count = itertools.count()
    splits = SPLITS
    def prompts(self, split):
        return FOUND
"""
BROKEN_SETS = {
    "its splits are train, dev or test": ('("all",)', '[Prompt("a", "a")]', "its splits are all"),
    "a split is the same each time": (
        '("test",)',
        '[Prompt(str(next(self.count)), "a")]',
        "two readings of test",
    ),
    "an id of its own": ('("test",)', '[Prompt("a", "a"), Prompt("a", "b")]', "test has 2 prompts and 1 ids"),
    "every prompt says something": ('("test",)', '[Prompt("a", " ")]', "prompts of test without text: a"),
}


@pytest.mark.parametrize("contract", BROKEN_SETS)
def test_a_broken_contract_of_a_prompt_set_is_named(check, contract):
    splits, found, message = BROKEN_SETS[contract]
    code, out, _ = check(PROMPTS.replace("SPLITS", splits).replace("FOUND", found), name="mine.py:Own")
    assert code == 1
    assert message in broken(out, contract)


def test_what_is_forgotten_of_a_reward_or_a_prompt_set_is_named(check):
    """An object that can be called is no prompt set for that, and every class can be."""
    code, _, err = check("class R:\n    def __call__(self, images, prompts): ...\n", name="mine.py:R")
    assert code == 2
    assert "reward 'mine.py:R' lacks differentiable, info, unsupported, with_grad" in err
    code, _, err = check("class P:\n    def prompts(self, split): ...\n", name="mine.py:P")
    assert code == 2
    assert "prompt set 'mine.py:P' lacks splits" in err
    code, _, err = check("class P:\n    splits = ()\n    def __init__(self, x): ...\n", name="mine.py:P")
    assert code == 2
    assert "prompt set 'mine.py:P' cannot be made: TypeError" in err


def test_rewards_and_prompt_sets_are_told_from_algorithms(check, capsys):
    code, out, _ = check("", name=f"{PLUGINS / 'colours.py'}:Brightness")
    assert code == 0
    assert ": reward\n" in out
    code, out, _ = check("", name="shapes")
    assert (code, out.splitlines()[0]) == (0, "shapes: prompt set")
    code, _, err = check("", "--set", "a=1", name="shapes")
    assert code == 2
    assert "--set is for the hyper-parameters of algorithms" in err


def test_an_unknown_name_lists_near_ones_of_all_kinds(check):
    code, _, err = check("", name="shapes_trut")
    assert code == 2
    assert "no plug-in named 'shapes_trut'. Did you mean shapes_truth" in err
    code, _, err = check("class A: pass", name="mine.py")
    assert code == 2
    assert "say which object of the file: mine.py:A" in err
