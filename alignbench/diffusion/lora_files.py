"""LoRA files as they are found in the world, in one form: layers with their A, B and alpha.

A LoRA adds (alpha / rank) B A to a layer's weight (Hu et al. 2021, https://arxiv.org/abs/2106.09685). Its tensors are
spelled in several ways: by diffusers (`unet.LAYER.lora.down.weight`, before 0.22 `LAYER_WITHOUT_TO_Q.to_q_lora.down`;
of SD3 and FLUX `transformer.LAYER.lora_A.weight`), by peft (`base_model.model.LAYER.lora_A.weight`), by kohya's scripts
(`lora_unet_LAYER.lora_down.weight`, with underscores for dots), by ai-toolkit (`diffusion_model.LAYER.lora_A.weight`),
and by XLabs (`double_blocks.0.processor.qkv_lora1.down.weight`), the last three for SDXL, SD3 and FLUX with the layers
of the original code. The rank stands in the shapes. Alpha stands in peft's configuration, in an `alpha` of each layer,
or nowhere, and is the rank.

A file is data. What a LoRA computes otherwise than above is refused by the name of its tensor or of its field, and no
tensor is left out.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignbench.diffusion.adapter_files import EXPECTED, Found, whole_checkpoint
from alignbench.diffusion.original_names import has_halves_swapped, original_names, transformer_names
from alignbench.diffusion.registry import read_json
from alignbench.diffusion.states import State, refuse_misfits
from alignbench.errors import InputError, RunError, shown

if TYPE_CHECKING:
    from peft import LoraConfig

PREFIX = re.compile(
    r"(?:base_model\.model\.|unet\.|transformer\.|lora_unet_|lora_transformer_|(?:model\.)?diffusion_model\.)*"
)
OF_PROCESSORS = re.compile(r"\.to_(q|k|v|out)_lora(?=\.)")  # diffusers before it used peft
MATRIX = re.compile(  # peft may add the adapter's name; of XLabs the layer's own name ends in `_lora`
    r"(.+)(?:\.lora[._]|(?<=_lora)\.|(?<=_lora[12])\.)(down|up|A|B)(?:\.\w+)?\.weight"
)
ALPHA = re.compile(r"(.+?)(?:\.lora)?\.alpha")
MATRICES = {"down": "lora_A", "A": "lora_A", "up": "lora_B", "B": "lora_B"}
TEXT_ENCODERS = re.compile(r"(?:base_model\.model\.)?(?:lora_te\d?_|text_encoder|text_model\.|te\d?_)")
OTHER_KINDS = (  # what is found in names of tensors, and what it is called
    (re.compile(r"dora_scale|lora_magnitude_vector"), "DoRA"),
    (re.compile(r"\.hada_"), "LoHa"),
    (re.compile(r"\.lokr_"), "LoKr"),
    (re.compile(r"\.lora_mid\."), "LoRA in Tucker form"),
    (re.compile(r"\.(?:oft_|boft_)"), "OFT"),
    (re.compile(r"lora_(?:embedding_|bias)|lora_(?:B|up)(?:\.\w+)?\.bias|\.lora\.up\.bias"), "LoRA with a bias"),
    (re.compile(r"\.diff(?:_b)?$"), "full difference of weights"),
)
OF_DENOISER = re.compile(r"^(?:unet|transformer)\.")
METADATA = "lora_adapter_metadata"  # diffusers 0.35 and newer: peft's configuration, its fields behind the network's
# Fields of peft's configuration without a part in what a trained LoRA computes, or that its tensors speak for.
OF_TRAINING = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "runtime_config"),
    *("eva_config", "loftq_config", "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
}
HONOURED = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"}
INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others train against a base that they changed
PATTERN = re.compile(r"\^?[\w.\\]+")  # names of layers, which peft reads as regular expressions


@dataclass(frozen=True)
class LoraFile:
    """What a file says, before it is known which model it is for. Layers are named as the file spells them."""

    path: Path
    matrices: Mapping[tuple[str, str], Tensor]  # by layer, and `lora_A` or `lora_B`
    alphas: Mapping[str, float]
    others: State  # tensors that are none of a LoRA's
    config: Mapping[str, Any] | None  # peft's

    def rank(self, layer: str) -> int:
        """What the configuration says, for all layers or for this one by name."""
        assert self.config is not None
        rank = self.config.get("rank_pattern") or {}
        return int(rank.get(_pattern(rank, layer), self.config["r"]))

    def alpha(self, layer: str, rank: int) -> float:
        """By the configuration: rank-stabilised LoRAs divide by the root of the rank, and not by the rank."""
        if self.config is None:
            return rank
        alpha = self.config.get("alpha_pattern") or {}
        value: float = alpha.get(_pattern(alpha, layer), self.config["lora_alpha"])
        return value * math.sqrt(rank) if self.config.get("use_rslora") else value


@dataclass(frozen=True)
class Placed:
    """The LoRA of a file on a model: how peft describes it, and its tensors as a policy names them."""

    config: LoraConfig
    state: State


def parsed(found: Found, state: State, metadata: Mapping[str, str]) -> LoraFile:
    """Raises InputError for what is no LoRA or one of a kind that is not read, RunError for what contradicts itself."""
    path = found.files[0]
    _refuse(path, list(state))
    matrices: dict[tuple[str, str], Tensor] = {}
    alphas: dict[str, float] = {}
    others: State = {}
    for key, tensor in state.items():
        name = _plain(key)
        matrix, alpha = MATRIX.fullmatch(name), ALPHA.fullmatch(name)
        if matrix:
            place = (matrix[1], MATRICES[matrix[2]])
            if place in matrices:
                raise RunError(f"{path} holds {'.'.join(place)} twice, last as {key}; expected one LoRA.")
            matrices[place] = tensor
        elif alpha and tensor.numel() == 1 and not tensor.is_complex():
            alphas[alpha[1]] = _number(path, "alpha", float(tensor))
        else:
            others[key] = tensor
    config = _config(found, metadata)
    if config is not None and alphas:
        raise RunError(f"{path} says alpha twice: in its configuration, and for {next(iter(alphas))}; expected one.")
    if not matrices and config is None:
        first = next(iter(others), "no tensor at all")
        raise InputError(f"{path} holds no layer of a LoRA, but {first}; expected {EXPECTED}.")
    return LoraFile(path, matrices, alphas, others, config)


def placed(file: LoraFile, network: Any, model: str) -> Placed:
    """The LoRA on a denoiser. Raises RunError naming the first tensor that does not fit, before anything is made of
    its size."""
    layers = layers_of(network)
    meant = _spellings(layers, network.config.get("layers_per_block"))
    state = dict(file.others)
    for (spelled, matrix), tensor in file.matrices.items():
        found = meant.get(_joined(spelled), [spelled])
        for layer, part in zip(found, _parts(tensor, spelled, matrix, found, layers), strict=True):
            name = f"{layer}.{matrix}.weight"
            if name in state:
                raise RunError(f"{file.path} holds {name} twice, last as {spelled}; expected one LoRA.")
            state[name] = part
    targets = _targets(file, [name for name, _ in network.named_modules()], layers, model)
    held = {layer for spelled, _ in file.matrices for layer in meant.get(_joined(spelled), ())}
    adapted = [name for name in layers if name in held or _is_one_of(name, targets)]
    if not adapted:
        first = next((layer for layer, _ in file.matrices), next(iter(file.others), "of a LoRA"))
        raise RunError(
            f"{file.path} does not fit model {model!r}: it has no layer {first}; was it trained on another model?"
        )
    ranks = {name: _rank(file, name, state) for name in adapted}
    refuse_misfits(file.path, model, _shapes(layers, ranks), state)
    alphas = {name: file.alpha(name, rank) for name, rank in ranks.items()}
    for spelled, alpha in file.alphas.items():
        for layer in meant.get(_joined(spelled), [spelled]):
            if layer not in held:
                raise RunError(f"{file.path} has an alpha of {layer}, and no LoRA of it; copy it again.")
            alphas[layer] = alpha
    return Placed(_described(ranks, alphas, targets or _exactly(adapted, layers)), state)


def _spellings(layers: Mapping[str, Tensor], layers_per_block: object) -> dict[str, Sequence[str]]:
    """The layers that are meant by each name of one, with underscores for dots."""
    originals = original_names(layers, layers_per_block)
    single = [*originals.items(), *zip(layers, layers, strict=True)]
    found = {_joined(name): meant for name, meant in transformer_names(layers).items()}
    return found | {_joined(name): [layer] for layer, name in single}


def _parts(
    tensor: Tensor, spelled: str, matrix: str, meant: Sequence[str], layers: Mapping[str, Tensor]
) -> Sequence[Tensor]:
    """What each of the layers that one of the original's is has of its matrix: all of A, and its own rows of B."""
    rows = [len(layers[layer]) for layer in meant if layer in layers]
    if matrix == "lora_A" or not rows or tensor.shape[:1] != (sum(rows),):  # misfits are refused later, by name
        return [tensor] * len(meant)
    if has_halves_swapped(spelled, rows[0], layers[meant[0]].shape[1]):
        return [torch.cat(tensor.chunk(2)[::-1])]
    return tensor.split(rows)


def layers_of(network: nn.Module) -> dict[str, Tensor]:
    """The weights of all layers that a LoRA can be of, by the layer's name; those of adapters are none."""
    return {
        name.removesuffix(".base_layer"): module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name
    }


def _refuse(path: Path, names: Sequence[str]) -> None:
    """Raise InputError where tensors are of something else than a LoRA of a denoiser."""
    if whole := whole_checkpoint(path, names):
        raise InputError(whole)
    if of_text := [name for name in names if TEXT_ENCODERS.match(name)]:
        raise InputError(
            f"{path} changes a text encoder too ({len(of_text)} of {len(names)} tensors, the first is {of_text[0]}); "
            "expected a LoRA of the denoiser alone."
        )
    for pattern, kind in OTHER_KINDS:
        if of_kind := [name for name in names if pattern.search(name)]:
            raise InputError(f"{path} is a {kind} ({of_kind[0]}), which is not supported; expected a plain LoRA.")


def _plain(key: str) -> str:
    """A tensor's name without what stands before the layer's, and with the layers of attention under their own."""
    name = key.replace(".processor.", ".")
    name = OF_PROCESSORS.sub(lambda found: f".to_{found[1]}{'.0' if found[1] == 'out' else ''}.lora", name)
    return PREFIX.sub("", name, count=1)


def _joined(name: str) -> str:
    """A layer's name as all spellings have it: kohya's has underscores alone."""
    return name.replace(".", "_")


def _config(found: Found, metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    """peft's configuration of the denoiser's LoRA, from the file beside the weights or from their metadata. Raises
    InputError naming a field that is not honoured, RunError for one that is damaged."""
    path = found.config or found.files[0]
    if found.config is None and METADATA not in metadata:
        return None
    if found.config is not None:
        config = read_json(found.config)
    else:
        try:
            fields = json.loads(metadata[METADATA])
            config = {OF_DENOISER.sub("", name): value for name, value in fields.items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise RunError(f"{path} has a {METADATA} that cannot be read ({error}); copy it again.") from error
    for name in ("r", "lora_alpha"):
        if name not in config:
            raise RunError(f"{path} does not say {name} in the configuration of its LoRA; copy it again.")
    for name, value in config.items():
        if name in HONOURED or name in OF_TRAINING or value in (None, False, "none") or value in ([], {}):
            continue
        raise InputError(f"{path} has {name} {shown(value)}, which is not supported; expected a plain LoRA.")
    if config.get("use_rslora") not in (None, False, True):
        raise RunError(f"{path} has use_rslora {shown(config['use_rslora'])}; expected true or false.")
    if config.get("peft_type", "LORA") != "LORA":
        raise InputError(f"{path} has peft_type {shown(config['peft_type'])}; expected LORA.")
    if config.get("init_lora_weights") not in INITS:
        raise InputError(
            f"{path} has init_lora_weights {shown(config['init_lora_weights'])}, which changes the base model's "
            "weights; expected a plain LoRA (peft converts: path_initial_model_for_weight_conversion)."
        )
    _check_numbers(path, config)
    return config


def _check_numbers(path: Path, config: Mapping[str, Any]) -> None:
    """Raise RunError for a rank or an alpha that is none, InputError for layers named by a regular expression."""
    ranks, alphas = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
    for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(pattern, dict) or not all(PATTERN.fullmatch(key) for key in pattern):
            raise InputError(f"{path} has {name} {shown(pattern)}; expected names of layers.")
    for rank in (config["r"], *ranks.values()):
        if type(rank) is not int or rank < 1:
            raise RunError(f"{path} says rank {shown(rank)}; expected a positive integer.")
    for alpha in (config["lora_alpha"], *alphas.values()):
        _number(path, "alpha", alpha)


def _number(path: Path, what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RunError(f"{path} says {what} {shown(value)}; expected a number.")
    return float(value)


def _pattern(patterns: Mapping[str, Any], layer: str) -> str:
    """The key of a rank or an alpha pattern that means a layer, as peft finds it; the layer where there is none."""
    from peft.utils.other import get_pattern_key

    return str(get_pattern_key(list(patterns), layer))


def _is_one_of(name: str, ends: Sequence[str]) -> bool:
    """Whether a module is meant by one of peft's targets: its name, or the end of it."""
    return f".{name}".endswith(tuple(f".{end}" for end in ends))


def _exactly(adapted: Sequence[str], layers: Mapping[str, Tensor]) -> Sequence[str] | str:
    """These layers in a way that peft takes for no others: it reads a listed `proj_out` as the end of a name too."""
    if all(layer in adapted for layer in layers if _is_one_of(layer, adapted)):
        return adapted
    return "|".join(map(re.escape, adapted))


def _targets(file: LoraFile, modules: Sequence[str], layers: Mapping[str, Tensor], model: str) -> tuple[str, ...]:
    """The layers that the configuration lists, so that one without tensors is found. An expression lists none. Raises
    RunError where one of the names is no layer's that can have a LoRA: peft would refuse too, but with the adapter half
    made."""
    config = file.config or {}
    targets = config.get("target_modules") or ()
    if isinstance(targets, str) or any(config.get(name) for name in ("exclude_modules", "layers_to_transform")):
        return ()
    if not isinstance(targets, list | tuple) or not all(isinstance(name, str) for name in targets):
        raise RunError(f"{file.path} says target modules {shown(targets)}; expected a list of names.")
    meant = [name for name in modules if _is_one_of(name, targets)]
    if wrong := [name for name in meant if name not in layers]:
        raise RunError(
            f"{file.path} says target modules {shown(targets)}, but {wrong[0]} is neither linear nor conv; "
            "was it trained on another model?"
        )
    if targets and not meant:
        raise RunError(
            f"{file.path} does not fit model {model!r}: it has no layer {' or '.join(targets)}; "
            "was it trained on another model?"
        )
    return tuple(targets)


def _rank(file: LoraFile, layer: str, state: State) -> int:
    """The rank of a layer's matrices. Raises RunError where the configuration says another."""
    down, up = (state.get(f"{layer}.{matrix}.weight") for matrix in ("lora_A", "lora_B"))
    said = None if file.config is None else file.rank(layer)
    if down is not None and down.dim() > 1:
        if said not in (None, len(down)):
            shape = tuple(down.shape)
            raise RunError(f"{file.path} says rank {said}, but {layer}.lora_A.weight has shape {shape}; copy it again.")
        if not len(down):
            shape = tuple(down.shape)
            raise RunError(f"{file.path} has rank 0: {layer}.lora_A.weight has shape {shape}; copy or train it again.")
        return len(down)
    return said or (up.shape[1] if up is not None and up.dim() > 1 else 1)


def _shapes(layers: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """What the matrices of a LoRA look like on a model: B of a convolution has a kernel of one."""
    shapes = {}
    for layer, rank in ranks.items():
        outputs, *inputs = layers[layer].shape
        shapes[f"{layer}.lora_A.weight"] = (rank, *inputs)
        shapes[f"{layer}.lora_B.weight"] = (outputs, rank, *(1 for _ in inputs[1:]))
    return shapes


def _described(ranks: Mapping[str, int], alphas: Mapping[str, float], targets: Sequence[str] | str) -> LoraConfig:
    """peft's configuration: what most layers have, and the others by name."""
    from peft import LoraConfig

    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        rank_pattern={f"^{re.escape(name)}": own for name, own in ranks.items() if own != rank},
        alpha_pattern={f"^{re.escape(name)}": own for name, own in alphas.items() if own != alpha},
    )
