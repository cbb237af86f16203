"""What stands beside the code: packaging, the citation, and the commands of the Makefile."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from places import ROOT

import alignbench

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_every_room_is_in_the_wheel():
    rooms = {f"alignbench.{path.parent.name}" for path in (ROOT / "alignbench").glob("*/__init__.py")}
    plugins = {f"alignbench.{path.parent.name}" for path in ROOT.glob("*/__init__.py")} - {"alignbench.alignbench"}
    assert set(SETUPTOOLS["packages"]) == {"alignbench", *rooms, *plugins}


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("alignbench", "py.typed"),
        *(("alignbench.page", f"template/page.{ending}") for ending in ("html", "css", "js")),
        ("alignbench.shapes", "weights/preference.safetensors"),
        ("alignbench.algorithms", "presets/tiny.toml"),
        ("alignbench.rewards", "aliases.toml"),
        ("alignbench.benchmarks", "suites/tiny.yaml"),
        ("alignbench.benchmarks", "published.toml"),
        *(("alignbench.remote", f"voting_page/{name}") for name in ("index.html", "vote.js", "vote.css")),
    ],
)
def test_data_is_in_the_wheel(package, name):
    folder = ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))
    assert (folder / name) in {path for pattern in SETUPTOOLS["package-data"][package] for path in folder.glob(pattern)}


def test_the_citation_is_complete_and_of_this_version():
    """Keys that the format 1.2.0 demands, and what must agree with the project."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert all({"name"} <= set(author) for author in citation["authors"])
    assert (citation["type"], citation["title"]) == ("software", "alignbench")
    assert citation["version"] == alignbench.__version__ == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]


def test_what_the_makefile_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"check", "test", "slow", "timings", "pages"} <= set(re.findall(r"^([a-z]+):", makefile, re.M))
    for path in re.findall(r"tests/[\w./]+", makefile):
        assert (ROOT / path).exists(), path


def test_every_hook_before_a_commit_is_pinned():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", repository["rev"]) for repository in hooks["repos"])
