"""Changes of a picture or a prompt that ought not to change what a scorer makes of it.

Both pictures of a pair are changed alike, 8-bit pixels to 8-bit pixels of the same size: saved again as JPEG; every
value one step of 255 up or down, as a key draws it; made twice as large and back, by one kernel or another. Or the
pictures stay and the prompt loses the second half of its words.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from alignbench.images import JPEG_QUALITY, as_tensor, to_bytes
from alignbench.interface import Prompt
from alignbench.keys import Key
from alignbench.pictures import read

Pixels = UInt8[np.ndarray, "h w 3"]
HALF = "half the prompt"
CHANGES = {
    "jpeg": f"saved again as JPEG (quality {JPEG_QUALITY}, 4:2:0)",
    "noise": "every value one step of 255 up or down",
    "bilinear": "twice as large and back, bilinear",
    "bicubic": "twice as large and back, bicubic",
    HALF: "the prompt without the second half of its words",
}


def altered(change: str, images: tuple[Tensor, Tensor], key: Key) -> tuple[Tensor, Tensor]:
    """A pair's pictures in [0, 1] under a change; as they are where it is none of pictures."""
    if change not in ALTERED:
        return images
    pixels = [to_bytes(image[None])[0].numpy() for image in images]
    first, second = (Image.fromarray(ALTERED[change](picture, key(side))) for side, picture in enumerate(pixels))
    return as_tensor(first), as_tensor(second)


def shortened(prompt: Prompt, change: str) -> Prompt:
    """The prompt, without the second half of its words where that is the change."""
    if change != HALF:
        return prompt
    words = prompt.text.split()
    return replace(prompt, text=" ".join(words[: max(1, math.ceil(len(words) / 2))]))


def jpeg(pixels: Pixels, key: Key) -> Pixels:
    """Saved as JPEG and read again."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return np.asarray(read(buffer.getvalue(), formats=("JPEG",)).image)


def noise(pixels: Pixels, key: Key) -> Pixels:
    """Every value one step up or down; it stays where it would leave the range."""
    step = np.where(key.uniform(*pixels.shape).numpy() < 0.5, -1, 1)
    return (pixels.astype(int) + step).clip(0, 255).astype(np.uint8)


def _there_and_back(pixels: Pixels, kernel: Image.Resampling) -> Pixels:
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((2 * image.width, 2 * image.height), kernel).resize(image.size, kernel))


ALTERED: Mapping[str, Callable[[Pixels, Key], Pixels]] = {
    "jpeg": jpeg,
    "noise": noise,
    "bilinear": lambda pixels, key: _there_and_back(pixels, Image.Resampling.BILINEAR),
    "bicubic": lambda pixels, key: _there_and_back(pixels, Image.Resampling.BICUBIC),
}
