"""What is wrong with a folder of SD3 or FLUX, or with what is asked of one, is said in a line before it is loaded."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
import random_models
from safetensors.torch import load_file, save_file
from said import one_line

from alignbench import FullFineTune, LoRA
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve, sampling_of
from alignbench.choices import Sigmas
from alignbench.cli.app import run_command_line
from alignbench.diffusion import loading
from alignbench.diffusion import registry as models
from alignbench.diffusion.adapters import open_policy
from alignbench.errors import InputError, RunError
from alignbench.experiment import cut_off
from alignbench.experiment.estimate import estimate
from alignbench.keys import Key
from alignbench.meter import Meter

SCHEDULER, TRANSFORMER = "scheduler/scheduler_config.json", "transformer/config.json"
BUILDERS = {
    "sd": random_models.small_sd,
    "sd3": random_models.small_sd3,
    "flux_dev": random_models.small_flux,
    "flux_schnell": functools.partial(random_models.small_flux, guidance=False),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("flow")
    return {name: build(place / name) for name, build in BUILDERS.items()}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A function that types a command about a folder, in which nothing may be loaded."""
    (tmp_path / "test.txt").write_text("a red circle\n")
    loads: list[str] = []
    monkeypatch.setattr(loading, "_network", lambda *arguments: loads.append("a network"))

    def run(folder: Path, *arguments: str) -> int:
        usual = ["--prompts", str(tmp_path / "test.txt"), "--output", str(tmp_path / "results")]
        scored = ["--reward", "jpeg_compressibility", "--scorers", "jpeg_compressibility"]
        code = run_command_line(["run", "--algo", "base", "--model", str(folder), *usual, *scored, *arguments])
        assert not loads
        return code

    return run


def copied(folder: Path, place: Path, file: str, **fields: object) -> Path:
    other = Path(shutil.copytree(folder, place / folder.name))
    content = json.loads((other / file).read_text()) | fields
    (other / file).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    return other


NOTHING = [None, None]
DDIM = {"_class_name": "DDIMScheduler", "beta_start": 0.0001}


@pytest.mark.parametrize(
    ("name", "file", "fields", "message"),
    [
        ("sd3", SCHEDULER, DDIM, "_class_name 'DDIMScheduler', which describes no levels of a flow model"),
        ("sd3", SCHEDULER, {"use_karras_sigmas": True}, "use_karras_sigmas True, which is not supported"),
        ("sd3", SCHEDULER, {"shift": "much"}, "shift 'much': expected a number"),
        (
            "flux_dev",
            SCHEDULER,
            {"base_shift": 0.05, "time_shift_type": "linear"},
            "shift -0.01875 of 16 tokens: choose another --resolution; expected a positive number.",
        ),
        ("flux_dev", SCHEDULER, {"base_shift": 1e6}, "shift inf of 16 tokens: choose another --resolution"),
        ("sd3", SCHEDULER, {"beta_start": 0.1}, "beta_start 0.1, a field that is not known here"),
        ("sd3", "model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}, "no levels of a flow model"),
        (
            "sd",
            SCHEDULER,
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "'FlowMatchEulerDiscreteScheduler', which describes no DDPM noise schedule",
        ),
        ("sd", SCHEDULER, {"_class_name": ..., "prediction_type": "flow_prediction"}, "'flow_prediction'"),
        ("sd3", TRANSFORMER, {"_class_name": "FluxTransformer2DModel"}, "expected SD3Transformer2DModel"),
        ("flux_dev", TRANSFORMER, {"_class_name": "SD3Transformer2DModel"}, "expected FluxTransformer2DModel"),
        ("flux_dev", TRANSFORMER, {"patch_size": 2}, "patch_size 2, which is not supported; expected 1"),
        ("sd3", TRANSFORMER, {"patch_size": 0}, "patch_size 0; expected a positive whole number"),
        ("sd3", TRANSFORMER, {"use_rope": True}, "use_rope True, a field that is not known"),
        ("sd3", "text_encoder_3/config.json", {"architectures": ["CLIPTextModel"]}, "expected T5EncoderModel"),
        ("flux_dev", "model_index.json", {"transformer": ["x", "Other"]}, "expected FluxTransformer2DModel"),
    ],
)
def test_a_field_that_does_not_belong_to_the_family_is_named(
    folders, asked, capsys, tmp_path, name, file, fields, message
):
    folder = copied(folders[name], tmp_path, file, **fields)
    for more in ([], ["--dry-run"]):
        assert asked(folder, "--resolution", "16", *more) == 2
        assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sd3", ["--resolution", "18"], "--resolution 18x18: expected multiples of 4 pixels."),
        ("flux_dev", ["--resolution", "16x18"], "--resolution 16x18: expected multiples of 4 pixels."),
        ("sd3", ["--resolution", "64"], "has positions for 48; choose a smaller --resolution."),
        ("flux_schnell", ["--guidance", "3"], "--guidance 3: this model has no guidance ('flux_schnell' was distilled"),
        ("sd", ["--sigmas", "linspace"], "--sigmas linspace: model 'sd' is no flow model with grids; leave it out."),
        (
            "sd",
            ["--text-length", "64"],
            "--text-length 64: model 'sd' has no text of T5 or Qwen of that length; leave it out.",
        ),
        ("flux_dev", ["--text-length", "513"], "--text-length 513: expected at most 512."),
        ("sd3", ["--text-length", "0"], "--text-length 0: expected at least 1."),
        ("sd3", ["--kernel", "exact"], "--kernel exact: the reverse kernel of model 'sd3' is not known"),
        (
            "sd3",
            ["--kernel", "cps"],
            "no noise at all; give --eta, such as 0.8.",
        ),
        ("sd3", ["--kernel", "cps", "--eta", "0"], "strength --eta, which is 0: no noise at all; give --eta, such as"),
        ("sd3", ["--sigmas", "karras"], 'Invalid value "karras" for --sigmas. Choose from: "linspace", "scheduler".'),
    ],
)
def test_what_the_model_cannot_do_is_refused(folders, asked, capsys, name, arguments, message):
    for more in ([], ["--dry-run"]):
        assert asked(folders[name], *arguments, *more) == 2
        assert message in one_line(capsys)


@pytest.mark.parametrize("option", [["--sigmas", "linspace"], ["--text-length", "64"]])
def test_of_a_hub_id_that_is_not_here_a_refusal_says_how_to_learn_what_it_is(asked, capsys, option):
    assert asked("someone/a-model", *option) == 2
    assert "its files are not here yet, `alignbench fetch models someone/a-model` first." in one_line(capsys)
    assert run_command_line(["fetch", "models", "someone/a-model"]) == 1
    assert "run `alignbench fetch models someone/a-model`." in one_line(capsys)


@pytest.mark.parametrize("name", ["sd35_medium", "flux_dev"])
def test_odd_sides_of_a_model_that_is_not_here_are_refused_too(name):
    model = models.find(name)
    with pytest.raises(InputError, match="--resolution 520x512: expected multiples of 16 pixels"):
        models.family_of(model).refuse(model, RunOptions(algo="base", resolution="520x512"), "base", trains=False)
    assert models.latent_shape(model) == (16, 128, 128)


def test_flux_without_t5_is_refused_whatever_is_left_of_it(folders, asked, capsys, tmp_path):
    other = copied(folders["flux_dev"], tmp_path, "model_index.json", text_encoder_2=NOTHING, tokenizer_2=NOTHING)
    shutil.rmtree(other / "text_encoder_2")
    shutil.rmtree(other / "tokenizer_2")
    assert asked(other, "--resolution", "16") == 1
    assert (
        "text_encoder_2/config.json, tokenizer_2/tokenizer.json, text_encoder_2/model.safetensors missing"
        in one_line(capsys)
    )


def test_sd3_without_its_t5s_files_is_whole_where_its_index_leaves_t5_out(folders, asked, capsys, tmp_path):
    shutil.copytree(folders["sd3"], tmp_path / "sd3")
    shutil.rmtree(tmp_path / "sd3" / "text_encoder_3")
    assert asked(tmp_path / "sd3") == 1
    assert "text_encoder_3/config.json, text_encoder_3/model.safetensors missing" in one_line(capsys)
    index = json.loads((tmp_path / "sd3" / "model_index.json").read_text())
    absent = {"text_encoder_3": NOTHING, "tokenizer_3": NOTHING}
    (tmp_path / "sd3" / "model_index.json").write_text(json.dumps(index | absent))
    assert loading.layout_of(tmp_path / "sd3", "x").missing(tmp_path / "sd3") == []


def test_a_shard_that_is_missing_is_named(folders, asked, capsys, tmp_path):
    other = Path(shutil.copytree(folders["sd3"], tmp_path / "sd3"))
    weights = other / "transformer" / "diffusion_pytorch_model.safetensors"
    part = "diffusion_pytorch_model-00001-of-00002.safetensors"
    weights.rename(weights.with_name(part))
    index = {"weight_map": {"a": part, "b": part.replace("00001", "00002", 1)}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    assert asked(other) == 1
    assert f"transformer/{part.replace('00001', '00002', 1)} missing." in one_line(capsys)


def test_text_encoders_of_other_widths_than_the_transformer_takes_are_refused(folders, tmp_path):
    config = json.loads((folders["sd3"] / TRANSFORMER).read_text())
    other = Path(shutil.copytree(folders["sd3"], tmp_path / "sd3"))
    wide = random_models.SD3Transformer2DModel.from_config(config | {"joint_attention_dim": 32})
    wide.save_pretrained(other / "transformer")
    with pytest.raises(InputError, match=r"joint_attention_dim 32, its text encoders make 24\.$"):
        models.load(models.find(str(other)), Meter())


def test_a_denoiser_with_other_positions_is_another_model(folders, tmp_path):
    """SD3's table of positions is in the file of its weights, and no weight."""
    pipeline = models.load(models.find(str(folders["sd3"])), Meter())
    pipeline.adapt(FullFineTune(), Key("a")).save(tmp_path)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({n: v + (1.0 if n == "pos_embed.pos_embed" else 0.0) for n, v in state.items()}, path)
    with pytest.raises(RunError, match=r"does not fit model 'sd3': its pos_embed.pos_embed is another one"):
        open_policy(pipeline, tmp_path)


def test_a_lora_of_a_unet_does_not_fit_a_transformer(folders, tmp_path):
    models.load(models.find("tiny"), Meter()).adapt(LoRA(2), Key("a")).save(tmp_path)
    with pytest.raises(RunError, match="does not fit model 'sd3'"):
        open_policy(models.load(models.find(str(folders["sd3"])), Meter()), tmp_path)


def cell(folder: Path | str, tmp_path: Path, **changes: object):
    (tmp_path / "test.txt").write_text("a red circle\na star\n")
    values = {"algo": "base", "model": str(folder), "prompts": str(tmp_path / "test.txt"), "steps": 3}
    values |= {"reward": "jpeg_compressibility", "scorers": (), "output": tmp_path / "results", "resolution": "16"}
    return resolve(RunOptions(**values | changes))


@pytest.mark.parametrize(("name", "guidance", "evaluations"), [("sd3", 3.0, 2), ("flux_dev", 3.0, 1), ("sd3", 1.0, 1)])
def test_an_estimate_knows_that_guidance_which_the_denoiser_is_told_costs_nothing(
    folders, tmp_path, name, guidance, evaluations
):
    """Two images of three steps, and the best of four of each."""
    for algo, times in (("base", 1), ("best_of_n", 4)):
        own = {"set": {"n": 4}} if algo == "best_of_n" else {}
        found = estimate(cell(folders[name], tmp_path, algo=algo, guidance=guidance, **own))
        assert found is not None
        assert found.evaluation.denoiser_forward == 2 * 3 * times * evaluations


def test_a_scale_below_1_is_another_cell_only_where_the_denoiser_is_told_it(folders, tmp_path):
    def found(name: str, guidance: float):
        return cell(folders[name], tmp_path, guidance=guidance)

    assert found("sd3", 0.5).path == found("sd3", 1.0).path
    assert [found("sd3", 0.5).sampling.guidance, found("flux_dev", 0.5).sampling.guidance] == [1.0, 0.5]
    assert found("flux_dev", 0.5).path != found("flux_dev", 1.0).path
    with pytest.raises(InputError, match=r"guidance must not be negative, got -0\.5"):
        found("flux_dev", -0.5)


@pytest.mark.parametrize("algo", ["steering", "svdd", "ddpo", "refl"])
def test_a_kernel_with_noise_needs_no_eta_where_the_algorithm_has_its_own(folders, tmp_path, algo):
    (tmp_path / "train.txt").write_text("a blue square\n")
    trained = {"train_prompts": str(tmp_path / "train.txt")} if algo in ("ddpo", "refl") else {}
    assert cell(folders["sd3"], tmp_path, algo=algo, kernel="cps", **trained).sampling.kernel == "cps"


@pytest.mark.parametrize("algo", ["base", "best_of_n", "draft", "flow_grpo"])
def test_a_kernel_that_would_draw_no_noise_is_refused_whatever_is_drawn_for_training(folders, tmp_path, algo):
    """DRaFT's η is by default the cell's; Flow-GRPO's belongs to a kernel of its own."""
    with pytest.raises(InputError, match="--kernel dance_sde draws noise of strength --eta, which is 0 for model"):
        cell(folders["sd3"], tmp_path, algo=algo, kernel="dance_sde")


@pytest.mark.parametrize("eta", [None, 0.5])
def test_a_kernel_is_refused_where_a_test_time_method_has_its_own(folders, tmp_path, eta):
    with pytest.raises(InputError, match="--kernel cps: 'rollover' draws with a kernel of its own, ddim; leave it out"):
        cell(folders["sd3"], tmp_path, algo="rollover", kernel="cps", eta=eta)
    own = cell(folders["sd3"], tmp_path, algo="rollover", set={"kernel": "flow_sde", "eta": 0.7})
    assert (own.algorithm.kernel, own.sampling.kernel) == ("flow_sde", "ddim")


@pytest.mark.parametrize("grid", ["linspace", "scheduler"])
def test_the_grid_is_a_part_of_a_cells_identity(folders, tmp_path, grid: Sigmas):
    usual, other = cell(folders["sd3"], tmp_path), cell(folders["sd3"], tmp_path, sigmas=grid)
    assert usual.path != other.path
    assert other.hold("cpu").sigmas == grid


@pytest.mark.parametrize("name", ["sd3", "flux_dev"])
def test_the_length_of_the_text_is_a_part_of_a_cells_identity_and_says_what_is_cut_off(folders, tmp_path, name):
    """Both CLIPs read all of both prompts. For T5 the first has 5 tokens, the second 4."""
    usual, other = cell(folders[name], tmp_path), cell(folders[name], tmp_path, text_length=4)
    assert usual.path != other.path
    assert (usual.hold("cpu").tokens, other.hold("cpu").tokens) == (None, 4)
    assert other.configuration.sampling["text_length"] == 4
    assert [cut_off.counted(cut_off.reader_before_loading(c), cut_off.prompts_of(c)) for c in (usual, other)] == [
        {},
        {"evaluated": 1},
    ]


def test_a_dry_run_says_which_scale_the_loss_on_pairs_tells_the_denoiser(folders, tmp_path):
    def notes(name: str, algo: str, **changes: object) -> list[str]:
        (tmp_path / "train.txt").write_text("a blue circle\na square\n")
        return cell(folders[name], tmp_path, algo=algo, train_prompts=str(tmp_path / "train.txt"), **changes).notes

    told = "guidance: the denoiser is told its scale, 3.5 where images are drawn and 1 in the loss on pairs"
    assert notes("flux_dev", "diffusion_dpo", guidance=3.5) == [told]
    assert notes("flux_dev", "awm", guidance=3.5) == notes("sd3", "diffusion_dpo", guidance=3.5) == []


def test_presets_are_sampled_as_their_cards_say():
    found = {name: models.find(name) for name in ("sd3", "sd35_medium", "sd35_large", "flux_dev", "flux_schnell")}
    assert [(m.steps, m.guidance) for m in found.values()] == [(28, 7), (40, 4.5), (28, 3.5), (50, 3.5), (4, 1)]
    assert all(m.revision and len(m.revision) == 40 and m.licence and m.sigmas for m in found.values())
    sampled = {name: sampling_of(model, RunOptions(algo="base")) for name, model in found.items()}
    assert [s.evaluations for s in sampled.values()] == [2, 2, 2, 1, 1]


def test_a_full_fine_tune_after_an_adapter_that_is_no_more_has_the_models_own_names():
    """peft leaves its layers in the network when the last adapter is deleted."""
    pipeline = models.load(models.find("tiny"), Meter())
    before = {name for name, _ in pipeline.denoiser.named_parameters()}
    pipeline.adapt(LoRA(2), Key("a"))
    policy = pipeline.adapt(FullFineTune(), Key("a"))
    assert set(policy.state_dict()) == before
