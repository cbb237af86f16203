"""Gradients on the embedded model: of activations computed again, at the reference, and in half precision."""

from __future__ import annotations

import math

import pytest
import torch

from alignbench import Key, LoRA, PairBatch, Prompt, Sampling, plugins, tuning_of
from alignbench.algorithms import diffusion_dpo as dpo
from alignbench.algorithms import draft, refl
from alignbench.diffusion import registry as models
from alignbench.diffusion.registry import Hold
from alignbench.meter import Meter

KEYS = [Key(i) for i in range(2)]


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [(draft.DRaFT(last_steps=3, batch=2), (3,)), (refl.ReFL(margin="none", steps=3), ())],
)
def test_checkpointed_gradients_on_the_embedded_model_are_those_of_kept_activations(algorithm, arguments, make_problem):
    sampling = Sampling(3, 2.0 if arguments else 1.0, 1.0)
    prompts = [Prompt("a", "a red circle"), Prompt("b", "a blue square")]
    reward = plugins.load("rewards", "shapes_preference")()
    found = []
    for checkpointing in (False, True):
        pipeline = models.load(models.find("tiny"), Meter(), Hold(checkpointing=checkpointing))
        problem, policy = make_problem(reward, pipeline), pipeline.adapt(LoRA(2), Key("adapter"))
        with torch.no_grad():
            for i, parameter in enumerate(policy.parameters()):  # away from the reference, where gradients vanish
                parameter.add_(0.05 * Key("moved", i).normal(*parameter.shape))
        for loss in algorithm.losses(problem, policy, prompts, KEYS, sampling, *arguments, []):
            loss.backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]))
        assert (policy.recomputations or 0) > 0 if checkpointing else policy.recomputations is None
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5 * float(found[0].abs().max()))


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_on_a_real_denoiser_the_reference_is_exact_and_gradients_reach_every_b(tuning):
    """Stable Diffusion's layout: at θ = reference every loss is ln 2 in float32, adapter off or frozen copy."""
    pipeline = models.load(models.find("tiny"), Meter())
    prompts = [Prompt("a", "a red circle"), Prompt("b", "a blue square")]
    latents = Key("latents").normal(4, *pipeline.latent_shape)
    batch = PairBatch(latents[:2], latents[2:], pipeline.condition(prompts), torch.ones(2), range(2))
    algorithm = dpo.DiffusionDPO(tuning=tuning, rank=2)
    policy = pipeline.adapt(tuning_of(tuning, 2), Key("adapter"))
    loss, seen = algorithm.loss(policy, batch, KEYS)
    assert seen.z.abs().max() == 0
    torch.testing.assert_close(loss, torch.full((2,), math.log(2)), atol=1e-7, rtol=0)
    loss.mean().backward()
    grads = {name: p.grad for name, p in zip(policy.state_dict(), policy.parameters(), strict=True)}
    if tuning == "lora":
        assert all(g.any() for name, g in grads.items() if "lora_B" in name)
        assert not any(g.any() for name, g in grads.items() if "lora_A" in name)
    else:
        assert sum(g is not None and bool(g.any()) for g in grads.values()) > 0.9 * len(grads)


@pytest.mark.parametrize("tuning", ["lora", "full", "bias"])
def test_in_half_precision_policy_and_reference_still_start_equal(tuning):
    """A fine-tuned denoiser computes in float32, and so must its reference: its copy in bfloat16 rounds otherwise."""
    pipeline = models.load(models.find("tiny"), Meter(), Hold(dtype="bfloat16"))
    policy = pipeline.adapt(tuning_of(tuning, 2), Key("adapter"))
    latents = Key("latents").normal(4, *pipeline.latent_shape)
    condition = pipeline.condition([Prompt("a", "a red circle"), Prompt("b", "a blue square")])
    batch = PairBatch(latents[:2], latents[2:], condition, torch.ones(2), range(2))
    loss, seen = dpo.DiffusionDPO().loss(policy, batch, KEYS)
    assert seen.z.abs().max() == 0
    frozen = [p.clone() for p in policy.reference.denoiser.parameters()]
    loss.mean().backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    assert all(torch.equal(p, q) for p, q in zip(policy.reference.denoiser.parameters(), frozen, strict=True)) or (
        tuning == "lora"  # whose reference shares the network that holds the adapter, switched off
    )
