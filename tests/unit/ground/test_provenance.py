"""What code a plug-in is: what changes its source, and what does not."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata

import pytest

from alignbench import plugins, provenance
from alignbench.errors import InputError
from alignbench.provenance import Place
from alignbench.sourced import SourcedInfo, identity_of, is_hashed

REWARD = """
from dataclasses import dataclass
from alignbench import RewardInfo
{imports}

@dataclass(frozen=True)
class Mean:
    differentiable = True

    def __call__(self, images, prompts):
        {inside}
        return {value}

    with_grad = __call__

    def info(self):
        return RewardInfo(id="mean-1")

    def unsupported(self, prompts, image_shape):
        return None
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder that is the current one and on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(provenance, "_first_read", provenance._read)  # as in a new process
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def write(path, value="images.mean((1, 2, 3))", imports="", inside="pass"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(REWARD.format(value=value, imports=imports, inside=inside))
    return path


def source(name, group="rewards"):
    return plugins.source(group, name, plugins.load(group, name))


def changed(name, path, text):
    """The source before and after a file has another text, as two processes see it."""
    before = source(name)
    path.write_text(text)
    for module in [module for module in sys.modules if module.split(".")[0] in ("helper", "lib", "package")]:
        del sys.modules[module]
    importlib.invalidate_caches()
    return before, source(name)


def test_another_line_in_the_file_is_another_source(place):
    path = write(place / "mean.py")
    before, after = changed("mean.py:Mean", path, path.read_text().replace("return images", "return 1 - images"))
    assert before != after
    assert len(before) == len(after) == 64


def test_the_same_file_elsewhere_under_another_name_has_the_same_source(place):
    write(place / "mean.py")
    write(place / "deep" / "other.py")
    assert source("mean.py:Mean") == source("deep/other.py:Mean") == source(f"{place}/mean.py:Mean")


def test_the_line_ends_of_another_system_make_no_other_source(place):
    path = write(place / "mean.py")
    unix = source("mean.py:Mean")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert source("mean.py:Mean") == unix


@pytest.mark.parametrize(
    ("file", "line", "where"),
    [
        ("helper.py", "import helper", "imports"),
        ("helper.py", "from helper import turned", "imports"),
        ("helper.py", "from helper import turned as t", "inside"),
        ("lib/helper.py", "import lib.helper", "imports"),
        ("lib/helper.py", "from lib import helper", "inside"),
        ("lib/__init__.py", "from lib import helper", "imports"),
        ("lib/deep/helper.py", "import lib.helper", "imports"),  # which imports it in its turn
    ],
)
def test_a_changed_module_that_the_file_imports_is_another_source(file, line, where, place):
    for module in ("helper.py", "lib/__init__.py", "lib/helper.py", "lib/deep/__init__.py", "lib/deep/helper.py"):
        (place / module).parent.mkdir(parents=True, exist_ok=True)
        (place / module).write_text("def turned(x):\n    return x\n")
    (place / "lib/helper.py").write_text("from .deep.helper import turned\n")
    write(place / "mean.py", **{where: line})
    before, after = changed("mean.py:Mean", place / file, "def turned(x):\n    return 1 - x\nhelper = None\n")
    assert before != after


def test_a_file_beside_it_that_nobody_imports_is_no_part_of_it(place):
    write(place / "mean.py", imports="import torch, json")
    before, after = changed("mean.py:Mean", place / "unused.py", "x = 1\n")
    assert before == after


def test_two_modules_that_import_each_other_have_a_source(place):
    (place / "helper.py").write_text("import mean\n")
    write(place / "mean.py", imports="import json", inside="import helper")
    assert source("mean.py:Mean")


def test_a_module_by_its_dotted_name_has_the_source_of_its_package(place):
    (place / "package").mkdir()
    (place / "package" / "__init__.py").write_text("from package.inner import Mean\n")
    (place / "package" / "tools.py").write_text("def turned(x):\n    return x\n")
    write(place / "package" / "inner.py", imports="from .tools import turned")
    for name in ("package.inner:Mean", "package:Mean"):
        (place / "package" / "tools.py").write_text("def turned(x):\n    return x\n")
        before, after = changed(name, place / "package" / "tools.py", "def turned(x):\n    return 1 - x\n")
        assert before != after


class Installed:
    """A distribution as an installer left it."""

    def __init__(self, version):
        self.name, self.version = "their-rewards", version


def test_another_version_of_an_installed_package_is_another_source(place):
    write(place / "package.py")
    old, new = (provenance.source_of([Place("package", distribution=Installed(v))]) for v in ("1.0", "1.1"))
    assert old.startswith("their-rewards 1.0 ")
    assert new.startswith("their-rewards 1.1 ")
    assert old.split()[-1] == new.split()[-1]


def test_a_module_that_an_installer_put_there_has_the_version_of_its_package(place, monkeypatch):
    write(place / "site-packages" / "package.py")
    monkeypatch.syspath_prepend(str(place / "site-packages"))
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"package": ["their-rewards"]})
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed("2.0"))
    provenance._distribution.cache_clear()
    assert source("package:Mean").startswith("their-rewards 2.0 ")
    provenance._distribution.cache_clear()


def test_an_entry_point_has_the_source_of_its_module(place, monkeypatch):
    path = write(place / "package.py")
    point = metadata.EntryPoint("theirs", "package:Mean", "alignbench.rewards")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == point.group else [])
    assert source("theirs") == source("package:Mean")
    assert plugins.reward_of("theirs").info().source == source("theirs")
    before, after = changed("theirs", path, path.read_text().replace("return images", "return -images"))
    assert before != after


@pytest.mark.parametrize(
    ("group", "name"),
    [
        *(("algorithms", name) for name in ("base", "refl")),
        *(("rewards", name) for name in ("clip", "shapes_truth", "alignbench.rewards.shapes_truth:ShapesTruth")),
        *(("benchmarks", name) for name in ("shapes", "grid")),
        ("rewards", "hpsv2=weights.pt"),
        ("rewards", "http://127.0.0.1:8000"),
    ],
)
def test_what_is_alignbenchs_own_carries_nothing(group, name):
    assert source(name, group) is None


def test_a_copy_of_our_own_is_a_file_of_yours(place):
    own = plugins.folder_of("rewards") / "shapes_truth.py"
    (place / "mine.py").write_text(own.read_text())
    assert len(source("mine.py:ShapesTruth")) == 64


def test_a_rewards_identity_holds_its_source_and_else_what_it_says(place):
    write(place / "mean.py")
    info = plugins.reward_of("mean.py:Mean").info()
    assert isinstance(info, SourcedInfo)
    assert identity_of(info)["source"] == source("mean.py:Mean")
    assert info.id == "mean-1"
    assert "source" not in identity_of(plugins.reward_of("shapes_truth").info())


def test_a_scorer_is_known_by_its_weights_only_where_they_are_hashed():
    assert is_hashed(SourcedInfo("x", {"w": "0" * 64}))
    assert not is_hashed(SourcedInfo("x", {}))
    assert not is_hashed(SourcedInfo("x", {"w": "version 2"}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["clip", "clip"], "'clip' is named twice; name it once"),
        (["clip", "aesthetic", "clip_l14"], "'clip' and 'clip_l14' are one scorer; name it once"),
        (["a.py:R", "b.py:R"], "two scorers would share the column 'R': 'a.py:R' and 'b.py:R'"),
        (["there.module:R", "b.py:R"], "share the column 'R': 'there.module:R' and 'b.py:R'"),
        (["x/r.safetensors", "y/r.safetensors"], "share the column 'r': 'x/r.safetensors' and 'y/r.safetensors'"),
        (["r=http://a:1", "r=http://b:2"], "share the column 'r': 'r=http://a:1' and 'r=http://b:2'"),
        (["shapes_truth", "w/shapes_truth.safetensors"], "share the column 'shapes_truth'"),
    ],
)
def test_two_scorers_that_would_share_a_column_are_refused_and_named(names, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        plugins.check_columns(names)


def test_scorers_with_columns_of_their_own_may_stand_side_by_side():
    plugins.check_columns(["clip", "clip_h14", "a.py:R", "a.py:S", "one=http://a:1", "two=http://a:1"])
