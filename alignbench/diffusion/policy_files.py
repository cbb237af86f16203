"""How policies of latent models are saved, in the files of diffusers and peft: what its pipelines open, and
`alignbench.diffusion.adapters`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from alignbench.diffusion.adapter_files import LORA, NETWORK
from alignbench.files import replace_file, write_text
from alignbench.interface import LoRA

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(tuning: LoRA, targets: Sequence[str]) -> LoraConfig:
    """A LoRA as peft describes it, of these layers where it names none itself."""
    from peft import LoraConfig

    alpha = tuning.rank if tuning.alpha is None else tuning.alpha
    return LoraConfig(r=tuning.rank, lora_alpha=alpha, target_modules=list(tuning.targets or targets))


def save_lora(network: Any, adapter: str, folder: Path, part: str, matrices: Mapping[str, str]) -> None:
    """One adapter of a denoiser, its layers spelled in one way (diffusers tells a file's spelling by its first), with
    peft's configuration in the metadata. `part` stands before the layers; `matrices` are their names by peft's."""
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from peft.utils import get_peft_model_state_dict

    state = {}
    for name, weight in get_peft_model_state_dict(network, adapter_name=adapter).items():
        layer, matrix, _ = name.rsplit(".", 2)
        state[f"{part}.{layer}.{matrices[matrix]}.weight"] = weight.detach().contiguous()
    fields = network.peft_config[adapter].to_dict()
    fields = {f"{part}.{name}": sorted(value) if isinstance(value, set) else value for name, value in fields.items()}
    config = json.dumps(fields, indent=2, sort_keys=True)
    with replace_file(folder / LORA) as temporary:
        save_file(state, temporary, {"format": "pt", LORA_ADAPTER_METADATA_KEY: config})


def save_denoiser(network: Any, folder: Path) -> None:
    """A whole denoiser, in one file whatever its size."""
    state = {name: weight.detach().contiguous() for name, weight in network.state_dict().items()}
    with replace_file(folder / NETWORK) as temporary:
        save_file(state, temporary, {"format": "pt"})
    write_text(folder / "config.json", network.to_json_string())
