"""The start-up check: what must hold before the first update, while the policy still equals its reference."""

from __future__ import annotations

import torch

from alignbench.errors import RunError
from alignbench.interface import Policy, Probe

TOLERANCE = 1e-3  # of an identity, absolute and relative; bfloat16 rounds to 4e-3, but both sides alike


def check(policy: Policy, probe: Probe) -> None:
    """Raise RunError where an identity does not hold, where the gradient of the loss misses trained weights or reaches
    frozen ones, or where activation checkpointing was asked for and nothing is computed again. Leaves no gradients."""
    for name, (found, expected) in probe.identities.items():
        error = (found.detach().double() - expected).abs().max().item()
        if not error <= TOLERANCE * max(1.0, abs(expected)):
            worst = found.detach().double().flatten()[(found.detach().double() - expected).abs().argmax()].item()
            raise _failed(f"{name} is {worst:.6g} where policy and reference are equal, and must be {expected:.6g}")
    before = policy.recomputations
    networks = policy.networks()
    for network in networks:
        network.zero_grad()  # what an earlier attempt left is not this policy's
    probe.loss.backward()
    trained = {id(parameter) for parameter in policy.parameters()}
    _check_trained(policy)
    for network in networks:
        for name, parameter in network.named_parameters():
            if id(parameter) not in trained and parameter.grad is not None:
                raise _failed(f"the frozen weight {name} receives a gradient")
    if before is not None and policy.recomputations == before:
        raise _failed("activation checkpointing was asked for, but nothing was computed again in the backward pass")
    for parameter in policy.parameters():
        parameter.grad = None


def _check_trained(policy: Policy) -> None:
    """At the start a LoRA's B is zero and A has no gradient yet, so every B must have one; else some weight must."""
    trained = {id(parameter) for parameter in policy.parameters()}
    named = {
        name: parameter
        for network in policy.networks()
        for name, parameter in network.named_parameters()
        if id(parameter) in trained
    }
    gradients = {name: parameter.grad for name, parameter in named.items()}
    for name, gradient in gradients.items():
        if gradient is not None and not torch.isfinite(gradient).all():
            raise _failed(f"the gradient of {name} is not finite")
    dead = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    missed = [name for name in dead if "lora_B" in name]
    if missed or len(dead) == len(named):
        few = ", ".join((missed or dead)[:3])
        raise _failed(f"{len(missed or dead)} of {len(named)} trained weights have no gradient, such as {few}")


def _failed(what: str) -> RunError:
    return RunError(f"the start-up check failed: {what}; nothing was trained. Change what was asked, or report it.")
