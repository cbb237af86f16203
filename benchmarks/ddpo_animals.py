"""DDPO's 45 common animals to train on, each prompt the bare name; six other animals to test on.

Source      Black et al. 2023, https://arxiv.org/abs/2305.13301: `simple_animals` of
            https://github.com/kvablack/ddpo-pytorch, read in copies of that file. Test: eval_simple_animals of
            https://github.com/mihirp1998/AlignProp.
Licence     MIT, both.
Departures  DDPO reports on the prompts it trains on; alignbench does not evaluate what it trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from alignbench import Prompt

__all__ = ["DDPOAnimals"]

NAMES = {
    "train": """
        cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox wolf lizard beetle
        ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog chicken duck goose bee pig turkey
        fly llama camel bat gorilla hedgehog kangaroo""".split(),
    "test": "snail hippopotamus cheetah crocodile lobster octopus".split(),
}


class DDPOAnimals:
    splits: ClassVar[tuple[str, ...]] = tuple(NAMES)
    counts: ClassVar[Mapping[str, int]] = {"train": 45, "test": 6}
    source: ClassVar[str] = "https://github.com/kvablack/ddpo-pytorch (Black et al. 2023)"
    licence: ClassVar[str] = "MIT"

    def prompts(self, split: str) -> Sequence[Prompt]:
        return [Prompt(f"ddpo_animals-{split}-{i:02d}", name) for i, name in enumerate(NAMES[split])]
