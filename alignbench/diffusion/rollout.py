"""Whole sampling trajectories: streamed to images, or stored with their log densities.

Every draw has a key of its own: x_T from key("initial"), the noise of step i from key("step", i). Two methods that are
given the same key therefore meet the same noise, whatever batch the image stands in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignbench.diffusion.flow_transition import flow_std, flow_step
from alignbench.diffusion.transition import Reduction, Transition, ddim, divergence, log_density, std_of
from alignbench.errors import Unsupported
from alignbench.interface import ExactKernel, Pipeline, Policy, Prompt, Samples, Sampling, Start
from alignbench.keys import Key, normal
from alignbench.quantities import Condition, Prediction, Steps


def initial_noise(keys: Sequence[Key], shape: Sequence[int]) -> Float[Tensor, b * latent]:
    """x_T ~ N(0, I), one draw per key, on the CPU."""
    return normal([key("initial") for key in keys], shape)


def step_noise(keys: Sequence[Key], step: int, like: Float[Tensor, b * latent]) -> Float[Tensor, b * latent]:
    """The standard normal noise of sampling step `step`, one draw per key."""
    return normal([key("step", step) for key in keys], like.shape[1:]).to(like.device, like.dtype)


def take_step(step: Transition, keys: Sequence[Key], i: int) -> Float[Tensor, b * latent]:
    """x_s of sampling step number i: with the noise of each row's key where the step has any."""
    return step.sample(step_noise(keys, i, step.mean)) if bool((step.std > 0).any()) else step.mean


class Chain(NamedTuple):
    """A sampling chain that is about to run: latents before step number `first`."""

    latents: Float[Tensor, b * latent]
    first: int
    steps: Steps
    condition: Condition


def begin(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    noise: Float[Tensor, b * latent],
    sampling: Sampling,
    start: Start | None = None,
) -> Chain:
    """From noise, or from images noised to the first level that is run (SDEdit, Meng et al. 2021, algorithm 1)."""
    steps, latents, first = pipeline.timesteps(sampling.steps), noise, 0
    if start is not None:
        first = len(steps) - max(1, min(len(steps), round(start.strength * len(steps))))
        latents = pipeline.add_noise(pipeline.encode(start.images), noise, steps.t[first].expand(len(noise)))
    return Chain(latents, first, steps, pipeline.condition(prompts))


def transition(
    pipeline: Pipeline,
    latents: Float[Tensor, b * latent],
    step: Steps,
    condition: Condition,
    sampling: Sampling,
) -> Transition:
    """The pipeline's reverse step from `latents`; `step` is one step for all rows or one per row.

    Raises Unsupported under the exact kernel, whose steps are not Gaussian.
    """
    return reverse(predicted(pipeline, latents, step, condition, sampling), step, sampling)


def reverse(prediction: Prediction, steps: Steps, sampling: Sampling) -> Transition:
    """The Gaussian of a reverse step of the sampling's kernel; see `ddim` and `flow_step`."""
    if sampling.kernel in ("ddim", "exact"):
        return ddim(prediction, steps, sampling.eta)
    return flow_step(prediction, steps, sampling.kernel, sampling.eta)


def noise_of(steps: Steps, sampling: Sampling) -> Float[Tensor, " n"]:
    """The standard deviation of each step of the sampling's kernel, float64; 0 where a step is deterministic."""
    if sampling.kernel in ("ddim", "exact"):
        return std_of(steps, sampling.eta)
    return flow_std(steps, sampling.kernel, sampling.eta)


def predicted(
    pipeline: Pipeline,
    latents: Float[Tensor, b * latent],
    step: Steps,
    condition: Condition,
    sampling: Sampling,
) -> Prediction:
    """What `transition` starts from; it raises the same."""
    if sampling.kernel == "exact":
        raise Unsupported(f"this method needs Gaussian steps, and those of kernel {sampling.kernel!r} are not.")
    t = step.t if len(step) > 1 else step.t.item()
    return pipeline.predict(latents, t, condition, sampling.guidance)


def denoise(
    pipeline: Pipeline,
    latents: Float[Tensor, b * latent],
    steps: Steps,
    condition: Condition,
    sampling: Sampling,
    keys: Sequence[Key],
    first: int = 0,
) -> Iterator[Float[Tensor, b * latent]]:
    """The latents after each of the steps from number `first` on."""
    if sampling.kernel == "exact":
        if not isinstance(pipeline, ExactKernel):
            raise Unsupported("this model's reverse kernel is not known in closed form; use kernel 'ddim'.")
        for i in range(first, len(steps)):
            latents = pipeline.exact_step(latents, steps[i], [key("step", i) for key in keys])
            yield latents
        return
    noisy = noise_of(steps, sampling) > 0
    for i in range(first, len(steps)):
        gaussian = transition(pipeline, latents, steps[i], condition, sampling)
        latents = gaussian.sample(step_noise(keys, i, latents)) if noisy[i] else gaussian.mean
        yield latents


@dataclass(frozen=True)
class Trajectory:
    """Stored sampling paths. Only steps with σ > 0 are actions with a density; the others are skipped by index.

    Latents are stored as the numbers the next step really started from (rounded to `dtype` if asked), so that a log
    density recomputed from them under unchanged weights is the same number, and the importance ratio is exactly 1.
    """

    latents: Float[Tensor, "n b *latent"]  # x_T first, x_0 last; n is the number of steps plus one
    log_prob: Float[Tensor, "b actions"]
    actions: tuple[int, ...]  # the steps with σ > 0
    steps: Steps
    condition: Condition
    sampling: Sampling
    x0: Float[Tensor, "actions b *latent"] | None = None  # the x0 estimate before each action, where it was asked for
    means: Float[Tensor, "actions b *latent"] | None = None  # of each action's Gaussian, likewise

    @property
    def final(self) -> Float[Tensor, b * latent]:
        """x_0."""
        return self.latents[-1]

    def rows(self, part: slice) -> Trajectory:
        """The paths of these images."""
        return replace(
            self,
            latents=self.latents[:, part],
            log_prob=self.log_prob[part],
            condition=self.condition[part],
            x0=None if self.x0 is None else self.x0[:, part],
            means=None if self.means is None else self.means[:, part],
        )

    def only(self, actions: range) -> Trajectory:
        """The same paths, with these of their actions alone."""
        kept = slice(actions.start, actions.stop)
        x0, means = (None if values is None else values[kept] for values in (self.x0, self.means))
        return replace(self, log_prob=self.log_prob[:, kept], actions=self.actions[kept], x0=x0, means=means)

    def transition(self, policy: Pipeline, action: int) -> Transition:
        """The step of action number `action` under a policy."""
        i = self.actions[action]
        return transition(policy, self.latents[i], self.steps[i], self.condition, self.sampling)

    def log_density(self, policy: Pipeline, action: int, reduction: Reduction = "mean") -> Float[Tensor, " b"]:
        """log p(x_s | x_t) of action number `action` under a policy."""
        return log_density(self.latents[self.actions[action] + 1], self.transition(policy, action), reduction)


@torch.no_grad()
def rollout(
    pipeline: Pipeline,
    condition: Condition,
    keys: Sequence[Key],
    sampling: Sampling,
    reduction: Reduction = "mean",
    dtype: torch.dtype = torch.float32,
    initial: Float[Tensor, b * latent] | None = None,
    keep_x0: bool = False,
    window: range | None = None,
    keep_means: bool = False,
) -> Trajectory:
    """Sample and store whole paths, one per key. `dtype` is the precision the path is kept, and continued, in;
    `initial` is x_T where it is not the keys', so that several paths may start from one; `keep_x0` and `keep_means`
    store the x0 estimates and the means of the Gaussians as well. Steps outside of the `window` are DDIM's with η = 0,
    of a flow model Euler's."""
    steps = pipeline.timesteps(sampling.steps)
    noisy = noise_of(steps, sampling) > 0
    if window is not None:
        noisy &= torch.tensor([i in window for i in range(len(steps))])
    latents = (pipeline.initial_noise(keys) if initial is None else initial).to(dtype).float()
    path, log_prob, estimates, means = [latents], [], [], []
    for i in range(len(steps)):
        prediction = predicted(pipeline, latents, steps[i], condition, sampling)
        gaussian = reverse(prediction, steps[i], sampling) if noisy[i] else ddim(prediction, steps[i], 0.0)
        noise = step_noise(keys, i, latents) if noisy[i] else torch.zeros_like(latents)
        latents = gaussian.sample(noise).to(dtype).float()
        path.append(latents)
        if noisy[i]:
            log_prob.append(log_density(latents, gaussian, reduction))
            estimates += [prediction.x0] if keep_x0 else []
            means += [gaussian.mean] if keep_means else []
    actions = tuple(int(i) for i in noisy.nonzero().flatten())
    if not actions:
        raise Unsupported("eta = 0 makes every step deterministic: there is no action to reinforce; use eta > 0.")
    x0, kept = (torch.stack(values) if values else None for values in (estimates, means))
    return Trajectory(torch.stack(path), torch.stack(log_prob, 1), actions, steps, condition, sampling, x0, kept)


@torch.no_grad()
def path_divergence(policy: Policy, trajectory: Trajectory) -> Float[Tensor, " b"]:
    """Σ_t KL(p_θ(x_s | x_t) ‖ p_ref(x_s | x_t)) in nats along stored paths of the policy.

    Its expectation bounds the divergence of the images from the reference's from above (data processing inequality).
    """
    total = torch.zeros(trajectory.latents.shape[1])
    for action in range(len(trajectory.actions)):
        p, q = (trajectory.transition(pipeline, action) for pipeline in (policy, policy.reference))
        total += divergence(p, q).cpu()
    return total


def density_of_chain(
    pipeline: Pipeline, prompts: Sequence[Prompt], keys: Sequence[Key], sampling: Sampling
) -> Float[Tensor, " n"]:
    """log q of the points that a deterministic chain makes from N(0, I): log N(x_T) − Σ log |det ∂x_s / ∂x_t|.

    Exact for the chain as it is run, up to rounding. Raises ValueError where a step has noise.
    """
    steps = pipeline.timesteps(sampling.steps)
    if (noise_of(steps, sampling) > 0).any() or sampling.kernel == "exact":
        raise ValueError("a chain with noise has no change of variables; use eta = 0.")
    condition, x = pipeline.condition(prompts), pipeline.initial_noise(keys)
    log_q = -((x.double() ** 2 + math.log(2 * math.pi)).sum(-1) / 2)
    for i in range(len(steps)):
        x = x.detach().requires_grad_()
        y = transition(pipeline, x, steps[i], condition, sampling).mean
        rows = [torch.autograd.grad(y[:, j].sum(), x, retain_graph=True)[0] for j in range(y.shape[1])]
        log_q = log_q - torch.linalg.slogdet(torch.stack(rows, 1).double())[1]
        x = y
    return log_q.detach()


@dataclass(frozen=True)
class PipelineSampler:
    """Plain sampling of a pipeline or a trained policy, with the kernel that the sampling names."""

    pipeline: Pipeline
    sampling: Sampling
    particles: int = 1

    def describe(self) -> Mapping[str, Any]:
        s = self.sampling
        if s.kernel == "exact":
            return {"kind": "exact", "steps": s.steps}
        return {"kind": s.kernel, "steps": s.steps, "guidance": s.guidance, "eta": s.eta}

    def divergence(self) -> float | None:
        """See `KnownDivergence`: an unchanged model is at zero, but for discretisation."""
        return 0.0 if self.sampling.kernel == "exact" and not isinstance(self.pipeline, Policy) else None

    def save(self, folder: Path) -> None:
        if isinstance(self.pipeline, Policy):
            self.pipeline.save(folder)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None = None) -> Samples:
        pipeline = self.pipeline
        latents, first, steps, condition = begin(pipeline, prompts, pipeline.initial_noise(keys), self.sampling, start)
        path = denoise(pipeline, latents, steps, condition, self.sampling, keys, first)
        latents = deque(path, maxlen=1).pop()
        return Samples(pipeline.decode(latents), latents)


@dataclass(frozen=True)
class TestTimeSampler:
    """The sampler of a method that leaves the weights alone: `draw` makes the images, `description` says how."""

    __test__ = False  # pytest collects by name

    draw: Callable[[Sequence[Prompt], Sequence[Key], Start | None], Samples]
    description: Mapping[str, Any]
    particles: int = 1

    def describe(self) -> Mapping[str, Any]:
        return self.description

    def save(self, folder: Path) -> None:
        """Nothing was trained."""

    def __call__(self, prompts: Sequence[Prompt], keys: Sequence[Key], start: Start | None = None) -> Samples:
        return self.draw(prompts, keys, start)
