"""What every reward promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignbench.contracts.contract import Broken, Contract, NotAsked, require
from alignbench.errors import Unsupported
from alignbench.interface import Prompt, Reward, RewardInfo
from alignbench.keys import Key
from alignbench.plugins import lacking


@dataclass(frozen=True)
class Subject:
    """A reward, with images and prompts that it can score."""

    reward: Reward
    stored: Tensor
    prompts: Sequence[Prompt]

    @property
    def images(self) -> Tensor:
        """A copy for each contract: what one of them does to its images is no matter of the next."""
        return self.stored.clone()


def subject(reward: Reward) -> Subject:
    """A reward with the first examples that it does not refuse: points of the testbed, pictures of the shapes world, or
    pictures with prompts of any kind. Raises Broken where it refuses all."""
    if absent := lacking(reward, Reward):
        raise Broken(f"it lacks {', '.join(absent)}")
    reasons = []
    for images, prompts in _examples():
        reason = reward.unsupported(prompts, tuple(images.shape[1:]))
        if reason is None:
            return Subject(reward, images, prompts)
        reasons.append(reason)
    raise Broken(f"it can score none of our examples; of pictures of the shapes world it says: {reasons[0]}")


def _examples() -> list[tuple[Tensor, list[Prompt]]]:
    from alignbench.asking.prompts import take
    from alignbench.shapes.render import render_batch, sample_scene
    from alignbench.shapes.scene import sample_caption

    captions = [sample_caption(Key("contract", "caption", i), "test") for i in range(6)]
    scenes = [sample_scene(Key("contract", "scene", i), caption) for i, caption in enumerate(captions)]
    pictures = torch.from_numpy(render_batch(scenes)).permute(0, 3, 1, 2).float() / 255
    larger = torch.nn.functional.interpolate(pictures, scale_factor=8)
    said = [Prompt(f"c{i}", caption.text) for i, caption in enumerate(captions)]
    found = [(pictures, said), (larger, said)]
    for name in ("overlap", "gaussian", "grid"):
        prompts = list(take(name, "test")[:6])
        found.append((Key("contract", "points").normal(6, 2), prompts))
    return found


def _one_number(subject: Subject) -> None:
    values = subject.reward(subject.images, subject.prompts)
    n = len(subject.prompts)
    require(isinstance(values, Tensor) and values.shape == (n,), f"{n} images gave {_shown(values)}")
    require(bool(torch.isfinite(values).all()), f"some values are not finite: {values.tolist()}")
    require(not values.requires_grad, "the reporting path carries a gradient; use torch.no_grad()")


def _again(subject: Subject) -> None:
    first, second = (subject.reward(subject.images, subject.prompts) for _ in range(2))
    require(torch.equal(first, second), f"two calls differ by {(first - second).abs().max():.2g}")


def _own_image(subject: Subject) -> None:
    images, prompts = subject.images, subject.prompts
    values, order = subject.reward(images, prompts), Key("contract", "order").permutation(len(prompts))
    turned = subject.reward(images[order], [prompts[i] for i in order])
    off = (turned - values[order]).abs().max()
    require(float(off) <= 1e-4, f"in another order a value differs by {off:.2g}")
    alone = subject.reward(images[4:5], prompts[4:5])
    require(float((alone - values[4:5]).abs().max()) <= 1e-4, "alone, an image has another value")


def _leaves_images(subject: Subject) -> None:
    given, before = subject.images, subject.images
    subject.reward(given, subject.prompts)
    require(torch.equal(given, before), "it changed the images that it was given")


def _identity(subject: Subject) -> None:
    info = subject.reward.info()
    require(isinstance(info, RewardInfo), f"info() returned {type(info).__name__}, not a RewardInfo")
    require(info == subject.reward.info(), "two calls of info() differ")
    require(bool(info.id), "its id is empty")
    wrong = [name for name, digest in info.files.items() if len(digest) != 64]
    require(not wrong, f"files are named by their SHA-256; not so {', '.join(wrong)}")


def _refuses_in_a_sentence(subject: Subject) -> None:
    require(subject.reward.unsupported(subject.prompts, ()) is None, "it refuses before it knows the images' shape")
    reason = subject.reward.unsupported([*subject.prompts, Prompt("x", "a photo of a cat")], (3, 7, 7))
    require(reason is None or reason.endswith("."), f"what it says is no sentence: {reason!r}")


def _gradient(subject: Subject) -> None:
    images = subject.images.clone().requires_grad_()
    if not subject.reward.differentiable:
        try:
            subject.reward.with_grad(images, subject.prompts)
        except Unsupported as error:
            raise NotAsked(f"it has no gradient, and says so: {error}") from None
        raise Broken("differentiable is False, and with_grad does not raise Unsupported")
    values = subject.reward.with_grad(images, subject.prompts)
    require(values.shape == (len(images),), f"with_grad gave {_shown(values)}")
    (gradient,) = torch.autograd.grad(values.sum(), images)
    require(bool(torch.isfinite(gradient).all()), "the gradient is not finite")
    flat = gradient.flatten(1).norm(dim=1) == 0
    require(not bool(flat.any()), f"the gradient of {int(flat.sum())} of {len(images)} images is zero")


def _shown(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


CONTRACTS = (
    Contract("it gives one finite number per image, without a gradient", _one_number),
    Contract("it gives the same number again", _again),
    Contract("a value depends on its own image and prompt alone", _own_image),
    Contract("it leaves the images as they are", _leaves_images),
    Contract("it says what identifies it", _identity),
    Contract("what it cannot score is a sentence and not a crash", _refuses_in_a_sentence),
    Contract("it has a gradient exactly where it says so", _gradient),
)
