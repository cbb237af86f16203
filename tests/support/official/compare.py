"""Every golden entry against our code: how far apart, and where we depart, whether that departure is all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from official import at_test_time as test_time
from official import flow, training
from official.models import GOLDEN, tensor

Run = Callable[[Mapping[str, Any]], dict[str, Any]]

# Our side of an entry, by the beginning of its name; the longest that fits.
OURS: dict[str, Run] = {
    "ddpo/step": training.step,
    "ddpo/clipped_loss": training.ppo,
    "ddpo/prompt_statistics": training.advantages,
    "dpok/log_prob_and_kl": training.dpok_measure,
    "dpok/loss": training.dpok_loss,
    "dpok/value_network": training.value_network,
    "d3po/loss": training.d3po_loss,
    "diffusion_dpo/loss": training.dpo,
    "diffusion_dpo/research_script": training.dpo,
    "diffusion_dpo/warmup": training.warmup,
    "sft/loss": training.sft_loss,
    "diffusion_kto/loss": training.kto_loss,
    "mapo/loss": training.mapo_loss,
    "flow_grpo/step": flow.step,
    "flow_grpo/loss": flow.grpo,
    "flow_grpo/advantages": flow.advantages,
    "diffusion_nft/loss": flow.nft,
    "diffusion_nft/decay": flow.decay,
    "awm/loss": flow.awm_loss,
    "alignprop": training.last_steps,
    "refl/estimate_and_loss": training.one_step,
    "reward_weighted_regression/weights": training.weights,
    "reward_weighted_regression/weights/per_prompt": training.weights_per_prompt,
    "classifier_guidance/condition_mean": test_time.condition_mean,
    "classifier_guidance/condition_score": test_time.condition_score,
    "classifier_guidance/ddim": test_time.guided_ddim,
    "universal_guidance": test_time.universal,
    "universal_guidance/mpgd": test_time.estimate_moved,
    "universal_guidance/tfg_mean": test_time.estimate_moved,
    "universal_guidance/smoothing": test_time.smoothing,
    "universal_guidance/renoise": test_time.renoise,
    "edict/forward": test_time.edict,
    "edict/inverse": test_time.edict_undone,
    "doodl/updates": test_time.latent_updates,
    "demon/sde_step": test_time.sde_step,
    "demon/ode_step": test_time.ode_step,
    "demon/mixture": test_time.mixture,
    "steering": test_time.particles,
    "svdd/argmax": test_time.best_candidates,
    "rollover/search": test_time.search,
}
# The same with the departure taken back.
UNDONE: dict[str, Run] = {
    "ddpo/prompt_statistics/integers": training.whole_advantages,
    "dpok/loss/0.0001": training.dpok_clamped,
    "d3po/loss/tie": training.d3po_with_ties,
    "diffusion_dpo/warmup": training.later_warmup,
    "diffusion_dpo/research_script/v_prediction": training.dpo_of_v,
    "flow_grpo/loss/without_advantage": flow.grpo_dropped,
    "demon/mixture/tanh/adaptive": test_time.mixture_of_the_sample,
    "steering/max/negative": test_time.floored_particles,
    "steering/sum/cut": test_time.cut_particles,
    "steering/max/final": test_time.kept_potential,
    "steering/sum/final": test_time.kept_potential,
    "steering/adaptive": test_time.dropped_particles,
}
# Under which of our algorithms the entries of another name stand.
OF_ALGORITHM = {"alignprop": "draft", "edict": "doodl"}


@dataclass(frozen=True)
class Entry:
    """A golden entry: inputs, and what official code made of them."""

    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.content["name"])

    @property
    def algorithm(self) -> str:
        first = self.name.split("/")[0]
        return OF_ALGORITHM.get(first, first)

    @property
    def departs(self) -> bool:
        return bool(self.content.get("departs"))

    @property
    def tolerance(self) -> float:
        return float(self.content["tolerance"])

    @property
    def ours(self) -> Run:
        fitting = [name for name in OURS if f"{self.name}/".startswith(f"{name}/")]
        return OURS[max(fitting, key=len)]

    def difference(self, run: Run | None = None) -> float:
        """The largest |ours − official| / max |official| over the outputs, of our code or of another run."""
        made = (run or self.ours)(self.content["inputs"])
        return max(difference(made[name], value) for name, value in self.content["outputs"].items())


def entries() -> list[Entry]:
    return [Entry(content) for content in GOLDEN["entries"]]


def difference(ours: Any, official: Any) -> float:
    """The largest |ours − official| / max |official|, of numbers or of a mapping's."""
    if isinstance(official, Mapping):
        return max(difference(ours[name], value) for name, value in official.items())
    theirs, own = tensor(official), ours.detach().double() if isinstance(ours, torch.Tensor) else tensor(ours)
    assert own.shape == theirs.shape, f"of shape {tuple(own.shape)}, officially {tuple(theirs.shape)}"
    return float((own - theirs).abs().max() / theirs.abs().max())
