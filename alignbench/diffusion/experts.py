"""Two denoisers that share the noise levels between them: SDXL's base model and its refiner.

Source   Podell et al. 2023, https://arxiv.org/abs/2307.01952, §2.5, as an ensemble of expert denoisers (Balaji et al.
         2022, https://arxiv.org/abs/2211.01324): one chain of latents, the base model above a noise level, the refiner
         below it, as diffusers runs them with denoising_end = denoising_start = 0.8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.diffusion.latent import LatentPipeline, LatentPolicy
from alignbench.errors import Unsupported
from alignbench.interface import Prompt, Tuning
from alignbench.keys import Key
from alignbench.quantities import Condition, Prediction

SHARE = 0.8  # of the noise levels that are the base model's
PREFIX = "refiner "


class RefinedPipeline(LatentPipeline):
    """A base model whose last noise levels are another model's. For evaluation: it cannot be trained."""

    def __init__(self, base: LatentPipeline, refiner: LatentPipeline, aligned: Mapping[str, str]) -> None:
        super().__init__(base.components, aligned=aligned)
        self._base, self._refiner = base, refiner
        self.first_refined = round((1 - SHARE) * self.train_timesteps)  # timesteps below it are the refiner's

    def condition(self, prompts: Sequence[Prompt]) -> Condition:
        own, other = self._base.condition(prompts), self._refiner.condition(prompts)
        return Condition(
            {**own.tensors, **_prefixed(other.tensors)}, {**own.null_tensors, **_prefixed(other.null_tensors)}
        )

    def predict(
        self, latents: Float[Tensor, "b c h w"], t: float | Tensor, condition: Condition, guidance: float = 1.0
    ) -> Prediction:
        rows = torch.as_tensor(t, device=latents.device).expand(len(latents))
        refined = rows < self.first_refined
        native = torch.empty_like(latents)
        for expert, prefix, chosen in ((self._base, "", ~refined), (self._refiner, PREFIX, refined)):
            if chosen.any():
                part = _part(condition, prefix)[chosen]
                output = expert.predict(latents[chosen], rows[chosen], part, guidance).native
                native = native.index_put((chosen,), output)
        return self.components.schedule.predict(native, latents, t)

    def adapt(self, tuning: Tuning, key: Key) -> LatentPolicy:
        raise Unsupported("a base model with its refiner is for evaluation only; train --model sdxl.")


def _prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {PREFIX + name: value for name, value in tensors.items()}


def _part(condition: Condition, prefix: str) -> Condition:
    """One expert's share of a condition, under the names it knows."""

    def own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mine = {name: value for name, value in tensors.items() if name.startswith(PREFIX) == bool(prefix)}
        return {name.removeprefix(prefix): value for name, value in mine.items()}

    return Condition(own(condition.tensors), own(condition.null_tensors))
