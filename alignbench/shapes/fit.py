"""The training loop of the recipe's stages: AdamW, warm-up and cosine decay, averaged weights, exact resume."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from alignbench.errors import CannotContinue, Diverged, described
from alignbench.files import replace_file


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How one stage of the recipe is optimised."""

    steps: int
    learning_rate: float
    warmup: int = 200  # steps over which the learning rate rises
    weight_decay: float = 1e-3
    average: float = 0.999  # decay of the exponential average of the weights; the average is what ships
    max_norm: float = 1.0  # of the gradient
    checkpoint_every: int = 250  # steps

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then half a cosine down to 2 %."""
        progress = max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return (
            self.learning_rate * min(1.0, (step + 1) / self.warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        )


def fit(name: str, plan: Fit, module: nn.Module, loss: Callable[[int], Tensor], folder: Path) -> None:
    """Train `module` on loss(step) for plan.steps steps and leave the averaged weights in it.

    A checkpoint in `folder` is continued, so that a run that was killed ends with the same weights as one that was
    not: whatever is random in `loss` must depend on the step alone.
    """
    path = folder / f"{name}.checkpoint.pt"
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay
    )
    average = copy.deepcopy(module).requires_grad_(False)
    step = 0
    if path.exists():
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            module.load_state_dict(saved["module"])
            average.load_state_dict(saved["average"])
            optimiser.load_state_dict(saved["optimiser"])
            step = int(saved["step"])
        except Exception as error:  # torch and the optimisers raise all kinds for a broken or a foreign file
            raise CannotContinue(f"{path} cannot be continued ({described(error, 200)})") from error
        print(f"{name}: continued at step {step} of {plan.steps}", flush=True)
    started, first, smooth = time.monotonic(), step, None
    while step < plan.steps:
        for group in optimiser.param_groups:
            group["lr"] = plan.rate(step)
        value = loss(step)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), plan.max_norm)
        if not (torch.isfinite(value) and torch.isfinite(norm)):
            kept = f"{path} holds the last good weights" if path.exists() else "nothing was saved yet"
            raise Diverged(f"{name}: loss {value.item()} and gradient {norm.item()} at step {step}; {kept}.")
        optimiser.step()
        step += 1
        decay = min(plan.average, (1 + step) / (20 + step))
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in module.parameters()], 1 - decay)
        smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
        if step % plan.checkpoint_every == 0 or step == plan.steps:
            state = {
                "module": module.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
            }
            with replace_file(path) as temporary:
                torch.save(state, temporary)
            seconds = time.monotonic() - started
            left = seconds / (step - first) * (plan.steps - step)
            print(f"{name}: step {step}/{plan.steps}  loss {smooth:.4f}  {left / 60:.1f} min left", flush=True)
    sys.stdout.flush()
    module.load_state_dict(average.state_dict())
