"""The one source of randomness.

A `Key` is a path, such as `Key("align", 0)("round", 3)("noise", "a-red-circle", 17)`. The SHA-256 of the path seeds a
Philox counter-based generator, so a draw depends on its path alone: not on what was drawn before, on the batch it
stands in, on the device or on the number of processes. That is why resuming needs no generator state and why two
algorithms meet the same noise.

Draws are made on the CPU in float32 and moved afterwards. No other module makes random numbers (a test walks every
file); NumPy's generator is used because importing it loads no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from numpy.typing import NDArray

__all__ = ["Key", "epochs", "normal", "resample_counts"]

T = TypeVar("T")


class Key:
    """A path of strings and integers that names a random draw."""

    __slots__ = ("_digest", "_hash", "path")

    def __init__(self, *path: str | int) -> None:
        self._extend(hashlib.sha256(), (), path)

    def __call__(self, *path: str | int) -> Key:
        """The key below this one."""
        below = Key.__new__(Key)
        below._extend(self._hash.copy(), self.path, path)  # what stands above is hashed already
        return below

    def __reduce__(self) -> tuple[type[Key], tuple[str | int, ...]]:
        return Key, self.path

    def _extend(self, digest: hashlib._Hash, above: tuple[str | int, ...], path: tuple[str | int, ...]) -> None:
        for part in path:
            # The type and length prefixes keep ("a", "b") apart from ("ab",) and 1 apart from "1".
            encoded = str(part).encode()
            digest.update(f"{'i' if isinstance(part, int) else 's'}{len(encoded)}:".encode() + encoded)
        self.path, self._hash, self._digest = above + path, digest, digest.digest()

    def __repr__(self) -> str:
        return f"Key({', '.join(map(repr, self.path))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    @property
    def integer(self) -> int:
        """An integer in [0, 2**63), for libraries that want a seed."""
        return int.from_bytes(self._digest[16:24], "big") >> 1

    def generator(self) -> np.random.Generator:
        """A fresh NumPy generator; the same one each time for the same path."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self._digest[:16], "big")))

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal draws of this shape, float32, on the CPU."""
        import torch

        return torch.from_numpy(self.generator().standard_normal(shape, dtype=np.float32))

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform draws in [0, 1) of this shape, float32, on the CPU."""
        import torch

        return torch.from_numpy(self.generator().random(shape, dtype=np.float32))

    def permutation(self, n: int) -> list[int]:
        """The integers below n in random order."""
        return [int(i) for i in self.generator().permutation(n)]

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """n items: without replacement while they last, then from a fresh permutation."""
        if not items:
            raise ValueError("cannot sample from an empty sequence")
        rounds = -(-n // len(items))
        order = [i for k in range(rounds) for i in self("pass", k).permutation(len(items))]
        return [items[i] for i in order[:n]]


def epochs(key: Key, n: int, start: int, count: int) -> list[int]:
    """Places start … start + count − 1 of an endless order of n items: one permutation after another.

    A place depends on the key alone, so that a resumed run goes on exactly where it stopped.
    """
    if n < 1:
        raise ValueError("there is no order of nothing")
    passes = range(start // n, (start + count - 1) // n + 1)
    order = [i for k in passes for i in key("pass", k).permutation(n)]
    first = start - passes.start * n
    return order[first : first + count]


def normal(keys: Sequence[Key], shape: Sequence[int]) -> Float[torch.Tensor, b * shape]:
    """One standard normal draw of `shape` per key, stacked along a first axis: `key.normal(*shape)` of each.

    One generator is set to each key in turn. Making one takes six times as long, most of it for entropy that the key
    replaces, and small models spend their time on it.
    """
    import torch

    bits = np.random.Philox(0)
    generator, state = np.random.Generator(bits), bits.state  # a copy, at the start of a stream
    drawn = np.empty((len(keys), *shape), dtype=np.float32)
    for i, key in enumerate(keys):
        state["state"]["key"][:] = np.frombuffer(key._digest[:16], dtype=">u8")[::-1]  # least significant word first
        bits.state = state
        generator.standard_normal(out=drawn[i : i + 1], dtype=np.float32)
    return torch.from_numpy(drawn)


def resample_counts(rng: np.random.Generator, n: int, size: int) -> NDArray[np.float64]:
    """Bootstrap resamples of n things as a matrix [size, n]: how often each is drawn."""
    drawn = rng.integers(0, n, size=(size, n))
    rows = np.arange(size)[:, None] * n
    return np.bincount((drawn + rows).ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
