"""Pictures that several scorers read: decoded once, fitted once for all that fit alike, beside the networks."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from alignbench.children import has_spare_core
from alignbench.images import as_floats, to_bytes
from alignbench.interface import Prompt, Reward
from alignbench.scoring.preprocessing import Preprocessing, exact

T = TypeVar("T")
R = TypeVar("R")


@runtime_checkable
class ReadsPictures(Protocol):
    """A reward whose reporting path reads 8-bit pictures, so that those of files need not become floats and back."""

    @property
    def fit(self) -> Preprocessing:
        """How pictures come to what the network reads."""

    def of_pictures(self, pictures: SharedPictures, prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
        """What the reward says of these pictures as images in [0, 1]."""


class SharedPictures:
    """8-bit pictures for some scorers, which run on a device. Of a picture stays what they read: the square of each way
    of fitting, and the whole picture only where one of them reads that."""

    def __init__(self, scorers: Iterable[Reward], device: torch.device | str) -> None:
        self.device = torch.device(device)
        readers = [reward.fit if isinstance(reward, ReadsPictures) else None for reward in scorers]
        self._squares: dict[Preprocessing, list[Tensor]] = {fit: [] for fit in readers if fit is not None}
        self._keeps_whole = None in readers
        self._whole: list[UInt8[np.ndarray, "h w 3"]] = []
        self.digests: list[bytes] = []  # of size and pixels

    @classmethod
    def of(cls, images: Float[Tensor, "b 3 h w"], reward: Reward) -> SharedPictures:
        """Images in [0, 1] as the pictures that a file of them would hold."""
        pictures = cls([reward], images.device)
        for picture in to_bytes(images).numpy():
            pictures.add(picture)
        return pictures

    def add(self, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        found = hashlib.sha256(str(picture.shape).encode())
        found.update(np.ascontiguousarray(picture).data)
        self.digests.append(found.digest())
        made: dict[Preprocessing, Tensor] = {}
        for fit, squares in self._squares.items():
            same = fit.on(*picture.shape[:2])
            if same not in made:
                made[same] = same.square(picture)
            squares.append(made[same])
        if self._keeps_whole:
            self._whole.append(picture)

    def __len__(self) -> int:
        return len(self.digests)

    def rows(self, places: Sequence[int]) -> SharedPictures:
        """Some of the pictures, in this order."""
        if list(places) == list(range(len(self))):
            return self
        found = SharedPictures([], self.device)
        found.digests = [self.digests[place] for place in places]
        found._squares = {fit: [squares[place] for place in places] for fit, squares in self._squares.items()}
        found._whole = [self._whole[place] for place in places] if self._keeps_whole else []
        found._keeps_whole = self._keeps_whole
        return found

    def pixels(self, fit: Preprocessing, places: Sequence[int]) -> Float[Tensor, "b 3 s s"]:
        """What a network reads of the pictures at these places, on the device."""
        return exact(torch.stack([self._squares[fit][place] for place in places])).to(self.device)

    @functools.cached_property
    def images(self) -> Float[Tensor, "b 3 h w"]:
        """The whole pictures, of one size, in [0, 1] on the device."""
        return torch.stack([as_floats(picture) for picture in self._whole]).to(self.device)


def ahead(make: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What is made of each item, in order; while one is in use, the next is made in another thread if there is a core
    for it, on the same GPU: a thread begins with the first one, and each of several processes has its own."""
    if not has_spare_core():
        yield from map(make, items)
        return
    card = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    with ThreadPoolExecutor(1) if card is None else ThreadPoolExecutor(1, "", torch.cuda.set_device, (card,)) as pool:
        waiting: Future[R] | None = None
        for item in items:
            following = pool.submit(make, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
