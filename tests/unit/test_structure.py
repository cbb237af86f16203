"""Rules of the house that a reader should be able to rely on. A rule is one test, which names all that break it."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest
from places import ROOT

import alignbench
from alignbench.asking.options import Role, RunOptions, option_of

CORE = sorted((ROOT / "alignbench").rglob("*.py"))
GROUPS = ("algorithms", "rewards", "benchmarks")
PLUGINS = sorted(path for group in GROUPS for path in (ROOT / group).glob("*.py"))

# Rooms and single files of the core, from the ground up. Each may import from itself and from those before it.
FLOORS = (
    "printed errors choices keys reading files locks texts pictures quantities interface declared meter devices memory "
    "images downloads caches progress packed processes children launch quiet fields provenance sourced plugins record "
    "diffusion testbed shapes scoring remote preferences analysis page asking experiment suites judging contracts api "
    "cli __main__"
).split()
# What a plug-in may use of the core beside the public names of `alignbench` itself.
FOR_PLUGINS: dict[str, set[str]] = {
    "algorithms": set(),
    "rewards": {"scoring", "shapes", "testbed", "images", "downloads"},
    "benchmarks": {"shapes", "testbed", "downloads", "texts"},
}
SHARED = (["ddpo_animals"],)  # a prompt set that another one continues
HOMES = {f"alignbench.{name}": home for name, home in alignbench._HOME_OF.items()}  # of public names
DOORS = {f"alignbench/{name}.py" for name in ("downloads", "processes", "children", "launch", "__main__", "cli/app")}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(module: ast.Module) -> set[str]:
    """Dotted names of everything that a module imports, whole or from somewhere."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms(module: ast.Module, through: bool = False) -> set[str]:
    """The rooms of the core that a module imports, perhaps through the public names of `alignbench` too."""
    parts = [(HOMES.get(name, name) if through else name).split(".") for name in imported(module)]
    known = {path.relative_to(ROOT / "alignbench").parts[0].removesuffix(".py") for path in CORE}
    return {p[1] for p in parts if p[0] == "alignbench" and len(p) > 1 and p[1] in known}


def above(own: str, module: ast.Module) -> set[str]:
    """The rooms that a module of a room imports though they stand above it."""
    return {room for room in rooms(module, through=True) if FLOORS.index(room) > FLOORS.index(own)}


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_go_down_and_never_up():
    wrong = []
    for path in CORE:
        own = path.relative_to(ROOT / "alignbench").parts[0].removesuffix(".py")
        if own != "__init__":
            wrong += [f"{shown(path)} imports alignbench.{room}" for room in sorted(above(own, tree(path)))]
    assert not wrong


@pytest.mark.parametrize(
    ("own", "line", "room"),
    [
        ("record", "from alignbench.analysis.tables import Table", "analysis"),
        ("analysis", "import alignbench.experiment.run", "experiment"),
        ("asking", "def f():\n    from alignbench.judging import audit", "judging"),
        ("experiment", "from alignbench import cli", "cli"),
        ("diffusion", "from alignbench.testbed.mixture import Mixture", "testbed"),
        ("files", "from alignbench.plugins import label", "plugins"),
        ("record", "from alignbench import compare", "api"),
        ("scoring", "from alignbench import Results", "analysis"),
    ],
)
def test_a_planted_import_upwards_is_found(own, line, room):
    assert above(own, ast.parse(line)) == {room}


def test_no_import_is_relative():
    """The tests of this file read whole names."""
    wrong = [
        shown(path)
        for path in (*CORE, *PLUGINS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert not wrong


def test_every_room_has_its_floor():
    own = {path.relative_to(ROOT / "alignbench").parts[0].removesuffix(".py") for path in CORE} - {"__init__"}
    assert own == set(FLOORS)
    assert len(FLOORS) == len(set(FLOORS))


def test_the_core_names_no_plugin():
    theirs = tuple(f"alignbench.{group}." for group in GROUPS)
    wrong = [f"{shown(path)}: {name}" for path in CORE for name in imported(tree(path)) if name.startswith(theirs)]
    assert not wrong


def not_for(group: str, module: ast.Module) -> list[str]:
    """What a plug-in of a group imports though it may not: rooms that are not for it, and other plug-ins."""
    names = [name.split(".") for name in imported(module)]
    others = [
        ".".join(n)
        for n in names
        if n[0] in GROUPS or (n[0] == "alignbench" and n[1:2] and n[1] in GROUPS and n[2:3] not in SHARED)
    ]
    return [*(f"alignbench.{room}" for room in sorted(rooms(module) - FOR_PLUGINS[group])), *others]


def test_plugins_import_public_names_and_never_each_other():
    wrong = [f"{shown(p)} imports {name}" for p in PLUGINS for name in not_for(p.parent.name, tree(p))]
    assert not wrong


@pytest.mark.parametrize(
    ("group", "line", "name"),
    [
        ("algorithms", "from alignbench.diffusion.rollout import begin", "alignbench.diffusion"),
        ("algorithms", "from alignbench import Key, keys", "alignbench.keys"),
        ("algorithms", "from alignbench.algorithms import ddpo", "alignbench.algorithms"),
        ("rewards", "from alignbench.interface import Prompt", "alignbench.interface"),
        ("rewards", "from rewards.clip_l14 import ClipL14", "rewards.clip_l14"),
        ("benchmarks", "import alignbench.experiment", "alignbench.experiment"),
        ("algorithms", "import alignbench.benchmarks.geneval", "alignbench.benchmarks.geneval"),
    ],
)
def test_a_planted_import_of_a_plugin_is_found(group, line, name):
    assert name in not_for(group, ast.parse(line))


FORBIDDEN = {
    "manual_seed", "randn", "randn_like", "rand", "rand_like", "randint", "randperm", "multinomial", "bernoulli",
    "normal_", "uniform_", "default_rng", "seed_all", "Philox", "PCG64",
}  # fmt: skip


def random_numbers(module: ast.Module) -> set[str]:
    """Names by which a module could make random numbers of its own."""
    used = {ast.unparse(node) for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    found = {name for name in used if name.split(".")[-1] in FORBIDDEN and not name.startswith("nn.")}
    found |= {name for name in used if name.startswith(("random.", "np.random.", "numpy.random.", "torch.random."))}
    names = imported(module)
    found |= {name for name in names if name.split(".")[-1] in FORBIDDEN}
    found |= {
        name for name in names if name.split(".")[0] == "random" or name.startswith(("numpy.random", "torch.random"))
    }
    return found - {"np.random.Generator"}  # in annotations


def test_nothing_outside_keys_makes_random_numbers():
    keys = ROOT / "alignbench" / "keys.py"
    wrong = {shown(p): found for p in (*CORE, *PLUGINS) if p != keys and (found := random_numbers(tree(p)))}
    assert not wrong


@pytest.mark.parametrize(
    "line",
    [
        "from torch import randn",
        "import random",
        "from random import shuffle",
        "x = torch.randn(3)",
        "torch.manual_seed(0)",
        "from numpy.random import default_rng",
        "x.normal_()",
        "np.random.seed(0)",
    ],
)
def test_a_planted_source_of_randomness_is_found(line):
    assert random_numbers(ast.parse(line))


def environment(module: ast.Module) -> set[str]:
    """Names by which a module reads the environment."""
    used = {ast.unparse(node) for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    return {n for n in used | imported(module) if n in ("os.environ", "os.getenv", "os.environb")}


def test_no_environment_is_read_outside_the_doors():
    wrong = {shown(p): e for p in (*CORE, *PLUGINS) if shown(p) not in DOORS and (e := environment(tree(p)))}
    assert not wrong


@pytest.mark.parametrize(
    "line", ["os.environ['X']", "os.getenv('X')", "from os import environ", "from os import getenv"]
)
def test_a_planted_look_at_the_environment_is_found(line):
    assert environment(ast.parse(line))


def test_no_function_and_no_file_outgrows_its_reader():
    long_files = [shown(p) for p in CORE if len(p.read_text(encoding="utf-8").splitlines()) > 440]
    long_functions = [
        f"{shown(path)}: {node.name}"
        for path in (*CORE, *PLUGINS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 65
    ]
    assert not long_files
    assert not long_functions


OPENERS = {"alignbench/pictures.py", *(f"alignbench/remote/{name}.py" for name in ("official_packages", "server"))}
# The last two run in environments that have nothing of alignbench; the server looks at sizes there.


def test_pictures_are_opened_in_one_place():
    """Where formats are a list, sizes are bounded, and a picture is what a viewer shows."""
    wrong = [
        shown(path)
        for path in (*CORE, *PLUGINS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "Image.open" and shown(path) not in OPENERS
    ]
    assert not wrong


LOADERS = {f"alignbench.diffusion.{name}" for name in ("loading", "registry.load")}


def test_unit_tests_start_no_process_and_load_no_network():
    """Such tests are in tests/system."""
    wrong = [
        f"{shown(path)}: {name}"
        for path in sorted((ROOT / "tests" / "unit").rglob("*.py"))
        for name in sorted(imported(tree(path)))
        if name.split(".")[0] in ("subprocess", "multiprocessing") or name in LOADERS
    ]
    assert not wrong


def test_every_option_of_a_cell_says_what_it_is_to_the_cells_identity():
    undeclared = [name for name in RunOptions.model_fields if not isinstance(option_of(RunOptions, name).role, Role)]
    assert not undeclared


def test_every_public_name_can_be_imported():
    import alignbench

    assert len(set(alignbench.__all__)) == len(alignbench.__all__) > 100
    for name in alignbench.__all__:
        assert getattr(alignbench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        alignbench.nothing  # noqa: B018


def test_no_public_name_is_a_rooms_name_as_well():
    """`from alignbench import name` would then mean one or the other, by what was imported before."""
    import alignbench

    assert not set(alignbench.__all__) & set(FLOORS)


def test_algorithm_files_have_the_header_of_the_house():
    """What was measured stands in results/testbed/README.md and results/NOTES.md: a header says what the method is."""
    wrong = []
    for path in sorted((ROOT / "algorithms").glob("[!_]*.py")):
        header = ast.get_docstring(tree(path)) or ""
        wrong += [
            f"{shown(path)}: no {part}" for part in ("Objective", "Departures", "\nOptimum ") if part not in header
        ]
        if len(header.splitlines()) > 25:
            wrong.append(f"{shown(path)}: a header over 25 lines")
        optimum = header.partition("\nOptimum ")[2].splitlines()
        if len(list(itertools.takewhile(lambda line: line.startswith(" "), optimum))) > 2:
            wrong.append(f"{shown(path)}: more than two lines on the optimum")
        if len(path.read_text(encoding="utf-8").splitlines()) > 280:  # what was published takes twenty
            wrong.append(f"{shown(path)}: over 280 lines")
    assert not wrong


def test_what_was_measured_has_a_section_for_each_algorithm_it_was_measured_of():
    text = (ROOT / "results" / "testbed" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^### `(\w+)`$", text, re.M))
    assert named == {path.stem for path in (ROOT / "algorithms").glob("[!_]*.py")}
