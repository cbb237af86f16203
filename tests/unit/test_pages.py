"""The shape of the pages: README is short, links lead somewhere, and what pages tell a reader to type exists."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import PAGES, read
from places import ROOT

from alignbench import plugins
from alignbench.asking.suite import read_suite
from alignbench.cli.app import app
from alignbench.diffusion.registry import named

README = read("README.md")
OF_OTHER_TOOLS = {"--quiet", "--oracle", "--write", "--output", "--settings"}  # of pip, and of scripts in tests/


def fences(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.M | re.S)


def spans(page: str) -> list[str]:
    """The code within sentences."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S))


def commands(page: str) -> Iterator[list[str]]:
    """What a page shows of alignbench's command line, in blocks and in sentences, as words."""
    lines = [line for block in fences(page, "bash") for line in block.splitlines()]
    lines += re.findall(r"^ {4}(alignbench .*)$", read(page), re.M)
    lines += [span for span in spans(page) if span.startswith("alignbench ")]
    for line in lines:
        for part in line.split("#")[0].split("&&"):
            words = shlex.split(part)
            if words[:1] == ["alignbench"]:
                yield words[1:]


def options_of(command: str) -> set[str]:
    return {name for argument in app[command].assemble_argument_collection() for name in argument.names}


def known_commands() -> set[str]:
    return {name for name in app if not name.startswith("-")}


def test_readme_is_short_and_its_lines_are():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_prose_fit_a_screen(page):
    prose = re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S).splitlines()
    assert [line for line in prose if len(line) > 120 and not line.startswith(("|", "    "))] == []


def test_the_two_commands_are_the_only_bash_blocks():
    """`.ci/run` runs these two, word for word."""
    main, tests = fences("README.md", "bash")
    assert main.startswith("pip install --quiet -e . && alignbench suite ")
    assert tests == "pip install --quiet -e '.[test]' && pytest\n"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", read(page))
    missing = []
    for target in targets:
        path, _, anchor = target.partition("#")
        place = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if target.startswith("https://"):
            continue
        headings = re.findall(r"^#+ (.*)$", place.read_text(), re.M) if place.suffix == ".md" and anchor else []
        if not place.exists() or (anchor and anchor not in map(slug, headings)):
            missing.append(target)
    assert not missing


def test_readme_leads_to_every_other_page():
    targets = set(re.findall(r"\]\(([^)#\s]+)", README))
    assert set(PAGES) - {"README.md"} <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_shows_exists_with_its_options(page):
    wrong = []
    for command, *words in commands(page):
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        if command.startswith("--"):
            wrong += [command] * (command not in {"--help", "--version", "--install-completion"})
        elif command in known_commands():
            unknown = given - options_of(command) - {"--help", "--debug"}
            wrong += [f"{command} {option}" for option in sorted(unknown)]
        elif command != "COMMAND":
            wrong.append(command)
    assert not wrong


def test_every_option_in_a_sentence_is_one_of_some_command():
    known = {name for command in known_commands() for name in options_of(command)} | {"--help", "--debug"}
    wrong = [
        f"{page}: {span}"
        for page in PAGES
        for span in spans(page)
        if span.startswith("--") and span.split()[0].partition("=")[0] not in known | OF_OTHER_TOOLS
    ]
    assert not wrong


def test_every_command_of_the_application_is_named_in_a_page():
    shown = {words[0] for page in PAGES for words in commands(page)}
    shown |= {span.split()[0] for span in spans("README.md")}
    assert known_commands() <= shown


@pytest.mark.parametrize("page", PAGES)
def test_python_in_a_page_is_python(page):
    for block in fences(page, "python"):
        ast.parse(block)


def test_the_suite_of_the_page_is_a_suite(tmp_path: Path):
    (block,) = fences("benchmarks/README.md", "yaml")
    (tmp_path / "mine.yaml").write_text(block)
    assert [cell.algo for cell in read_suite(tmp_path / "mine.yaml")] == ["base"] + ["best_of_n"] * 3 + ["refl"] * 3


@pytest.mark.parametrize("group", ["algorithms", "rewards", "benchmarks"])
def test_every_plugin_has_its_place_in_the_page_of_its_folder(group: plugins.Group):
    linked = set(re.findall(r"\]\((\w+)\.py\)", read(f"{group}/README.md")))
    assert linked >= set(plugins.own_names(group))


def test_every_suite_and_every_room_has_its_place():
    suites = {path.stem for path in (ROOT / "benchmarks" / "suites").glob("*.yaml")}
    assert suites <= set(spans("benchmarks/README.md"))
    rooms = {f"{path.parent.name}/" for path in (ROOT / "alignbench").glob("*/__init__.py")}
    assert rooms <= set(spans("alignbench/README.md"))
    folders = {f"{path.name}/" for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(re.findall(r"\[(\w+/)\]", read("tests/README.md")))


def test_every_model_has_its_place():
    assert set(named()) <= set(spans("alignbench/README.md"))


@pytest.mark.parametrize("name", plugins.own_names("benchmarks"))
def test_a_prompt_set_has_as_many_prompts_as_the_page_says(name):
    (row,) = [
        line for line in read("benchmarks/README.md").splitlines() if line.startswith("|") and f"({name}.py)" in line
    ]
    for split, count in getattr(plugins.load("benchmarks", name), "counts", {}).items():
        assert f"{count:,} {split}" in row


@pytest.mark.parametrize("name", plugins.own_names("algorithms"))
def test_the_table_of_algorithms_says_what_each_is_and_needs(name):
    (row,) = [line for line in read("algorithms/README.md").splitlines() if line.startswith(f"| [`{name}`]")]
    _, _, paper, kind, _, needs, _ = (cell.strip() for cell in row.split("|"))
    algorithm = plugins.load("algorithms", name)
    assert kind == ("trains" if algorithm.trains else "at test time")
    assert ("preference pairs" in needs) is bool(getattr(algorithm, "learns_from_pairs", False))
    assert ("training prompts" in needs) is (algorithm.trains and not getattr(algorithm, "learns_from_pairs", False))
    header = ast.get_docstring(ast.parse((ROOT / "algorithms" / f"{name}.py").read_text())) or ""
    for link in re.findall(r"https://arxiv\.org/abs/[\d.]+\d", paper):
        assert link in header
    uses_gradient = re.search(r"without_gradient\(|untrainable\(", (ROOT / "algorithms" / f"{name}.py").read_text())
    assert ("gradient of the reward" in needs) is bool(uses_gradient)
