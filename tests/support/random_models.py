"""Checkpoints of random weights in the published layouts: small ones for tests, and ones of the true architectures.

`python tests/support/random_models.py sd15|sdxl|sd35 FOLDER [--dtype bfloat16]` writes a true one, which
`--model FOLDER` opens.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from alignbench import Key
from alignbench.diffusion import registry as models
from alignbench.shapes.autoencoder import initialise

TINY = Path(models.__file__).parents[1] / "shapes" / "weights" / "tiny"
# One or two short rounds of every algorithm, and the fewest candidates.
MOST = {"batch": 4, "learning_rate": 1e-2}
SHORTEST: dict[str, dict[str, Any]] = {
    "awm": MOST | {"rounds": 1, "samples_per_round": 8, "samples_per_prompt": 4, "steps": 3, "levels": 2, "first": 0},
    "base": {},
    "best_of_n": {"n": 2},
    "classifier_guidance": {"steps": 3, "beta": 0.001},
    "d3po": MOST | {"rounds": 1, "samples_per_round": 4, "updates_per_round": 1, "steps": 3},
    "ddpo": MOST | {"rounds": 2, "samples_per_round": 8, "steps": 3, "clip": 1.0, "learning_rate": 0.1},
    "demon": {"steps": 2, "candidates": 2},
    "diffusion_dpo": MOST | {"rounds": 1, "updates_per_round": 2, "pairs_per_update": 4, "warmup": 0},
    "diffusion_kto": MOST | {"rounds": 1, "updates_per_round": 2, "pairs_per_update": 4, "warmup": 0},
    "diffusion_nft": MOST | {"rounds": 1, "samples_per_round": 8, "samples_per_prompt": 4, "steps": 3},
    "doodl": {"steps": 2, "updates": 2, "learning_rate": 0.5},
    "dpok": MOST | {"rounds": 1, "samples_per_round": 8, "moves_per_update": 8, "steps": 3, "value_batch": 8},
    "draft": MOST | {"rounds": 1, "updates_per_round": 2, "steps": 3},
    "flow_grpo": MOST | {"rounds": 1, "samples_per_round": 8, "samples_per_prompt": 4, "steps": 3, "clip": 1.0},
    "mapo": MOST | {"rounds": 1, "updates_per_round": 2, "pairs_per_update": 4, "warmup": 0},
    "noise_search": {"iterations": 2, "neighbours": 1},
    "refl": MOST
    | {"rounds": 1, "updates_per_round": 2, "samples_per_update": 4, "steps": 3, "margin": "none", "tuning": "lora"},
    "reward_weighted_regression": MOST
    | {"rounds": 1, "samples_per_round": 8, "updates_per_round": 2, "passes": 1, "tuning": "lora"},
    "rollover": {"candidates": 2, "starts": 2},
    "sft": MOST | {"rounds": 1, "updates_per_round": 2, "pairs_per_update": 4, "warmup": 0},
    "steering": {"n": 2, "interval": 1},
    "svdd": {"candidates": 2},
    "universal_guidance": {},
}
SMALL_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}
TRUE_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
TRUE_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
TRUE_TEXT_2: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


def small_text(width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": width,
        "vocab_size": 243,
        "max_position_embeddings": 20,
        "bos_token_id": 241,
        "eos_token_id": 242,
        "pad_token_id": 242,
    }


def small_unet(cross: int, **more: Any) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": cross,
        "attention_head_dim": (2, 2),
        "norm_num_groups": 4,
        **more,
    }


def small_sdxl(folder: Path) -> Path:
    """SDXL in miniature: 16 pixels, two encoders of other widths, sizes as conditions."""
    sized = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    unet = small_unet(20, **sized, projection_class_embeddings_input_dim=12 + 6 * 4, use_linear_projection=True)
    parts = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**small_text(8))),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**small_text(12))),
        "unet": UNet2DConditionModel(**unet),
        "vae": AutoencoderKL(**SMALL_VAE, scaling_factor=0.13025, force_upcast=True),
    }
    return save(folder, "StableDiffusionXLPipeline", parts, {"force_zeros_for_empty_prompt": True})


def small_refiner(folder: Path) -> Path:
    """The refiner of `small_sdxl`: one encoder, and an aesthetic score among its ids."""
    sized = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    parts = {
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**small_text(12))),
        "unet": UNet2DConditionModel(**small_unet(12, **sized, projection_class_embeddings_input_dim=12 + 5 * 4)),
        "vae": AutoencoderKL(**SMALL_VAE, scaling_factor=0.13025, force_upcast=True),
    }
    index = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    return save(folder, "StableDiffusionXLImg2ImgPipeline", parts, index, key="refiner")


def small_sd(folder: Path, prediction: str = "epsilon") -> Path:
    """Stable Diffusion in miniature: 16 pixels."""
    parts = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**small_text(8))),
        "unet": UNet2DConditionModel(**small_unet(8, use_linear_projection=prediction == "v_prediction")),
        "vae": AutoencoderKL(**SMALL_VAE),
    }
    return save(folder, "StableDiffusionPipeline", parts, prediction=prediction)


OF_SD3: dict[str, Any] = {
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}
FLOW_VAE: dict[str, Any] = SMALL_VAE | OF_SD3
STATIC = {"num_train_timesteps": 1000, "shift": 3.0}  # as SD3's files have it
DYNAMIC = STATIC | {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


TRUE_SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
TRUE_SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TRUE_SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
TRUE_FLUX: dict[str, Any] = {"guidance_embeds": True}  # the class's defaults are FLUX.1's
TRUE_KLEIN_4B: dict[str, Any] = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}


def small_t5(width: int) -> T5EncoderModel:
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 243}
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu"))


def small_sd3(folder: Path, t5: bool = True, norm: str | None = "rms_norm") -> Path:
    """Stable Diffusion 3 in miniature: 16 pixels, latents of 8, two CLIPs and perhaps T5; the first layer has a second
    attention, as 3.5 medium's, where it normalises queries as that does."""
    parts: dict[str, Any] = {
        "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**small_text(8))),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**small_text(12))),
        "transformer": SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=24,
            caption_projection_dim=32,
            pooled_projection_dim=20,
            pos_embed_max_size=12,
            qk_norm=norm,
            dual_attention_layers=(0,) if norm else (),
        ),
        "vae": AutoencoderKL(**FLOW_VAE),
    }
    parts |= {"text_encoder_3": small_t5(24)} if t5 else {}
    absent = {} if t5 else {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    return save(folder, "StableDiffusion3Pipeline", parts, absent, flow=STATIC)


def small_flux(folder: Path, guidance: bool = True) -> Path:
    """FLUX.1 in miniature, as [dev], which is told the guidance, or as [schnell]: its files say no size, and 16 pixels
    are asked for."""
    parts = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**small_text(8))),
        "text_encoder_2": small_t5(24),
        "transformer": FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            axes_dims_rope=(4, 6, 6),
            joint_attention_dim=24,
            pooled_projection_dim=8,
            guidance_embeds=guidance,
        ),
        "vae": AutoencoderKL(**FLOW_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    }
    return save(folder, "FluxPipeline", parts, flow=DYNAMIC if guidance else STATIC | {"shift": 1.0})


def small_klein(folder: Path, distilled: bool = True) -> Path:
    """FLUX.2 [klein] in miniature: three of 28 layers of Qwen3, whose tokens are bytes, and an autoencoder whose folded
    latents have running means and variances of their own. Its files say no size, and 16 pixels are asked for."""
    vae = {name: value for name, value in SMALL_VAE.items() if name != "latent_channels"}
    parts: dict[str, Any] = {
        "text_encoder": Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=260,
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=28,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=4,
                max_position_embeddings=1024,
            )
        ),
        "transformer": Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            axes_dims_rope=(4, 4, 4, 4),
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            guidance_embeds=False,
        ),
        "vae": AutoencoderKLFlux2(**vae, latent_channels=4, layers_per_block=1),
    }
    parts["vae"].bn.running_mean.copy_(0.3 * Key("klein", "mean").normal(16))
    parts["vae"].bn.running_var.copy_(0.5 + Key("klein", "variance").normal(16).square())
    return save(folder, "Flux2KleinPipeline", parts, {"is_distilled": distilled}, flow=DYNAMIC)


def true_sd15(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Stable Diffusion 1.5: 860 million weights in the denoiser."""
    parts = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TRUE_TEXT)),
        "unet": UNet2DConditionModel(**TRUE_SD15),
        "vae": AutoencoderKL(**TRUE_VAE),
    }
    return save(folder, "StableDiffusionPipeline", parts, dtype=dtype)


def half_sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5 of half the width: 215 million weights in the denoiser."""
    text = {name: size // 2 for name, size in TRUE_TEXT.items() if name.endswith(("size", "dim"))}
    unet = TRUE_SD15 | {"block_out_channels": (160, 320, 640, 640), "cross_attention_dim": 384}
    parts = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TRUE_TEXT | text)),
        "unet": UNet2DConditionModel(**unet),
        "vae": AutoencoderKL(**TRUE_VAE | {"block_out_channels": (64, 128, 256, 256)}),
    }
    return save(folder, "StableDiffusionPipeline", parts, dtype=torch.float32)


def true_sdxl(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """SDXL base: 2.6 billion weights in the denoiser."""
    unet = UNet2DConditionModel(**TRUE_SDXL)
    parts = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TRUE_TEXT)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TRUE_TEXT_2)),
        "unet": unet,
        "vae": AutoencoderKL(**TRUE_VAE | {"sample_size": 1024}, scaling_factor=0.13025, force_upcast=True),
    }
    return save(folder, "StableDiffusionXLPipeline", parts, {"force_zeros_for_empty_prompt": True}, dtype=dtype)


def true_sd35(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Stable Diffusion 3.5 medium without T5: 2.2 billion weights in the denoiser. They are drawn in the precision that
    they are kept in, for memory."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    parts = {
        "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**TRUE_TEXT)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TRUE_TEXT_2)),
        "transformer": SD3Transformer2DModel(**TRUE_SD35_MEDIUM),
        "vae": AutoencoderKL(**TRUE_VAE | OF_SD3 | {"latent_channels": 16, "sample_size": 1024}),
    }
    torch.set_default_dtype(usual)
    absent = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    return save(folder, "StableDiffusion3Pipeline", parts, absent, dtype=dtype, flow=STATIC)


def save(
    folder: Path,
    kind: str,
    parts: Mapping[str, Any],
    index: Mapping[str, Any] | None = None,
    prediction: str = "epsilon",
    key: str = "published",
    dtype: torch.dtype | None = None,
    flow: Mapping[str, Any] | None = None,
) -> Path:
    """Write the parts as a pipeline of that class; `flow` is the scheduler's configuration of a flow model. Small ones
    have weights of the key, true ones those of torch."""
    small = dtype is None
    for part, network in parts.items():
        if small:
            initialise(network, Key(key, part))
        network.to(dtype or torch.float32).save_pretrained(folder / part)
        if "text" in part:
            place = folder / part.replace("text_encoder", "tokenizer")
            if isinstance(network, Qwen3ForCausalLM):
                write_bytes(place)
            else:
                write_tokenizer(place, small)
    scheduler = "DDIMScheduler" if flow is None else "FlowMatchEulerDiscreteScheduler"
    write(folder / "model_index.json", **{"_class_name": kind, **(index or {}), **libraries(parts, scheduler)})
    if flow is not None:
        write(folder / "scheduler" / "scheduler_config.json", _class_name=scheduler, **flow)
        return folder
    settings = json.loads((TINY / "scheduler" / "scheduler_config.json").read_text())
    write(folder / "scheduler" / "scheduler_config.json", **settings | {"prediction_type": prediction})
    return folder


def libraries(parts: Mapping[str, Any], scheduler: str) -> dict[str, Any]:
    """The entries of model_index.json by which plain diffusers finds the classes."""
    found: dict[str, Any] = {"scheduler": ["diffusers", scheduler]}
    for part, network in parts.items():
        found[part] = [type(network).__module__.partition(".")[0], type(network).__name__]
        if "text" in part:
            kind = "Qwen2TokenizerFast" if isinstance(network, Qwen3ForCausalLM) else "CLIPTokenizer"
            found[part.replace("text_encoder", "tokenizer")] = ["transformers", kind]
    return found


def write_tokenizer(folder: Path, small: bool) -> None:
    """The embedded model's tokenizer, or CLIP's own 49408 tokens from open_clip's copy of the list of merges."""
    if small:
        shutil.copytree(TINY / "tokenizer", folder, dirs_exist_ok=True)
        return
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    packed = resources.files("open_clip") / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair.split()) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    pad = "!" if folder.name == "tokenizer_2" else "<|endoftext|>"
    write(
        folder / "tokenizer_config.json", **special, pad_token=pad, model_max_length=77, tokenizer_class="CLIPTokenizer"
    )


TALK = (  # Qwen3's, without tools and turns
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def write_bytes(folder: Path) -> None:
    """A tokenizer of Qwen's class that knows bytes alone, and a template of a talk."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*bytes_to_unicode().values(), *special]
    write(folder / "vocab.json", **{token: i for i, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    named = {"pad_token": special[0], "eos_token": special[2], "unk_token": special[0]}
    fields = named | {"tokenizer_class": "Qwen2TokenizerFast", "model_max_length": 131072, "chat_template": TALK}
    write(folder / "tokenizer_config.json", **fields, additional_special_tokens=special)


FRESH_PROCESS = """
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
pipeline.load_lora_weights(sys.argv[2])
torch.save(pipeline(**torch.load(sys.argv[3] + "/asked.pt"), output_type="pt").images, sys.argv[3] + "/images.pt")
assert "alignbench" not in sys.modules
"""


def drawn_by_plain_diffusers(model: Path, adapter: Path, folder: Path, **asked: Any) -> torch.Tensor:
    """What a pipeline of plain diffusers draws in a process of its own, with a LoRA by `load_lora_weights`."""
    torch.save(asked, folder / "asked.pt")
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, model, adapter, folder], check=True)
    images: torch.Tensor = torch.load(folder / "images.pt")
    return images


def write(path: Path, **content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=["sd15", "sdxl", "sd35"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    asked = parser.parse_args()
    torch.manual_seed(0)
    builders = {"sd15": true_sd15, "sdxl": true_sdxl, "sd35": true_sd35}
    print(builders[asked.family](asked.folder, getattr(torch, asked.dtype)))
