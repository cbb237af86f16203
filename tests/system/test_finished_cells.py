"""Finished cells: one more scorer (`score --save`), and one more evaluation (`evaluate`), without training anew."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from places import ROOT, TOY

from alignbench.analysis.compare import compare
from alignbench.analysis.load import load, methods_of
from alignbench.asking.evaluation import ask_again
from alignbench.asking.options import EvaluateOptions, RunOptions
from alignbench.asking.resolve import resolve
from alignbench.cli.app import run_command_line
from alignbench.experiment.run import run_cell
from alignbench.record import result as results

NEW = "jpeg_compressibility"
TINY = {"algo": "base", "limit": 3, "steps": 2, "images_per_prompt": 2, "scorers": ("shapes_truth",)}
LEARNS = {"rounds": 1, "samples_per_round": 8, "batch": 8}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(options, **arguments):
    return run_cell(resolve(RunOptions.parse(options)), quiet=True, **arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished cell of `tiny` in a folder of its own; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return run(TINY | {"output": folder}).path


@pytest.fixture
def cell(finished, tmp_path) -> Path:
    shutil.copytree(finished.parent, tmp_path / "results")
    return tmp_path / "results" / finished.name


def command(*words) -> int:
    return run_command_line([str(word) for word in words])


def score(*words) -> int:
    return command("score", *words, "--scorers", NEW)


def test_an_added_column_is_the_one_that_the_run_would_have_made(cell, tmp_path, capsys):
    asked = run(TINY | {"scorers": ("shapes_truth", NEW), "output": tmp_path / "asked"}).result
    assert score(cell, "--save") == 0
    assert f"written into {cell}: {NEW}" in capsys.readouterr().out
    found = results.read(cell)
    assert [row.scores for row in found.rows] == [row.scores for row in asked.rows]
    assert found.scorers == asked.scorers
    assert list(found.added) == [NEW]
    assert found.configuration.scorers == ["shapes_truth"]


def test_a_column_is_added_to_an_older_result_without_changing_its_schema(cell):
    make_it_older(cell)
    assert score(cell, "--save") == 0
    found = json.loads(cell.read_text())
    assert found["schema"] == 1
    assert "diversity" not in found
    assert set(found["rows"][0]) == {"prompt", "sample", "scores"}


def test_a_cell_with_an_added_column_is_still_the_cell_that_its_command_asks_for(cell):
    assert score(cell, "--save") == 0
    assert run(TINY | {"output": cell.parent}).was_complete


def test_compare_pairs_an_added_column_with_one_that_a_run_made(cell, tmp_path):
    assert score(cell, "--save") == 0
    best = {"algo": "best_of_n", "set": {"n": 2}, "reward": "shapes_truth", "scorers": ("shapes_truth", NEW)}
    run(TINY | best | {"output": cell.parent})
    (group,) = compare([cell.parent]).groups
    assert {row.scorer for row in group.versus} == {"shapes_truth", NEW}
    assert not [note for note in group.notes if "left out" in note or "not scored" in note]


def test_without_save_nothing_is_written(cell, capsys):
    before = cell.read_bytes()
    assert score(cell, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["summary"][NEW]["images"] == 6
    assert cell.read_bytes() == before


def test_a_column_is_replaced_with_force_alone(cell, capsys):
    assert score(cell, "--save") == 0
    before = results.read(cell)
    content = cell.read_bytes()
    assert score(cell, "--save") == 2
    assert "--force scores it again" in capsys.readouterr().err
    assert cell.read_bytes() == content
    other = before.scorers[NEW].model_copy(update={"versions": {"pillow": "1.0"}})
    rows = [replace(row, scores={**row.scores, NEW: -1.0}) for row in before.rows]
    results.write(cell, before.model_copy(update={"scorers": {**before.scorers, NEW: other}, "rows": rows}))
    assert score(cell, "--save") == 2
    assert "of another scorer (it differs in versions); --force replaces it" in capsys.readouterr().err
    assert score(cell, "--save", "--force") == 0
    assert results.read(cell).rows == before.rows
    assert results.read(cell).scorers == before.scorers


def test_several_results_at_once_and_again_for_those_that_are_new(cell, capsys):
    run(TINY | {"eval_seed": 1, "output": cell.parent})
    paths = sorted(cell.parent.glob("*.json"))
    assert score(cell, "--save") == 0
    first = cell.read_bytes()
    assert score(*paths, "--save") == 0
    assert all(NEW in results.read(path).scorers for path in paths)
    assert cell.read_bytes() == first
    capsys.readouterr()
    assert score(*paths, "--json") == 0
    assert sorted(json.loads(capsys.readouterr().out)["results"]) == [str(path) for path in paths]


def test_a_scorer_that_fails_on_a_picture_leaves_a_null_with_its_reason(cell, tmp_path):
    (tmp_path / "odd.py").write_text(
        "from alignbench import RewardInfo\n"
        "class Odd:\n"
        "    differentiable = False\n"
        "    def __call__(self, images, prompts):\n"
        f"        assert all(p.id != {results.read(cell).prompts[1].id!r} for p in prompts), 'not this one'\n"
        "        return images.mean((1, 2, 3))\n"
        "    with_grad = __call__\n"
        "    def info(self): return RewardInfo('odd-1')\n"
        "    def unsupported(self, prompts, image_shape): return None\n"
    )
    assert command("score", cell, "--scorers", f"{tmp_path}/odd.py:Odd", "--save") == 0
    rows = results.read(cell).rows
    assert [row.scores["Odd"] is None for row in rows] == [False, True, False, False, True, False]
    assert rows[1].failures == {"Odd": "AssertionError: not this one"}
    assert len(results.read(cell).scorers["Odd"].source) == 64


def test_points_are_scored_as_well(toy_cell, tmp_path):
    reward = f"{TOY}:FirstCoordinate"
    options = {"prompts": "grid", "train_prompts": None, "reward": "quadratic", "limit": 4}
    path = run(toy_cell("base", **options, scorers=())).path
    asked = run(toy_cell("base", **options, scorers=(reward, "quadratic_proxy"))).result
    assert command("score", path, "--scorers", reward, "quadratic_proxy", "--save") == 0
    assert [row.scores for row in results.read(path).rows] == [row.scores for row in asked.rows]
    assert results.read(path).scorers == asked.scorers


def test_a_reward_whose_optimum_is_known_says_what_its_column_lacks_and_what_tells_it(toy_cell, capsys):
    path = run(toy_cell("base", prompts="grid", train_prompts=None, reward="quadratic", limit=4, scorers=())).path
    assert command("score", path, "--scorers", "quadratic_proxy", f"{TOY}:FirstCoordinate", "--save") == 0
    said = capsys.readouterr().err
    assert "how far quadratic_proxy is from its optimum is not told" in said
    words = shlex.split(said[said.index("`") + 1 : said.rindex("`")])
    assert command(*words[1:]) == 0
    (other,) = (found for found in path.parent.glob("*.json") if found != path)
    assert {*results.read(other).frontiers} == {"quadratic", "quadratic_proxy"}


def change_a_picture(cell):
    Image.new("RGB", (32, 32)).save(cell.with_suffix("") / "images" / "00001-0.png")


def make_it_older(cell):
    """As from before anything was kept of pictures."""
    found = results.read(cell)
    rows = [replace(row, sha256=None, picture={}) for row in found.rows]
    old = {"schema_": 1, "rows": rows, "diversity": [], "kept": None}
    results.write(cell, found.model_copy(update=old))


def make_it_larger(cell):
    make_it_older(cell)
    Image.new("RGB", (48, 32)).save(cell.with_suffix("") / "images" / "00001-0.png")


def break_it(cell):
    make_it_older(cell)
    (cell.with_suffix("") / "images" / "00001-0.png").write_bytes(b"no picture")


def begin_again(cell):
    state = cell.with_suffix("") / "cell.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"running": True}))


def be_partial(cell):
    results.write(cell, results.read(cell).model_copy(update={"status": "partial"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda cell: shutil.rmtree(cell.with_suffix("")), "has no picture .*00000-0.png. Bring them back, or make"),
        (lambda cell: (cell.with_suffix("") / "images" / "00002-1.png").unlink(), "has no picture .*00002-1.png"),
        (change_a_picture, "00001-0.png was changed after .* was written, and is not the picture its scores are of"),
        (make_it_larger, r"has \(32, 48\) pixels, and .* is of pictures of \(32, 32\)"),
        (break_it, "00001-0.png cannot be read as a picture"),
        (begin_again, "is being made again, or was interrupted"),
        (be_partial, "is partial; type its command again"),
        (lambda cell: cell.write_text("{}"), "not an alignbench result"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused_and_nothing_is_written(damage, message, cell, capsys):
    damage(cell)
    before = cell.read_bytes()
    assert score(cell, "--save") in (1, 2)
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert cell.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["FOLDER", "--save"], "only a result file can keep scores"),
        (["CELL", "--force"], "add --save, or leave it out"),
        (["CELL", "FOLDER"], "is no result file; score one folder of pictures, or several results"),
        (["CELL", "--prompts", "parti"], "has its own prompts"),
        ([], "name a folder of pictures, or result files"),
        (["nothing.json"], "nothing.json: there is no such file"),
    ],
)
def test_places_and_options_that_do_not_fit_are_refused(words, message, cell, capsys):
    places = {"FOLDER": cell.with_suffix("") / "images", "CELL": cell}
    assert score(*(places.get(word, word) for word in words)) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A trained cell of the mixture with its folder, and the options it was made with; tests work on copies."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "points.txt").write_text("".join(f"point {i}\n" for i in range(12)))
    (folder / "training.txt").write_text("".join(f"training point {i}\n" for i in range(20)))
    options = {
        "algo": "ddpo", "model": "mixture", "prompts": str(folder / "points.txt"), "steps": 4, "seed": 3, "set": LEARNS,
        "train_prompts": str(folder / "training.txt"), "reward": f"{TOY}:FirstCoordinate",
    }  # fmt: skip
    return run(options | {"output": folder / "results"}).path, options


@pytest.fixture
def trained(learned, tmp_path):
    path, options = learned
    shutil.copytree(path.parent, tmp_path / "results")
    return tmp_path / "results" / path.name, options | {"output": tmp_path / "results"}


@pytest.mark.parametrize(
    "changes",
    [
        {"images_per_prompt": 3},
        {"eval_seed": 7, "limit": 5},
        {"scorers": (f"{TOY}:FirstCoordinate",)},
        {"limit": 2, "images_per_prompt": 2, "eval_seed": 1},
    ],
)
def test_an_evaluation_of_trained_weights_is_the_cell_that_a_run_would_have_made(changes, trained, tmp_path):
    path, options = trained
    old = results.read(path)
    flags = [f"--{name.replace('_', '-')}={v[0] if isinstance(v, tuple) else v}" for name, v in changes.items()]
    assert command("evaluate", path, *flags) == 0
    anew = run(options | changes | {"output": tmp_path / "anew"})
    found = run(options | changes)
    assert found.was_complete
    assert found.path.name == anew.path.name
    assert found.result.rows == anew.result.rows
    assert found.result.configuration == anew.result.configuration
    assert found.result.evaluation == anew.result.evaluation
    assert found.result.scorers == anew.result.scorers
    assert found.result.sampler == anew.result.sampler
    assert found.result.curve == old.curve
    assert found.result.cost.alignment == old.cost.alignment == anew.result.cost.alignment
    assert found.result.cost.alignment_seconds == old.cost.alignment_seconds
    assert found.result.origin == path.name
    assert found.result.kept.weights == old.kept.weights


def test_other_prompts_leave_what_was_trained_on_as_it_was(trained, tmp_path):
    path, options = trained
    (tmp_path / "others.txt").write_text("another point\nand another\n")
    assert command("evaluate", path, "--prompts", tmp_path / "others.txt") == 0
    found = run(options | {"prompts": str(tmp_path / "others.txt")})
    assert found.was_complete
    assert found.result.configuration.train_prompts == options["train_prompts"]
    assert [prompt.text for prompt in found.result.prompts] == ["another point", "and another"]


def test_an_evaluated_cell_can_be_evaluated_and_scored_in_its_turn(trained, tmp_path):
    path, options = trained
    assert command("evaluate", path, "--eval-seed", 1) == 0
    second = run(options | {"eval_seed": 1}).path
    assert command("evaluate", second, "--eval-seed", 2) == 0
    third = run(options | {"eval_seed": 2})
    assert third.was_complete
    assert third.result.cost.alignment == results.read(path).cost.alignment
    assert command("score", third.path, "--scorers", f"{TOY}:FirstCoordinate", "--save", "--force") == 0


@pytest.mark.parametrize("algo", ["base", "best_of_n"])
def test_a_method_that_trains_nothing_simply_runs_with_the_new_evaluation(algo, tmp_path, capsys):
    (tmp_path / "points.txt").write_text("a point\nanother\n")
    options = {"algo": algo, "model": "mixture", "prompts": str(tmp_path / "points.txt"), "steps": 4}
    options |= {"reward": f"{TOY}:FirstCoordinate", "output": tmp_path / "results"}
    path = run(options).path
    assert command("evaluate", path, "--images-per-prompt", 2, "--dry-run") == 0
    assert str(path) in capsys.readouterr().out
    assert command("evaluate", path, "--images-per-prompt", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["images"] == 4
    assert run(options | {"images_per_prompt": 2}).was_complete


def test_all_results_of_a_folder_may_be_named_and_again(trained, make_result, capsys):
    path, options = trained
    run(options | {"seed": 4})
    make_result("results/diverged", [1.0], algorithm="ddpo", seed=9, status="diverged")
    for attempt in range(2):
        assert command("evaluate", *sorted(path.parent.glob("*.json")), "--images-per-prompt", 2) == 0
        captured = capsys.readouterr()
        assert "diverged.json is diverged" in captured.err
        assert captured.err.count("has this evaluation already") == 2 * attempt
        assert captured.out.count("already complete") == 2 * attempt
    assert len(list(path.parent.glob("*.json"))) == 5
    (group,) = compare([path.parent]).groups
    assert [len(runs) for runs in group_of_runs(path.parent)] == [2, 2]
    assert [method.split()[-1] for method in group.methods] == ["images_per_prompt=1", "images_per_prompt=2"]
    assert (
        command("score", *path.parent.glob("*.json"), "--scorers", f"{TOY}:FirstCoordinate", "--save", "--force") == 0
    )
    assert command("score", path.parent / "diverged.json", "--scorers", NEW) == 2


def group_of_runs(folder):
    """The runs of each method, in the order of `compare`."""
    (runs,) = load([folder]).groups.values()
    return [method.runs for method in methods_of(runs)]


def test_an_interrupted_evaluation_goes_on_and_no_run_trains_in_its_folder(trained, monkeypatch, capsys):
    path, options = trained
    with monkeypatch.context() as patch:
        patch.setattr("alignbench.experiment.run.rows_of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command("evaluate", path, "--eval-seed", 5) == 130
    capsys.readouterr()
    words = [f"--{name.replace('_', '-')}={options[name]}" for name in options if name not in ("set", "output")]
    fields = [word for name, value in LEARNS.items() for word in ("--set", f"{name}={value}")]
    assert command("run", *words, *fields, "--output", options["output"], "--eval-seed", 5) == 2
    assert "differs in weights" in capsys.readouterr().err
    assert command("evaluate", path, "--eval-seed", 5) == 0
    assert run(options | {"eval_seed": 5}).result.attempts == 2


def without_weights(path):
    shutil.rmtree(path.with_suffix("") / "adapter")


def with_other_weights(path):
    from safetensors.torch import load_file, save_file

    (file,) = (path.with_suffix("") / "adapter").glob("*.safetensors")
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)


def of_another_model(path):
    result = results.read(path)
    evaluation = result.evaluation.model_copy(update={"model": {**result.evaluation.model, "name": "another"}})
    results.write(path, result.model_copy(update={"evaluation": evaluation}))


def with_another_sampler(path):
    results.write(path, results.read(path).model_copy(update={"sampler": {"kind": "of its own"}}))


def from_before(path):
    """As older versions wrote it, which names a reward of a file by its label alone."""
    results.write(path, results.read(path).model_copy(update={"asked": None}))


def unfinished(path):
    results.write(path, results.read(path).model_copy(update={"status": "partial"}))


def with_other_fields(path):
    result = results.read(path)
    fields = {**result.configuration.fields, "clip": 0.5}
    configuration = result.configuration.model_copy(update={"fields": fields})
    results.write(path, result.model_copy(update={"configuration": configuration}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_weights, "has no weights in "),
        (with_other_weights, "have changed since .* was written"),
        (of_another_model, "was trained on a model whose name is 'another', and it is 'mixture' now"),
        (with_another_sampler, "samples in a way of its own"),
        (from_before, "was written before results kept their options, and had a plug-in or server as a scorer"),
        (unfinished, "is partial; type its command again"),
        (with_other_fields, r"cannot be evaluated once more as it was: fields\.clip would be another now"),
    ],
)
def test_weights_that_are_not_those_of_the_result_are_refused(damage, message, trained, capsys):
    path, _ = trained
    damage(path)
    assert command("evaluate", path, "--eval-seed", 5) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not [p for p in path.parent.glob("*.json") if p != path and results.read(p).status == "complete"]


def test_an_evaluation_that_is_no_other_and_prompts_that_were_trained_on_are_refused(trained, capsys):
    path, options = trained
    assert command("evaluate", path) == 2
    assert "there is this evaluation already" in capsys.readouterr().err
    assert command("evaluate", path, "--prompts", options["train_prompts"]) == 2
    assert "would be both trained on and evaluated" in capsys.readouterr().err
    assert command("evaluate") == 2
    assert "name a result file" in capsys.readouterr().err


COMMITTED = [
    "tiny-shapes-base",
    "tiny-shapes-best_of_n-4d269f",
    "tiny-shapes-draft-seed2",
    "tiny-shapes-diffusion_dpo-seed1",
    "tiny-shapes-steering-7f3a1b",
    "testbed/mixture-grid64-diffusion_dpo-seed2",
    "testbed/mixture-overlap-sft-seed2",
    "testbed/mixture-gaussian-base-7a55cc",
]


@pytest.mark.parametrize("name", COMMITTED)
def test_a_result_of_before_options_were_kept_is_asked_for_again(name, tmp_path):
    result = results.read(ROOT / "results" / f"{name}.json").model_copy(update={"asked": None})
    path = tmp_path / f"{name.rpartition('/')[2]}.json"
    results.write(path, result)
    (again,) = ask_again([path], EvaluateOptions(eval_seed=5), print)
    assert result.configuration.differences(again.cell.configuration) == ["eval_seed"]
    options = again.cell.options.model_copy(update={"eval_seed": 0})
    assert resolve(options).path == path
