"""ImageReward's network: BLIP's two encoders (Li et al. 2022, https://arxiv.org/abs/2201.12086), and a head.

The text encoder attends to all words at once and, in every layer, to the picture; its first token's state is what the
head reads. The names of the tensors are those of the authors' code; in transformers they have others, one to one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignbench.errors import RunError
from alignbench.interface import Prompt
from alignbench.scoring.clip import number_positions
from alignbench.scoring.features import wide
from alignbench.scoring.heads import LinearChain, applied
from alignbench.scoring.preprocessing import SIDE
from alignbench.scoring.weights import DType, WeightFile, fill, frozen, tensors_of

CONTEXT = 35  # tokens, with those at start and end, as BLIP was trained
UNUSED = ("blip.vision_proj.", "blip.text_proj.")  # of the contrastive loss
RENAMED = (  # the authors' names, in this order, and transformers'
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.blocks\.", "vision.encoder.layers."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^(vision\.encoder\.layers\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"^(vision\.encoder\.layers\.\d+)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    (r"^(vision\.encoder\.layers\.\d+)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.", "head."),
)


@dataclass(frozen=True, kw_only=True)
class BlipArchitecture:
    """Sizes of a BLIP; the text encoder is a BERT that also attends to the picture."""

    patch: int = 16
    width: int = 1024
    layers: int = 24
    heads: int = 16
    text_layers: int = 12
    text_intermediate: int = 3072
    vocabulary: int = 30_524  # BERT's, with two tokens that are not used here


BLIP_LARGE = BlipArchitecture()


class PictureTextNet(nn.Module):
    """Picture encoder, text encoder and head, without weights."""

    def __init__(self, architecture: BlipArchitecture) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        a = architecture
        vision = BlipVisionConfig(
            hidden_size=a.width, intermediate_size=4 * a.width, num_hidden_layers=a.layers,
            num_attention_heads=a.heads, image_size=SIDE, patch_size=a.patch, hidden_act="gelu", layer_norm_eps=1e-6,
        )  # fmt: skip
        text = BlipTextConfig(
            vocab_size=a.vocabulary, hidden_size=768, encoder_hidden_size=a.width,
            intermediate_size=a.text_intermediate, num_hidden_layers=a.text_layers, num_attention_heads=12,
            layer_norm_eps=1e-12, bos_token_id=None,
            is_decoder=True,  # so that it has cross-attention; it is not run as one
        )  # fmt: skip
        with torch.device("meta"):
            self.vision = BlipVisionModel(vision)
            self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = LinearChain()
        number_positions(self)

    def forward(self, pixels: Float[Tensor, "b 3 s s"], tokens: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        states = self.vision(pixel_values=pixels.to(next(self.parameters()).dtype)).last_hidden_state
        read = self.text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
            is_decoder=False,
        )
        return applied(self.head, wide(read.last_hidden_state[:, 0]))


class BlipScorer:
    """The network with its tokenizer."""

    def __init__(self, network: nn.Module, tokenizer: Any) -> None:
        self.network, self._tokenizer = network, tokenizer

    def __call__(self, pixels: Float[Tensor, "b 3 s s"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        """The head's values, one per picture and prompt."""
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": CONTEXT}
        tokens = self._tokenizer([p.text for p in prompts], return_tensors="pt", **options).to(pixels.device)
        values: Tensor = self.network.to(pixels.device)(pixels, tokens)
        return values

    def truncated(self, prompts: Sequence[Prompt]) -> list[bool]:
        """Which prompts are longer than the encoder reads."""
        return [len(ids) > CONTEXT for ids in self._tokenizer([prompt.text for prompt in prompts]).input_ids]


@functools.cache
def blip_scorer(architecture: BlipArchitecture, weights: WeightFile, words: WeightFile, dtype: DType) -> BlipScorer:
    """The scorer of ImageReward's weights, with BERT's list of words. Raises RunError where a file does not fit."""
    from transformers import BertTokenizer

    network = PictureTextNet(architecture)
    fill(network, renamed(tensors_of(weights.path)), weights.path)
    lines = words.path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {word: number for number, word in enumerate(lines)}
    needed = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    if absent := [word for word in needed if word not in vocabulary]:
        raise RunError(f"{words.path} has no word {absent[0]}; expected BERT's vocabulary, one word a line.")
    frozen(network.vision, dtype)
    frozen(network.text, dtype)
    frozen(network.head, "float32")
    return BlipScorer(network, BertTokenizer(vocab=vocabulary, do_lower_case=True))


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ImageReward's tensors under the names of `PictureTextNet`."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(UNUSED) or name.endswith(".position_ids"):
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found
