"""One reverse step as a Gaussian: moments, densities and divergences."""

from __future__ import annotations

import pytest
import torch

from alignbench.diffusion.schedule import Schedule
from alignbench.diffusion.transition import Transition, ddim, divergence, log_density, std_of
from alignbench.keys import Key
from alignbench.quantities import Steps

SD15 = Schedule(Schedule.scaled_linear(), float(Schedule.scaled_linear()[0]), steps_offset=1)


def test_full_noise_with_stride_one_is_the_ddpm_posterior():
    """q(x_{t-1} | x_t, x_0): mean and variance as in Ho et al. 2020, eqs. (6) and (7)."""
    t = torch.tensor([1, 50, 500, 999])
    a, before = SD15.alpha_bar[t], SD15.alpha_bar[t - 1]
    steps = Steps(t, a, before)
    x0, eps = Key("x0").normal(4, 6).double(), Key("eps").normal(4, 6).double()
    x = SD15.add_noise(x0, eps, t)
    step = ddim(SD15.predict(eps, x, t), steps, 1.0)
    beta = 1 - a / before
    mean = (before.sqrt() * beta / (1 - a))[:, None] * x0 + ((a / before).sqrt() * (1 - before) / (1 - a))[:, None] * x
    torch.testing.assert_close(step.mean, mean, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(step.std**2, beta * (1 - before) / (1 - a), atol=1e-12, rtol=1e-9)


def test_zero_noise_is_the_deterministic_ode_step():
    steps = SD15.steps(20)
    x, eps = Key("x").normal(2, 5), Key("eps").normal(2, 5)
    step = ddim(SD15.predict(eps, x, int(steps.t[3])), steps[3], 0.0)
    assert (step.std == 0).all()
    a, b = steps.alpha_bar[3], steps.next_alpha_bar[3]
    x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    torch.testing.assert_close(step.mean, (b.sqrt() * x0 + (1 - b).sqrt() * eps).float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(step.sample(torch.ones_like(x)), step.mean)


def test_the_standard_deviations_of_stable_diffusion_are_the_published_ones():
    fifty, twenty = std_of(SD15.steps(50), 1.0), std_of(SD15.steps(20), 1.0)
    assert fifty[0] == pytest.approx(0.4545, abs=5e-4)
    assert fifty[-3:].tolist() == pytest.approx([0.0999, 0.0395, 0.0207], abs=5e-4)
    assert twenty[0] == pytest.approx(0.644, abs=5e-3)
    assert twenty[-3:].tolist() == pytest.approx([0.167, 0.041, 0.0207], abs=5e-3)


def test_log_density_is_that_of_torch_distributions():
    mean, x = Key("mean").normal(3, 2, 4), Key("x").normal(3, 2, 4)
    std = torch.tensor([0.1, 0.5, 2.0])
    expected = torch.distributions.Normal(mean, std[:, None, None]).log_prob(x)
    torch.testing.assert_close(log_density(x, Transition(mean, std), "sum"), expected.sum((1, 2)))
    torch.testing.assert_close(log_density(x, Transition(mean, std), "mean"), expected.mean((1, 2)))


def test_log_density_by_hand():
    """One dimension, mean 1, std 2, at 5: -(4/2)^2/2 - ln 2 - ln(2 pi)/2 = -2 - 0.6931472 - 0.9189385."""
    step = Transition(torch.tensor([[1.0]]), torch.tensor([2.0]))
    assert log_density(torch.tensor([[5.0]]), step).item() == pytest.approx(-3.6120857, abs=1e-6)


def test_a_deterministic_step_has_no_density():
    step = Transition(torch.zeros(2, 3), torch.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match="standard deviation 0 has no density"):
        log_density(torch.zeros(2, 3), step)
    with pytest.raises(ValueError, match="no finite divergence"):
        divergence(step, step)


def test_divergence_equals_the_mean_log_ratio():
    p, q = (Transition(Key(name).normal(1, 3) * 0.3, torch.tensor([0.7])) for name in "pq")
    noise = Key("noise").normal(200_000, 3)
    x = p.mean + 0.7 * noise
    wide = [Transition(step.mean.expand(len(x), 3), step.std.expand(len(x))) for step in (p, q)]
    estimate = (log_density(x, wide[0], "sum") - log_density(x, wide[1], "sum")).mean()
    assert divergence(p, q).item() == pytest.approx(estimate.item(), rel=0.02)


def test_divergence_by_hand_and_zero_at_equality():
    """‖(0.3, 0.4)‖² / (2 · 0.5²) = 0.25 / 0.5 = 0.5."""
    p = Transition(torch.tensor([[0.3, 0.4]]), torch.tensor([0.5]))
    q = Transition(torch.zeros(1, 2), torch.tensor([0.5]))
    assert divergence(p, q).item() == pytest.approx(0.5)
    assert divergence(p, p).item() == 0
    with pytest.raises(ValueError, match="equal standard deviations"):
        divergence(p, Transition(p.mean, torch.tensor([0.6])))
