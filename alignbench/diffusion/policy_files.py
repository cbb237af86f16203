"""How policies of latent models are saved, in the files of diffusers and peft: what its pipelines open, and
`alignbench.diffusion.adapters`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from alignbench.diffusion.adapter_files import LORA, NETWORK
from alignbench.files import replace_file, write_text
from alignbench.interface import LoRA

if TYPE_CHECKING:
    from peft import LoraConfig

SIDES = {"lora_A": "down", "lora_B": "up"}  # peft's names of the matrices, and those of diffusers


def lora_config(tuning: LoRA) -> LoraConfig:
    """A LoRA as peft describes it."""
    from peft import LoraConfig

    alpha = tuning.rank if tuning.alpha is None else tuning.alpha
    return LoraConfig(r=tuning.rank, lora_alpha=alpha, target_modules=list(tuning.targets))


def save_lora(unet: Any, adapter: str, folder: Path) -> None:
    """One adapter of a denoiser, its layers spelled in one way (diffusers tells a file's spelling by its first), with
    peft's configuration in the metadata."""
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from peft.utils import get_peft_model_state_dict

    state = {}
    for name, weight in get_peft_model_state_dict(unet, adapter_name=adapter).items():
        layer, matrix, _ = name.rsplit(".", 2)
        state[f"unet.{layer}.lora.{SIDES[matrix]}.weight"] = weight.detach().contiguous()
    fields = unet.peft_config[adapter].to_dict()
    fields = {f"unet.{name}": sorted(value) if isinstance(value, set) else value for name, value in fields.items()}
    config = json.dumps(fields, indent=2, sort_keys=True)
    with replace_file(folder / LORA) as temporary:
        save_file(state, temporary, {"format": "pt", LORA_ADAPTER_METADATA_KEY: config})


def save_denoiser(unet: Any, folder: Path) -> None:
    """A whole denoiser, in one file whatever its size."""
    state = {name: weight.detach().contiguous() for name, weight in unet.state_dict().items()}
    with replace_file(folder / "unet" / NETWORK) as temporary:
        save_file(state, temporary, {"format": "pt"})
    write_text(folder / "unet" / "config.json", unet.to_json_string())
