"""The recipe of `tiny_flow`: its network, its loss and its training, by hand and on a miniature number of steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import nn
from transformers import CLIPTokenizer

from alignbench import Key
from alignbench.shapes import flow_denoiser as flow
from alignbench.shapes import train_flow
from alignbench.shapes.denoiser import tokenise
from alignbench.shapes.fit import Fit, fit
from alignbench.shapes.train_flow import TINY

KEY = Key("test", "flow recipe")
TEXTS = ["two small red circles on a green background", "", "a blue star left of a large yellow cross"]


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(TINY / "tokenizer")


@pytest.fixture(scope="module")
def moved(tokenizer):
    """A denoiser none of whose layers is the identity any more."""
    denoiser = flow.FlowDenoiser(tokenizer).requires_grad_(False)
    for name, parameter in denoiser.named_parameters():
        if not parameter.any():
            parameter.copy_(0.1 * KEY("moved", name).normal(*parameter.shape))
    return denoiser


@pytest.mark.parametrize("nulls", [1, 3, 256])
def test_one_null_token_raised_by_log_n_is_n_of_them(moved, tokenizer, nulls):
    latents, sigma = KEY("latents").normal(3, 4, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    tokens = tokenise(tokenizer, TEXTS)
    moved.nulls.count = nulls
    raised = moved(latents, sigma, tokens)
    moved.transformer.set_attn_processor(JointAttnProcessor2_0())
    try:
        words, pooled = moved.encode(tokens, nulls)
        written_out = moved.transformer(latents, words, pooled, 1000 * sigma).sample
    finally:
        moved.transformer.set_attn_processor(moved.nulls)
    assert words.shape == (3, 20 + nulls, 160)
    torch.testing.assert_close(raised, written_out, atol=1e-5, rtol=0)


def test_the_number_of_null_tokens_matters(moved, tokenizer):
    """Else the test above would pass for any rule."""
    latents, sigma, tokens = KEY("latents").normal(1, 4, 8, 8), torch.tensor([0.5]), tokenise(tokenizer, TEXTS[:1])
    made = []
    for moved.nulls.count in (1, 256):
        made.append(moved(latents, sigma, tokens))
    assert (made[0] - made[1]).abs().max() > 1e-2


def test_the_untrained_denoiser_predicts_nothing_and_tells_words_apart(tokenizer):
    denoiser = flow.FlowDenoiser(tokenizer).requires_grad_(False)
    tokens = tokenise(tokenizer, ["a red circle", "a blue circle", ""])
    made = denoiser(KEY("latents").normal(3, 4, 8, 8), torch.tensor([0.01, 0.5, 1.0]), tokens)
    assert made.shape == (3, 4, 8, 8)
    assert not made.any()
    words, pooled = denoiser.encode(tokens)
    assert (words[0] - words[1]).abs().max() > 0.1
    assert (pooled[0] - pooled[1]).abs().max() > 0.1
    assert not words[:, -1].any()  # the null token


def test_the_flow_denoiser_starts_from_its_key_whatever_was_drawn_before(tokenizer):
    states = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            states.append(flow.FlowDenoiser(tokenizer).state_dict())
    assert [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])] == []


def test_the_fine_denoiser_reads_equal_latents_as_the_coarse_one_does_and_predicts_a_patchs_mean(tokenizer):
    """Where every patch holds four equal latents, the four tokens that take its place hold what it held; what the
    coarse one predicts for a patch is averaged. Positions and attention over four times the tokens are left out."""
    coarse = flow.FlowDenoiser(tokenizer, patch=2).requires_grad_(False)
    coarse.transformer.proj_out.weight.copy_(KEY("out").normal(16, 160))
    fine = flow.refined(coarse, tokenizer)
    flat = KEY("flat").normal(1, 4, 4, 4)
    latents = flat.repeat_interleave(2, -1).repeat_interleave(2, -2)
    read = [denoiser.transformer.pos_embed.proj(latents) for denoiser in (coarse, fine)]
    torch.testing.assert_close(read[1], read[0].repeat_interleave(2, -1).repeat_interleave(2, -2), atol=1e-5, rtol=0)
    states = KEY("states").normal(7, 160)
    said = coarse.transformer.proj_out(states).reshape(7, 2, 2, 4).mean((1, 2))
    torch.testing.assert_close(fine.transformer.proj_out(states), said, atol=1e-5, rtol=0)
    same = {name for name, value in coarse.state_dict().items() if "proj_out" not in name and "pos_embed" not in name}
    assert len(same) > 100
    for name in same:
        assert torch.equal(fine.state_dict()[name], coarse.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in fine.parameters())


def test_positions_by_hand(tokenizer):
    """Latent (row 2, column 3) of the 8 x 8: angles 12 f and 8 f at the 40 frequencies 10,000^(-k / 40)."""
    table = flow.FlowDenoiser(tokenizer).transformer.pos_embed.pos_embed.reshape(8, 8, 4, 40)
    frequencies = 10_000.0 ** (-torch.arange(40) / 40)
    by_hand = torch.stack(
        [(12 * frequencies).sin(), (12 * frequencies).cos(), (8 * frequencies).sin(), (8 * frequencies).cos()]
    )
    torch.testing.assert_close(table[2, 3], by_hand, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("patch", "side"), [(1, 8), (2, 4)])
def test_neighbouring_tokens_differ_more_than_in_diffusers_table(tokenizer, patch, side):
    """Those of our latents are cropped from the table's middle. Waves have length √80 each."""
    positions = flow.FlowDenoiser(tokenizer, patch).transformer.pos_embed
    ours = positions.cropped_pos_embed(8, 8).reshape(side, side, 160)
    table = type(positions)(8, 8, patch, 4, 160, pos_embed_max_size=8)
    theirs = table.cropped_pos_embed(8, 8).reshape(side, side, 160)
    torch.testing.assert_close(ours.norm(dim=-1), torch.full((side, side), 80**0.5))
    for axis in (0, 1):
        assert ours.diff(dim=axis).norm(dim=-1).min() > 2 * theirs.diff(dim=axis).norm(dim=-1).max()


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-0.5, 1.2)])
def test_a_batch_has_one_noise_level_in_each_stratum(mean, deviation):
    """Of 64 draws one between the k/64 and the (k + 1)/64 quantile of a normal logit."""
    sigma = flow.noise_levels(KEY("levels").generator(), 64, mean, deviation).double()
    quantiles = torch.special.ndtr((sigma.logit() - mean) / deviation)
    assert (quantiles * 64).floor().tolist() == list(range(64))
    assert 0 < sigma.min() < sigma.max() < 1


def test_noise_levels_of_the_fine_stage_favour_low_noise():
    """P(σ < 0.5) = Φ(0.5 / 1.2) = 0.662, P(σ < 0.1) = Φ((log(1/9) + 0.5) / 1.2) = 0.079; of the coarse one 0.5 and
    Φ(log(1/9)) = 0.014."""
    found = []
    for stage in (train_flow.FINE, train_flow.COARSE):
        rng = KEY("many").generator()
        sigma = torch.cat([flow.noise_levels(rng, 64, stage.mean, stage.deviation) for _ in range(100)]).double()
        found += [float((sigma < bound).double().mean()) for bound in (0.5, 0.1)]
    assert found == pytest.approx([0.662, 0.079, 0.5, 0.014], abs=0.004)


class Stub(nn.Module):
    """A denoiser that predicts its noisy latents and remembers what it was asked."""

    def forward(self, latents, sigma, tokens):
        self.asked = (latents, sigma, tokens)
        return latents


def test_the_flow_loss_by_hand():
    """Latents 2, noise 1: x_σ = 2 - σ and v = -1. Predicting x_σ errs by 3 - σ: 2.75, 2.5 and 2."""
    stub, sigma, tokens = Stub(), torch.tensor([0.25, 0.5, 1.0]), torch.arange(15).reshape(3, 5)
    value = flow.loss(stub, torch.full((3, 4, 2, 2), 2.0), tokens, torch.ones(3, 4, 2, 2), sigma)
    assert value.item() == pytest.approx((2.75**2 + 2.5**2 + 2**2) / 3)
    assert stub.asked[0][:, 0, 0, 0].tolist() == [1.75, 1.5, 1.0]
    assert torch.equal(stub.asked[1], sigma)
    assert torch.equal(stub.asked[2], tokens)


class Stopped(Exception):
    """Stands for a kill."""


def trained(tokenizer, folder: Path, stop_at: int | None = None) -> torch.Tensor:
    """Weights after three steps of four latents each, with a checkpoint after two."""
    denoiser = flow.FlowDenoiser(tokenizer)
    loss = flow.step_loss(denoiser, tokenizer, KEY("data").normal(9, 4, 8, 8), TEXTS * 3, flow.Stage(batch=4))

    def until(step: int) -> torch.Tensor:
        if step == stop_at:
            raise Stopped
        return loss(step)

    fit("flow_denoiser", Fit(steps=3, learning_rate=1e-3, warmup=1, checkpoint_every=2), denoiser, until, folder)
    return nn.utils.parameters_to_vector(denoiser.parameters()).detach()


def test_a_training_that_was_stopped_and_continued_ends_with_the_same_weights(tokenizer, tmp_path):
    whole = trained(tokenizer, tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(tokenizer, tmp_path / "parts", stop_at=2)
    assert torch.equal(trained(tokenizer, tmp_path / "parts"), whole)
    start = nn.utils.parameters_to_vector(flow.FlowDenoiser(tokenizer).parameters()).detach()
    assert not torch.equal(whole, start)


def test_the_loss_of_a_step_depends_on_the_step_and_the_stages_first_step_alone(tokenizer):
    denoiser = flow.FlowDenoiser(tokenizer).requires_grad_(False)
    loss = flow.step_loss(denoiser, tokenizer, KEY("data").normal(9, 4, 8, 8), TEXTS * 3, flow.Stage(batch=4))
    values = [loss(step).item() for step in (0, 1, 2, 1, 0)]
    assert values[:2] == values[:2:-1]
    assert len(set(values)) == 3
    later = flow.step_loss(denoiser, tokenizer, KEY("data").normal(9, 4, 8, 8), TEXTS * 3, flow.Stage(2, batch=4))
    assert later(0).item() == values[2]
