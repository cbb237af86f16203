"""What is made of each field of a model's configuration files. Imports no torch.

A field is honoured (it decides what is computed, here or in the library that builds the network), or silent (it says
nothing about it), or fixed: it must be absent or at its class's default, which is all that is supported. A field of no
kind is refused: nobody can say what it means. Names that start with "_" are the libraries' notes about the file.

Of a scheduler, the noise levels and how the denoiser's output is read are honoured. Evaluation samples with DDIM: what
belongs to the solver that the file names, such as `use_karras_sigmas` or `solver_order`, changes neither and is silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignbench.diffusion.flow_configs import (
    CLIP_AND_T5_TOKENIZERS,
    FLOW_SCHEDULER,
    FLUX,
    FLUX2,
    FLUX2_AUTOENCODER,
    QWEN_TEXT,
    QWEN_TOKENIZERS,
    SD3,
    T5_TEXT,
)
from alignbench.diffusion.layouts import CLIP, PROJECTED, QWEN, T5, Layout, layout_of
from alignbench.diffusion.readings import NOTES, Reading, either, words
from alignbench.diffusion.registry import read_json
from alignbench.errors import InputError, shown

BETAS = words("beta_start beta_end beta_schedule trained_betas")
SCHEDULER = Reading(
    # Those whose betas are the noise of a DDPM. Others name another process (FlowMatch…, EDM…, …Ve), or sample a
    # network that was distilled to be used in no other way (LCM, TCD).
    classes=(
        "DDIMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "DDIMParallelScheduler",
        "DDPMScheduler",
        "DDPMParallelScheduler",
        "LMSDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "DPMSolverSDEScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
        "SASolverScheduler",
    ),
    honoured=BETAS
    | words(
        "num_train_timesteps rescale_betas_zero_snr prediction_type",
        "timestep_spacing steps_offset set_alpha_to_one clip_sample clip_sample_range",
    ),
    silent=words(
        "skip_prk_steps tensor_format interpolation_type sigma_min sigma_max final_sigmas_type noise_sampler_seed",
        "use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas lambda_min_clipped",
        "solver_order solver_type solver_p algorithm_type lower_order_final euler_at_final predict_x0",
        "disable_corrector predictor_order corrector_order tau_func use_clipped_model_output",
        "dynamic_thresholding_ratio sample_max_value flow_shift time_shift_type",  # of what is fixed below
        "original_inference_steps timestep_scaling",  # left in a file whose scheduler was LCM's before
    ),
    fixed={
        "thresholding": False,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "shift_terminal": None,
        "timestep_type": "discrete",
        "predict_epsilon": True,
    },
    otherwise=", which describes no DDPM noise schedule that DDIM can sample",
)
VARIANCES = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")  # others are learned
UNET = Reading(
    classes=("UNet2DConditionModel",),
    honoured=words(
        "sample_size center_input_sample flip_sin_to_cos freq_shift down_block_types mid_block_type up_block_types",
        "only_cross_attention block_out_channels layers_per_block downsample_padding mid_block_scale_factor act_fn",
        "norm_num_groups norm_eps cross_attention_dim transformer_layers_per_block",
        "reverse_transformer_layers_per_block attention_head_dim num_attention_heads use_linear_projection",
        "addition_time_embed_dim upcast_attention resnet_time_scale_shift resnet_skip_time_act resnet_out_scale_factor",
        "time_embedding_type time_embedding_dim time_embedding_act_fn timestep_post_act conv_in_kernel conv_out_kernel",
        "projection_class_embeddings_input_dim mid_block_only_cross_attention cross_attention_norm",
        "addition_embed_type_num_heads",
    ),
    # A running average of the weights that training scripts of diffusers leave a note of, and dropout, which is off.
    silent=words(
        "dropout decay inv_gamma min_decay min_value optimization_step power update_after_step use_ema_warmup"
    ),
    fixed={
        "in_channels": 4,  # more: an image to fill in or to edit
        "out_channels": 4,  # more: a variance that the denoiser predicts
        "class_embed_type": None,
        "num_class_embeds": None,
        "class_embeddings_concat": False,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "time_cond_proj_dim": None,  # the guidance scale as an input of a distilled model
        "dual_cross_attention": False,
        "attention_type": "default",
    },
)
AUTOENCODER = Reading(
    classes=("AutoencoderKL",),
    honoured=words(
        "down_block_types up_block_types block_out_channels layers_per_block act_fn latent_channels norm_num_groups",
        "sample_size scaling_factor shift_factor latents_mean latents_std force_upcast use_quant_conv",
        "use_post_quant_conv mid_block_add_attention",
    ),
    fixed={"in_channels": 3, "out_channels": 3},
)
_TEXT = Reading(
    classes=("CLIPTextModel",),
    honoured=words(
        "vocab_size hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads",
        "max_position_embeddings hidden_act layer_norm_eps pad_token_id bos_token_id eos_token_id",
    ),
    silent=NOTES,
    fixed={
        "model_type": "clip_text_model",
        "is_decoder": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
        "output_hidden_states": False,
        "return_dict": True,
        "torchscript": False,
        "pruned_heads": {},
        "chunk_size_feed_forward": 0,
    },
)
CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
TEXT: Mapping[str, Reading] = {
    CLIP: _TEXT,
    PROJECTED: Reading((PROJECTED,), _TEXT.honoured, _TEXT.silent, _TEXT.fixed),
    T5: T5_TEXT,
    QWEN: QWEN_TEXT,
}
TOKENIZERS = {
    CLIP: CLIP_TOKENIZERS,
    PROJECTED: CLIP_TOKENIZERS,
    T5: CLIP_AND_T5_TOKENIZERS,
    QWEN: QWEN_TOKENIZERS,
}
NETWORKS = {reading.classes[0]: reading for reading in (UNET, SD3, FLUX, FLUX2, AUTOENCODER, FLUX2_AUTOENCODER)}
# Entries of model_index.json that say nothing about what is drawn; the fields of SDXL's index are read where it is.
BESIDE = words(
    "safety_checker feature_extractor image_encoder requires_safety_checker add_watermarker",
    "force_zeros_for_empty_prompt requires_aesthetics_score",
)


def check_index(place: str, index: Mapping[str, Any], layout: Layout) -> None:
    """Raise InputError where the index gives a part of the layout another class than is read or none at all, or has a
    further part."""
    scheduler = FLOW_SCHEDULER if layout.flow else SCHEDULER
    expected = {"scheduler": scheduler.classes, layout.denoiser: (layout.network,), "vae": (layout.autoencoders,)}
    for tokenizer, (part, kind) in zip(layout.tokenizers, layout.encoders.items(), strict=True):
        expected |= {part: (kind,), tokenizer: TOKENIZERS[kind]}
    for name, value in index.items():
        empty = value is None or value == [None, None]
        if name.startswith("_") or name in BESIDE or (name == "is_distilled" and layout.folded > 1):
            continue
        if empty and name not in expected:
            continue
        if name not in expected:
            raise InputError(f"{place} has {name} {shown(value)}, a part that is not used here; expected none.")
        kind = value[1] if isinstance(value, list) and len(value) == 2 else value
        if kind not in expected[name]:
            said = scheduler.otherwise if name == "scheduler" else ""
            raise InputError(f"{place} has {name} {shown(value)}{said}; expected {either(expected[name])}.")


def check_scheduler(place: str, config: Mapping[str, Any]) -> None:
    """Raise InputError where a scheduler's file does not describe the noise of a DDPM, or more than is read."""
    SCHEDULER.check(place, {name: value for name, value in config.items() if name != "variance_type"})
    if config.get("variance_type") not in VARIANCES:
        raise InputError(
            f"{place} has variance_type {shown(config['variance_type'])}, which is not supported; expected a fixed one."
        )
    if not any(config.get(name) is not None for name in BETAS):
        raise InputError(
            f"{place} has none of {', '.join(sorted(BETAS))}, so that it describes no DDPM noise schedule; expected "
            "the scheduler of a Stable Diffusion pipeline."
        )


def check_denoiser(place: str, config: Mapping[str, Any], layout: Layout) -> None:
    """Raise InputError where a denoiser is another network, or wants to be told more than it is here: the text, and
    SDXL's also sizes."""
    if layout.network not in UNET.classes:
        # [klein] is told no scale of guidance, though that is its class's default.
        NETWORKS[layout.network].check(place, config, {"guidance_embeds": False} if layout.folded > 1 else None)
        return
    UNET.check(place, config, {"addition_embed_type": "text_time" if layout.sized else None})
    if layout.sized and config.get("addition_embed_type") is None:
        raise InputError(f"{place} has no addition_embed_type; expected 'text_time', as SDXL's denoiser has.")


def check_denoiser_in(folder: Path, layout: Layout) -> None:
    """Raise InputError where the denoiser of a folder of its own is not one for a layout."""
    check_denoiser(f"{folder}: config.json", read_json(folder / "config.json"), layout)


def check_tokenizer(place: str, config: Mapping[str, Any], encoder: str) -> None:
    """Raise InputError where a tokenizer is not one of the encoder's class."""
    kind = config.get("tokenizer_class")
    if kind is not None and kind not in TOKENIZERS[encoder]:
        raise InputError(f"{place} has tokenizer_class {shown(kind)}; expected {either(TOKENIZERS[encoder])}.")


def check_folder(folder: Path, source: str) -> Layout:
    """The layout of a pipeline's folder, which has all files and in them nothing that is not read. Raises InputError,
    and RunError where files are missing."""
    layout = layout_of(folder, source)
    layout.check(folder, source)
    check_files(folder, source, layout)
    return layout


def check_files(
    folder: Path, source: str, layout: Layout, denoiser: Path | None = None, autoencoder: Path | None = None
) -> None:
    """Check every configuration file of a pipeline's folder that is there; the denoiser's and the autoencoder's may be
    another folder's. Of a refiner, whose layout has no autoencoder, only what is used. Raises InputError."""
    tokenizers = dict(zip(layout.tokenizers, layout.encoders.values(), strict=True))
    places = {} if denoiser else {layout.config: folder}
    if layout.autoencoder:
        places |= dict.fromkeys(("model_index.json", "scheduler/scheduler_config.json"), folder)
        places |= {"vae/config.json": folder} if autoencoder is None else {"config.json": autoencoder}
    places |= {f"{part}/config.json": folder for part in layout.encoders}
    places |= {f"{part}/tokenizer_config.json": folder for part in tokenizers}
    if denoiser is not None:
        check_denoiser_in(denoiser, layout)
    for name, where in places.items():
        if not (where / name).is_file():
            continue
        place, config = f"{source if where == folder else where}: {name}", read_json(where / name)
        part = name.partition("/")[0]
        if part == "model_index.json":
            check_index(place, config, layout)
        elif part == "scheduler":
            (FLOW_SCHEDULER.check if layout.flow else check_scheduler)(place, config)
        elif part == layout.denoiser:
            check_denoiser(place, config, layout)
        elif part in layout.encoders:
            TEXT[layout.encoders[part]].check(place, config)
        elif part in tokenizers:
            check_tokenizer(place, config, tokenizers[part])
        else:
            NETWORKS[layout.autoencoders].check(place, config)
