"""Everything runs on the families of real models: their layouts in miniature, with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import random_models
import torch
from hub_cache import in_cache
from huggingface_hub import constants
from places import COLOURS
from safetensors.torch import load_file
from said import one_line

from alignbench import Key, LoRA, memory, plugins
from alignbench.analysis import summary
from alignbench.analysis.compare import compare
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.cli.app import run_command_line
from alignbench.diffusion import hub, latent
from alignbench.diffusion import registry as models
from alignbench.experiment import align, run
from alignbench.experiment.run import run_cell
from alignbench.meter import Meter
from alignbench.record import result as results

REWARD = f"{COLOURS}:Brightness"
WITH_DEV = """
from alignbench import Prompt


class Dev:
    splits = ("train", "dev")

    def prompts(self, split):
        return [Prompt(f"{split}-{i}", f"{split} picture {i}") for i in range(30)]
"""
MAY_KEEP = ("best_of_n", "noise_search", "steering")  # their first picture, where it is the best
QUICK = ("base", "diffusion_dpo", "doodl", "dpok", "universal_guidance")  # of each kind one; the rest are slow
BUILDERS = {
    "sd": random_models.small_sd,
    "velocity": lambda folder: random_models.small_sd(folder, "v_prediction"),
    "sdxl": random_models.small_sdxl,
    "sd3": random_models.small_sd3,
    "flux": random_models.small_flux,
    "klein": lambda folder: random_models.small_klein(folder, distilled=False),
}
SIGNAL = ("doodl", "universal_guidance")  # which need some left at the first step, where a flow model has none
OF_FLOW = (("sd3", "diffusion_dpo"), ("flux", "base"), ("klein", "diffusion_dpo"))  # by default


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    return {name: build(place / name) for name, build in BUILDERS.items()}


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A function that resolves a small cell."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "train.txt").write_text("".join(f"training prompt {i}\n" for i in range(8)))
    (tmp_path / "test.txt").write_text("a red circle\na star\n")
    (tmp_path / "ddpo_dev.py").write_text(WITH_DEV)
    monkeypatch.chdir(tmp_path)

    def build(algo: str, folder: Path, **changes: Any):
        values = {"prompts": str(tmp_path / "test.txt"), "train_prompts": str(tmp_path / "train.txt")}
        values |= {
            "reward": REWARD,
            "scorers": (),
            "output": tmp_path / "results",
            "steps": 3,
            "guidance": 2.0,
            "eta": 1.0,
            "resolution": "16",
        }
        own = random_models.SHORTEST[algo]
        if isinstance(steps := own.get("steps"), int) and not plugins.load("algorithms", algo).trains:
            values["steps"] = steps
        if algo in ("demon", "doodl"):
            del values["eta"]
        if getattr(plugins.load("algorithms", algo), "learns_from_pairs", False):
            values["pair_count"] = 4
        return resolve(RunOptions(**{"algo": algo, "model": str(folder), "set": own, **values, **changes}))

    return build


def scores(outcome) -> list[float]:
    return [row.scores["Brightness"] for row in outcome.result.rows]


@pytest.fixture(scope="module")
def plain() -> dict[str, list[float]]:
    """Scores of each family's own pictures, kept by the first test that makes them."""
    return {}


def test_every_algorithm_of_the_project_has_settings_here():
    assert set(random_models.SHORTEST) == set(plugins.own_names("algorithms"))


OF_SDXL = [("sdxl", algo) for algo in QUICK]
# Each algorithm on a family of each kind in turn.
UNETS, TRANSFORMERS = ("sd", "velocity", "sdxl"), ("sd3", "flux", "klein")
COVER = [(UNETS[i % len(UNETS)], algo) for i, algo in enumerate(sorted(random_models.SHORTEST))]
COVER += [
    (TRANSFORMERS[i % len(TRANSFORMERS)], algo)
    for i, algo in enumerate(sorted(set(random_models.SHORTEST) - set(SIGNAL)))
]
EVERY = [
    pytest.param(family, algo, marks=[] if (family, algo) in (*OF_SDXL, *OF_FLOW) else [pytest.mark.slow])
    for family, algo in sorted({*COVER, *OF_SDXL, *OF_FLOW})
]


def test_these_hold_every_algorithm_on_both_kinds_of_network_and_every_family_with_some_of_each_kind():
    for algo in random_models.SHORTEST:
        assert any((family, algo) in COVER for family in UNETS)
        assert algo in SIGNAL or any((family, algo) in COVER for family in TRANSFORMERS)
    for family in BUILDERS:
        trained = [plugins.load("algorithms", algo).trains for own, algo in COVER if own == family]
        assert min(trained.count(True), trained.count(False)) >= 2


@pytest.mark.parametrize(("family", "algo"), EVERY)
def test_an_algorithm_changes_the_pictures_of_a_family(folders, cell, plain, family, algo):
    made = run_cell(cell(algo, folders[family]), quiet=True)
    assert made.result.status == "complete", made.result.reason
    assert all(0 < score < 1 for score in scores(made))
    if algo != "base":
        if family not in plain:
            plain[family] = scores(run_cell(cell("base", folders[family]), quiet=True))
        assert scores(made) != plain[family] or algo in MAY_KEEP
    if made.result.trains:
        assert list((made.path.with_suffix("") / "adapter").rglob("*.safetensors"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("algo", sorted(random_models.SHORTEST))
def test_every_algorithm_runs_in_half_precision_on_a_gpu(folders, cell, algo, family, dtype):
    made = run_cell(cell(algo, folders[family], device="cuda", dtype=dtype), quiet=True)
    assert made.result.status == "complete", made.result.reason
    assert made.result.environment["device"] == torch.cuda.get_device_name()
    assert all(0 < score < 1 for score in scores(made))


@pytest.mark.slow
def test_dpoks_lookahead_decodes_and_rewards_one_more_image_an_action(folders, cell):
    own = random_models.SHORTEST["dpok"]
    plain, ahead = (run_cell(cell("dpok", folders["sd"], set=own | more)) for more in ({}, {"lookahead": True}))
    assert ahead.result.status == "complete", ahead.result.reason
    assert plain.result.cost is not None
    assert ahead.result.cost is not None
    for spent, more in {"decode_forward": 8 * 3, "reward_forward": 8 * 3, "denoiser_forward": 0}.items():
        assert ahead.result.cost.alignment[spent] == plain.result.cost.alignment[spent] + more
    assert scores(ahead) != scores(plain)


@pytest.mark.slow
def test_dpok_without_guidance_trains_as_if_evaluation_had_none_and_watches_the_evaluations_paths(folders, cell):
    own = random_models.SHORTEST["dpok"] | {"rounds": 2, "learning_rate": 1e-2}
    outcomes = (
        run_cell(cell("dpok", folders["sd"], name="without", guidance=2.0, set=own | {"guided": False})),
        run_cell(cell("dpok", folders["sd"], name="none", guidance=1.0, set=own)),
        run_cell(cell("dpok", folders["sd"], name="with", guidance=2.0, set=own)),
    )
    adapters = []
    for outcome in outcomes:
        assert outcome.result.status == "complete", outcome.result.reason
        (file,) = (outcome.path.with_suffix("") / "adapter").rglob("*.safetensors")
        adapters.append(load_file(file))
    without, none, guided = adapters
    assert all(torch.equal(without[name], none[name]) for name in none)
    assert any(not torch.equal(without[name], guided[name]) for name in guided)
    kl = [outcome.result.curve[1]["kl"] for outcome in outcomes]
    assert kl[0] > 1.2 * kl[1] > 0


def test_a_run_that_does_not_fit_goes_on_with_half_as_many_images_and_says_so(folders, cell, monkeypatch, capsys):
    """Here ten rows are too many for the denoiser; guidance makes two of each image."""
    own = random_models.SHORTEST["ddpo"] | {"batch": 8, "rounds": 1}
    whole = run_cell(cell("ddpo", folders["sd"], name="roomy", set=own))
    real = latent.LatentPipeline._denoise

    def small(self, latents, t, tensors):
        if len(latents) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, latents, t, tensors)

    monkeypatch.setattr(latent.LatentPipeline, "_denoise", small)
    capsys.readouterr()
    halved = run_cell(cell("ddpo", folders["sd"], name="tight", set=own))
    assert "out of memory: going on with 4 images in a forward pass" in capsys.readouterr().err
    assert halved.result.cost is not None
    assert whole.result.cost is not None
    assert (whole.result.cost.forward_batch, halved.result.cost.forward_batch) == (None, 4)
    for spent in ("denoiser_backward", "reward_forward"):
        assert halved.result.cost.alignment[spent] == whole.result.cost.alignment[spent] > 0
    assert scores(halved) == pytest.approx(scores(whole), abs=0.01)


def test_pictures_that_do_not_fit_at_once_are_made_in_halves(folders, cell, monkeypatch):
    whole = run_cell(cell("base", folders["sd"], name="roomy", images_per_prompt=4), quiet=True)
    real = latent.LatentPipeline._denoise

    def small(self, latents, t, tensors):
        if len(latents) > 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return real(self, latents, t, tensors)

    monkeypatch.setattr(latent.LatentPipeline, "_denoise", small)
    halved = run_cell(cell("base", folders["sd"], name="tight", images_per_prompt=4), quiet=True)
    assert scores(halved) == pytest.approx(scores(whole), abs=1e-4)


def test_pictures_are_made_one_by_one_where_no_memory_is_left_and_the_run_says_so(folders, cell, monkeypatch, capsys):
    whole = run_cell(cell("base", folders["sd"], name="roomy", images_per_prompt=4))
    assert "at once" not in capsys.readouterr().err
    monkeypatch.setattr(memory, "available", lambda: 0)
    found = run_cell(cell("base", folders["sd"], name="tight", images_per_prompt=4))
    assert "one image may need 0.0 GiB of memory, and 0.0 GiB are free; try" in capsys.readouterr().err
    assert scores(found) == pytest.approx(scores(whole), abs=1e-4)
    assert found.result.cost is not None
    assert whole.result.cost is not None
    assert found.result.cost.per_image == whole.result.cost.per_image
    run_cell(cell("base", folders["sd"], name="asked", images_per_prompt=4, batch_size=8))
    assert "at once" not in capsys.readouterr().err


@pytest.mark.parametrize(("algo", "advice"), [("ddpo", "--checkpointing"), ("base", "--vae-slicing")])
def test_where_one_image_does_not_fit_the_run_fails_with_advice(folders, cell, monkeypatch, algo, advice):
    def none(self, latents, t, tensors):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(latent.LatentPipeline, "_denoise", none)
    with pytest.raises(RuntimeError, match=rf"out of memory with one image.*{advice}"):
        run_cell(cell(algo, folders["sd"]), quiet=True)


def test_an_error_that_is_not_about_memory_is_not_taken_for_one(folders, cell, monkeypatch):
    def broken(self, latents, t, tensors):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(latent.LatentPipeline, "_denoise", broken)
    for algo in ("ddpo", "base"):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            run_cell(cell(algo, folders["sd"]), quiet=True)


def test_a_trained_adapter_is_evaluated_on_the_model_it_was_trained_on(folders, cell):
    trained = run_cell(cell("diffusion_dpo", folders["sdxl"]), quiet=True)
    alone = run_cell(cell("base", folders["sdxl"], adapter=trained.path), quiet=True)
    assert scores(alone) == scores(trained)
    assert alone.result.evaluation == trained.result.evaluation  # so that they stand in one table
    assert alone.result.sampler["adapter"].startswith(f"{trained.path.stem}@")
    best = run_cell(cell("best_of_n", folders["sdxl"], adapter=trained.path), quiet=True)
    assert best.result.sampler["adapter"] == alone.result.sampler["adapter"]
    assert best.path != alone.path


def test_what_is_trained_already_is_not_trained_again(folders, cell):
    trained = run_cell(cell("diffusion_dpo", folders["sd"]), quiet=True)
    with pytest.raises(ValueError, match=r"--adapter .* is for evaluation, and 'ddpo' trains; choose --algo base"):
        cell("ddpo", folders["sd"], adapter=trained.path)
    with pytest.raises(ValueError, match=r"--model sd15_dpo is for evaluation, and 'ddpo' trains"):
        cell("ddpo", Path("sd15_dpo"))


def test_an_adapter_of_another_model_is_refused(folders, cell):
    trained = run_cell(cell("diffusion_dpo", folders["sd"]), quiet=True)
    with pytest.raises(ValueError, match=r"was trained on model 'sd' with sha256"):
        run_cell(cell("base", folders["sdxl"], adapter=trained.path), quiet=True)


def download(cache: Path, weights: hub.Repository | models.Model, folder: Path) -> None:
    """A folder as the hub's cache keeps a download."""
    repository = weights.source if isinstance(weights, models.Model) else weights.name
    shutil.copytree(folder, in_cache(cache, repository, weights.revision or "0123456789" * 4))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_sd15_runs_from_a_cache_without_network(folders, cell, cache):
    download(cache, models.named()["sd15"], folders["sd"])
    made = run_cell(cell("diffusion_dpo", Path("sd15"), resolution="16"), quiet=True)
    assert made.result.status == "complete"
    assert made.result.evaluation.model["revision"] == models.named()["sd15"].revision
    assert made.path.name.startswith("sd15-test-diffusion_dpo-")


def test_a_released_model_and_its_base_stand_in_one_table(folders, cell, cache, tmp_path, capsys):
    preset = models.named()["sdxl_dpo"]
    assert preset.denoiser is not None
    download(cache, models.named()["sdxl"], folders["sdxl"])
    released = random_models.UNet2DConditionModel.from_pretrained(folders["sdxl"] / "unet")
    with torch.no_grad():
        released.conv_out.bias.add_(0.3)
    released.save_pretrained(tmp_path / "released" / "unet")
    download(cache, preset.denoiser, tmp_path / "released")
    base = run_cell(cell("base", Path("sdxl"), resolution="16"), quiet=True)
    aligned = run_cell(cell("base", Path("sdxl_dpo"), resolution="16"), quiet=True)
    assert base.result.evaluation == aligned.result.evaluation
    assert aligned.result.sampler["denoiser"].startswith("mhdang/dpo-sdxl-text2image-v1@0123456789")
    assert run_command_line(["compare", str(base.path), str(aligned.path)]) == 0
    assert "base denoiser=mhdang/dpo-sdxl-text2image-v1@" in capsys.readouterr().out
    as_adapter = cell("base", Path("sdxl"), resolution="16", adapter=Path("mhdang/dpo-sdxl-text2image-v1"))
    assert scores(run_cell(as_adapter, quiet=True)) == pytest.approx(scores(aligned), abs=1e-3)
    assert scores(aligned) != pytest.approx(scores(base), abs=1e-3)


def test_a_released_lora_and_its_base_stand_in_one_table(folders, cell, cache, tmp_path, capsys):
    preset = models.named()["sd15_spo_lora"]
    assert preset.adapter is not None
    download(cache, models.named()["sd15"], folders["sd"])
    policy = models.load(models.named()["sd15"], Meter(), models.Hold(resolution=(16, 16))).adapt(LoRA(), Key("lora"))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3)
    policy.save(tmp_path / "lora")
    (tmp_path / "released").mkdir()
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").rename(tmp_path / "released" / preset.adapter.inside)
    download(cache, preset.adapter, tmp_path / "released")
    base = run_cell(cell("base", Path("sd15"), resolution="16"), quiet=True)
    aligned = run_cell(cell("base", Path("sd15_spo_lora"), resolution="16"), quiet=True)
    assert base.result.evaluation == aligned.result.evaluation
    assert aligned.result.sampler["lora"] == f"{preset.adapter.name}@{preset.adapter.revision}/{preset.adapter.inside}"
    assert run_command_line(["compare", str(base.path), str(aligned.path)]) == 0
    assert "base lora=SPO-Diffusion-Models/SPO-SD-v1-5_4k-p_10ep_LoRA@" in capsys.readouterr().out
    assert scores(aligned) != pytest.approx(scores(base), abs=1e-3)


def test_the_refined_model_runs_from_a_cache(tmp_path, folders, cell, cache):
    preset = models.named()["sdxl_refiner"]
    assert preset.refiner is not None
    download(cache, models.named()["sdxl"], folders["sdxl"])
    with pytest.raises(RuntimeError, match=r"model 'sdxl_refiner' is not on this machine: stabilityai/.*-refiner-1\.0"):
        run_cell(cell("base", Path("sdxl_refiner"), resolution="16"), quiet=True)
    download(cache, preset.refiner, random_models.small_refiner(tmp_path / "refiner"))
    made = run_cell(cell("base", Path("sdxl_refiner"), resolution="16"), quiet=True)
    assert made.result.sampler["refiner"] == f"{preset.refiner.name}@{preset.refiner.revision}"


def test_another_autoencoder_stands_in_the_result_and_is_no_peer_of_the_models_own(tmp_path, folders, cell):
    other = random_models.AutoencoderKL(**random_models.SMALL_VAE, scaling_factor=0.13025)
    other.save_pretrained(tmp_path / "other")
    own = run_cell(cell("base", folders["sdxl"]), quiet=True)
    made = run_cell(cell("base", folders["sdxl"], vae=str(tmp_path / "other")), quiet=True)
    assert len(made.result.evaluation.model["autoencoder_sha256"]) == 64
    assert made.result.evaluation.fingerprint != own.result.evaluation.fingerprint
    with pytest.raises(ValueError, match=r"--vae .*nothing.*: config\.json missing; expected a folder or hub id"):
        run_cell(cell("base", folders["sdxl"], vae=str(tmp_path / "nothing")), quiet=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolution", "large"], "--resolution large: expected pixels such as 512, or HEIGHTxWIDTH"),
        (["--model", "mixture", "--resolution", "16"], "--resolution: model 'mixture' makes points, not pictures"),
        (["--model", "mixture", "--vae-tiling"], "--vae-tiling: model 'mixture' makes points, not pictures"),
        (["--adapter", "nowhere"], "--adapter nowhere: there is no such file or folder"),
    ],
)
def test_options_that_cannot_act_are_refused_in_one_line(capsys, arguments, message):
    assert run_command_line(["run", "--algo", "base", "--dry-run", *arguments]) == 2
    assert message in one_line(capsys)


def test_results_say_which_memory_options_changed_pixels(folders, cell):
    made = run_cell(cell("base", folders["sd"], vae_tiling=True, vae_slicing=True), quiet=True)
    content = json.loads(made.path.read_text())
    assert content["configuration"]["vae_tiling"] is True
    assert results.read(made.path).evaluation.model["tiling"] is True
    assert "slicing" not in made.result.evaluation.model


def test_all_that_is_missing_is_named_at_once_with_the_commands_that_fetch_it(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNBENCH_DATA", raising=False)
    assert run_command_line(["run", "--algo", "diffusion_dpo", "--model", "sd15"]) == 1
    error = one_line(capsys)
    for part in (
        "not on this machine: sd15, parti, pickapic_train, pickscore, hpsv2_1, clip_l14, aesthetic_v2, imagereward",
        "`alignbench fetch models sd15`",
        "`alignbench fetch prompts parti pickapic_train`",
        "`alignbench fetch scorers pickscore hpsv2_1 clip_l14 aesthetic_v2 imagereward`",
        f"copy {cache} and {tmp_path / 'cache' / 'alignbench'} here",
        "or choose others with --scorers",
        "`--model tiny` works offline",
    ):
        assert part in error
    assert not (Path.cwd() / "results" / "sd15-parti-diffusion_dpo-seed0.json").exists()


def test_one_thing_that_is_missing_is_named_by_what_needs_it(cache, tmp_path, monkeypatch, capsys):
    (tmp_path / "test.txt").write_text("a red circle\n")
    arguments = ["--prompts", str(tmp_path / "test.txt"), "--output", str(tmp_path / "results")]
    scorer = ["--reward", "jpeg_compressibility", "--scorers", "jpeg_compressibility"]
    assert run_command_line(["run", "--algo", "base", "--model", "sd15", *arguments, *scorer]) == 1
    assert "model 'sd15' is not on this machine: stable-diffusion-v1-5/" in capsys.readouterr().err


def test_the_plain_model_is_the_baseline_whatever_else_base_evaluated(folders, cell, capsys):
    trained = run_cell(cell("diffusion_dpo", folders["sd"]), quiet=True)
    alone = run_cell(cell("base", folders["sd"], adapter=trained.path, name="aligned"), quiet=True)
    plain = run_cell(cell("base", folders["sd"], name="plain"), quiet=True)
    lines, base = summary.against_base(trained.path)
    assert base == plain.path
    assert len(lines) == 1
    (group,) = compare([alone.path, trained.path, plain.path]).groups
    assert group.baseline == "base"
    assert sorted(group.methods)[1].startswith("base adapter=")
    (group,) = compare([alone.path, trained.path]).groups
    assert group.baseline is None
    assert "no complete result of 'base' with this evaluation" in group.notes[0]


def limited(monkeypatch, name: str, most: int) -> None:
    """Let a method of the pipeline hold so many rows and no more."""
    real = getattr(latent.LatentPipeline, name)

    def small(self, latents, *arguments, **named):
        if len(latents) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, latents, *arguments, **named)

    monkeypatch.setattr(latent.LatentPipeline, name, small)


@pytest.mark.slow
def test_pictures_that_are_made_in_parts_cost_what_they_cost_at_once_and_it_is_said(folders, cell, monkeypatch, capsys):
    whole = run_cell(cell("base", folders["sd"], name="roomy", images_per_prompt=6), quiet=True)
    limited(monkeypatch, "decode", 2)
    capsys.readouterr()
    parts = run_cell(cell("base", folders["sd"], name="tight", images_per_prompt=6))
    assert parts.result.cost is not None
    assert whole.result.cost is not None
    assert parts.result.cost.per_image == whole.result.cost.per_image
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert said == [f"out of memory: going on with {n} at once" for n in ("6 images", "3 images", "one image")]


@pytest.mark.slow
def test_a_held_out_probe_that_does_not_fit_does_not_shrink_the_training_batch(folders, cell, monkeypatch):
    limited(monkeypatch, "decode", 4)
    monkeypatch.setattr(align, "HELD_OUT_PROMPTS", 6)
    made = run_cell(cell("ddpo", folders["sd"], train_prompts="ddpo_dev.py:Dev"), quiet=True)
    assert made.result.status == "complete"
    assert any("held_out" in line for line in made.result.curve)
    assert made.result.cost is not None
    assert made.result.cost.forward_batch is None


@pytest.mark.slow
def test_pairs_are_made_in_parts_too(folders, cell, monkeypatch):
    limited(monkeypatch, "decode", 2)
    made = run_cell(cell("diffusion_dpo", folders["sd"]), quiet=True)
    assert made.result.status == "complete"
    assert made.result.cost is not None
    assert made.result.cost.forward_batch is None


@pytest.mark.slow
def test_a_continued_run_keeps_the_batch_that_fitted(folders, cell, monkeypatch):
    limited(monkeypatch, "_denoise", 10)
    asked = cell("ddpo", folders["sd"], set=random_models.SHORTEST["ddpo"] | {"batch": 8})
    with monkeypatch.context() as killed:
        killed.setattr(run.evaluate, "generate", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_cell(asked, quiet=True)
    made = run_cell(asked, quiet=True)
    assert made.resumed_at == 2
    assert made.result.cost is not None
    assert made.result.cost.forward_batch == 4


def test_an_adapter_and_two_experts_are_refused(folders, cell, tmp_path):
    trained = run_cell(cell("diffusion_dpo", folders["sdxl"]), quiet=True)
    with pytest.raises(ValueError, match="'sdxl_refiner' is two models, and an adapter is of one; use --model sdxl"):
        cell("base", Path("sdxl_refiner"), adapter=trained.path)


def test_the_same_weights_under_another_scaling_are_another_autoencoder(folders, cell, tmp_path):
    infos = []
    for name, factor in (("one", 0.13025), ("other", 0.5)):
        other = random_models.AutoencoderKL(**random_models.SMALL_VAE, scaling_factor=factor)
        random_models.initialise(other, Key("same"))
        other.save_pretrained(tmp_path / name)
        made = cell("base", folders["sdxl"], vae=str(tmp_path / name))
        infos.append((made.configuration.vae, run_cell(made, quiet=True).result.evaluation.fingerprint))
    assert infos[0][0] != infos[1][0]
    assert infos[0][1] != infos[1][1]


def test_an_autoencoder_of_other_latents_is_refused(folders, cell, tmp_path):
    random_models.AutoencoderKL(**random_models.SMALL_VAE | {"latent_channels": 16}).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"wide: its latents have 16 channels, the denoiser's of .* 4; choose another"):
        run_cell(cell("base", folders["sd"], vae=str(tmp_path / "wide")), quiet=True)
