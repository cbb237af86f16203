"""What is made of each field of a model's configuration files. Imports no torch.

A field is honoured (it decides what is computed, here or in the library that builds the network), or silent (it says
nothing about it), or fixed: it must be absent or at its class's default, which is all that is supported. A field of no
kind is refused: nobody can say what it means. Names that start with "_" are the libraries' notes about the file.

Of a scheduler, the noise levels and how the denoiser's output is read are honoured. Evaluation samples with DDIM: what
belongs to the solver that the file names, such as `use_karras_sigmas` or `solver_order`, changes neither and is silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignbench.diffusion.layouts import Layout, layout_of
from alignbench.diffusion.registry import read_json
from alignbench.errors import InputError, shown


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


@dataclass(frozen=True)
class Reading:
    """What is made of the configuration of one class, or of several alike."""

    classes: tuple[str, ...]
    honoured: frozenset[str]
    silent: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    otherwise: str = ""  # what is said of another class

    def check(self, place: str, config: Mapping[str, Any], fixed: Mapping[str, Any] | None = None) -> None:
        """Raise InputError naming the first field of the file at `place` that is not read, and its value. `fixed` are
        further fields that must have one value."""
        for name, kind in classes_of(config).items():
            if kind not in self.classes:
                raise InputError(f"{place} has {name} {shown(kind)}{self.otherwise}; expected {_either(self.classes)}.")
        required = {**self.fixed, **(fixed or {})}
        for name, value in config.items():
            if name in required and value != required[name]:
                raise InputError(
                    f"{place} has {name} {shown(value)}, which is not supported; expected {required[name]!r}."
                )
            if name in self.honoured and _largest(value) > (most := MOST_LAYERS if "layers" in name else MOST):
                raise InputError(f"{place} has {name} {shown(value)}; expected at most {most}.")
            known = name in self.honoured or name in self.silent or name in required or name in CLASS_FIELDS
            if not known and not name.startswith("_") and value is not None:
                raise InputError(
                    f"{place} has {name} {shown(value)}, a field that is not known here, so that the model may not be "
                    "what it says; expected the configuration of a plain text-to-image model."
                )


MOST, MOST_LAYERS = 2**20, 1000  # of anything in a configuration; of layers, which take time to build


def _largest(value: object) -> float:
    """The largest number in a value of a file; 0 where it holds none."""
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, int | float) else 0


CLASS_FIELDS = ("_class_name", "architectures")


def classes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The class that a configuration names, by the field that does."""
    named = config.get("architectures") or [None]
    found = {"_class_name": config.get("_class_name"), "architectures": named[0] if isinstance(named, list) else named}
    return {name: kind for name, kind in found.items() if kind is not None}


def _either(names: Sequence[str]) -> str:
    first = names if len(names) <= 4 else [*names[:3], "another of that kind"]
    return first[0] if len(first) == 1 else f"{', '.join(first[:-1])} or {first[-1]}"


BETAS = _names("beta_start beta_end beta_schedule trained_betas")
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
    | _names(
        "num_train_timesteps rescale_betas_zero_snr prediction_type",
        "timestep_spacing steps_offset set_alpha_to_one clip_sample clip_sample_range",
    ),
    silent=_names(
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
    honoured=_names(
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
    silent=_names(
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
    honoured=_names(
        "down_block_types up_block_types block_out_channels layers_per_block act_fn latent_channels norm_num_groups",
        "sample_size scaling_factor shift_factor latents_mean latents_std force_upcast use_quant_conv",
        "use_post_quant_conv mid_block_add_attention",
    ),
    fixed={"in_channels": 3, "out_channels": 3},
)
# Fields that transformers once wrote into every file: of text generation, labels, training.
NOTES = _names(
    "transformers_version torch_dtype dtype initializer_factor initializer_range attention_dropout dropout use_cache",
    "id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix",
    "gradient_checkpointing tie_word_embeddings tie_encoder_decoder output_attentions tf_legacy_loss use_bfloat16",
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k",
    "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size",
    "bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id",
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens",
    "begin_suppress_tokens sep_token_id decoder_start_token_id cross_attention_hidden_size",
)
_TEXT = Reading(
    classes=("CLIPTextModel",),
    honoured=_names(
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
TEXT = {
    "text_encoder": _TEXT,
    "text_encoder_2": Reading(("CLIPTextModelWithProjection",), _TEXT.honoured, _TEXT.silent, _TEXT.fixed),
}
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
# Entries of model_index.json that say nothing about what is drawn; the fields of SDXL's index are read where it is.
BESIDE = _names(
    "safety_checker feature_extractor image_encoder requires_safety_checker add_watermarker",
    "force_zeros_for_empty_prompt requires_aesthetics_score",
)


def check_index(place: str, index: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Raise InputError where the index gives one of the parts another class than is read, or has a further part."""
    expected = {
        "scheduler": SCHEDULER.classes,
        "unet": UNET.classes,
        "vae": AUTOENCODER.classes,
        **{name: reading.classes for name, reading in TEXT.items()},
        "tokenizer": TOKENIZERS,
        "tokenizer_2": TOKENIZERS,
    }
    for name, value in index.items():
        empty = value is None or value == [None, None]
        if name.startswith("_") or name in BESIDE or empty:
            continue
        if name not in parts:
            raise InputError(f"{place} has {name} {shown(value)}, a part that is not used here; expected none.")
        kind = value[1] if isinstance(value, list) and len(value) == 2 else value
        if kind not in expected[name]:
            said = SCHEDULER.otherwise if name == "scheduler" else ""
            raise InputError(f"{place} has {name} {shown(value)}{said}; expected {_either(expected[name])}.")


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


def check_denoiser(place: str, config: Mapping[str, Any], sized: bool) -> None:
    """Raise InputError where a denoiser wants to be told more than it is here: the text, and SDXL's also sizes."""
    UNET.check(place, config, {"addition_embed_type": "text_time" if sized else None})
    if sized and config.get("addition_embed_type") is None:
        raise InputError(f"{place} has no addition_embed_type; expected 'text_time', as SDXL's denoiser has.")


def check_tokenizer(place: str, config: Mapping[str, Any]) -> None:
    """Raise InputError where a tokenizer is not CLIP's."""
    kind = config.get("tokenizer_class")
    if kind is not None and kind not in TOKENIZERS:
        raise InputError(f"{place} has tokenizer_class {shown(kind)}; expected {_either(TOKENIZERS)}.")


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
    whole, sized = layout.autoencoder, layout.encoders != ("text_encoder",)
    places = {"unet/config.json": denoiser or folder}
    if whole:
        places |= dict.fromkeys(("model_index.json", "scheduler/scheduler_config.json"), folder)
        places |= {"vae/config.json": folder} if autoencoder is None else {"config.json": autoencoder}
    places |= {f"{part}/config.json": folder for part in layout.encoders}
    places |= {f"{part}/tokenizer_config.json": folder for part in layout.tokenizers}
    for name, where in places.items():
        if not (where / name).is_file():
            continue
        place, config = f"{source if where == folder else where}: {name}", read_json(where / name)
        part = name.partition("/")[0]
        if part == "model_index.json":
            check_index(place, config, ("scheduler", "unet", "vae", *layout.encoders, *layout.tokenizers))
        elif part == "scheduler":
            check_scheduler(place, config)
        elif part == "unet":
            check_denoiser(place, config, sized)
        elif part in TEXT:
            TEXT[part].check(place, config)
        elif part in layout.tokenizers:
            check_tokenizer(place, config)
        else:
            AUTOENCODER.check(place, config)
