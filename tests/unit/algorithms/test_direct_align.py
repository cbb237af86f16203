"""ReFL's Direct-Align: an image that was noised with a known noise is found again, and what a wrong denoiser adds."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from differences import slopes

from alignbench import Key, LoRA, Prediction, Prompt, Sampling, normal
from alignbench.contracts.toys import points
from alignbench.diffusion.backprop import before_steps

refl = importlib.import_module("alignbench.algorithms.refl")
PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(8)]
KEYS = [Key("align", i) for i in range(8)]
PATH = Sampling(6, 1.0, 1.0)
ALIGN = refl.ReFL(estimate="direct_align", margin="none", steps=6, window=1.0, prior_weight=0.0, batch=8)


@pytest.fixture(params=[False, True], ids=["diffusion", "flow"])
def pipeline(request):
    return points(flow=request.param).pipeline


def known(pipeline):
    """x_0, ε, and the levels before and after each image's own step."""
    x0 = before_steps(pipeline, pipeline.condition(PROMPTS), KEYS, PATH, [6] * 8)
    steps = pipeline.timesteps(6)[[ALIGN.place(key, PATH) for key in KEYS]]
    return x0, normal([key("known noise") for key in KEYS], x0.shape[1:]), steps


def test_noise_is_taken_out_by_hand():
    """ᾱ = 0.64: (0.8 · 5 + 0.6 · 2 − 0.6 · 2) / 0.8 = 5."""
    found = refl.without_noise(torch.tensor([[0.8 * 5 + 0.6 * 2]]), torch.tensor([[2.0]]), torch.tensor([0.64]))
    assert float(found) == pytest.approx(5)


def test_where_the_denoiser_names_the_noise_every_step_gives_the_image_itself(pipeline, monkeypatch):
    x0, noise, steps = known(pipeline)
    predict = pipeline.predict

    def right(latents, t, condition, guidance):
        seen = predict(latents, t, condition, guidance)
        if torch.as_tensor(t).numel() < 8:  # while the image itself is sampled
            return seen
        native = noise - x0 if seen.kind == "flow" else noise
        return replace(seen, native=native)

    monkeypatch.setattr(pipeline, "predict", right)
    usable = steps.alpha_bar > 0  # pure noise under ε says nothing of x_0
    found = ALIGN.estimates(pipeline, PROMPTS, KEYS, PATH)
    torch.testing.assert_close(found[usable], x0[usable], atol=2e-3, rtol=0)
    assert usable.sum() > 5


def test_a_wrong_denoiser_moves_the_image_by_its_error_times_the_step(pipeline):
    """x̂_0 = x_0 + (σ_t/α_t − σ_s/α_s)(ε − ε̂), with α = √ᾱ, σ = √(1 − ᾱ); a flow model's by (v̂ − (ε − x_0)) times
    (σ_s − σ_t)/(1 − σ_s) of its own levels."""
    x0, noise, steps = known(pipeline)
    seen: Prediction = pipeline.predict(pipeline.add_noise(x0, noise, steps.t), steps.t, pipeline.condition(PROMPTS))
    a, b = steps.alpha_bar, steps.next_alpha_bar
    if seen.kind == "flow":
        before, after = (((1 - x).sqrt() / (x.sqrt() + (1 - x).sqrt())) for x in (a, b))
        expected = x0 + ((after - before) / (1 - after))[:, None] * (seen.velocity - (noise - x0))
    else:
        expected = x0 + (((1 - a) / a).sqrt() - ((1 - b) / b).sqrt())[:, None] * (noise - seen.eps)
    found = ALIGN.estimates(pipeline, PROMPTS, KEYS, PATH)
    assert (found - x0).abs().max() > 0.1
    torch.testing.assert_close(found.double(), expected.double(), atol=2e-3, rtol=1e-3)


def test_its_gradient_is_that_of_finite_differences_of_the_last_step_alone(pipeline, monkeypatch):
    """In float64, with x_0 held as a constant."""
    policy = pipeline.adapt(LoRA(1), Key("adapter"))
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.05 * Key("moved", i).normal(*parameter.shape))
    x0 = before_steps(policy, policy.condition(PROMPTS), KEYS, PATH, [6] * 8).double()
    policy.network.double()
    monkeypatch.setattr(refl, "before_steps", lambda *rest: x0)
    exact, found = slopes(lambda: ALIGN.estimates(policy, PROMPTS, KEYS, PATH).square().sum(), policy.parameters())
    assert exact != 0
    assert found == pytest.approx(exact, rel=1e-4)


def test_it_costs_a_whole_path_and_one_step(mixture):
    policy = mixture.adapt(LoRA(1), Key("adapter"))
    before = mixture.meter.total.denoiser_forward
    ALIGN.estimates(policy, PROMPTS, KEYS, PATH)
    assert mixture.meter.total.denoiser_forward - before == 8 * (6 + 1)
