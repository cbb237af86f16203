"""One run in several processes: what it comes to is what one process comes to, but for rounding."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from several import FAILURES, SAME, STRAY, environments, trained
from warm import begin_command

from alignbench import plugins
from alignbench.record import result as results

TRAINING = [name for name in plugins.own_names("algorithms") if plugins.load("algorithms", name).trains]
SOME = ["ddpo", "diffusion_dpo"]  # from paths, and from pairs
BUGS = {  # what says so, where it does not only change what training comes to
    "mean of local means": None,
    "a padded duplicate": "ValueError: zip() argument 2 is longer than argument 1",
    "seeds per rank": "of process 1 of 2 are not those of process 0",
    "local permutation": None,
}


def check_same(one, several, toy: str, stray: float = 0.0) -> None:
    for name, came in one.items():
        other = several[name]
        assert other.beyond(came, SAME[toy]) <= stray, name
        assert other.cost == came.cost, name
        assert len(other.curve) == len(came.curve)
        for line, same in zip(other.curve, came.curve, strict=True):
            assert {k: v for k, v in line.items() if isinstance(v, float)} == pytest.approx(
                {k: v for k, v in same.items() if isinstance(v, float)}, rel=1e-4, abs=1e-5
            ), name
            assert line.keys() == same.keys()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What some algorithms come to in one process."""
    return trained(tmp_path_factory.mktemp("alone"), 1, SOME)


def test_two_processes_come_to_what_one_does(alone, tmp_path):
    check_same(alone, trained(tmp_path, 2, SOME), "mixture")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("toy", "fault", "numbers"),
    [("mixture", "none", (2, 3)), ("mixture", "fewer", (2, 3)), ("mixture_flow", "none", (2,))],
)
def test_every_algorithm_comes_to_the_same_in_any_number_of_processes(toy, fault, numbers, tmp_path):
    """Sizes that do not divide, and fewer items than processes."""
    one = trained(tmp_path / "1", 1, TRAINING, toy, fault)
    for processes in numbers:
        check_same(one, trained(tmp_path / str(processes), processes, TRAINING, toy, fault), toy)


def test_dpok_with_its_value_network_comes_to_the_same_in_two_processes(tmp_path):
    one, two = (trained(tmp_path / str(n), n, ["dpok"], "mixture", "least") for n in (1, 2))
    check_same(one, two, "mixture")


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "numbers", "stray"), [("least", (2, 3), 0.0), ("one pass", (2,), STRAY)])
def test_every_algorithm_comes_to_the_same_on_pictures_in_any_number_of_processes(fault, numbers, stray, tmp_path):
    """With two pictures in a forward pass, since processes share whole passes: passes of other sizes would round
    otherwise, and Adam would enlarge that to 6e-5. And where one pass has to be cut."""
    one = trained(tmp_path / "1", 1, TRAINING, "tiny", fault)
    for processes in numbers:
        check_same(one, trained(tmp_path / str(processes), processes, TRAINING, "tiny", fault), "tiny", stray)


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_mistake_in_sharing_is_seen(bug, alone, tmp_path):
    """It changes what training comes to, or is found while it runs."""
    if BUGS[bug] is not None:
        with pytest.raises(AssertionError, match=re.escape(BUGS[bug])):
            trained(tmp_path, 2, SOME, "mixture", bug)
        return
    several = trained(tmp_path, 2, SOME, "mixture", bug)
    assert max(several[name].distance(alone[name]) for name in SOME) > 100 * SAME["mixture"]


@pytest.mark.slow
def test_a_weight_that_moves_in_one_process_alone_is_named_within_a_round(tmp_path):
    with pytest.raises(AssertionError, match="the trained weights of process 1 of 2 are not those of process 0"):
        trained(tmp_path, 2, ["ddpo"], "mixture", "a weight moved")


@pytest.mark.slow
def test_an_algorithm_that_shares_its_paths_but_not_its_losses_is_told_so(tmp_path):
    with pytest.raises(AssertionError, match="the same gradient, so this algorithm does not share its losses"):
        trained(tmp_path, 2, ["ddpo"], "mixture", "losses not shared")


@pytest.mark.slow
@pytest.mark.parametrize("failure", [name for name in FAILURES if name != "defect"])
def test_what_one_process_meets_is_one_decision_of_all(failure, tmp_path):
    """They go back to the last checkpoint, or halve the forward pass, together: as one process that met the same."""
    one = trained(tmp_path / "1", 1, ["ddpo"], "mixture", f"alone {failure}")
    check_same(one, trained(tmp_path / "2", 2, ["ddpo"], "mixture", failure), "mixture")


@pytest.mark.slow
def test_more_processes_than_images_are_told_and_the_result_is_that_of_one(tmp_path):
    asked = ["run", "--algo", "base", "--model", "tiny", "--limit", "2", "--steps", "2"]
    three = begin_command([*asked, "--processes", "3", "--output", str(tmp_path / "3")]).ended(300)
    assert "3 processes share 2 images: 1 will make none" in three.stderr
    assert begin_command([*asked, "--output", str(tmp_path / "1")]).ended(300).returncode == three.returncode == 0
    rows = [results.read(next((tmp_path / name).glob("*.json"))).rows for name in ("3", "1")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_defect_in_one_process_ends_all_and_is_told_by_each(tmp_path):
    with pytest.raises(AssertionError) as raised:
        trained(tmp_path, 2, ["ddpo"], "mixture", "defect")
    assert str(raised.value).count("RunError: process 1 of 2: KeyError: 'a defect'") >= 2


@pytest.mark.slow
def test_made_pairs_images_and_scores_are_shared_and_are_those_of_one_process_to_the_last_bit(tmp_path):
    """7 pairs and 10 images in batches of 4, in three processes that a launcher started, then in one. The learning rate
    is too small to change a weight, since trained weights are the same but for rounding."""
    few = {"rounds": 1, "updates_per_round": 1, "pairs_per_update": 3, "learning_rate": 1e-30}
    asked = ["run", "--algo", "diffusion_dpo", "--model", "tiny", "--limit", "10", "--batch-size", "4", "--steps", "4"]
    asked += ["--pair-count", "7", *(word for k, v in few.items() for word in ("--set", f"{k}={v}"))]
    own = [one | {"XDG_CACHE_HOME": str(tmp_path / "cache-3")} for one in environments(3)]
    running = [begin_command([*asked, "--output", str(tmp_path / "3")], environment=one) for one in own]
    assert [process.ended(300).returncode for process in running] == [0, 0, 0]
    alone = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache-1")}
    assert begin_command([*asked, "--output", str(tmp_path / "1")], environment=alone).ended(300).returncode == 0

    three, one = (results.read(next((tmp_path / name).glob("*.json"))) for name in ("3", "1"))
    assert three.rows == one.rows
    assert three.cost.per_image == one.cost.per_image
    assert three.cost.alignment == one.cost.alignment
    shares = [path.read_text().count("slots") for path in sorted((tmp_path / "3").glob("*/generated*.jsonl"))]
    assert shares == [1, 1, 1]
    made, same = (pairs_of(tmp_path / f"cache-{name}") for name in ("3", "1"))
    assert made == same
    assert sum(name.endswith(".png") for name in made) == 28  # four candidates each


@pytest.mark.slow
def test_accelerate_starts_a_run_of_two_processes_and_one_that_it_would_leave_alone_is_named(tmp_path):
    """Fewer images than processes, so that the second has nothing to do but to wait."""
    asked = ["run", "--algo", "base", "--model", "mixture", "--steps", "6", "--limit", "1", "--output"]
    found = {}
    for how in ("--multi_gpu", "--cpu"):
        words = [how, "--num_processes", "2", "-m", "alignbench", *asked, str(tmp_path / how)]
        done = subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / how).glob("*.json")
        found[how] = results.read(path)
        assert ("accelerate launch started one process" in done.stderr) is (how == "--cpu")
    assert found["--multi_gpu"].environment["processes"] == 2
    assert "processes" not in found["--cpu"].environment
    assert found["--multi_gpu"].rows == found["--cpu"].rows


def pairs_of(cache: Path) -> dict[str, object]:
    """The files of the one folder of pairs that was made, without what is measured: seconds; and nothing of others."""
    (record,) = cache.rglob("made.json")
    found = {str(path.relative_to(record.parent)): path for path in record.parent.rglob("*") if path.is_file()}
    assert not [name for name in found if name.startswith("made-")]
    lines = [json.loads(line) for line in found.pop("made.jsonl").read_text().splitlines()]
    whole = json.loads(found.pop("made.json").read_text())
    same = {name: path.read_bytes() for name, path in found.items()}
    return same | {"rows": [line["pairs"] for line in lines], "cost": whole["cost"]}
