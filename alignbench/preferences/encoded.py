"""Preference pairs as the losses want them: latents and text embeddings, computed once and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from alignbench.errors import InputError
from alignbench.images import Offset, fitted
from alignbench.interface import PairBatch, Pipeline, Prompt
from alignbench.keys import Key
from alignbench.pictures import READING, Notes, PictureError
from alignbench.preferences.cache import TensorCache
from alignbench.preferences.choosing import Chosen
from alignbench.quantities import Condition

Crop = Literal["centre", "random"]


class EncodedPairs:
    """See `Pairs`. Both images of a pair are resized (bilinear with antialiasing, until they cover the model's native
    size) and cropped by one rule: the centre, or with `random` an offset that is drawn once per pair from the key.

    No flips: captions speak of left and right, and the reference code of Diffusion-DPO flips the two images of a pair
    independently, so that they differ in more than what was judged.

    Latents are the posterior mean. They are cached under the hash of the image's bytes, the model and the crop, text
    embeddings under that of the text and the model; a pair whose images are known from their file's stamp is not read
    again. From the cache come the numbers that were put in. Computed in another batch they differ by rounding (1e-6),
    and so on another device or with another version of the libraries.
    """

    def __init__(
        self,
        chosen: Chosen,
        pipeline: Pipeline,
        cache: TensorCache | None,
        crop: Crop,
        key: Key,
        say: Callable[[str], None],
    ) -> None:
        shape = pipeline.info()["image_shape"]
        if len(shape) != 3:
            raise InputError(f"pairs of images were given, but the model makes images of shape {list(shape)}.")
        self.skipped: dict[int, str] = {}  # pairs with an image that cannot be read, and why
        self._chosen, self._pipeline, self._cache, self._crop, self._key = chosen, pipeline, cache, crop, key
        self._say, self._size = say, (int(shape[1]), int(shape[2]))
        self.notes = Notes(say)
        self._model = json.dumps(dict(pipeline.info()), sort_keys=True)
        self._null: Condition | None = None

    def __len__(self) -> int:
        return len(self._chosen)

    @torch.no_grad()
    def batch(self, indices: Sequence[int]) -> PairBatch:
        """See `Pairs.batch`. A pair one of whose images cannot be read is left out, and named once."""
        wanted = self._wanted(indices)
        latents = self._latents(wanted)
        rows = [row for row, i in enumerate(indices) if i in latents]
        kept = [indices[row] for row in rows]
        pairs = {i: self._chosen.pair(i) for i in latents}
        ordered = [latents[i] if pairs[i].label else latents[i][::-1] for i in kept]
        device = next(iter(self._empty().tensors.values())).device
        nothing = torch.zeros(0, *self._pipeline.latent_shape, device=device)
        winner, loser = (
            torch.stack([pair[side].to(device) for pair in ordered]) if ordered else nothing for side in (0, 1)
        )
        return PairBatch(
            winner=winner,
            loser=loser,
            condition=self._condition([pairs[i].prompt for i in kept]),
            label=torch.tensor([max(pairs[i].label, 1 - pairs[i].label) for i in kept], device=device),
            rows=rows,
        )

    def images(self, indices: Sequence[int]) -> list[tuple[int, tuple[Tensor, Tensor] | None]]:
        """Number and images [3, h, w] in [0, 1] of each pair, resized and cropped, in the order of their file (see
        `Chosen.pair` for the label); None where one cannot be read."""
        found = {}
        for i, contents in self._chosen.images(self._wanted(indices)):
            first, second = (self._fitted(i, content) for content in contents)
            if first is not None and second is not None:
                found[i] = (first, second)
        return [(i, found.get(i)) for i in indices]

    def _wanted(self, indices: Sequence[int]) -> list[int]:
        """Each of these pairs once, without those that are known to be broken."""
        for i in indices:
            if not 0 <= i < len(self):
                raise IndexError(f"pair {i} is outside of [0, {len(self)}).")
        return [i for i in dict.fromkeys(indices) if i not in self.skipped]

    def _latents(self, wanted: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """The latents of both images of each pair that can be read."""
        keys = self._remembered(wanted)
        found = self._cached(key for pair in keys.values() for key in pair)
        unread = [i for i in wanted if i not in keys or not all(key in found for key in keys[i])]
        contents = dict(self._chosen.images(unread)) if unread else {}
        hashes = {i: [hashlib.sha256(content).digest() for content in pair] for i, pair in contents.items()}
        keys |= {i: self._keys(i, pair) for i, pair in hashes.items()}
        found |= self._cached(key for i in unread for key in keys[i] if key not in found)

        fresh: dict[bytes, Tensor] = {}
        for i in unread:
            missing = {key: content for key, content in zip(keys[i], contents[i], strict=True) if key not in found}
            images = {key: self._fitted(i, content) for key, content in missing.items() if key not in fresh}
            if i not in self.skipped:
                fresh |= {key: image for key, image in images.items() if image is not None}
        if fresh:
            encoded = self._pipeline.encode(torch.stack(list(fresh.values()))).float()
            made = {key: {"latents": latents} for key, latents in zip(fresh, encoded, strict=True)}
            self._keep(made)
            found |= made
        self._keep({self._stamp(i): {"sha256": _tensor(hashes[i])} for i in unread if i not in self.skipped})
        read = [(i, *keys[i]) for i in wanted if i not in self.skipped]
        return {i: (found[first]["latents"], found[second]["latents"]) for i, first, second in read}

    def _condition(self, prompts: Sequence[Prompt]) -> Condition:
        """The prompts' embeddings, of the texts that are not cached computed at once; the empty prompt's, expanded."""
        empty = self._empty()
        if not prompts:
            return empty[slice(0)]
        keys = {prompt.text: self._hash("text", prompt.text) for prompt in prompts}
        found = self._cached(keys.values())
        missing = list({prompt.text: prompt for prompt in prompts if keys[prompt.text] not in found}.values())
        if missing:
            rows = self._pipeline.condition(missing).tensors
            made = {
                keys[prompt.text]: {name: value[row] for name, value in rows.items()}
                for row, prompt in enumerate(missing)
            }
            self._keep(made)
            found |= made
        return Condition(
            {
                name: torch.stack([found[keys[prompt.text]][name].to(value.device) for prompt in prompts])
                for name, value in empty.tensors.items()
            },
            {name: value.expand(len(prompts), *value.shape[1:]) for name, value in empty.null_tensors.items()},
        )

    def _empty(self) -> Condition:
        """The condition of the empty prompt."""
        if self._null is None:
            self._null = self._pipeline.condition([Prompt("", "")])
        return self._null

    def _fitted(self, i: int, content: bytes) -> Tensor | None:
        """An image as the model wants it, or None: then its pair is skipped from now on, and that is said."""
        if i in self.skipped:
            return None
        place = self._chosen.pair(i).place
        try:
            return fitted(content, self._size, self._offset(i), self.notes, place)
        except PictureError as error:
            self.skipped[i] = str(error)
            self._say(f"pair skipped: {place}: {error} ({len(self.skipped)} of {len(self)} skipped so far)")
            return None

    def _offset(self, i: int) -> Offset:
        """The pair's number in its source draws it, so that it does not depend on which other pairs are chosen."""
        if self._crop == "centre":
            return None
        top, left = self._key(self._chosen.numbers[i]).uniform(2).tolist()
        return top, left

    def _remembered(self, wanted: Sequence[int]) -> dict[int, tuple[bytes, bytes]]:
        """Where the latents of pairs are kept whose images were read before."""
        stamps = {i: self._stamp(i) for i in wanted} if self._cache is not None else {}
        found = self._cached(stamps.values())
        return {
            i: self._keys(i, [row.numpy().tobytes() for row in found[stamp]["sha256"]])
            for i, stamp in stamps.items()
            if stamp in found
        }

    def _cached(self, keys: Iterable[bytes]) -> dict[bytes, dict[str, Tensor]]:
        return self._cache.get_many(list(keys)) if self._cache is not None else {}

    def _keep(self, values: Mapping[bytes, Mapping[str, Tensor]]) -> None:
        if self._cache is not None:
            self._cache.put_many(values)

    def _keys(self, i: int, hashes: Sequence[bytes]) -> tuple[bytes, bytes]:
        """Where the latents of a pair's images are kept, from the hashes of their bytes."""
        how = (self._crop, self._offset(i), self._size, READING)
        first, second = (self._hash("latents", hashed.hex(), how) for hashed in hashes)
        return first, second

    def _stamp(self, i: int) -> bytes:
        """Where the hashes of a pair's images are kept."""
        return self._hash("images", self._chosen.source.stamp, self._chosen.numbers[i])

    def _hash(self, *parts: Any) -> bytes:
        return hashlib.sha256(json.dumps([*parts, self._model]).encode()).digest()


def _tensor(hashes: Sequence[bytes]) -> Tensor:
    return torch.from_numpy(np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(hashes), -1).copy())
