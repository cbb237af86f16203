"""DDPO's 45 animals to train on, and 16 others to evaluate on.

Source      simple_animals.txt of https://github.com/kvablack/ddpo-pytorch (MIT), Black et al. 2023,
            https://arxiv.org/abs/2305.13301: the prompts of the aesthetic and compressibility runs of that code are the
            bare names. `test` is ours: the paper shows curves of the training prompts, which a result's curve has too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from alignbench import Prompt

__all__ = ["DDPOAnimals"]

TRAIN = (
    "cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox wolf "
    "lizard beetle ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog chicken "
    "duck goose bee pig turkey fly llama camel bat gorilla hedgehog kangaroo"
).split()
TEST = (
    "cheetah elephant giraffe hippopotamus jellyfish lobster octopus otter owl panda parrot peacock penguin scorpion "
    "snail walrus"
).split()


class DDPOAnimals:
    splits: ClassVar[tuple[str, ...]] = ("train", "test")

    def prompts(self, split: str) -> Sequence[Prompt]:
        return [Prompt(f"ddpo-animals-{name}", name) for name in (TRAIN if split == "train" else TEST)]
