"""Suites in processes: several cells at once, shards, two suites on one folder, and ends that leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from places import ROOT
from said import one_line
from suites import FEW, came_to, children_of, finished, kill, processes_with, started, twelve, wait_for, write_suite

from alignbench.asking.resolve import resolve
from alignbench.asking.suite import read_suite, suite_cells
from alignbench.cli.app import run_command_line
from alignbench.experiment.run import run_cell
from alignbench.record import result as results
from alignbench.suites.plan import planned

SMALL = [{"algo": "base"}, {"algo": "best_of_n", "set": {"n": 2}}]


@pytest.mark.slow
def test_two_cells_at_once_are_what_each_is_alone(tmp_path, monkeypatch, capsys):
    """Their threads are divided, each has a log, and what was typed for single runs is not theirs."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("ALIGNBENCH_RUN_EVAL_SEED", "7")
    monkeypatch.setattr("alignbench.children.cores", lambda: 2)
    path = write_suite(tmp_path, SMALL)
    assert run_command_line(["suite", str(path), "--jobs", "2", "--json"]) == 0
    said = capsys.readouterr()
    cells = json.loads(said.out)["cells"]
    assert said.err == ""
    assert [(cell["state"], cell["tries"], cell["was_there"]) for cell in cells] == [("done", 1, False)] * 2
    for cell in cells:
        log = Path(cell["log"]).read_text()
        assert log.startswith("== 20")
        assert ", try 1, 1 threads: {algo: " in log
        assert "complete" in log
        assert results.read(Path(cell["result"])).environment["threads"] == 1
    for options in read_suite(path, tmp_path / "alone"):
        run_cell(resolve(options), quiet=True)
    assert came_to(tmp_path / "results") == came_to(tmp_path / "alone")
    assert run_command_line(["suite", str(path), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["cells"]
    assert [(cell["state"], cell["tries"], cell["was_there"]) for cell in again] == [("done", 0, True)] * 2


def test_a_dry_run_says_what_the_cells_cost_together_and_runs_none(tmp_path, capsys):
    """base: 12 prompts × 8 steps; best_of_n: twice that, and 2 rewards a prompt."""
    path = write_suite(tmp_path, SMALL)
    assert run_command_line(["suite", str(path), "--dry-run", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["total"]["cells"] == 2
    assert content["total"]["cost"]["denoiser_forward"] == 12 * 8 + 12 * 8 * 2
    assert content["total"]["cost"]["reward_forward"] == 12 * 2
    assert [cell["state"] for cell in content["cells"]] == ["waiting"] * 2
    assert not (tmp_path / "results").exists()
    assert run_command_line(["suite", str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("cells to run: 2; together 288 denoiser evaluations")


def test_that_a_cell_which_cannot_run_costs_nothing_is_known_before_it_runs(tmp_path, capsys):
    """One whose budget does not pay for one image."""
    path = write_suite(tmp_path, [*SMALL, {"algo": "best_of_n", "budget": {"nfe": 3}}])
    assert run_command_line(["suite", str(path), "--dry-run", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["total"]
    assert (whole["cells"], whole["unknown"], whole["cost"]["denoiser_forward"]) == (3, 0, 288)
    assert whole["seconds"] > 0


def test_a_dry_run_knows_what_is_there_and_counts_a_cell_once(tmp_path, capsys):
    """`base` has no seed, so that three cells are one."""
    path = write_suite(tmp_path, [{"algo": "base", "seed": [1, 2, 3]}, SMALL[1]])
    assert run_command_line(["suite", str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("cells to run: 2; together 288 denoiser evaluations")
    (base, *_, best) = suite_cells(path)
    made = run_cell(resolve(base.options), quiet=True).path
    resolve(best.options).path.write_text("{}")
    assert run_command_line(["suite", str(path), "--dry-run", "--json"]) == 2
    content = json.loads(capsys.readouterr().out)
    assert [(cell["state"], cell["was_there"]) for cell in content["cells"]] == [("done", True)] * 3 + [
        ("failed", False)
    ]
    assert "not an alignbench result" in content["cells"][3]["reason"]
    assert content["total"]["cells"] == 0
    assert run_command_line(["suite", str(path), "--dry-run"]) == 2
    assert f"->  {made} (already complete)" in capsys.readouterr().out


def test_a_dry_run_tells_what_is_missing_from_what_is_wrong_by_its_exit_code(tmp_path, monkeypatch, capsys):
    """As a dry run of one cell does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNBENCH_DATA", raising=False)
    missing = {"algo": "base", "model": "tiny", "prompts": "parti", "scorers": ["jpeg_compressibility"]}
    missing |= {"reward": "jpeg_compressibility"}
    for cells, code in (([missing], 1), ([missing, missing | {"sigmas": "linspace"}], 2)):
        assert run_command_line(["suite", str(write_suite(tmp_path, cells)), "--dry-run"]) == code
        assert "PartiPrompts.tsv is not on this machine" in capsys.readouterr().err


def test_cells_that_would_read_alike_say_the_options_in_which_they_differ(tmp_path):
    cells = [
        {"algo": "base", "steps": [4, 8]},
        {"algo": "best_of_n", "steps": 4, "set": {"n": 2}},
        {"algo": "base", "steps": 4, "images_per_prompt": 2},
    ]
    rows = planned(suite_cells(write_suite(tmp_path, cells)))
    rest = [row.text.removeprefix("base on mixture").partition("seed=0")[2] for row in rows]
    assert rest == [" steps=4", " steps=8", "", " steps=4 images_per_prompt=2"]
    assert all(row.job and row.job.text == row.text for row in rows)


def test_shards_and_patterns_take_their_cells(tmp_path):
    cells = suite_cells(write_suite(tmp_path, twelve()))

    def names(only: str | None = None, shard: str | None = None) -> list[str]:
        rows = planned(cells, only, shard)
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))
        return [row.path.stem for row in rows]

    whole = names()
    assert len(whole) == 12
    assert names(shard="1/2") == whole[::2]
    assert names(shard="2/2") == whole[1::2]
    assert names("best_of_n") == whole[1:4]
    assert names("*-seed[12]", "2/2") == [whole[5]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "3/2"], "--shard 3/2: expected i/n with i from 1 to n, such as 1/8."),
        (["--jobs", "0"], "--jobs 0: expected at least 1."),
        (["--on", "slurm"], "--on slurm: expected local, ray, or ray:HOST:PORT of a cluster that is running."),
        (["--on", "local:2"], "--on local:2: expected local, ray, or ray:HOST:PORT of a cluster that is running."),
        (["--only", "bse"], "no cell named 'bse'. Did you mean base?"),
    ],
)
def test_wrong_ways_to_run_a_suite_are_one_line(tmp_path, capsys, words, message):
    path = write_suite(tmp_path, SMALL)
    assert run_command_line(["suite", str(path), *words]) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_shard_beyond_the_last_cell_says_that_it_has_nothing_to_do(tmp_path, capsys, more):
    """An array of jobs may be longer than the suite."""
    path = write_suite(tmp_path, SMALL)
    assert run_command_line(["suite", str(path), "--shard", "9/9", "--json", *more]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"cells": []}
    assert err.splitlines() == ["--shard 9/9: there are fewer cells than shards, and none for this one."]
    assert not (tmp_path / "results").exists()


def test_a_cell_that_this_machine_cannot_hold_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("alignbench.children.cards", lambda: ("0",))
    path = write_suite(tmp_path, [{"algo": "base"}, {"algo": "best_of_n", "gpus": 8}])
    assert run_command_line(["suite", str(path)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("alignbench: best_of_n on mixture")
    assert err[-1].endswith("asks for 8 GPUs, and this machine has 1.")
    assert not (tmp_path / "results").exists()


def test_a_suite_under_a_launcher_of_several_processes_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command_line(["suite", str(write_suite(tmp_path, SMALL))]) == 2
    assert "several processes" in one_line(capsys)


def test_a_suite_that_changes_while_it_runs_is_run_as_it_was_read_and_says_so(tmp_path, monkeypatch, capsys):
    path = write_suite(tmp_path, SMALL)

    def changed(*_: object) -> int:
        path.write_text(path.read_text() + "# more\n")
        return 0

    monkeypatch.setattr("alignbench.cli.suites._run", changed)
    assert run_command_line(["suite", str(path)]) == 0
    assert f"{path} has changed since its cells were read; type the same command" in capsys.readouterr().err


SBATCH = ROOT / "benchmarks" / "suites" / "array.sbatch"


@pytest.mark.slow
def test_the_job_array_runs_its_shard(tmp_path):
    """The file as SLURM would run it, with `srun` standing for itself and the command made a dry run."""
    text = SBATCH.read_text()
    given = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.+)$", text, re.M))
    assert text.startswith("#!/bin/bash\n")
    assert set(given) == {"job-name", "array", "gpus", "cpus-per-task", "mem", "time", "output"}
    first, last = map(int, given["array"].split("-"))
    assert first == 1  # a shard begins at 1
    assert "#SBATCH --requeue\n" in text
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text(
        '#!/bin/bash\n[ "$1" = --cpus-per-task=8 ] && shift && exec python -m "$@" --dry-run --json\n'
    )
    (tools / "srun").chmod(0o755)
    path = write_suite(tmp_path, [{"algo": "best_of_n", "set": {"n": list(range(2, 14))}}])
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "3"}
    env |= {"SLURM_ARRAY_TASK_COUNT": str(last), "SLURM_CPUS_PER_TASK": given["cpus-per-task"]}
    done = subprocess.run(["bash", str(SBATCH), str(path)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["cells"]) == len(range(2, 12, last))


FOUR = [{"algo": "base"}, {"algo": "best_of_n", "set": {"n": 2}}, {"algo": "ddpo", "seed": [1, 2], "set": FEW}]


@pytest.mark.slow
def test_shards_are_together_what_a_plain_suite_is_and_two_suites_on_one_folder_share_its_cells(tmp_path):
    path = write_suite(tmp_path, FOUR)
    plain = finished(["suite", str(path), "--output", str(tmp_path / "plain")])
    assert [cell["state"] for cell in plain["cells"]] == ["done"] * 4
    expected = came_to(tmp_path / "plain")
    assert len(expected) == 4
    shards = [started(["suite", str(path), "--output", str(tmp_path / "shards"), "--shard", f"{i}/2"]) for i in (1, 2)]
    assert [shard.wait(600) for shard in shards] == [0, 0]
    assert came_to(tmp_path / "shards") == expected
    both = [started(["suite", str(path), "--output", str(tmp_path / "both"), "--json"]) for _ in range(2)]
    cells = [json.loads(one.communicate(timeout=600)[0])["cells"] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert came_to(tmp_path / "both") == expected
    tried = [[cell["tries"] for cell in own] for own in cells]
    assert all(sum(own) >= 1 for own in tried)  # each has done some
    assert sum(map(sum, tried)) <= 5  # and hardly any cell was started by both


LONG = [{"algo": "base"}, {"algo": "ddpo", "seed": [1, 2], "set": FEW | {"rounds": 150, "learning_rate": 1e-4}}]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a suite of long cells, and what they come to when nobody interrupts them."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    finished(["suite", str(write_suite(folder, LONG)), "--jobs", "2", "--output", str(folder / "whole")])
    return folder, came_to(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_in_the_middle_leaves_no_process_and_the_same_command_continues(tmp_path, number, uninterrupted):
    folder, whole = uninterrupted
    words = ["suite", str(write_suite(folder, LONG, output=str(tmp_path / "results"))), "--jobs", "2"]
    process = started(words, SUITE_UNDER_TEST=str(tmp_path))
    wait_for(lambda: len(list((tmp_path / "results").glob("*ddpo*/checkpoint.pt"))) == 2)
    assert len(processes_with(str(tmp_path))) == 3
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert err.splitlines()[-1] == "alignbench: interrupted; the same command continues where it stopped."
        assert out.count("interrupted (the same command continues it)") == 2
    wait_for(lambda: not processes_with(str(tmp_path)), 10)
    assert [cell["state"] for cell in finished(words)["cells"]] == ["done"] * 3
    assert came_to(tmp_path / "results") == whole


@pytest.mark.slow
def test_a_cell_that_is_killed_goes_on_from_its_checkpoint_and_after_three_times_is_reported(tmp_path, uninterrupted):
    folder, whole = uninterrupted
    path = write_suite(folder, LONG[1:], output=str(tmp_path / "results"))
    process = started(["suite", str(path), "--jobs", "2", "--json"])
    logs = [tmp_path / "results" / f"{stem}.log" for stem in _stems(path)]
    for number, times in ((1, 1), (2, 3)):
        for _ in range(times):
            victim = wait_for(lambda n=number: _child_of_seed(process.pid, n, tmp_path))
            kill(victim)
            wait_for(lambda v=victim: v not in set(children_of(process.pid)))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    one, two = json.loads(out)["cells"]
    assert (one["state"], one["tries"]) == ("done", 2)
    assert (two["state"], two["tries"]) == ("failed", 3)
    assert two["reason"] == f"its process was killed by SIGKILL, as 2 times before; see {logs[1]}"
    assert logs[1].read_text().count("== 20") == 3
    finished(["suite", str(path)])
    assert came_to(tmp_path / "results") == {name: whole[name] for name in whole if "-ddpo-" in name}
    assert results.read(Path(one["result"])).attempts == 2


def _stems(path: Path) -> list[str]:
    return [resolve(options).path.stem for options in read_suite(path)]


def _child_of_seed(parent: int, seed: int, folder: Path) -> int | None:
    """The process of a cell that has made a checkpoint: its options are in a file that its command names."""
    if not list((folder / "results").glob(f"*-seed{seed}/checkpoint.pt")):
        return None
    for child in children_of(parent):
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "--config" in words and yaml.safe_load(Path(words[words.index("--config") + 1]).read_text())["seed"] == seed:
            return child
    return None
