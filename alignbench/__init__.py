"""alignbench: compare algorithms that align text-to-image diffusion models with preferences and rewards.

The names below are the public interface: what a notebook needs, and the roles, mathematics and helpers that a plug-in
needs. Each is imported when it is first used, so that importing alignbench loads no torch.
"""

# mypy: implicit-reexport
# ruff: noqa: F401

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignbench.analysis.comparison import Comparison
    from alignbench.analysis.frames import Results
    from alignbench.analysis.plots import reward_curves, win_rates
    from alignbench.api import Ran, compare, load, run, sheet
    from alignbench.declared import Published
    from alignbench.devices import chunked
    from alignbench.diffusion.affordable import largest
    from alignbench.diffusion.backprop import before_steps, sample_through, untrainable
    from alignbench.diffusion.edict import Edict
    from alignbench.diffusion.episodes import (
        Asked,
        Batch,
        Episode,
        Moves,
        PromptStatistics,
        ask,
        clip_fraction,
        clipped_loss,
        collect,
        collect_all,
        collect_own,
        draw_prompts,
        joined,
        moves_of,
        repeated,
        sample_rewarded,
    )
    from alignbench.diffusion.flow_transition import flow_step, official_log_density
    from alignbench.diffusion.groups import GroupTraining, blend, group_advantages
    from alignbench.diffusion.lookahead import (
        ROOM_FOR_GRADIENTS,
        Slope,
        clipped_gradient,
        rewards_of,
        shift_per_gradient,
        slope,
        without_ddim_steps,
        without_gaussian_steps,
        without_gradient,
        without_signal,
    )
    from alignbench.diffusion.objectives import (
        Noising,
        denoising_error,
        first_batch,
        implicit_accuracy,
        keyed_batches,
        noising,
        pair_errors,
    )
    from alignbench.diffusion.optimisers import OptimiserName, Tuned, optimiser_of, set_rate, tuning_of, warmed_up
    from alignbench.diffusion.particles import (
        categorical,
        effective_size,
        for_particles,
        log_mean,
        particle_keys,
        rows_of,
        systematic,
    )
    from alignbench.diffusion.recompute import Swept, chain_gradient
    from alignbench.diffusion.rollout import (
        Chain,
        PipelineSampler,
        TestTimeSampler,
        Trajectory,
        begin,
        denoise,
        initial_noise,
        noise_of,
        path_divergence,
        reverse,
        rollout,
        step_noise,
        take_step,
        transition,
    )
    from alignbench.diffusion.training import (
        PairTraining,
        PolicyGradient,
        Training,
        pairs_of,
        scale_of,
        shuffled_parts,
        without_pairs,
        without_prompts,
    )
    from alignbench.diffusion.transition import Reduction, Transition, ddim, divergence, log_density, std_of
    from alignbench.diffusion.value import Experience, Value, foreseen_rewards, sum_of_later
    from alignbench.diffusion.variance_exploding import ProbabilityFlow, spread_levels
    from alignbench.diffusion.watching import WATCHED_IMAGES, watched_divergence, watched_kl, watched_kl_of
    from alignbench.downloads import File, hub_file
    from alignbench.errors import AlignbenchError, Diverged, InputError, RunError, Unsupported
    from alignbench.fields import at_least_one, not_negative, positive
    from alignbench.files import sha256_of
    from alignbench.interface import (
        Algorithm,
        BiasFineTune,
        ExactKernel,
        FullFineTune,
        KnownDivergence,
        LoRA,
        PairAlgorithm,
        PairBatch,
        Pairs,
        Pipeline,
        Policy,
        Probe,
        Problem,
        Prompt,
        Prompts,
        PromptSet,
        Reward,
        RewardInfo,
        Round,
        Sampler,
        Samples,
        Sampling,
        Sharing,
        Start,
        TestTimeAlgorithm,
        Truncates,
        Tuning,
    )
    from alignbench.keys import Key, epochs, normal
    from alignbench.meter import Cost
    from alignbench.quantities import Condition, Prediction, Steps, expand, flow_level, flow_scale, flow_sigma
    from alignbench.scoring.aesthetic import AestheticScorer
    from alignbench.scoring.clip import OPENAI_VIT_L_14, VIT_H_14, VIT_L_14, ClipArchitecture
    from alignbench.scoring.contrastive import ContrastiveScorer, PaddedContrastiveScorer
    from alignbench.scoring.heads import LinearChain, LinearMap
    from alignbench.scoring.preprocessing import Crop, Pad
    from alignbench.testbed.rewards import ExactReward
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'alignbench' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOME_OF[name]), name)


def _homes() -> dict[str, str]:
    """The module of each public name: the imports above are written for type checkers, and read here."""
    written = ast.parse(Path(__file__).read_text(encoding="utf-8")).body
    (public,) = (node.body for node in written if isinstance(node, ast.If))
    imports = [node for node in public if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_HOME_OF = _homes()

__all__ = sorted(_HOME_OF)
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
