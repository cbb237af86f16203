"""The command line: what it prints, how it fails, and how long it takes to answer."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from places import TOY
from said import one_line

from alignbench.cli.app import run_command_line
from alignbench.errors import UnknownName
from alignbench.experiment.estimate import StandIn
from alignbench.record import result as results

REWARD = f"{TOY}:FirstCoordinate"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with prompt files, as the current one."""
    monkeypatch.chdir(tmp_path)
    Path("points.txt").write_text("".join(f"point {i}\n" for i in range(12)))
    Path("training.txt").write_text("".join(f"training point {i}\n" for i in range(20)))
    return tmp_path


MIXTURE = ["--model", "mixture", "--prompts", "points.txt", "--reward", REWARD, "--steps", "6"]
SHORT = ["--set", "rounds=2", "--set", "samples_per_round=16", "--set", "clip=0.1", "--train-prompts", "training.txt"]


def test_a_run_ends_with_a_summary_and_the_next_command(here, capsys):
    assert run_command_line(["run", "--algo", "base", *MIXTURE]) == 0
    assert "base on mixture, points.txt/test: complete" in capsys.readouterr().out
    assert run_command_line(["run", "--algo", "ddpo", *MIXTURE, *SHORT, "--name", "mine"]) == 0
    out = capsys.readouterr().out
    assert "against base  FirstCoordinate: wins" in out
    compare, look = out.splitlines()[-2:]
    command = compare.removeprefix("compare with: alignbench ").split()
    assert command[0] == "compare"
    assert run_command_line(command) == 0
    table = capsys.readouterr().out
    assert "FirstCoordinate: against base" in table
    assert "Cost (NFE" in table
    command = look.removeprefix("look at it: alignbench ").split()
    assert command[0] == "report"
    assert run_command_line(command) == 0
    assert "<h2" in Path("report.html").read_text()


def test_the_command_that_makes_the_missing_base_makes_one_with_the_same_evaluation(here, capsys):
    more = ["--limit", "4", "--eval-seed", "3", "--scorers", "jpeg_compressibility", "--model", "tiny"]
    asked = ["run", "--algo", "best_of_n", "--prompts", "two words.txt", *more, "--steps", "2", "--set", "n=2"]
    Path("two words.txt").write_text("a red circle\na blue star\n")
    assert run_command_line([*asked, "--output", "here it is"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "no complete `base`" in line]
    program, *words = shlex.split(line.partition(": ")[2])
    assert program == "alignbench"
    assert run_command_line(words) == 0
    capsys.readouterr()
    assert run_command_line([*asked, "--output", "here it is"]) == 0
    assert "against base  jpeg_compressibility" in capsys.readouterr().out


def test_a_dry_run_refuses_a_device_that_is_not_there(here, capsys):
    assert run_command_line(["run", "--algo", "base", "--device", "cuda:99", "--dry-run"]) == 2
    assert "--device 'cuda:99'" in capsys.readouterr().err


def test_without_a_base_the_summary_says_so(here, capsys):
    assert run_command_line(["run", "--algo", "best_of_n", *MIXTURE]) == 0
    out = capsys.readouterr().out
    assert "no complete `base` with this evaluation beside it yet" in out
    assert out.splitlines()[-2:] == [
        "compare with: alignbench compare results",
        "look at it: alignbench report results",
    ]


def test_a_finished_cell_is_not_run_again(here, capsys):
    arguments = ["run", "--algo", "base", *MIXTURE]
    assert run_command_line(arguments) == 0
    capsys.readouterr()
    assert run_command_line(arguments) == 0
    assert capsys.readouterr().out.startswith("already complete; --force runs it again\n")


def test_json_output_is_json_alone(here, capsys):
    assert run_command_line(["run", "--algo", "base", *MIXTURE, "--json"]) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert captured.err == ""
    assert values["status"] == "complete"
    assert values["images"] == 12
    assert run_command_line(["show", values["path"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["means"] == values["means"]


def test_a_dry_run_says_what_would_happen_and_does_nothing(here, capsys):
    arguments = ["run", "--algo", "ddpo", "--set", "clip=1e-3", "--set", "rounds=7", *MIXTURE, "--dry-run"]
    assert run_command_line([*arguments, "--train-prompts", "training.txt"]) == 0
    out = capsys.readouterr().out
    assert "clip = 0.001   (paper: 0.0001)" in out
    assert "rounds = 7   (paper: 200; compressibility: 100)" in out
    assert "weight_decay = 0.0001\n" in out
    assert "paper        nearest: aesthetic (config/dgx.py of kvablack/ddpo-pytorch)" in out  # which has the buffer
    assert "differs      sampling guidance = 1.0   (paper: 5.0)" in out
    assert "train on     training.txt, 20 prompts, seed 0" in out
    assert "denoiser evaluations forward" in out
    assert "minutes on this machine" in out
    assert not (here / "results").exists()


def test_the_dry_runs_cost_is_the_runs_cost(here, capsys):
    arguments = ["run", "--algo", "ddpo", *MIXTURE, *SHORT]
    assert run_command_line([*arguments, "--dry-run"]) == 0
    promised = capsys.readouterr().out
    assert run_command_line([*arguments, "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["cost"]
    assert f"alignment    {cost['alignment']['denoiser_forward']} denoiser evaluations forward, " in promised
    assert f"{cost['alignment']['denoiser_backward']} backward, 32 reward evaluations" in promised


@pytest.mark.parametrize("model", ["flux_dev", "sdxl"])
def test_what_a_large_model_would_cost_is_counted_without_latents_of_its_size(here, capsys, monkeypatch, model):
    """2048 pairs of FLUX's latents an update, in passes of four, would take gigabytes and minutes."""
    seen = []
    noisy = StandIn.add_noise

    def watched(self, x0, noise, t):
        seen.append(x0[0].numel())
        return noisy(self, x0, noise, t)

    monkeypatch.setattr(StandIn, "add_noise", watched)
    arguments = ["run", "--algo", "diffusion_dpo", "--model", model, "--prompts", "shapes", "--set", "rounds=2"]
    arguments += ["--set", "pairs_per_update=8", "--set", "updates_per_round=1", "--reward", "jpeg_compressibility"]
    assert run_command_line([*arguments, "--dry-run"]) == 0
    assert max(seen) <= 64
    assert "forward, 32 backward, " in capsys.readouterr().out  # two images of eight pairs in two updates


def test_a_config_file_gives_options_and_the_command_line_wins(here, capsys):
    Path("run.yaml").write_text(
        "algo: ddpo\nmodel: mixture\nprompts: points.txt\ntrain_prompts: training.txt\nsteps: 6\n"
        f"reward: '{REWARD}'\nset: {{rounds: 3, clip: 1e-2}}\n"
    )
    assert run_command_line(["run", "--config", "run.yaml", "--set", "rounds=9", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "rounds = 9" in out
    assert "clip = 0.01" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "name an algorithm: alignbench run --algo NAME"),
        (["run", "--algo", "ddpoo"], "no algorithm named 'ddpoo'. Did you mean ddpo"),
        (["run", "--algo", "ddpo", "--modle", "tiny"], "Unknown option: --modle. Did you mean --model?"),
        (["run", "--algo", "ddpo", "--model", "tinny"], "no model named 'tinny'. Did you mean tiny"),
        (
            ["run", "--algo", "ddpo", "--reward", "shapes_tru"],
            "no reward named 'shapes_tru'. Did you mean shapes_truth",
        ),
        (["run", "--algo", "ddpo", "--prompts", "part"], "no prompt set named 'part'. Did you mean parti"),
        (["run", "--algo", "ddpo", "--prompts", "no.txt"], "there is no prompt file 'no.txt'"),
        (["run", "--algo", "ddpo", "--set", "clpi=1"], "ddpo: no field named 'clpi'. Did you mean clip"),
        (["run", "--algo", "ddpo", "--set", "clip"], "--set clip: expected NAME=VALUE"),
        (
            ["run", "--algo", "ddpo", "--set", "clip=1", "rounds=2"],
            "'rounds=2' belongs to no option; expected an option before it, such as --set before each NAME=VALUE",
        ),
        (["ls", "results", "a=b"], "'a=b' belongs to no option; expected an option before it, such as --set"),
        (["suite", "quick", "more"], "'more' belongs to no option; expected an option before it; see --help."),
        (["run", "--algo", "ddpo", "--set", "clip=-1"], "clip must be positive, got -1.0"),
        (["run", "--algo", "ddpo", "--limit", "0"], "--limit 0: expected at least 1."),
        (["run", "--algo", "ddpo", "--limit", "many"], "--limit: 'many'; expected a whole number"),
        (["run", "--algo", "base", "--eta", "3"], "eta must lie in [0, 1], got 3.0"),
        (
            ["run", "--algo", "doodl", "--reward", "jpeg_compressibility", "--limit", "2"],
            "alignbench: doodl follows the gradient of the reward, and 'jpeg_compressibility",
        ),
        (
            ["run", "--algo", "steering", "--eta", "0", "--limit", "2"],
            "steering samples with eta=1.0; choose --set eta=0.0, or leave it out",
        ),
        (["run", "--algo", "best_of_n", "--budget", "nfe=10"], "an image costs at least nfe=40 (n=1)"),
        (["run", "--algo", "best_of_n", "--budget", "nfe=inf"], "--budget nfe=inf: expected a finite number"),
        (
            ["run", "--algo", "best_of_n", "--budget", "nfe=80", "--task", "sdedit", "--images", "x.jsonl"],
            "--budget counts whole chains",
        ),
        (["run", "--algo", "base", "--device", "cuda:99"], "--device 'cuda:99'"),
        (["run", "--algo", "base", "--device", "gpu"], "--device 'gpu': expected auto, cpu, cuda"),
        (["run", "--config", "missing.yaml"], "missing.yaml: there is no such file"),
        (["rnu"], 'Unknown command "rnu". Did you mean "run"?'),
        (["compare", "missing.json"], "missing.json: there is no such file. (--skip-bad leaves such files out.)"),
        (["compare"], "results: there is no such folder; `alignbench run` makes results."),
        (["show", "missing.json"], "missing.json: there is no such file"),
        (["plot", "--output", "curves.gif"], "--output curves.gif: expected a .png, .pdf or .svg file"),
        (["suite", "missing.yaml"], "missing.yaml: there is no such file"),
        (["list", "nothing"], 'Invalid value "nothing" for GROUP. Choose from: "algorithms", "rewards"'),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(here, capsys, arguments, message):
    assert run_command_line(arguments) == 2
    assert message in one_line(capsys)
    assert not list(here.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "must hold options such as 'algo: ddpo'"),
        ("algo: [\n", "is not YAML"),
        ("algo: ddpo\nmodle: tiny\n", "run.yaml: no option named 'modle'. Did you mean model"),
        ("algo: ddpo\nlimit: many\n", "run.yaml: limit many: expected a whole number"),
    ],
)
def test_a_wrong_config_file_names_the_file_and_the_key(here, capsys, content, message):
    Path("run.yaml").write_text(content)
    assert run_command_line(["run", "--config", "run.yaml"]) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--algo", "ddpoo"],
        ["--algo", "base", "--model", "sd16"],
        ["--algo", "base", "--reward", "mine.py"],
        ["--algo", "base", "--scorers", "clap"],
        ["--algo", "base", "--prompts", "nowhere.txt"],
        ["--algo", "base", "--train-prompts", "nowhere.py:Mine"],
        ["--algo", "base", "--adapter", "nowhere"],
    ],
)
def test_a_name_that_means_nothing_is_told_before_anything_is_loaded(here, capsys, arguments):
    assert run_command_line(["run", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("alignbench: ")
    assert said.count("\n") == 1


def test_debug_shows_where_an_error_comes_from(here):
    with pytest.raises(UnknownName, match="no algorithm named 'ddpoo'"):
        run_command_line(["run", "--algo", "ddpoo", "--debug"])


def test_a_failed_run_has_exit_code_1(here, capsys):
    Path("bad.py").write_text(TOY.read_text().replace("return images[:, 0]", "return images"))
    arguments = [*MIXTURE[: MIXTURE.index("--reward")], "--reward", "bad.py:FirstCoordinate"]
    assert run_command_line(["run", "--algo", "base", *arguments]) == 1
    assert "expected a tensor of shape (12,), one per prompt" in capsys.readouterr().err.splitlines()[-1]


def test_a_diverged_run_has_exit_code_1_and_says_so(here, capsys):
    extreme = ["--set", "learning_rate=1e30", "--set", "max_norm=1e30"]
    assert run_command_line(["run", "--algo", "ddpo", *MIXTURE, *SHORT, *extreme]) == 1
    assert "diverged" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [lambda t: t[:-300], lambda t: t.replace('"sample": 0', '"sample": 5', 1)])
def test_compare_stops_at_a_damaged_file_unless_told_to_skip_it(here, capsys, damage):
    for name in ("base", "best_of_n"):
        assert run_command_line(["run", "--algo", name, *MIXTURE, "--name", name]) == 0
    bad = next(here.glob("results/*best_of_n*.json"))
    bad.write_text(damage(bad.read_text()))
    capsys.readouterr()
    assert run_command_line(["compare", "results"]) == 2
    assert bad.name in one_line(capsys)
    assert run_command_line(["compare", "results", "--skip-bad"]) == 0
    out = capsys.readouterr().out
    assert "skipped: " in out
    assert bad.name in out


def test_compare_writes_to_a_file(here, capsys):
    assert run_command_line(["run", "--algo", "base", *MIXTURE]) == 0
    assert run_command_line(["compare", "results", "--format", "json", "--output", "table.json"]) == 0
    assert json.loads(Path("table.json").read_text())["groups"][0]["methods"] == ["base"]


@pytest.mark.slow
def test_a_suite_runs_its_grid_once_and_isolates_failures(here, capsys):
    Path("bad.py").write_text(TOY.read_text().replace("return images[:, 0]", "return images"))
    Path("suite.yaml").write_text(
        f"defaults: {{model: mixture, prompts: points.txt, steps: 6, reward: '{REWARD}'}}\n"
        "cells:\n  - {algo: base}\n  - {algo: base, reward: 'bad.py:FirstCoordinate', name: bad}\n"
        "  - {algo: best_of_n, set: {n: [2, 4]}}\n"
    )
    assert run_command_line(["suite", "suite.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("->") == 4
    assert not (here / "results").exists()
    assert run_command_line(["suite", "suite.yaml"]) == 1
    report, conclusion = capsys.readouterr().out.split("\n\n")
    assert "On points/test, 12 prompts, against base:" in conclusion
    lines = report.splitlines()
    assert [line.split("  ")[-1].strip() for line in lines if "failed" not in line] == [str(p) for p in stored(here)]
    assert sum("failed: reward 'FirstCoordinate' returned shape" in line for line in lines) == 1
    before = {path: path.read_bytes() for path in stored(here)}
    assert run_command_line(["suite", "suite.yaml"]) == 1
    assert sum("already complete" in line for line in capsys.readouterr().out.splitlines()) == 3
    assert {path: path.read_bytes() for path in stored(here)} == before


@pytest.mark.slow
def test_a_suite_writes_a_report_where_one_is_asked_for(here, capsys):
    Path("suite.yaml").write_text(
        f"defaults: {{model: mixture, prompts: points.txt, steps: 6, reward: '{REWARD}'}}\n"
        "cells: [{algo: base}, {algo: best_of_n, set: {n: 2}}]\n"
    )
    assert run_command_line(["suite", "suite.yaml", "--report"]) == 0
    assert "written to results/report.html" in capsys.readouterr().out
    page = Path("results/report.html").read_text()
    assert page.count('<th scope="row">best_<wbr>of_<wbr>n</th>') == 3  # the chart, the table, the costs
    assert "No folder of pictures lies beside these results" in page  # the mixture draws points


@pytest.mark.slow
def test_a_cell_that_cannot_be_run_is_a_row_with_its_reason_and_no_failure_of_the_suite(here, capsys):
    """Asked for directly, the same is wrong input."""
    Path("suite.yaml").write_text(
        f"defaults: {{model: mixture, prompts: points.txt, steps: 6, reward: '{REWARD}', kernel: exact}}\n"
        "cells: [{algo: base}, {algo: svdd}]\n"
    )
    assert run_command_line(["suite", "suite.yaml"]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert "unsupported (svdd changes DDIM's Gaussian steps, and the exact kernel has none; leave --kernel out.)" in row
    assert run_command_line(["compare", "results"]) == 0
    out = capsys.readouterr().out
    assert "unsupported" in out
    assert "the exact kernel has none" in out
    arguments = ["run", "--algo", "svdd", "--kernel", "exact", *MIXTURE]
    assert run_command_line(arguments) == 2
    assert "svdd changes DDIM's Gaussian steps" in one_line(capsys)


def stored(here: Path) -> list[Path]:
    """Complete results in the order of their suite."""
    found = [p for p in here.glob("results/*.json") if results.read(p).status == "complete"]
    order = sorted(found, key=lambda p: results.read(p).configuration.fields.get("n", 0))
    return [path.relative_to(here) for path in order]


def test_an_empty_or_misspelt_suite_is_refused(here, capsys):
    for content, message in (
        ("cells: []\n", "'cells' must be a list of cells such as {algo: base}"),
        ("cell: [{algo: base}]\n", "unknown key 'cell'; expected 'defaults' and 'cells'"),
        ("cells: [{algo: base, modle: tiny}]\n", "suite.yaml, cell 1: no option named 'modle'"),
    ):
        Path("suite.yaml").write_text(content)
        assert run_command_line(["suite", "suite.yaml"]) == 2
        assert message in one_line(capsys)


def test_list_names_everything_with_its_headline(capsys):
    assert run_command_line(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("ddpo", "best_of_n", "shapes_truth", "jpeg_compressibility", "parti", "shapes", "tiny", "sd15"):
        assert f"\n  {name} " in out
    assert run_command_line(["list", "rewards"]) == 0
    assert "ddpo " not in capsys.readouterr().out


def test_env_prints_versions(capsys):
    assert run_command_line(["env"]) == 0
    out = capsys.readouterr().out
    assert "torch " in out
    assert "device " in out


def test_a_reader_that_leaves_early_is_no_error(here):
    """Of a pipe, as `head` does; here before a line is written, so that the write always fails."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        done = subprocess.run([sys.executable, "-m", "alignbench", "list"], stdout=pipe, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == b""


def test_models_are_listed_with_their_weights_sampling_and_licence(capsys):
    assert run_command_line(["list", "models"]) == 0
    out = capsys.readouterr().out
    assert "sdxl_refiner" in out
    for part in (
        "stable-diffusion-v1-5/stable-diffusion-v1-5; epsilon-prediction, 50 steps, guidance 7.5; CreativeML",
        "stabilityai/stable-diffusion-xl-base-1.0 and stabilityai/stable-diffusion-xl-refiner-1.0; epsilon-prediction",
        "stable-diffusion-v1-5/stable-diffusion-v1-5 and mhdang/dpo-sd1.5-text2image-v1; epsilon-prediction",
    ):
        assert part in out
