"""Fields of configuration files: honoured, silent, at their class's default, or the reason of a refusal."""

from __future__ import annotations

import inspect
import json

import diffusers
import pytest
from transformers import CLIPTextConfig, Qwen3Config, T5Config

from alignbench.diffusion import configs
from alignbench.diffusion.configs import (
    AUTOENCODER,
    SCHEDULER,
    TEXT,
    UNET,
    check_denoiser,
    check_index,
    check_scheduler,
)
from alignbench.diffusion.flow_configs import FLOW_SCHEDULER, FLUX, FLUX2, FLUX2_AUTOENCODER, SD3
from alignbench.diffusion.layouts import CLIP, PROJECTED, QWEN, SD, T5
from alignbench.diffusion.layouts import SDXL as SDXL_LAYOUT
from alignbench.diffusion.schedule import Schedule
from alignbench.errors import InputError

# As they are published, with what other schedulers left in them.
SD15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SDXL = {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
    "use_karras_sigmas": False,
}  # fmt: skip
SAVED_BY_USERS = {
    "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "dynamic_thresholding_ratio": 0.995,
    "lambda_min_clipped": float("-inf"), "lower_order_final": True, "solver_order": 2, "solver_type": "midpoint",
    "thresholding": False, "use_karras_sigmas": True, "variance_type": None, "final_sigmas_type": "zero",
    "original_inference_steps": 50, "timestep_scaling": 10.0,
}  # fmt: skip
OLD_UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "in_channels": 4, "out_channels": 4, "sample_size": 64, "decay": 0.9999, "optimization_step": 15000,
}  # fmt: skip


@pytest.mark.parametrize("config", [SD15, SDXL, SAVED_BY_USERS])
def test_a_published_scheduler_is_read(config):
    check_scheduler("f", config)
    assert len(Schedule.from_config(config)) == 1000


def test_a_published_denoiser_with_notes_of_its_training_is_read():
    check_denoiser("f", OLD_UNET, SD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "_class_name 'FlowMatchEulerDiscreteScheduler', which desc",
        ),
        ({"_class_name": "EDMEulerScheduler"}, "_class_name 'EDMEulerScheduler'"),
        ({"_class_name": "LCMScheduler"}, "_class_name 'LCMScheduler'"),
        ({"_class_name": ["DDIMScheduler"]}, r"_class_name \['DDIMScheduler'\]"),
        ({"thresholding": True}, "thresholding True, which is not supported; expected False"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas True"),
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting True"),
        ({"timestep_type": "continuous"}, "timestep_type 'continuous'"),
        ({"predict_epsilon": False}, "predict_epsilon False"),
        ({"variance_type": "learned_range"}, "variance_type 'learned_range'"),
        ({"shift": 3.0}, r"shift 3\.0, a field that is not known here"),
        ({"sigma_data": 0.5}, r"sigma_data 0\.5, a field that is not known"),
        ({"base_shift": "\x1b[2J" + "x" * 99}, r"base_shift '\\x1b\[2Jx+…, a field"),
    ],
)
def test_a_scheduler_that_says_more_than_is_read_is_refused_naming_field_and_value(change, message):
    with pytest.raises(InputError, match=f"^f has {message}"):
        check_scheduler("f", SD15 | change)


def test_a_scheduler_without_betas_is_no_noise_schedule():
    with pytest.raises(InputError, match="f has none of beta_end, beta_schedule, beta_start, trained_betas"):
        check_scheduler("f", {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 9}, "in_channels 9, which is not supported; expected 4"),
        ({"in_channels": 8}, "in_channels 8"),
        ({"out_channels": 8}, "out_channels 8"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ({"num_class_embeds": 1000}, "num_class_embeds 1000"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim 256"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type 'text_proj'"),
        (
            {"addition_embed_type": "text_time"},
            "addition_embed_type 'text_time', which is not supported; expected None",
        ),
        ({"addition_embed_type": "image"}, "addition_embed_type 'image'"),
        ({"attention_type": "gated"}, "attention_type 'gated'"),
        ({"dual_cross_attention": True}, "dual_cross_attention True"),
        ({"_class_name": "UNet3DConditionModel"}, "_class_name 'UNet3DConditionModel'; expected UNet2DConditionModel"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config \{'bits': 4\}, a field that is not known"),
    ],
)
def test_a_denoiser_that_wants_more_than_the_text_is_refused_naming_field_and_value(change, message):
    with pytest.raises(InputError, match=f"^f has {message}"):
        check_denoiser("f", OLD_UNET | change, SD)


@pytest.mark.parametrize("kind", [None, "text", "image_hint"])
def test_sdxls_denoiser_is_told_sizes(kind):
    with pytest.raises(InputError, match=r"f has addition_embed_type .*; expected 'text_time'"):
        check_denoiser("f", OLD_UNET | {"addition_embed_type": kind}, SDXL_LAYOUT)
    with pytest.raises(InputError, match="f has no addition_embed_type; expected 'text_time'"):
        check_denoiser("f", OLD_UNET, SDXL_LAYOUT)


@pytest.mark.parametrize(
    ("reading", "config", "message"),
    [
        (AUTOENCODER, {"_class_name": "AutoencoderTiny"}, "_class_name 'AutoencoderTiny'; expected AutoencoderKL"),
        (AUTOENCODER, {"_class_name": "VQModel"}, "_class_name 'VQModel'"),
        (AUTOENCODER, {"in_channels": 4}, "in_channels 4"),
        (AUTOENCODER, {"upsample_fn": "x"}, "upsample_fn 'x', a field that is not known"),
        (
            TEXT[CLIP],
            {"architectures": ["T5EncoderModel"]},
            "architectures 'T5EncoderModel'; expected CLIPText",
        ),
        (TEXT[CLIP], {"model_type": "altclip"}, "model_type 'altclip'"),
        (TEXT[CLIP], {"architectures": ["CLIPTextModelWithProjection"]}, "architectures 'CLIPTextModelWith"),
        (
            TEXT[PROJECTED],
            {"architectures": ["CLIPTextModel"]},
            "architectures 'CLIPTextModel'; expected CLIPTe",
        ),
        (TEXT[CLIP], {"return_dict": False}, "return_dict False"),
        (TEXT[CLIP], {"rope_theta": 1e4}, r"rope_theta 10000\.0, a field that is not known"),
    ],
)
def test_autoencoders_and_text_encoders_of_other_kinds_are_refused(reading, config, message):
    with pytest.raises(InputError, match=f"^f has {message}"):
        reading.check("f", config)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"controlnet": ["diffusers", "ControlNetModel"]},
            r"controlnet \['diffusers', 'ControlNetModel'\], a part that",
        ),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "vae .*; expected AutoencoderKL"),
        ({"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "scheduler .* no DDPM noise schedule"),
        ({"unet": ["my_unet", "MyUNet"]}, "unet .*; expected UNet2DConditionModel"),
        ({"tokenizer": ["transformers", "T5Tokenizer"]}, "tokenizer .*; expected CLIPTokenizer or CLIPTokenizerFast"),
        ({"text_encoder": "CLIPTextModel2"}, "text_encoder 'CLIPTextModel2'"),
        ({"vae": [None, None]}, r"vae \[None, None\]; expected AutoencoderKL"),
        ({"tokenizer": None}, "tokenizer None; expected CLIPTokenizer or CLIPTokenizerFast"),
    ],
)
def test_an_index_with_other_parts_is_refused_by_name(entry, message):
    plain = {"_class_name": "x", "unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": ["a", "b"], "x": None}
    check_index("f", plain, SD)
    with pytest.raises(InputError, match=f"^f has {message}"):
        check_index("f", plain | entry, SD)


def fields_of(kind: type) -> dict[str, object]:
    """A class's configuration and its defaults; none of a class whose library is not installed."""
    signature = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in signature if p.name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD}


READINGS = [(name, SCHEDULER) for name in SCHEDULER.classes] + [
    (UNET.classes[0], UNET),
    (AUTOENCODER.classes[0], AUTOENCODER),
    *((reading.classes[0], reading) for reading in (FLOW_SCHEDULER, SD3, FLUX, FLUX2, FLUX2_AUTOENCODER)),
]


@pytest.mark.parametrize(("name", "reading"), READINGS)
def test_of_each_class_every_field_has_its_kind_and_what_is_fixed_is_its_default(name, reading):
    """So that a field that a newer library adds is noticed here, and until then refused where it says something."""
    fields = fields_of(getattr(diffusers, name))
    own = {"variance_type"} if reading is SCHEDULER else {"addition_embed_type"}
    assert set(fields) <= reading.honoured | reading.silent | set(reading.fixed) | own
    defaults = {n: fields[n] for n in reading.fixed if n in fields}
    assert {n: v for n, v in reading.fixed.items() if n in fields} == json.loads(json.dumps(defaults))
    assert not reading.honoured & reading.silent
    assert not (reading.honoured | reading.silent) & set(reading.fixed)


def test_a_text_encoder_as_transformers_writes_it_is_read():
    TEXT[CLIP].check("f", CLIPTextConfig().to_dict() | {"architectures": ["CLIPTextModel"]})


def test_t5_as_transformers_writes_it_and_as_it_was_published_is_read():
    TEXT[T5].check("f", T5Config().to_dict() | {"architectures": ["T5EncoderModel"]})
    published = {"d_model": 4096, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "output_past": True}
    TEXT[T5].check("f", published | {"num_decoder_layers": 24, "tie_word_embeddings": False, "use_cache": True})


def test_qwen_as_transformers_writes_it_and_as_it_was_published_is_read():
    TEXT[QWEN].check("f", Qwen3Config().to_dict() | {"architectures": [QWEN]})
    published = {
        "architectures": [QWEN], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560, "initializer_range": 0.02,
        "intermediate_size": 9728, "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
        "vocab_size": 151936,
    }  # fmt: skip
    TEXT[QWEN].check("f", published)


def test_every_other_scheduler_of_diffusers_is_refused():
    others = [n for n in dir(diffusers) if n.endswith("Scheduler") and n not in SCHEDULER.classes]
    assert len(others) > 10
    for name in others:
        with pytest.raises(InputError, match=f"f has _class_name '{name}'"):
            check_scheduler("f", SD15 | {"_class_name": name})


@pytest.mark.parametrize("name", SCHEDULER.classes)
def test_noise_levels_that_a_file_leaves_out_are_those_of_its_class(name):
    fields = fields_of(getattr(diffusers, name))
    if not fields:
        pytest.skip("its library is not installed")
    usual = diffusers.DDIMScheduler(beta_start=fields["beta_start"], beta_end=fields["beta_end"]).alphas_cumprod
    assert fields["beta_schedule"] == "linear"
    found = Schedule.from_config({"_class_name": name, "beta_schedule": "linear"}).alpha_bar
    assert (found - usual.double()).abs().max() < 1e-5


def test_a_field_that_says_nothing_is_no_reason_to_refuse():
    check_scheduler("f", SD15 | {"_note": 1, "of_a_newer_library": None})
    assert configs.shown("x" * 100).endswith("…")
