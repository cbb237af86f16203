"""What pictures are like, without a scorer. Imports no torch.

Statistics of one picture are functions of its 8-bit pixels as they are kept, so they depend on nothing but the picture.
Diversity is of the pictures, or of the latents, of one prompt. An algorithm that exploits its reward often gives
itself away here first: pictures grow dark, saturated, flat or noisy, or all of one prompt become one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

LUMA: Final = np.array([0.299, 0.587, 0.114])  # of R, G and B, ITU-R BT.601
EDGE: Final = 0.1  # of a channel's range: two neighbours of an edge differ by more
LEVELS: Final = 8  # of each channel, in the histogram of colours
DIGITS: Final = 6  # behind the point, of what is written down


def edge_density(picture: UInt8[np.ndarray, "h w 3"]) -> float:
    """The share of neighbours, beside or below each other, that differ by more than a tenth of the range in a channel:
    0 of a flat picture, 1 of a checkerboard of single pixels. Visual clutter is measured by the share of edges
    (Rosenholtz et al. 2007, Journal of Vision 7(2):17, with Canny's edges of the luma; these are plain differences of
    all channels, so that noise counts, and red on a grey as light)."""
    values = picture.astype(np.int16)
    beside, below = (np.abs(np.diff(values, axis=axis)).max(2) > EDGE * 255 for axis in (1, 0))
    return float((beside.sum() + below.sum()) / max(1, beside.size + below.size))


def colour_entropy(picture: UInt8[np.ndarray, "h w 3"]) -> float:
    """Shannon's entropy of the histogram of colours with 8 levels of each channel, in bits: 0 of one colour, at most
    9 of all 512."""
    level = picture.astype(np.int64) // (256 // LEVELS)
    colours = (level[..., 0] * LEVELS + level[..., 1]) * LEVELS + level[..., 2]
    share = np.bincount(colours.ravel()) / colours.size
    share = share[share > 0]
    return max(0.0, float(-(share * np.log2(share)).sum()))


def saturation(picture: UInt8[np.ndarray, "h w 3"]) -> float:
    """The mean saturation of HSV (Smith 1978), (max − min) / max of the three channels, each pixel weighted by its
    value max, since that of a pixel that is nearly black is noise: 0 of greys and of black, 1 of pure colours."""
    high, low = picture.max(2).astype(np.int64), picture.min(2).astype(np.int64)
    return float((high - low).sum() / max(1, high.sum()))


def darkness(picture: UInt8[np.ndarray, "h w 3"]) -> float:
    """One minus the mean luma (ITU-R BT.601, of the values as they are kept): 0 of white, 1 of black."""
    return min(1.0, max(0.0, 1 - float((picture @ LUMA).mean()) / 255))


OF_A_PICTURE: Final[Mapping[str, Callable[[NDArray[np.uint8]], float]]] = {
    "edge_density": edge_density,
    "colour_entropy": colour_entropy,
    "saturation": saturation,
    "darkness": darkness,
}


def of_picture(picture: UInt8[np.ndarray, "h w 3"]) -> dict[str, float]:
    """All statistics of one picture by name, as they are written down."""
    return {name: round(function(picture), DIGITS) for name, function in OF_A_PICTURE.items()}


def diversity(samples: Sequence[Float[np.ndarray, "*shape"]]) -> float:
    """The root mean square difference of two samples of one prompt, averaged over all two of them: 0 where all are
    alike. Of pictures in [0, 1] it is at most 1, that of black and white; of latents it is in their units, √2 for
    independent standard normal ones. Raises ValueError for fewer than two samples."""
    if len(samples) < 2:
        raise ValueError(f"diversity needs at least two samples, got {len(samples)}.")
    pairs = itertools.combinations(samples, 2)
    return float(np.mean([np.sqrt(np.square(np.subtract(a, b, dtype=np.float64)).mean()) for a, b in pairs]))
