"""From a picture to what a vision transformer reads: 224 x 224 pixels, normalised as CLIP's training pictures were.

Each way of fitting has two paths. `square` takes the 8-bit pixels of one picture and does what the official code does,
with Pillow where that does; it is for reporting. `smooth` takes float images in [0, 1] and has gradients everywhere; it
differs from the other by up to 0.06 in normalised units (an 8-bit rounding at each of two passes), so that scores of
the two never stand in one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from alignbench.images import as_floats

SIDE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@runtime_checkable
class Preprocessing(Protocol):
    """One way of fitting pictures into the square."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """What the exact path depends on beside torch: a result names their versions."""

    def on(self, height: int, width: int) -> Preprocessing:
        """The one of those that do the same to pictures of this size which stands for all of them."""

    def square(self, picture: UInt8[np.ndarray, "h w 3"]) -> Shaped[Tensor, "3 s s"]:
        """The picture before it is normalised: of 8 bits, or in [0, 1] where nothing is rounded."""

    def smooth(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]: ...

    def describe(self) -> str: ...


@dataclass(frozen=True)
class Crop:
    """The shortest side becomes 224, bicubic, and the middle square is kept: CLIP, PickScore, ImageReward.

    Where an odd number of pixels is cut off, torchvision's middle rounds half to even and transformers' rounds down.
    """

    middle: Literal["half-even", "down"]

    libraries: ClassVar[tuple[str, ...]] = ("pillow",)

    def on(self, height: int, width: int) -> Crop:
        even = all((side - SIDE) % 2 == 0 for side in self._resized(height, width))
        return Crop("down") if even else self

    def square(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 s s"]:
        from PIL import Image

        height, width = self._resized(*picture.shape[:2])
        top, left = self._start(height), self._start(width)
        image = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.array(image.crop((left, top, left + SIDE, top + SIDE)))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def smooth(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        height, width = self._resized(*images.shape[2:])
        top, left = self._start(height), self._start(width)
        resized = _bicubic(images, height, width)[..., top : top + SIDE, left : left + SIDE]
        return normalised(resized.clamp(0, 1))  # bicubic overshoots, and Pillow cuts that off

    def describe(self) -> str:
        return f"8 bit, bicubic to 224, centre crop ({self.middle}), CLIP normalisation"

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if height <= width:
            return SIDE, int(SIDE * width / height)
        return int(SIDE * height / width), SIDE

    def _start(self, side: int) -> int:
        return (side - SIDE) // 2 if self.middle == "down" else round((side - SIDE) / 2)


@dataclass(frozen=True)
class Pad:
    """The longest side becomes 224, bicubic on floats, and black bars fill the square: HPSv2.

    Its official code lets torchvision decide about antialiasing: yes since 0.17, no before, and which of them published
    numbers are of is not said. The bars are black before normalisation, and overshoot is not cut off.
    """

    antialias: bool = True

    libraries: ClassVar[tuple[str, ...]] = ()

    def on(self, height: int, width: int) -> Pad:
        return self

    def square(self, picture: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 s s"]:
        return self._padded(as_floats(picture)[None])[0]

    def smooth(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        return normalised(self._padded(images))

    def _padded(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        scale = SIDE / max(images.shape[2:])
        height, width = (round(side * scale) for side in images.shape[2:])
        if scale != 1:
            images = _bicubic(images, height, width, self.antialias)
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        bars = (left, SIDE - width - left, top, SIDE - height - top)
        return torch.nn.functional.pad(images, bars)

    def describe(self) -> str:
        how = "antialiased" if self.antialias else "not antialiased"
        return f"8 bit, bicubic on floats to 224, {how}, black bars, CLIP normalisation"


def normalised(pixels: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Pixels in [0, 1] with CLIP's mean and standard deviation taken out."""
    mean, std = _mean_and_deviation(pixels)
    return (pixels - mean) / std


def exact(squares: Shaped[Tensor, "*b 3 s s"]) -> Float[Tensor, "*b 3 s s"]:
    """What a network reads of `square` on the reporting path."""
    if squares.dtype != torch.uint8:
        return normalised(squares)
    pixels = squares.float()
    mean, std = _mean_and_deviation(pixels)
    return pixels.div_(255).sub_(mean).div_(std)  # the same, without copies of a batch


def _mean_and_deviation(pixels: Tensor) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    return pixels.new_tensor(MEAN)[:, None, None], pixels.new_tensor(STD)[:, None, None]


def unsuitable_shape(image_shape: tuple[int, ...]) -> str | None:
    """Why images of this shape cannot be scored; () is a shape that is not known yet."""
    shape = tuple(image_shape)
    if not shape or (len(shape) == 3 and shape[0] == 3 and min(shape) > 0):
        return None
    return f"it scores RGB pictures of shape (3, height, width), not images of shape {shape}."


def _bicubic(images: Float[Tensor, "b 3 h w"], height: int, width: int, antialias: bool = True) -> Tensor:
    return torch.nn.functional.interpolate(images, (height, width), mode="bicubic", antialias=antialias)
