"""The closed-form mixture: exact posterior means, and samples that follow the mixture."""

from __future__ import annotations

import pytest
import torch

from alignbench import LoRA, Prompt, Sampling
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import Unsupported
from alignbench.keys import Key
from alignbench.testbed.mixture import Mixture
from alignbench.testbed.toys import grid


def test_the_posterior_mean_of_one_gaussian_is_linear_regression():
    """E[x0 | x] = m + √ᾱ S (ᾱ S + (1 − ᾱ) I)⁻¹ (x − √ᾱ m); one dimension: m = 2, S = 3, ᾱ = 0.25, x = 4."""
    one = Mixture(torch.ones(1), torch.tensor([[2.0]]), torch.tensor([[[3.0]]]))
    expected = 2 + 0.5 * 3 / (0.25 * 3 + 0.75) * (4 - 0.5 * 2)
    assert one.posterior_mean(torch.tensor([[4.0]]), torch.tensor([0.25])).item() == pytest.approx(expected)


def test_the_posterior_mean_is_tweedies_formula():
    """x0 = (x + (1 − ᾱ) ∇ log p_t(x)) / √ᾱ with the gradient by automatic differentiation."""
    root = Key("covariances").normal(3, 2, 2).double()
    covariances = root @ root.transpose(1, 2) + 0.2 * torch.eye(2)
    mixture = Mixture(torch.tensor([0.2, 0.5, 0.3]), 2 * Key("means").normal(3, 2), covariances)
    x, level = Key("x").normal(6, 2).double().requires_grad_(), torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1, 0.02]).double()
    parts = []
    for k in range(3):
        c = level[:, None, None] * mixture.covariances[k] + (1 - level)[:, None, None] * torch.eye(2)
        normal = torch.distributions.MultivariateNormal(level.sqrt()[:, None] * mixture.means[k], c)
        parts.append(mixture.weights[k].log() + normal.log_prob(x))
    (score,) = torch.autograd.grad(torch.logsumexp(torch.stack(parts), 0).sum(), x)
    tweedie = (x + (1 - level)[:, None] * score) / level.sqrt()[:, None]
    torch.testing.assert_close(mixture.posterior_mean(x.detach(), level), tweedie.detach(), atol=1e-9, rtol=1e-9)


def test_rows_of_different_noise_levels_equal_rows_alone():
    mixture, x = grid().mixture, 3 * Key("x").normal(4, 2)
    level = torch.tensor([0.9, 0.5, 0.5, 0.1])
    together = mixture.posterior_mean(x, level)
    alone = torch.cat([mixture.posterior_mean(x[i : i + 1], level[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_sampling_reproduces_the_mixture(mixture):
    prompts, keys = [Prompt("p", "p")] * 1500, [Key("sample", i) for i in range(1500)]
    for eta in (0.0, 1.0):
        points = PipelineSampler(mixture, Sampling(50, 1.0, eta))(prompts, keys).images
        nearest = torch.cdist(points.double(), mixture.mixture.means).argmin(1)
        share = torch.bincount(nearest, minlength=9) / 1500
        assert (share - 1 / 9).abs().max() < 0.04
        spread = (points - mixture.mixture.means[nearest]).std(0)
        assert spread.tolist() == pytest.approx([0.3**0.5] * 2, abs=0.05)


def test_exact_draws_have_the_mixtures_moments():
    points = grid().mixture.sample(Key("exact"), 20_000)
    assert points.mean(0).tolist() == pytest.approx([0, 0], abs=0.1)
    assert points.var(0).tolist() == pytest.approx([0.3 + 32 / 3] * 2, rel=0.03)


def test_a_policy_starts_exactly_at_the_reference(mixture):
    policy = mixture.adapt(LoRA(), Key("adapter"))
    x, condition = Key("x").normal(5, 2), mixture.condition([Prompt("p", "p")] * 5)
    assert torch.equal(policy.predict(x, 300, condition).eps, mixture.predict(x, 300, condition).eps)
    assert policy.reference is mixture


def test_a_policys_weights_depend_on_the_key_and_survive_saving(mixture):
    one, same, other = (mixture.adapt(LoRA(), Key(name)) for name in ("a", "a", "b"))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.parameters()[0], other.parameters()[0])
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_a_policy_cannot_be_adapted_again(mixture):
    with pytest.raises(Unsupported, match="adapt the pipeline it came from"):
        mixture.adapt(LoRA(), Key("a")).adapt(LoRA(), Key("b"))
