"""A killed run, typed again, ends with the same result as one never killed."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from places import TOY
from warm import Stop, execute

from alignbench import plugins
from alignbench.record import result as results

ROUNDS = 4

# Function, call, and how many rounds are done when it is reached.
MOMENTS = {
    "in the second round": ("alignbench.diffusion.rollout", "log_density", 25, 1),
    "in an optimiser step": ("torch.optim", "AdamW.step", 3, 1),
    "before the curve's line": ("alignbench.experiment.problem", "append_line", 2, 1),
    "while the checkpoint is written": ("torch", "save", 3, 2),
    "between temporary file and rename": ("os", "replace", 6, 3),
    "after the last round": ("alignbench.experiment.evaluate", "generate", 1, 4),
    "in generation": ("alignbench.experiment.evaluate", "_Maker.made", 2, 4),
    "between an image and its log": ("alignbench.experiment.evaluate", "append_line", 2, 4),
    "in scoring": ("alignbench.experiment.evaluate", "score_images", 3, 4),
    "before the result is renamed": ("alignbench.record.result", "write_text", 2, 4),
}
# The embedded model has held-out prompts: its curve begins with a line before training.
# Where pictures, held-out lines and an adapter's checkpoint are written; the other moments are the same code on points.
ON_PICTURES = {name: MOMENTS[name] for name in ("while the checkpoint is written", "in generation")}
ON_PICTURES |= {"before the curve's line": ("alignbench.experiment.problem", "append_line", 3, 1)}


def without_time(path: Path) -> dict[str, Any]:
    """A result without what may differ: times, memory, attempts."""
    content = results.read(path).model_dump(mode="json")
    for name in ("started", "finished", "attempts", "environment"):
        del content[name]
    for name in ("alignment_seconds", "pairs_seconds", "per_image_seconds", "peak_memory_bytes"):
        del content["cost"][name]
    for line in content["curve"]:
        del line["seconds"]
    return content


class Cells:
    """Cells of one configuration under several names, in one folder."""

    def __init__(self, folder: Path, stem: str, options: list[str]) -> None:
        self.results, self.stem, self.options = folder / "results", stem, options

    def command(self, name: str) -> list[str]:
        return ["run", "--algo", "ddpo", "--name", name, "--output", str(self.results), *self.options]

    def path(self, name: str) -> Path:
        return self.results / f"{self.stem}-{name}-seed0.json"


def fields(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Cells:
    """Cells on the mixture, the uninterrupted one already run."""
    folder = tmp_path_factory.mktemp("points")
    (folder / "points.txt").write_text("".join(f"point {i}\n" for i in range(12)))
    (folder / "training.txt").write_text("".join(f"training point {i}\n" for i in range(20)))
    cells = Cells(
        folder,
        "mixture-points-ddpo-FirstCoordinate",
        [
            "--model", "mixture", "--steps", "6", "--batch-size", "4", "--prompts", str(folder / "points.txt"),
            "--train-prompts", str(folder / "training.txt"), "--reward", f"{TOY}:FirstCoordinate",
            *fields(rounds=ROUNDS, samples_per_round=16, batch=8, learning_rate=3e-3, clip=0.1, buffer=4, min_count=2,
                    updates_per_round=2, passes=1, steps=6),
        ],
    )  # fmt: skip
    assert execute(cells.command("whole")).returncode == 0
    return cells


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Cells:
    """Cells on the embedded model, the uninterrupted one already run."""
    cells = Cells(
        tmp_path_factory.mktemp("pictures"),
        "tiny-shapes-ddpo",
        [
            "--limit", "8", "--batch-size", "4", "--steps", "3",
            *fields(rounds=ROUNDS, samples_per_round=8, batch=4, steps=3, updates_per_round=2, passes=1,
                    samples_per_prompt=1, action_fraction=1.0, skip_last=0, buffer=4, min_count=2, tuning="lora"),
        ],
    )  # fmt: skip
    assert execute(cells.command("whole")).returncode == 0
    return cells


def trains(name: str) -> bool:
    return bool(plugins.load("algorithms", name).trains)


def kill_and_continue(cells: Cells, moment: str, killed_at: tuple[Any, ...]) -> None:
    name = re.sub(r"\W", "_", moment)
    first = execute(cells.command(name), Stop(*killed_at[:3]))
    assert first.returncode == -signal.SIGKILL, first.stderr
    second = execute(cells.command(name))
    assert second.returncode == 0, second.stderr
    assert f"resumed at round {killed_at[3]} of {ROUNDS}" in second.stderr
    done = cells.path(name)
    assert without_time(done) == without_time(cells.path("whole"))
    assert results.read(done).attempts == 2
    assert not list(done.with_suffix("").rglob("*.tmp"))
    assert json.loads((done.with_suffix("") / "cell.json").read_text())["running"] is False


IN_ALL = ("while the checkpoint is written",)  # the others take as long: slow


@pytest.mark.parametrize("moment", [m if m in IN_ALL else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS])
def test_a_run_killed_and_typed_again_equals_one_never_killed(points, moment):
    kill_and_continue(points, moment, MOMENTS[moment])


@pytest.mark.slow
@pytest.mark.parametrize("moment", ON_PICTURES)
def test_the_same_on_the_embedded_model(pictures, moment):
    kill_and_continue(pictures, moment, ON_PICTURES[moment])


# Four short rounds of every algorithm that trains.
ROUNDS_OF = {
    "awm": {"samples_per_round": 32, "samples_per_prompt": 8},
    "ddpo": {"samples_per_round": 32, "batch": 16},
    "diffusion_nft": {"samples_per_round": 32, "samples_per_prompt": 8},
    "flow_grpo": {"samples_per_round": 32, "samples_per_prompt": 8, "updates_per_round": 1},
    "diffusion_dpo": {"updates_per_round": 2, "pairs_per_update": 16},
    "dpok": {"samples_per_round": 16, "updates_per_round": 2, "moves_per_update": 32, "lookahead": True},
    "d3po": {"samples_per_round": 16},
    "draft": {"samples_per_update": 8},
    "refl": {"samples_per_update": 8},
    "reward_weighted_regression": {"samples_per_round": 32, "passes": 1},
    "sft": {"updates_per_round": 2, "pairs_per_update": 16},
    "diffusion_kto": {"updates_per_round": 2, "pairs_per_update": 16},
    "mapo": {"updates_per_round": 2, "pairs_per_update": 16},
}
KILLS = {
    "before a checkpoint": ("alignbench.experiment.problem", "CellProblem._save", 3),
    "in an update": ("alignbench.experiment.problem", "CellProblem.step", 3),
}
WITHIN = ("dpok", "diffusion_dpo")  # which train a second network, or cache what they train on; ddpo's are above


@pytest.mark.slow
@pytest.mark.parametrize(
    "algo", [name for name in plugins.own_names("algorithms") if name in ROUNDS_OF or trains(name)]
)
def test_every_algorithm_that_trains_continues_exactly(algo, tmp_path):
    """On the exact testbed; a new algorithm fails until its short rounds stand above."""
    own = fields(rounds=ROUNDS, **ROUNDS_OF[algo])
    options = ["--model", "mixture", "--prompts", "gaussian", "--limit", "60", "--steps", "8", *own]
    command = ["run", "--algo", algo, "--output", str(tmp_path), *options, "--name"]
    assert execute([*command, "whole"]).returncode == 0
    whole = without_time(tmp_path / f"mixture-gaussian-{algo}-whole-seed0.json")
    for name, kill in KILLS.items() if algo in WITHIN else [*KILLS.items()][:1]:
        called = name.replace(" ", "_")
        killed = execute([*command, called], Stop(*kill))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        again = execute([*command, called])
        assert again.returncode == 0, again.stderr
        if name == "before a checkpoint":  # some take their third step in the first round
            assert "resumed at round 2 of 4" in again.stderr
        assert without_time(tmp_path / f"mixture-gaussian-{algo}-{called}-seed0.json") == whole


@pytest.mark.slow
def test_pairs_that_a_run_makes_survive_a_kill_as_well(tmp_path, monkeypatch):
    """On the embedded model: killed while pairs are made, while latents are cached, and while training."""
    own = fields(rounds=3, updates_per_round=2, pairs_per_update=8, batch=4, warmup=0)
    options = ["--pair-count", "12", "--limit", "4", "--steps", "4", "--batch-size", "8", *own]
    found = []
    for folder in ("whole", "killed"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder / "cache"))
        command = ["run", "--algo", "diffusion_dpo", "--output", str(tmp_path / folder), *options]
        kills = [
            ("alignbench.experiment.pairs", "append_line", 2),
            ("alignbench.preferences.cache", "TensorCache.put_many", 2),
            ("alignbench.experiment.problem", "CellProblem._save", 2),
        ]
        for kill in kills if folder == "killed" else ():
            assert execute(command, Stop(*kill)).returncode == -signal.SIGKILL
        done = execute(command)
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / folder).glob("*.json")
        found.append(without_time(path))
    assert found[0] == found[1]


def test_an_interrupt_exits_with_130_and_one_line(points):
    done = execute(points.command("stopped"), Stop("torch", "save", 2, by="KeyboardInterrupt"))
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "alignbench: interrupted; the same command continues where it stopped."
    assert "Traceback" not in done.stderr
    assert results.read(points.path("stopped")).status == "partial"
    assert "resumed at round 1 of 4" in execute(points.command("stopped")).stderr


@pytest.mark.slow
def test_force_starts_again_and_keeps_the_old_result_until_the_new_one_is_done(points):
    assert execute(points.command("kept")).returncode == 0
    path = points.path("kept")
    before = path.read_bytes()
    assert execute([*points.command("kept"), "--force"], Stop("torch", "save", 2)).returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    again = execute([*points.command("kept"), "--force"])
    assert again.returncode == 0
    assert "resumed at round 1 of 4" in again.stderr
    assert without_time(path) == without_time(points.path("whole"))
