"""The recipe of the embedded model: its training loop, each stage's parts by hand, and all stages end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from alignbench import Key
from alignbench.diffusion import registry as models
from alignbench.diffusion.schedule import Schedule
from alignbench.errors import Diverged
from alignbench.shapes import autoencoder as autoencoding
from alignbench.shapes import denoiser as denoising
from alignbench.shapes import preference, train
from alignbench.shapes.fit import Fit, fit
from alignbench.shapes.judge import grade, read
from alignbench.shapes.preference import LENGTH, WORDS, Choices, PreferenceNet, pair_accuracy, words_of
from alignbench.shapes.render import render, render_batch, sample_scene
from alignbench.shapes.scene import parse, sample_caption

KEY = Key("test", "shapes recipe")
PLAN = Fit(steps=12, learning_rate=1e-2, warmup=3, checkpoint_every=5)


@pytest.fixture(autouse=True)
def _as_a_process_starts():
    """Torch's global generator, which draws the biases of new networks, in one known state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def pictures(n: int) -> np.ndarray:
    return render_batch([sample_scene(KEY("scene", i), sample_caption(KEY("caption", i), "train")) for i in range(n)])


class Stopped(Exception):
    """Stands for a kill."""


class Toy:
    """A small regression whose batches depend on the step alone."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        for name, parameter in self.module.named_parameters():
            parameter.data.copy_(0.5 * KEY("toy", name).normal(*parameter.shape))
        self.stop_at, self.steps = stop_at, []
        self.seen: list[torch.Tensor] = []  # the weights before each step

    def loss(self, step: int) -> torch.Tensor:
        if step == self.stop_at:
            raise Stopped
        self.steps.append(step)
        self.seen.append(nn.utils.parameters_to_vector(self.module.parameters()).detach())
        x = KEY("toy batch", step).normal(16, 3)
        return (self.module(x)[:, 0] - x.sum(1)).square().mean()

    def weights(self) -> torch.Tensor:
        return nn.utils.parameters_to_vector(self.module.parameters()).detach()


@pytest.mark.parametrize(("stop_at", "continued"), [(3, 0), (7, 5), (10, 10), (11, 10)])
def test_a_fit_that_was_stopped_and_continued_ends_with_the_same_weights(tmp_path, capsys, stop_at, continued):
    whole = Toy()
    fit("toy", PLAN, whole.module, whole.loss, tmp_path / "whole")
    stopped = Toy(stop_at)
    with pytest.raises(Stopped):
        fit("toy", PLAN, stopped.module, stopped.loss, tmp_path / "parts")
    capsys.readouterr()
    resumed = Toy()
    fit("toy", PLAN, resumed.module, resumed.loss, tmp_path / "parts")
    assert resumed.steps == list(range(continued, 12))
    assert ("toy: continued at step" in capsys.readouterr().out) is (continued > 0)
    assert torch.equal(resumed.weights(), whole.weights())


def test_a_finished_fit_is_not_done_again(tmp_path):
    done = Toy()
    fit("toy", PLAN, done.module, done.loss, tmp_path)
    again = Toy(stop_at=0)
    fit("toy", PLAN, again.module, again.loss, tmp_path)
    assert again.steps == []
    assert torch.equal(again.weights(), done.weights())


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_a_fit_leaves_the_average_of_its_weights(tmp_path, decay):
    """w̄ ← d w̄ + (1 − d) w after step s, with d = min(decay, (1 + s) / (20 + s)); the second is 0.3 after step 7."""
    plan = Fit(steps=12, learning_rate=3e-2, warmup=5, average=decay)
    toy = Toy()
    fit("toy", plan, toy.module, toy.loss, tmp_path)
    last = torch.load(tmp_path / "toy.checkpoint.pt", weights_only=True)["module"]
    path = [*toy.seen, torch.cat([tensor.flatten() for tensor in last.values()])]
    average = path[0]
    for step, weights in enumerate(path[1:], 1):
        kept = min(decay, (1 + step) / (20 + step))
        average = kept * average + (1 - kept) * weights
    torch.testing.assert_close(toy.weights(), average, atol=1e-6, rtol=1e-5)


def test_a_fit_learns(tmp_path):
    toy = Toy()
    before = toy.loss(1000)
    fit("toy", Fit(steps=80, learning_rate=3e-2, warmup=5), toy.module, toy.loss, tmp_path)
    assert toy.loss(1000) < 0.5 * before


def test_the_learning_rate_by_hand():
    """100 of 1000 steps of warm-up to 0.001; then half a cosine, in its middle 0.02 + 0.49, at its end 0.02."""
    plan = Fit(steps=1000, learning_rate=1e-3, warmup=100)
    assert plan.rate(0) == pytest.approx(1e-5)
    assert plan.rate(49) == pytest.approx(5e-4)
    assert plan.rate(99) == plan.rate(100) == pytest.approx(1e-3)
    assert plan.rate(550) == pytest.approx(0.51e-3)
    assert plan.rate(1000) == pytest.approx(0.02e-3)
    rates = [plan.rate(step) for step in range(100, 1001)]
    assert rates == sorted(rates, reverse=True)


def test_the_first_step_moves_each_weight_by_the_first_rate(tmp_path):
    """Adam's first step is the learning rate in the gradient's direction: 0.3 / 3 with three steps of warm-up."""
    module = nn.Linear(2, 1, bias=False)
    module.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    plan = Fit(steps=1, learning_rate=0.3, warmup=3, weight_decay=0.0)
    fit("toy", plan, module, lambda _: module(torch.tensor([5.0, -7.0])).sum(), tmp_path)
    saved = torch.load(tmp_path / "toy.checkpoint.pt", weights_only=True)["module"]["weight"]
    torch.testing.assert_close(saved, torch.tensor([[0.9, 2.1]]))


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize(("step", "kept"), [(2, "nothing was saved yet"), (9, "holds the last good weights")])
def test_what_is_not_finite_stops_the_fit_before_the_weights_change(tmp_path, bad, step, kept):
    toy = Toy()

    def loss(at: int) -> torch.Tensor:
        value = toy.loss(at)
        if at < step:
            return value
        if bad == "loss":
            return value * float("nan")
        return value + (0 * toy.module[0].weight[0, 0]).sqrt()  # 0, with a slope of 0 times infinity

    with pytest.raises(Diverged, match=rf"^toy: loss .* and gradient nan at step {step}; .*{kept}\.$"):
        fit("toy", PLAN, toy.module, loss, tmp_path)
    assert torch.equal(toy.weights(), toy.seen[-1])
    if kept.startswith("holds"):
        saved = torch.load(tmp_path / "toy.checkpoint.pt", weights_only=True)
        assert saved["step"] == 5
        assert all(tensor.isfinite().all() for tensor in saved["module"].values())


def psnr(images: np.ndarray, reference: np.ndarray) -> float:
    return float(-10 * np.log10(((images - reference) ** 2).mean()))


def test_the_untrained_autoencoder_reproduces_block_averages():
    """It starts as a linear code: latents are averages of 4 x 4 pixels, which the decoder repeats."""
    shown = pictures(60)
    autoencoder = autoencoding.build()
    blocks = functional.avg_pool2d(autoencoding.to_signed(shown), 4)
    latents = autoencoding.encode(autoencoder, shown)
    assert latents.shape == (60, 4, 8, 8)
    assert (latents[:, :3] - blocks).abs().mean() < 0.06
    assert np.corrcoef(latents[:, :3].flatten(), blocks.flatten())[0, 1] > 0.99
    made = np.stack(autoencoding.reconstruct(autoencoder, shown))
    assert psnr(made, shown.transpose(0, 3, 1, 2) / 255) > 20
    assert 0 <= made.min() <= made.max() <= 1


def test_the_untrained_autoencoder_tells_flat_pictures_apart():
    """What group normalisation would hide: the absolute colour of a picture of one colour."""
    colours = np.array([[15, 15, 15], [128, 128, 128], [245, 245, 245], [225, 40, 40], [45, 90, 230]], np.uint8)
    shown = np.broadcast_to(colours[:, None, None], (5, 32, 32, 3)).copy()
    made = np.stack(autoencoding.reconstruct(autoencoding.build(), shown))[:, :, 8:24, 8:24].mean((2, 3)) * 255
    assert np.abs(made - colours).max() < 40


@pytest.mark.parametrize("network", ["autoencoder", "denoiser", "preference"])
def test_a_network_starts_from_its_key_whatever_was_drawn_before(network, tmp_path):
    """Else a recipe killed between two stages ends with other weights than one that was not."""
    build = {
        "autoencoder": autoencoding.build,
        "denoiser": lambda: denoising.Denoiser(denoising.write_tokenizer(tmp_path)),
        "preference": PreferenceNet,
    }[network]
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(build().state_dict())
    differing = [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])]
    assert differing == []


def test_pictures_become_signed_images():
    signed = autoencoding.to_signed(np.array([[[[0, 127, 255]]]], np.uint8))
    assert signed.shape == (1, 3, 1, 1)
    torch.testing.assert_close(signed.flatten(), torch.tensor([-1.0, -1 / 255, 1.0]))
    torch.testing.assert_close(
        preference.to_unit(np.array([[[[0, 51, 255]]]], np.uint8)).flatten(), torch.tensor([0.0, 0.2, 1.0])
    )


class Stub(nn.Module):
    """A denoiser that predicts the noisy latents themselves and remembers what it was asked."""

    def forward(self, latents, t, tokens):
        self.asked = (latents, t, tokens)
        return latents


def test_the_denoiser_loss_by_hand():
    """Latents 2, noise 1; √ᾱ and √(1 − ᾱ) are (0.96, 0.28), (0.8, 0.6), (0.6, 0.8), so x_t is 2.2, 2.2, 2.

    Squared errors 1.44, 1.44, 1. The SNRs are (24/7)², (4/3)², (3/4)²; only the first is above 5 and is weighted by
    5 · 49 / 576.
    """
    stub = Stub()
    schedule = Schedule(torch.tensor([0.96**2, 0.8**2, 0.6**2], dtype=torch.float64), 1.0)
    latents, noise = torch.full((3, 4, 2, 2), 2.0), torch.ones(3, 4, 2, 2)
    t, tokens = torch.tensor([0, 1, 2]), torch.arange(15).reshape(3, 5)
    value = denoising.loss(stub, schedule, latents, tokens, noise, t)
    assert value.item() == pytest.approx((1.44 * 5 * 49 / 576 + 1.44 + 1) / 3, rel=1e-5)
    assert stub.asked[0][:, 0, 0, 0].tolist() == pytest.approx([2.2, 2.2, 2.0])
    assert torch.equal(stub.asked[1], t)
    assert torch.equal(stub.asked[2], tokens)


def test_the_untrained_denoiser_predicts_one_number_per_channel_and_tells_words_apart(tmp_path):
    tokenizer = denoising.write_tokenizer(tmp_path)
    denoiser = denoising.Denoiser(tokenizer)
    tokens = denoising.tokenise(tokenizer, ["a red circle", "a blue circle", ""])
    assert tokens.shape == (3, denoising.TOKENS)
    with torch.no_grad():
        made = denoiser(KEY("latents").normal(3, 4, 8, 8), torch.tensor([10, 500, 900]), tokens)
        text = denoiser.text_encoder(tokens)[0]
    bias = denoiser.unet.conv_out.bias.detach()
    torch.testing.assert_close(made, bias[:, None, None].expand(3, 4, 8, 8))
    assert bias.abs().max() < 0.1
    assert (text[0] - text[1]).abs().max() > 0.1


def test_the_tokenizer_is_the_same_each_time_and_the_shipped_one(tmp_path):
    shipped = Path(models.__file__).parents[1] / "shapes" / "weights" / "tiny" / "tokenizer"
    for name in ("one", "two"):
        denoising.write_tokenizer(tmp_path / name)
    names = sorted(path.name for path in shipped.iterdir())
    assert {"vocab.json", "merges.txt"} <= set(names)
    for name in names:
        contents = [(folder / name).read_bytes() for folder in (tmp_path / "one", tmp_path / "two", shipped)]
        assert contents[0] == contents[1] == contents[2], name


def test_the_words_of_captions_by_hand():
    """The list starts "", a, an, and, on, left, right, of, above, below, background, then shapes, plurals, colours."""
    assert WORDS[:11] == ["", "a", "an", "and", "on", "left", "right", "of", "above", "below", "background"]
    assert words_of(["a red circle", "An ORANGE ring, left of zebras."]).tolist() == [
        [1, 23, 11] + [0] * 13,
        [2, 28, 15, 5, 7, 0] + [0] * 10,
    ]
    assert len(set(WORDS)) == len(WORDS)


def test_every_caption_of_the_world_is_read_whole():
    texts = [sample_caption(KEY("read", i), "train").text for i in range(500)]
    texts.append("a large orange triangle right of a small yellow square on a white background")  # the longest kind
    for text, row in zip(texts, words_of(texts).tolist(), strict=True):
        assert " ".join(WORDS[number] for number in row if number) == text
    assert max(len(text.split()) for text in texts) == 14 < LENGTH


def test_the_preference_gradient_is_that_of_finite_differences():
    network = PreferenceNet().double().requires_grad_(False)
    image = KEY("image").uniform(1, 3, 32, 32).double().requires_grad_()
    words = words_of(["a red circle left of a blue star"])
    (gradient,) = torch.autograd.grad(network(image, words).sum(), image)
    assert gradient.abs().max() > 0
    for i in range(6):
        direction = KEY("direction", i).normal(1, 3, 32, 32).double()
        with torch.no_grad():
            ahead, behind = (network(image + step * direction, words).item() for step in (1e-5, -1e-5))
        assert (ahead - behind) / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("grad", [False, True])
def test_a_preference_score_does_not_depend_on_what_else_is_in_the_batch(grad):
    network = PreferenceNet().eval().requires_grad_(grad)
    texts = ["a red circle", "a large red circle left of a small blue star on a white background", "two green rings"]
    images = KEY("batch").uniform(3, 3, 32, 32)
    with torch.set_grad_enabled(grad):
        together = network(images, words_of(texts))
        alone = torch.cat([network(images[i : i + 1], words_of([text])) for i, text in enumerate(texts)])
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_a_preference_score_does_not_depend_on_what_stands_in_the_padding(training):
    """Neither in training nor in use, where torch takes another path through the attention."""
    network = PreferenceNet().train(training).requires_grad_(training)
    images, words = KEY("padding").uniform(1, 3, 32, 32), words_of(["a red circle"])
    before = network(images, words)
    other = KEY("other").normal(LENGTH, preference.WIDTH)
    with torch.no_grad():
        network.words.weight[0] += other[0]
        network.places[3:] += other[3:]
    torch.testing.assert_close(network(images, words), before, atol=1e-5, rtol=0)
    with torch.no_grad():
        network.places[0] += other[0]
    assert (network(images, words) - before).abs() > 1e-4


def test_a_preference_score_in_use_is_the_one_that_was_trained():
    network = PreferenceNet()
    images, words = KEY("path").uniform(2, 3, 32, 32), words_of(["a red circle", "two large green rings"])
    trained = network.train()(images, words)
    torch.testing.assert_close(network.requires_grad_(False).eval()(images, words), trained, atol=1e-5, rtol=0)


class Brightness(PreferenceNet):
    """A stub that prefers the brighter picture."""

    def forward(self, images, words):
        return images.mean((1, 2, 3))


def flat(levels: list[int]) -> np.ndarray:
    """Pictures of one grey level each."""
    return np.array(levels, np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)


def test_pair_accuracy_by_hand():
    """The network prefers the picture that was chosen in pairs 0 to 3, the human without noise in pairs 0 and 3.

    They agree with each other in pairs 0, 3 and 4.
    """
    utility = np.array([1.0, -0.5, -2.0, 0.1, -0.3])
    choices = Choices(flat([200, 90, 130, 30, 10]), flat([100, 80, 120, 20, 20]), ["a red circle"] * 5, utility)
    assert pair_accuracy(Brightness(), choices) == {
        "agrees_with_choices": 0.8,
        "agrees_with_utility": 0.6,
        "utility_agrees_with_choices": 0.4,
        "pairs": 5,
    }


def test_pair_accuracy_counts_every_part_of_many_pairs():
    """600 pairs go through in two parts; the first 450 are the brighter ones."""
    choices = Choices(flat([200] * 450 + [0] * 150), flat([100] * 600), ["a red circle"] * 600, np.ones(600))
    assert pair_accuracy(Brightness(), choices)["agrees_with_choices"] == 0.75


def test_accuracy_is_the_share_of_fully_right_pictures_and_the_mean_of_each_grade():
    """Of three pictures one has its shape wrong, one of three grades that its caption asks for besides the number."""
    texts = ["a red circle on a white background", "a large blue star", "a green ring left of a red cross"]
    shown = [render(sample_scene(KEY("shown", i), parse(text))) for i, text in enumerate(texts)]
    found = train.accuracy(
        [p.transpose(2, 0, 1) / 255 for p in shown], ["a red star on a white background", *texts[1:]]
    )
    assert found == {
        "full": 0.6667,
        "score": pytest.approx((3 / 4 + 1 + 1) / 3, abs=1e-4),
        "number": 1,
        "shape": 0.6667,
        "colour": 1,
        "size": 1,
        "relation": 1,
        "background": 1,
    }


def test_a_mirrored_caption_is_true_of_the_mirrored_picture():
    for i in range(60):
        caption = sample_caption(KEY("mirror", i), "train", "relation")
        picture = render(sample_scene(KEY("mirrored", i), caption))[:, ::-1].transpose(2, 0, 1) / 255
        assert grade(parse(preference.mirrored(caption.text)), read(picture)).full
    assert preference.mirrored("a red circle left of a blue star") == "a red circle right of a blue star"
    assert preference.mirrored(preference.mirrored(caption.text)) == caption.text
