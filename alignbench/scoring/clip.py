"""CLIP's two towers (Radford et al. 2021, https://arxiv.org/abs/2103.00020), in open_clip and in transformers.

Weights are read by the library they were published for; networks are built without weights, so that nothing random
is drawn and nothing is held twice, and one network serves every scorer of the process that names the same file.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignbench.downloads import hub_file
from alignbench.errors import RunError
from alignbench.scoring.attention import fuse
from alignbench.scoring.features import Features
from alignbench.scoring.preprocessing import SIDE
from alignbench.scoring.weights import DType, WeightFile, fill, frozen, tensors_of

CONTEXT = 77  # tokens, with those at start and end
STRIDE = 16  # tokens: open_clip's texts are read up to a multiple of it
VOCABULARY = 49_408
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class ClipArchitecture:
    """Sizes of a CLIP with a vision transformer."""

    embedding: int
    patch: int
    width: int
    layers: int
    heads: int
    text_width: int
    text_layers: int
    text_heads: int
    quick_gelu: bool  # x σ(1.702 x) instead of GELU, for OpenAI's weights; nothing in their file says so


VIT_L_14 = ClipArchitecture(  # as OpenAI trained it
    embedding=768, patch=14, width=1024, layers=24, heads=16, text_width=768, text_layers=12, text_heads=12,
    quick_gelu=True,
)  # fmt: skip
OPENAI_VIT_L_14 = hub_file(
    "timm/vit_large_patch14_clip_224.openai",
    "open_clip_model.safetensors",
    sha256="9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
    size=1_710_517_724,
    revision="18d0535469bb561bf468d76c1d73aa35156c922b",
)
VIT_H_14 = ClipArchitecture(
    embedding=1024, patch=14, width=1280, layers=32, heads=16, text_width=1024, text_layers=24, text_heads=16,
    quick_gelu=False,
)  # fmt: skip


class OpenClip:
    """A CLIP in open_clip; texts as OpenAI's code reads them (mended Unicode, HTML entities resolved)."""

    context = CONTEXT

    def __init__(self, network: Any) -> None:
        self.network = network

    @property
    def scale(self) -> float:
        return float(self.network.logit_scale.exp())

    def encode_images(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        features: Tensor = self.network.encode_image(pixels.to(self.network.logit_scale.dtype))
        return features

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """As open_clip's `encode_text`, without most of the zeros behind a text's end, which a causal network does not
        look at. How many stay depends on the text alone, so that its features do not depend on those beside it."""
        tokens = self.tokens(texts).to(self.network.logit_scale.device)
        ends = tokens.argmax(-1)  # the end token has the largest number
        sizes = [min(CONTEXT, STRIDE * (end // STRIDE + 1)) for end in ends.tolist()]
        found = self.network.text_projection.new_empty(len(tokens), self.network.text_projection.shape[1])
        for size in sorted(set(sizes)):
            rows = [row for row, own in enumerate(sizes) if own == size]
            found[rows] = self._encode(tokens[rows, :size], ends[rows])
        return found

    def _encode(self, tokens: Int[Tensor, "b n"], ends: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        network, n = self.network, tokens.shape[1]
        x = network.token_embedding(tokens) + network.positional_embedding[:n]
        x = network.ln_final(network.transformer(x, attn_mask=network.attn_mask[:n, :n]))
        features: Tensor = x[torch.arange(len(x), device=x.device), ends] @ network.text_projection
        return features

    def tokens(self, texts: Sequence[str]) -> Int[Tensor, "b 77"]:
        """Token numbers, cut off at 77 with the end token last, filled up with zeros."""
        tokens: Tensor = _open_clip_tokenizer()(list(texts))
        return tokens

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(_open_clip_tokenizer().encode(text)) + 2 for text in texts]


class HuggingFaceClip:
    """A CLIP in transformers; texts as its tokenizer reads them, which mends nothing."""

    context = CONTEXT

    def __init__(self, network: Any) -> None:
        self.network = network

    @property
    def scale(self) -> float:
        return float(self.network.logit_scale.exp())

    def encode_images(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        return _pooled(self.network.get_image_features(pixel_values=pixels.to(self.network.logit_scale.dtype)))

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        device = self.network.logit_scale.device
        options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        tokens = _hugging_face_tokenizer()(list(texts), **options).to(device)
        return _pooled(self.network.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(tokens) for tokens in _hugging_face_tokenizer()(list(texts)).input_ids]


@functools.cache
def open_clip_features(architecture: ClipArchitecture, weights: WeightFile, dtype: DType) -> Features:
    """The features of weights in open_clip's layout."""
    network = open_clip_network(architecture)
    fill(network, tensors_of(weights.path), weights.path)
    return Features(OpenClip(frozen(network, dtype)))


@functools.cache
def hugging_face_features(architecture: ClipArchitecture, weights: WeightFile, dtype: DType) -> Features:
    """The features of weights of transformers' CLIPModel."""
    network = hugging_face_network(architecture)
    tensors = {n: t for n, t in tensors_of(weights.path).items() if not n.endswith(".position_ids")}
    fill(network, tensors, weights.path)
    return Features(HuggingFaceClip(frozen(network, dtype)))


def open_clip_network(architecture: ClipArchitecture) -> nn.Module:
    """open_clip's model without weights."""
    import open_clip

    a = architecture
    with torch.device("meta"):
        network: nn.Module = open_clip.CLIP(
            embed_dim=a.embedding,
            vision_cfg={
                "image_size": SIDE, "layers": a.layers, "width": a.width, "head_width": a.width // a.heads,
                "patch_size": a.patch,
            },
            text_cfg={
                "context_length": CONTEXT, "vocab_size": VOCABULARY, "width": a.text_width, "heads": a.text_heads,
                "layers": a.text_layers,
            },
            quick_gelu=a.quick_gelu,
        )  # fmt: skip
        fuse(network)
    # Not part of the weights, so still without values.
    network.register_buffer("attn_mask", torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1), persistent=False)
    return network


def hugging_face_network(architecture: ClipArchitecture) -> nn.Module:
    """transformers' model without weights."""
    from transformers import CLIPConfig, CLIPModel

    a = architecture
    activation = "quick_gelu" if a.quick_gelu else "gelu"
    config = CLIPConfig(
        projection_dim=a.embedding,
        vision_config={
            "hidden_size": a.width, "intermediate_size": 4 * a.width, "num_hidden_layers": a.layers,
            "num_attention_heads": a.heads, "image_size": SIDE, "patch_size": a.patch, "hidden_act": activation,
            "projection_dim": a.embedding,
        },
        text_config={
            "hidden_size": a.text_width, "intermediate_size": 4 * a.text_width, "num_hidden_layers": a.text_layers,
            "num_attention_heads": a.text_heads, "max_position_embeddings": CONTEXT, "vocab_size": VOCABULARY,
            "hidden_act": activation, "projection_dim": a.embedding, "bos_token_id": VOCABULARY - 2,
            "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1,
        },
    )  # fmt: skip
    with torch.device("meta"):
        network: nn.Module = CLIPModel(config)
    number_positions(network)
    return network


def number_positions(network: nn.Module) -> None:
    """Give transformers' `position_ids`, which are not part of the weights, their values 0, 1, 2 …"""
    for module in network.modules():
        positions = getattr(module, "position_ids", None)
        if isinstance(positions, Tensor) and positions.is_meta:
            numbers = torch.arange(positions.shape[-1]).expand(positions.shape)
            module.register_buffer("position_ids", numbers, persistent=False)


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's byte pairs as transformers wants them: words with their numbers, and merges in order. They are those of
    the file that open_clip carries, which is read without importing open_clip: that takes a hundred megabytes."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise RunError("the file of CLIP's words is not there; install open_clip_torch.")
    with gzip.open(Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as handle:
        lines = handle.read().split("\n")[1 : VOCABULARY - 2 * 256 - 2 + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines if line)]
    # One letter for each byte: what can be printed is itself, the others follow in order.
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
    if len(words) != VOCABULARY - 2:
        raise RunError(f"open_clip's vocabulary has {len(words)} words, expected {VOCABULARY - 2}; reinstall it.")
    return {word: number for number, word in enumerate([*words, START, END])}, merges


@functools.cache
def _open_clip_tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=CONTEXT)


@functools.cache
def _hugging_face_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    words, merges = vocabulary()
    return CLIPTokenizer(vocab=words, merges=merges)


def _pooled(output: Any) -> Float[Tensor, "b d"]:
    """The projected embedding: since transformers 5 a field of what `get_*_features` returns."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
