"""Rules of the house that a reader should be able to rely on, checked over every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = sorted((ROOT / "alignbench").rglob("*.py"))
PLUGINS = sorted(path for group in ("algorithms", "rewards", "benchmarks") for path in (ROOT / group).glob("*.py"))

# A module may import from its own layer and from those after it.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"experiment", "analysis", "plugins"},
    {"diffusion", "preferences", "shapes", "testbed", "scoring", "remote", "images", "downloads"},
    {"interface"},
    {"quantities"},
    {"keys", "errors", "files"},
]


def layer(room: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms_imported(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported_modules(path)]
    known = set().union(*LAYERS)
    return {p[1] for p in parts if p[0] == "alignbench" and len(p) > 1 and p[1] in known}


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path):
    own = path.relative_to(ROOT / "alignbench").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for room in rooms_imported(path):
        assert layer(room) >= layer(own), f"{path} imports alignbench.{room}, which stands above it"


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_names_no_plugin(path):
    names = imported_modules(path)
    assert not [
        n for n in names if n.startswith(("alignbench.algorithms", "alignbench.rewards", "alignbench.benchmarks"))
    ]


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_import_the_core_and_never_each_other(path):
    allowed = {"diffusion", "shapes", "testbed", "scoring", "images", "downloads", "files", "keys", "quantities"}
    assert rooms_imported(path) <= allowed
    assert not [n for n in imported_modules(path) if n.split(".")[0] in ("algorithms", "rewards", "benchmarks")]
    assert not [
        n for n in imported_modules(path) if n.split(".")[:2] in (["alignbench", g] for g in ("algorithms", "rewards"))
    ]


def calls(tree: ast.AST) -> set[str]:
    """Dotted names of everything that is called or used as an attribute."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_outside_keys_makes_random_numbers(path):
    if path == ROOT / "alignbench" / "keys.py":
        return
    forbidden = {"manual_seed", "randn", "randn_like", "rand", "rand_like", "randint", "randperm", "multinomial"}
    forbidden |= {"bernoulli", "normal_", "uniform_", "default_rng", "seed_all", "Philox", "PCG64"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {name for name in calls(tree) if name.split(".")[-1] in forbidden and not name.startswith("nn.")}
    used |= {name for name in calls(tree) if name.startswith(("random.", "np.random.", "torch.random."))}
    annotations = {"np.random.Generator"}
    assert not used - annotations, f"{path} makes random numbers by {used - annotations}; use a Key"
    assert "random" not in imported_modules(path)


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_environment_is_read_outside_the_doors(path):
    doors = {"downloads.py", "run.py", "__main__.py"}
    if path.name not in doors:
        assert not {
            name for name in calls(ast.parse(path.read_text(encoding="utf-8"))) if name.startswith("os.environ")
        }


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m for m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout
    return set(out.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import alignbench",
        "import alignbench.cli",
        "import alignbench.analysis.compare, alignbench.analysis.tables, alignbench.analysis.plots",
        "import alignbench.experiment.result",
        "import alignbench.analysis.summary",
    ],
)
def test_importing_it_loads_no_torch(statement):
    assert "torch" not in loaded_by(statement)


@pytest.mark.parametrize("group", ["algorithms", "rewards", "benchmarks"])
def test_a_bare_import_of_a_plugin_folder_says_what_to_import(group):
    done = subprocess.run([sys.executable, "-c", f"import {group}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert f"import this package as 'alignbench.{group}'" in done.stderr


def test_every_public_name_can_be_imported():
    import alignbench

    for name in alignbench.__all__:
        assert getattr(alignbench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        alignbench.nothing  # noqa: B018


def test_algorithm_files_have_the_header_of_the_house():
    for path in sorted((ROOT / "algorithms").glob("[!_]*.py")):
        header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert "Objective" in header, path
        assert "Departures" in header, path
        assert "\nOptimum " in header, f"{path}: does it reach the optimum of the exact testbed, and if not, why?"
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path
