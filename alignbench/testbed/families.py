"""The model `mixture`: the exact testbed as a family of models, whose optimum is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.diffusion.hub import Part
from alignbench.diffusion.registry import Hold, Model, Wishes
from alignbench.errors import InputError

if TYPE_CHECKING:
    from alignbench.diffusion.flow_schedule import FlowSchedule
    from alignbench.diffusion.schedule import Schedule
    from alignbench.interface import Pairs, Pipeline, Policy, Prompt, Prompts
    from alignbench.keys import Key
    from alignbench.meter import Meter
    from alignbench.testbed.exact_problem import ExactProblem

__all__ = ["MIXTURE"]

POINTS = ("vae", "vae_slicing", "vae_tiling", "resolution")  # options of models that draw pictures
NETWORKS = ("compile", "channels_last", "attention")  # options of models that are networks


class MixtureFamily:
    """Closed-form mixtures of Gaussians; the prompts name the problem."""

    name = "mixture"
    models = (
        Model(
            "mixture",
            source="exact",
            family="mixture",
            steps=50,
            guidance=1.0,
            eta=1.0,
            note="a closed-form mixture of Gaussians, the exact testbed; the prompts name the problem",
        ),
        Model(
            "mixture_flow",
            source="exact",
            family="mixture",
            steps=50,
            guidance=1.0,
            prediction="flow",
            note="the same mixtures as an exact flow model, sampled by Euler steps",
        ),
    )
    at_hand = True
    own_pairs = 10_000

    def reads(self, pipeline_class: str) -> bool:
        return False

    def unnamed(self, name: str, source: str, folder: Path | None) -> Model:
        raise InputError(f"{source}: the exact testbed reads no folders; its model is named mixture.")

    def needs(self, model: Model) -> Sequence[Part]:
        return ()

    def fetch(self, model: Model, folder: Path | None = None) -> Path:
        raise InputError(f"model {model.name!r} needs no download; leave it out.")

    def device(self, wanted: str) -> str:
        return "cpu"

    def refuse(self, model: Model, wishes: Wishes, algorithm: str, trains: bool) -> None:
        for name in POINTS:
            if getattr(wishes, name):
                raise InputError(
                    f"--{name.replace('_', '-')}: model {model.name!r} makes points, not pictures; leave it out."
                )
        for name in NETWORKS:
            if getattr(wishes, name) not in (None, False, "auto"):
                raise InputError(f"--{name.replace('_', '-')}: model {model.name!r} is no network; leave it out.")
        if wishes.task != "generate":
            raise InputError(
                f"--task {wishes.task}: model {model.name!r} makes points, not pictures; choose another --model."
            )
        if wishes.dtype != "float32":
            raise InputError(f"--dtype {wishes.dtype}: model {model.name!r} computes in float64; leave it out.")
        if wishes.device not in ("auto", "cpu"):
            raise InputError(f"--device {wishes.device}: model {model.name!r} runs on the CPU; leave it out.")
        if wishes.guidance not in (None, 1):
            raise InputError(
                f"--guidance {wishes.guidance:g}: model {model.name!r} has no prompts to be guided by; leave it out."
            )
        if wishes.kernel == "exact" and trains:
            raise InputError(f"--kernel exact: a policy that {algorithm!r} trains has no exact kernel; leave it out.")

    def refuse_prompts(self, prompts: Sequence[Prompt]) -> None:
        from alignbench.testbed.exact_problem import problem_of

        problem_of(prompts)

    def latent_shape(
        self, model: Model, prompts: Sequence[Prompt] = (), resolution: tuple[int, int] | None = None
    ) -> tuple[int, ...] | None:
        return (_world(prompts)[1].mixture.dimension,)

    def typical_schedule(self, model: Model) -> Schedule | FlowSchedule:
        return _schedule(model)

    def load(self, model: Model, meter: Meter, hold: Hold, prompts: Sequence[Prompt] = ()) -> Pipeline:
        """The model of the problem that the prompts carry, or of the grid where they carry none."""
        from alignbench.testbed.pipeline import MixturePipeline

        problem, toy = _world(prompts)
        return MixturePipeline(toy.mixture, _schedule(model), meter, model.name, problem, hold.checkpointing)

    def open_policy(self, pipeline: Pipeline, folder: Path) -> Policy:
        from alignbench.testbed.residual import open_policy

        return open_policy(pipeline, folder)

    def adapter_digest(self, folder: Path) -> str:
        from alignbench.testbed.residual import digest

        return digest(folder)

    def pairs(self, pipeline: Pipeline, reward: str, prompts: Prompts, key: Key, count: int) -> Pairs | None:
        """Of the exact problem; None where the pipeline is of none or the reward is not its own."""
        from alignbench.testbed.exact_pairs import MixturePairs
        from alignbench.testbed.pipeline import MixturePipeline

        problem = pipeline.problem if isinstance(pipeline, MixturePipeline) else None
        if problem is None or reward not in problem.rewards or not prompts:
            return None
        return MixturePairs(problem.mixture, problem.rewards[reward], pipeline, prompts, key, count)


def _schedule(model: Model) -> Schedule | FlowSchedule:
    from alignbench.diffusion.flow_schedule import FlowSchedule
    from alignbench.testbed.pipeline import exact_schedule

    return FlowSchedule() if model.prediction == "flow" else exact_schedule()


def _world(prompts: Sequence[Prompt]) -> tuple[ExactProblem | None, ExactProblem]:
    """The problem that prompts carry, if any, and the one the model is of."""
    from alignbench.testbed.exact_problem import problem_of
    from alignbench.testbed.toys import grid

    problem = problem_of(prompts)
    return problem, problem or grid()


MIXTURE = MixtureFamily()
