"""What a denoiser is told about prompts: one CLIP text encoder (Stable Diffusion), or two and sizes (SDXL). Those of
SD3 and FLUX stand with how these are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignbench.diffusion.layouts import CLIP, QWEN, T5, Layout
from alignbench.diffusion.registry import read_json
from alignbench.errors import InputError, RunError

SHORTEST = 3  # tokens: the two that begin and end a text, and one between them


@runtime_checkable
class TextEncoder(Protocol):
    """Texts to the tensors of a `Condition`; `null` is what classifier-free guidance is guided away from, one row."""

    @property
    def networks(self) -> Sequence[nn.Module]: ...

    @property
    def tokenizers(self) -> Sequence[Any]: ...

    @property
    def width(self) -> int:
        """Of a token's embedding."""

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]: ...

    def null(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class TextParts:
    """What reads prompts in a pipeline's folder, and what its files say about that."""

    layout: Layout
    tokenizers: Sequence[Any]
    encoders: Sequence[Any]
    pixels: Sequence[int]  # height and width of the pictures
    index: Mapping[str, Any]  # model_index.json
    config: Any  # the denoiser's
    tokens: int | None  # of T5's or Qwen's text


@dataclass(frozen=True)
class SingleText:
    """Stable Diffusion 1.x and 2.x: the last hidden states of one encoder; "" where there is no prompt."""

    tokenizer: Any
    encoder: Any

    @property
    def networks(self) -> Sequence[nn.Module]:
        return [self.encoder]

    @property
    def tokenizers(self) -> Sequence[Any]:
        return [self.tokenizer]

    @property
    def width(self) -> int:
        return int(self.encoder.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        hidden: Float[Tensor, "b tokens dim"] = self.encoder(tokenised(self.tokenizer, texts, self.encoder.device))[0]
        return {"text": hidden}

    def null(self) -> dict[str, Tensor]:
        return self.encode([""])


@dataclass(frozen=True)
class SizedText:
    """SDXL (Podell et al. 2023, https://arxiv.org/abs/2307.01952, §2): the last hidden states but one of each encoder
    side by side, the projected embedding of the last encoder, and ids.

    The ids are the height and width of the original, the corner of its crop (0, 0), and the target's height and width,
    in pixels; the refiner's, an aesthetic score in the place of the target's size. Without a prompt the base model is
    told zeros where its `force_zeros_for_empty_prompt` says so, also in training, where the authors' code drops
    captions to "".
    """

    tokenizers: Sequence[Any]
    encoders: Sequence[Any]
    ids: Sequence[float]
    null_ids: Sequence[float]
    zeros_for_null: bool

    @property
    def networks(self) -> Sequence[nn.Module]:
        return list(self.encoders)

    @property
    def width(self) -> int:
        return sum(int(encoder.config.hidden_size) for encoder in self.encoders)

    @property
    def pooled_width(self) -> int:
        return int(self.encoders[-1].config.projection_dim)

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        outputs = [
            encoder(tokenised(tokenizer, texts, encoder.device), output_hidden_states=True)
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        ]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        pooled: Float[Tensor, "b pooled"] = outputs[-1].text_embeds
        return {"text": hidden, "pooled": pooled, "size": self._rows(self.ids, hidden)}

    def null(self) -> dict[str, Tensor]:
        empty = self.encode([""])
        if self.zeros_for_null:
            empty = {name: torch.zeros_like(value) for name, value in empty.items()}
        return empty | {"size": self._rows(self.null_ids, empty["text"])}

    @staticmethod
    def _rows(ids: Sequence[float], hidden: Tensor) -> Float[Tensor, "b ids"]:
        return torch.tensor([list(ids)], dtype=hidden.dtype, device=hidden.device).repeat(len(hidden), 1)


def tokenised(tokenizer: Any, texts: Sequence[str], device: torch.device) -> Int[Tensor, "b tokens"]:
    """Token numbers, padded and cut to the tokenizer's length."""
    tokens: Tensor = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    return tokens.to(device)


def as_read(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """The texts as a tokenizer gets them: Qwen's model is told each as what a user says, in its template of a talk, and
    answers without thinking aloud."""
    if not of_qwen(tokenizer):
        return list(texts)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        for text in texts
    ]


def of_qwen(tokenizer: Any) -> bool:
    """Whether a tokenizer is Qwen's."""
    from transformers import Qwen2TokenizerFast

    return isinstance(tokenizer, Qwen2TokenizerFast)


def truncated(tokenizers: Sequence[Any], texts: Sequence[str]) -> list[bool]:
    """Which texts are longer than one of the tokenizers keeps."""
    cut = [False] * len(texts)
    for tokenizer in tokenizers if texts else ():
        rows = tokenizer(as_read(tokenizer, texts), truncation=False, verbose=False).input_ids
        cut = [before or len(row) > tokenizer.model_max_length for before, row in zip(cut, rows, strict=True)]
    return cut


def open_tokenizer(folder: Path, source: str, part: str, positions: int, vocabulary: int, encoder: str = CLIP) -> Any:
    """A tokenizer, which cuts off where its text encoder ends, of so many positions and rows for tokens: some say no
    length of their own, and those of T5 and Qwen, which `encoder` names, read any. Raises RunError where it cannot be
    read, InputError where the two do not fit."""
    from transformers import CLIPTokenizer, Qwen2TokenizerFast, T5Tokenizer

    config = folder / part / "tokenizer_config.json"
    named = read_json(config).get("tokenizer_class") if config.is_file() else None
    kind: Any = Qwen2TokenizerFast if encoder == QWEN else CLIPTokenizer
    if encoder == T5 and named not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        kind = T5Tokenizer
    try:
        tokenizer = kind.from_pretrained(folder, subfolder=part)
        numbers = tokenizer.get_vocab().values()
    except Exception as error:  # the library raises all kinds for a broken file
        raise RunError(f"cannot load {source}: {' '.join(str(error).split())}") from error
    if encoder == QWEN and not tokenizer.chat_template:
        raise InputError(f"{source}: {part} has no chat template; expected that of Qwen3, in which prompts are told.")
    any_length = encoder in (T5, QWEN)
    own = positions if any_length else tokenizer.model_max_length
    if type(own) not in (int, float) or own < (1 if any_length else SHORTEST):
        raise InputError(f"{source}: {part} has model_max_length {own!r}; expected a number of tokens, such as 77.")
    if max(numbers, default=0) >= vocabulary:
        raise InputError(
            f"{source}: {part} numbers its tokens up to {max(numbers)}, its text encoder has {vocabulary} rows for "
            "them; expected a tokenizer of this model."
        )
    tokenizer.model_max_length = min(int(own), positions)
    return tokenizer
