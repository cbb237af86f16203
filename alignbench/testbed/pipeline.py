"""The exact denoiser of a Gaussian mixture behind the pipeline interface: a testbed, and a fast double of every model.

Its noise estimate, under a flow schedule its velocity, follows from the posterior mean in closed form
(alignbench/testbed/mixture.py). A policy adds a small network, zero at the start, to it. Beside DDIM's Gaussian steps
it offers the exact reverse kernel, which has no discretisation error for any number of steps.

"Images" are the points themselves: decoding and encoding change nothing. Every prompt asks for the same mixture: that
of the problem it carries (alignbench/testbed/exact_problem.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from alignbench.diffusion.checkpointing import Recomputation
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.diffusion.rollout import initial_noise
from alignbench.diffusion.schedule import Schedule
from alignbench.errors import InputError, Unsupported
from alignbench.files import replace_file
from alignbench.interface import LoRA, Prompt, Tuning
from alignbench.keys import Key, normal
from alignbench.meter import Meter
from alignbench.quantities import Condition, Prediction, Steps, guided
from alignbench.testbed.exact_problem import ExactProblem, describe, problem_of
from alignbench.testbed.mixture import Mixture

RESIDUAL = "residual.safetensors"  # what a trained policy is saved as
WIDTH_PER_RANK = 16  # of the residual network's layers: 64 at the usual rank of 4


class MixturePipeline:
    """The reference: p_ref is the mixture. `problem` is given where the testbed scores what is made."""

    recomputation: Recomputation | None = None

    def __init__(
        self,
        mixture: Mixture,
        schedule: Schedule | FlowSchedule,
        meter: Meter,
        name: str = "mixture",
        problem: ExactProblem | None = None,
        checkpointing: bool = False,
    ) -> None:
        self.mixture, self.schedule, self.meter, self.name, self.problem = mixture, schedule, meter, name, problem
        self.checkpointing = checkpointing

    @property
    def train_timesteps(self) -> int:
        return len(self.schedule)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.mixture.means.shape[1],)

    def info(self) -> Mapping[str, Any]:
        known = {} if self.problem is None else describe(self.problem)
        schedule = self.schedule.sha256
        return {"name": self.name, "image_shape": list(self.latent_shape), "schedule_sha256": schedule, **known}

    def condition(self, prompts: Sequence[Prompt]) -> Condition:
        asked = problem_of(prompts)
        if asked is not None and (self.problem is None or asked.sha256 != self.problem.sha256):
            own = "no problem" if self.problem is None else f"problem {self.problem.name!r}"
            raise InputError(
                f"these prompts are of problem {asked.name!r}, but the model is of {own}; use one for both."
            )
        rows = {"text": torch.zeros(len(prompts), 1)}
        return Condition(rows, rows)

    def initial_noise(self, keys: Sequence[Key]) -> Float[Tensor, "b d"]:
        return initial_noise(keys, self.latent_shape)

    def timesteps(self, n: int) -> Steps:
        return self.schedule.steps(n)

    def training_timesteps(self, uniform: Float[Tensor, " b"]) -> Real[Tensor, " b"]:
        return self.schedule.draw(uniform)

    def add_noise(
        self, x0: Float[Tensor, "b d"], noise: Float[Tensor, "b d"], t: Real[Tensor, " b"]
    ) -> Float[Tensor, "b d"]:
        return self.schedule.add_noise(x0, noise, t)

    def predict(
        self, latents: Float[Tensor, "b d"], t: float | Tensor, condition: Condition, guidance: float = 1.0
    ) -> Prediction:
        evaluations = (2 if guided(guidance) else 1) * len(latents)
        self.meter.forward("denoiser", evaluations)
        prediction = self.schedule.predict(torch.zeros_like(latents), latents, t)
        level = prediction.alpha_bar[:, None]
        x0 = self.mixture.posterior_mean(latents, prediction.alpha_bar)
        eps = (latents.double() - level.sqrt() * x0) / (1 - level).sqrt()
        exact = (eps - x0 if prediction.kind == "flow" else eps).to(latents.dtype)
        native = exact + self._residual(latents, prediction.alpha_bar)
        self.meter.watch("denoiser", native, evaluations, recomputed=self.recomputation is not None)
        return self.schedule.predict(native, latents, t)

    def _residual(self, latents: Float[Tensor, "b d"], alpha_bar: Float[Tensor, " b"]) -> Tensor:
        return torch.zeros_like(latents)

    def exact_step(self, latents: Float[Tensor, "b d"], step: Steps, keys: Sequence[Key]) -> Float[Tensor, "b d"]:
        """A draw from p(x_s | x_t) itself, one denoiser evaluation."""
        self.meter.forward("denoiser", len(latents))
        levels = (level.expand(len(latents)) for level in (step.alpha_bar, step.next_alpha_bar))
        conditional = self.mixture.reverse(latents, *levels)
        uniform = torch.cat([key("mode").uniform(1) for key in keys])
        return conditional.draw(uniform, normal(keys, self.latent_shape)).to(latents.dtype)

    def decode(self, latents: Float[Tensor, "b d"], clamp: bool = True) -> Float[Tensor, "b d"]:
        self.meter.forward("decode", len(latents))
        return latents

    def encode(self, images: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return images

    def adapt(self, tuning: Tuning, key: Key) -> MixturePolicy:
        """The exact denoiser plus a residual network, as wide as the rank of the LoRA that stands for it says."""
        if not isinstance(tuning, LoRA):
            raise Unsupported("the exact denoiser has no weights to tune; its residual network stands for a LoRA.")
        return MixturePolicy(self, key, WIDTH_PER_RANK * tuning.rank, Recomputation() if self.checkpointing else None)


class MixturePolicy(MixturePipeline):
    """The exact denoiser plus a network of two hidden layers whose last layer starts at zero."""

    def __init__(
        self, reference: MixturePipeline, key: Key, width: int, recomputation: Recomputation | None = None
    ) -> None:
        super().__init__(reference.mixture, reference.schedule, reference.meter, reference.name, reference.problem)
        self._reference, self.recomputation = reference, recomputation
        (d,) = self.latent_shape
        self.network = nn.Sequential(
            nn.Linear(d + 3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, d)
        )
        for name, parameter in self.network.named_parameters():
            last = name.startswith("4")
            draw = key(name).normal(*parameter.shape) / math.sqrt(parameter.shape[-1])
            parameter.data.copy_(torch.zeros_like(draw) if last or parameter.dim() == 1 else draw)

    @property
    def reference(self) -> MixturePipeline:
        return self._reference

    @property
    def recomputations(self) -> int | None:
        return None if self.recomputation is None else self.recomputation.count

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def adapt(self, tuning: Tuning, key: Key) -> MixturePolicy:
        raise Unsupported("a trained policy cannot be adapted again; adapt the pipeline it came from.")

    def exact_step(self, latents: Float[Tensor, "b d"], step: Steps, keys: Sequence[Key]) -> Float[Tensor, "b d"]:
        raise Unsupported("the exact reverse kernel is the reference's; a trained policy has DDIM steps.")

    def _residual(self, latents: Float[Tensor, "b d"], alpha_bar: Float[Tensor, " b"]) -> Tensor:
        level = alpha_bar[:, None].to(latents.dtype)
        inputs = torch.cat([latents / 4, level, level.sqrt(), (1 - level).sqrt()], 1)
        if self.recomputation is not None and torch.is_grad_enabled():
            residual: Tensor = self.recomputation(self.network, inputs)
        else:
            residual = self.network(inputs)
        return residual

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def state_dict(self) -> dict[str, Any]:
        return dict(self.network.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        return self.network.load_state_dict(state)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        with replace_file(folder / RESIDUAL) as temporary:
            save_file(self.state_dict(), temporary)


def exact_schedule() -> Schedule:
    """The linear schedule of DDPM (Ho et al. 2020): it ends at ᾱ = 4e-5, where the noised mixtures are N(0, I) to 1e-4
    nats, so that sampling starts where the closed forms say it does (Stable Diffusion's ends at 5e-3); and its steps
    are chained, so that the exact kernel is exact for any number of them."""
    config = {"beta_schedule": "linear", "timestep_spacing": "trailing", "set_alpha_to_one": False}
    return replace(Schedule.from_config(config), chained=True)
