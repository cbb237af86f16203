"""Running cells on the mixture: files, configurations, failures, budgets of evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from places import TOY

from alignbench import devices as memory
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.errors import InputError, RunError
from alignbench.experiment.run import run_cell
from alignbench.record import result as results


def run(options, **arguments):
    return run_cell(resolve(RunOptions(**options)), quiet=True, **arguments)


def test_a_cell_leaves_a_result_and_a_folder_beside_it(toy_cell):
    outcome = run(toy_cell("ddpo"))
    result = results.read(outcome.path)
    assert result.status == "complete"
    assert len(result.rows) == 12
    assert set(result.rows[0].scores) == {"FirstCoordinate"}
    folder = outcome.path.with_suffix("")
    assert {p.name for p in folder.iterdir()} >= {"images", "adapter", "checkpoint.pt", "metrics.jsonl", "cell.json"}
    assert len(list((folder / "images").iterdir())) == 12
    assert (folder / "adapter" / "README.md").read_text().startswith("---\nlibrary_name: alignbench\n")
    assert [line["round"] for line in result.curve] == [1, 2, 3, 4]
    assert result.cost.alignment["denoiser_backward"] > 0
    assert result.cost.per_image["denoiser_forward"] == 8


def test_ddpo_improves_its_reward_on_the_mixture(toy_cell):
    base = run(toy_cell("base", images_per_prompt=5))
    fields = {"rounds": 10, "samples_per_round": 64, "batch": 32, "learning_rate": 3e-3, "clip": 0.1}
    for estimator, updates in (("importance", 2), ("reinforce", 1)):
        chosen = fields | {"estimator": estimator, "updates_per_round": updates}
        trained = run(toy_cell("ddpo", set=chosen, name=estimator, images_per_prompt=5))
        means = [np.mean([row.scores["FirstCoordinate"] for row in o.result.rows]) for o in (base, trained)]
        assert means[1] > means[0] + 1.5


def test_the_counted_cost_of_ddpo_is_the_closed_form(toy_cell):
    """4 rounds x 32 images x 8 steps forward for the paths, and as often forward and backward for the one pass; the
    divergence costs one of the reference for the last two steps of the first 32 images, and for the other six of an
    eighth of them. Guidance 1 runs the denoiser once."""
    cost = run(toy_cell("ddpo")).result.cost.alignment
    steps = 4 * 32 * 8
    assert cost["denoiser_forward"] == 2 * steps + 4 * (2 * 32 + 6 * 4)
    assert cost["denoiser_backward"] == steps
    assert cost["reward_forward"] == cost["decode_forward"] == 4 * 32
    assert cost["reward_backward"] == 0


def test_best_of_n_pays_per_image_and_never_falls_with_n(toy_cell):
    outcomes = {n: run(toy_cell("best_of_n", set={"n": n})) for n in (1, 2, 4)}
    base = run(toy_cell("base"))
    scores = {n: np.array([row.scores["FirstCoordinate"] for row in o.result.rows]) for n, o in outcomes.items()}
    assert (scores[1] == [row.scores["FirstCoordinate"] for row in base.result.rows]).all()
    assert (scores[2] >= scores[1]).all()
    assert (scores[4] >= scores[2]).all()
    for n, outcome in outcomes.items():
        assert outcome.result.cost.per_image["denoiser_forward"] == 8 * n
        assert outcome.result.cost.per_image["reward_forward"] == n
        assert outcome.result.cost.alignment_seconds == 0


def test_the_same_command_again_finds_the_result(toy_cell):
    first = run(toy_cell("base"))
    before = first.path.read_bytes()
    again = run(toy_cell("base"))
    assert again.was_complete
    assert first.path.read_bytes() == before


def test_another_configuration_under_the_same_name_is_refused_by_field(toy_cell):
    outcome = run(toy_cell("ddpo", name="mine"))
    before = outcome.path.read_bytes()
    changed = toy_cell("ddpo", name="mine", limit=5)
    changed["set"] = {**changed["set"], "clip": 0.3}
    with pytest.raises(InputError, match=r"differs in fields.clip, limit\. Choose --name") as caught:
        run(changed)
    assert caught.value.exit_code == 2
    assert outcome.path.read_bytes() == before
    replaced = run(changed, force=True)
    assert replaced.result.configuration.limit == 5
    assert len(replaced.result.rows) == 5


def test_file_names_tell_configurations_apart(toy_cell):
    def name(**changes):
        return resolve(RunOptions(**toy_cell("ddpo", **changes))).path.name

    plain = resolve(RunOptions(algo="ddpo", output="results")).path
    assert plain == Path("results/tiny-shapes-ddpo-seed0.json")
    truth = resolve(RunOptions(algo="ddpo", reward="shapes_truth", seed=3)).path
    assert truth.name == "tiny-shapes-ddpo-shapes_truth-seed3.json"
    assert resolve(RunOptions(algo="best_of_n", name="n=4")).path.name == "tiny-shapes-best_of_n-n=4.json"
    assert len({name(), name(limit=3), name(steps=9), name(eval_seed=1), name(images_per_prompt=2)}) == 5
    text, typed = (toy_cell("best_of_n", set={"n": n}) for n in ("4", 4))
    assert resolve(RunOptions(**text)).path == resolve(RunOptions(**typed)).path
    unused = resolve(RunOptions(algo="best_of_n", train_prompts="shapes")).path  # as a suite's defaults give it to all
    assert unused == resolve(RunOptions(algo="best_of_n")).path


def test_the_training_seed_changes_the_policy_and_not_the_evaluation(toy_cell):
    one, two, same = (run(toy_cell("ddpo", seed=s, name=n)) for s, n in ((0, "a"), (1, "b"), (0, "c")))
    rows = [[row.scores["FirstCoordinate"] for row in o.result.rows] for o in (one, two, same)]
    assert rows[0] == rows[2]
    assert rows[0] != rows[1]
    assert one.result.evaluation == two.result.evaluation
    assert run(toy_cell("base")).result.configuration.seed is None


def test_global_seeds_change_nothing(toy_cell):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        outcome = run(toy_cell("ddpo", name=f"global{seed}"))
        found.append([row.scores["FirstCoordinate"] for row in outcome.result.rows])
    assert found[0] == found[1]


def test_batch_size_changes_no_image(toy_cell):
    found = []
    for size in (1, 7, 16):
        outcome = run(toy_cell("base", batch_size=size, name=f"batch{size}", images_per_prompt=2))
        found.append(np.array([row.scores["FirstCoordinate"] for row in outcome.result.rows]))
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


REWARD = """
import torch
from dataclasses import dataclass
from alignbench import RewardInfo

@dataclass(frozen=True)
class Odd:
    differentiable = False
    def __call__(self, images, prompts):
        {body}
    with_grad = __call__
    def info(self):
        return RewardInfo(id="odd-1")
    def unsupported(self, prompts, image_shape):
        return None
"""


@pytest.fixture
def odd_reward(tmp_path):
    def write(body: str) -> str:
        path = tmp_path / "odd.py"
        path.write_text(REWARD.format(body=body))
        return f"{path}:Odd"

    return write


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return images[:, :1]", r"reward 'Odd' returned shape \(12, 1\); expected a tensor of shape \(12,\)"),
        ("return 3.0", "reward 'Odd' returned float; expected a tensor"),
        ("return images[:3, 0]", r"returned shape \(3,\)"),
    ],
)
def test_a_reward_of_the_wrong_shape_stops_the_run(toy_cell, odd_reward, body, message):
    options = toy_cell("base", reward=odd_reward(body))
    with pytest.raises(RunError, match=message):
        run(options)
    result = results.read(resolve(RunOptions(**options)).path)
    assert result.status == "failed"
    assert "expected a tensor" in result.reason


def test_a_reward_that_is_nan_stops_training_and_names_the_prompt(toy_cell, odd_reward):
    with pytest.raises(RunError, match="returned nan for prompt 'training point"):
        run(toy_cell("ddpo", reward=odd_reward("return images[:, 0] * float('nan')")))


def test_a_scorer_that_fails_on_some_images_leaves_nulls_with_reasons(toy_cell, odd_reward):
    body = "\n        ".join(
        [
            "if any(p.text == 'point 3' for p in prompts): raise ValueError('too dark')",
            "return torch.tensor([float('nan') if p.text == 'point 5' else 1.0 for p in prompts])",
        ]
    )
    outcome = run(toy_cell("base", reward=odd_reward(body)))
    failures = {row.prompt: row.failures["Odd"] for row in outcome.result.rows if row.failures}
    assert failures == {"points-00003": "ValueError: too dark", "points-00005": "the scorer returned nan"}
    assert [row.scores["Odd"] for row in outcome.result.rows].count(None) == 2


def test_a_diverging_run_keeps_its_last_good_checkpoint(toy_cell):
    options = toy_cell("ddpo")
    options["set"] = {**options["set"], "learning_rate": 1e30, "max_norm": 1e30}
    outcome = run(options)
    assert outcome.result.status == "diverged"
    assert "round" in outcome.result.reason
    assert outcome.result.rows == []
    assert results.read(outcome.path).status == "diverged"
    assert run(options).was_complete  # it would diverge again


def test_an_unsupported_problem_is_a_row_and_not_a_crash(toy_cell):
    options = toy_cell("ddpo")
    options["train_prompts"] = None
    outcome = run(options)
    assert outcome.result.status == "unsupported"
    assert "pass --train-prompts" in outcome.result.reason


def test_training_on_the_evaluated_prompts_is_refused(toy_cell):
    options = toy_cell("ddpo")
    with pytest.raises(InputError, match="12 prompts would be both trained on and evaluated, such as 'point 0'"):
        resolve(RunOptions(**(options | {"train_prompts": options["prompts"]})))


def test_training_prompts_that_the_reward_cannot_score_are_refused_before_the_run(tmp_path):
    (tmp_path / "odd.txt").write_text("a red circle on a white background\nun cercle rouge\n")
    message = (
        "reward 'shapes_preference' cannot score the training prompts of .*odd.txt: 'un cercle rouge' is not.*; "
        "choose other --train-prompts or another --reward.$"
    )
    with pytest.raises(InputError, match=message):
        resolve(RunOptions(algo="refl", model="tiny", train_prompts=str(tmp_path / "odd.txt")))


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="elsewhere the peak is that of the process")
def test_the_peak_of_memory_is_that_since_it_was_reset():
    """One process may run several cells."""
    held = torch.ones(2**27)  # 512 MiB
    memory.reset_peak("cpu")
    before = memory.peak("cpu")
    del held
    memory.reset_peak("cpu")
    assert before - memory.peak("cpu") > 2**28


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algo": "base", "modle": "tiny"}, "no option named 'modle'. Did you mean model"),
        ({"algo": "base", "limit": 0}, "run.yaml: limit 0: expected at least 1"),
        ({"algo": "base", "seed": "x"}, "seed x: expected a whole number"),
    ],
)
def test_wrong_options_are_refused_by_name(values, message):
    with pytest.raises(InputError, match=message):
        RunOptions.parse(values, "run.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algo": "dpo"}, "no algorithm named 'dpo'. Did you mean dpok or ddpo"),
        ({"reward": "shapes_trut"}, "no reward named 'shapes_trut'. Did you mean shapes_truth"),
        ({"scorers": ("nothing",)}, "no reward named 'nothing'"),
        ({"model": "tiyn"}, "no model named 'tiyn'. Did you mean tiny"),
        ({"prompts": "shaps"}, "no prompt set named 'shaps'. Did you mean shapes"),
        ({"split": "tset"}, "has no split 'tset'; it has"),
        ({"set": {"clpi": 1}}, "no field named 'clpi'. Did you mean clip"),
        ({"set": {"clip": "abc"}}, "clip='abc': expected a number"),
        ({"set": {"clip": -1}}, "clip must be positive, got -1"),
        ({"set": {"estimator": "ppo"}}, "estimator='ppo': expected 'importance' or 'reinforce'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"name": "a/b"}, "--name 'a/b': expected letters"),
        ({"reward": "missing.py:X"}, "there is no file missing.py"),
        ({"reward": "no.such.module:X"}, "cannot import"),
        ({"reward": f"{TOY}:Nothing"}, "has no 'Nothing'"),
        (
            {"reward": None, "scorers": ()},
            r"nothing would be scored \(quadratic: it belongs to the exact testbed.*\); pass --reward",
        ),
        ({"kernel": "exact", "eta": 0.5}, "--kernel exact draws from .* itself; --eta has no place in it"),
        ({"kernel": "exact", "model": "tiny"}, "the reverse kernel of model 'tiny' is not known; only mixture's is"),
    ],
)
def test_wrong_names_and_values_are_refused_before_anything_runs(toy_cell, tmp_path, changes, message):
    options = toy_cell("ddpo") | {"algo": "ddpo"} | changes
    with pytest.raises(InputError, match=message):
        resolve(RunOptions(**options))
    assert not (tmp_path / "results").exists()


def test_an_output_that_is_a_file_is_refused(toy_cell, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="taken"):
        run(toy_cell("base", output=tmp_path / "taken"))
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_full_disk_is_one_clear_error_and_the_run_can_go_on(toy_cell, monkeypatch):
    import os

    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="the disk is full; free some space"):
        run(toy_cell("ddpo", name="full"))
    monkeypatch.setattr(os, "fsync", real)
    finished = run(toy_cell("ddpo", name="full"))
    whole = run(toy_cell("ddpo", name="whole"))
    assert finished.result.rows == whole.result.rows
    assert not list(Path(finished.path.parent).rglob("*.tmp"))


def test_a_damaged_checkpoint_says_what_to_do(toy_cell, monkeypatch):
    from alignbench.experiment import evaluate

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "generate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(toy_cell("ddpo"))
    cell = resolve(RunOptions(**toy_cell("ddpo")))
    assert results.read(cell.path).status == "partial"
    (cell.folder / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(
        RunError, match=r"cannot be continued \(it is damaged, or no checkpoint\); use --force to begin anew"
    ):
        run(toy_cell("ddpo"))


def test_checkpoints_hold_no_pickled_code(toy_cell):
    outcome = run(toy_cell("ddpo"))
    saved = torch.load(outcome.path.with_suffix("") / "checkpoint.pt", weights_only=True)
    assert saved["done"] == 4
    assert json.loads((outcome.path.with_suffix("") / "cell.json").read_text())["running"] is False


def test_a_scorer_that_cannot_read_the_models_images_is_refused_before_anything_is_made(tmp_path):
    prompts = tmp_path / "shapes.txt"
    prompts.write_text("a red circle\n")
    options = {"algo": "base", "model": "mixture", "prompts": str(prompts), "output": tmp_path / "results"}
    with pytest.raises(InputError, match="scorer 'shapes_truth' cannot score images of model 'mixture': it reads"):
        run(options | {"reward": "shapes_truth"})
    assert not list((tmp_path / "results").glob("*.json"))
