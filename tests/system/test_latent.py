"""Latent pipelines and policies on the embedded model: against diffusers, and against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from random_models import drawn_by_plain_diffusers

from alignbench import BiasFineTune, Condition, FullFineTune, LoRA, Pipeline, Policy, Prompt, Sampling
from alignbench.diffusion import registry as models
from alignbench.diffusion.registry import Hold
from alignbench.diffusion.rollout import PipelineSampler, rollout
from alignbench.keys import Key
from alignbench.meter import Cost, Meter
from alignbench.shapes.render import render, sample_scene
from alignbench.shapes.scene import parse

TINY = models.named()["tiny"]
FOLDER = Path(models.__file__).parents[1] / "shapes" / "weights" / "tiny"
TEXTS = [
    "a red circle",
    "a blue square and a green star on a white background",
    "two small cyan rings",
    "a large yellow cross left of a purple triangle",
]
PROMPTS = [Prompt(f"p{i}", TEXTS[i % 4]) for i in range(16)]
KEYS = [Key("latent", i) for i in range(16)]
PLAIN = Sampling(10, 3.0, 0.0)
T = 500

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # several policies on one pipeline


def load(dtype: str = "float32"):
    return models.load(TINY, Meter(), Hold(dtype=dtype))


@pytest.fixture(scope="module")
def pipeline():
    """For tests that train nothing."""
    return load()


@pytest.fixture
def fresh():
    """For tests that make policies."""
    return load()


@pytest.fixture(scope="module")
def latents(pipeline):
    return pipeline.initial_noise(KEYS[:2])


@pytest.fixture(scope="module")
def condition(pipeline):
    return pipeline.condition(PROMPTS[:2])


def move(policy, name: str, scale: float = 0.1):
    """The policy with noise added to its weights."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(scale * Key("move", name, i).normal(*parameter.shape))
    return policy


def moved_lora(pipeline, name: str = "a", tuning: LoRA | None = None):
    return move(pipeline.adapt(tuning or LoRA(), Key(name)), name)


def native(pipeline, latents, condition, guidance: float = 3.0):
    """The prediction's numbers, without gradient."""
    with torch.no_grad():
        return pipeline.predict(latents, T, condition, guidance).native


def plain_diffusers():
    theirs = StableDiffusionPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def their_images(theirs, latents, sampling: Sampling):
    return theirs(
        prompt=TEXTS[: len(latents)],
        latents=latents,
        guidance_scale=sampling.guidance,
        num_inference_steps=sampling.steps,
        output_type="pt",
    ).images


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images_equal_those_of_plain_diffusers(pipeline, guidance):
    sampling = Sampling(20, guidance, 0.0)
    ours = PipelineSampler(pipeline, sampling)(PROMPTS[:3], KEYS[:3]).images
    theirs = their_images(plain_diffusers(), pipeline.initial_noise(KEYS[:3]), sampling)
    assert ours.std() > 0.1  # pictures, not a flat grey
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.fixture
def threads():
    """Sets the number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "tolerance"), [(2, 2e-5), (1, 1e-4)])
def test_the_batch_an_image_stands_in_does_not_change_it(pipeline, threads, count, tolerance):
    """Alone, 7 together and 16 together. The kernels of a single thread round more unevenly;
    processors differ: of 49152 numbers six were up to 1.04e-5 apart on a Xeon with two threads."""
    threads(count)
    sampler = PipelineSampler(pipeline, Sampling(5, 3.0, 1.0))
    whole = sampler(PROMPTS, KEYS)
    predicted = native(pipeline, pipeline.initial_noise(KEYS), pipeline.condition(PROMPTS))
    for size in (1, 7):
        batches = [slice(i, i + size) for i in range(0, 16, size)]
        images = torch.cat([sampler(PROMPTS[rows], KEYS[rows]).images for rows in batches])
        torch.testing.assert_close(images, whole.images, atol=tolerance, rtol=0)
        for rows in batches:
            latents, condition = pipeline.initial_noise(KEYS[rows]), pipeline.condition(PROMPTS[rows])
            torch.testing.assert_close(native(pipeline, latents, condition), predicted[rows], atol=1e-5, rtol=0)
            torch.testing.assert_close(pipeline.decode(whole.latents[rows]), whole.images[rows], atol=1e-5, rtol=0)


def test_guidance_extrapolates_from_the_empty_prompt(pipeline, latents, condition):
    empty, told = native(pipeline, latents, condition.null, 1.0), native(pipeline, latents, condition, 1.0)
    assert (told - empty).abs().max() > 1e-2
    torch.testing.assert_close(native(pipeline, latents, condition, 3.0), empty + 3 * (told - empty), atol=1e-5, rtol=0)
    torch.testing.assert_close(native(pipeline, latents, condition, 0.0), told, atol=0, rtol=0)


def test_every_row_may_have_its_own_timestep(pipeline, latents, condition):
    together = pipeline.predict(latents, torch.tensor([100, 700]), condition, 3.0)
    for row, t in enumerate((100, 700)):
        alone = pipeline.predict(latents[row : row + 1], t, condition[row], 3.0)
        for part in ("native", "x0", "eps", "v"):
            torch.testing.assert_close(
                getattr(together, part)[row], getattr(alone, part)[0].detach(), atol=1e-4, rtol=1e-5
            )


def test_long_prompts_are_cut_at_the_tokenizers_limit(pipeline):
    words = " and ".join(["a red circle"] * 40)
    long, longer = pipeline.condition([Prompt("a", words), Prompt("b", words + " on a white background")])
    assert long.tensors["text"].shape == (1, 20, 96)
    assert torch.equal(long.tensors["text"], longer.tensors["text"])


def test_the_null_condition_is_the_empty_prompt(pipeline, condition):
    torch.testing.assert_close(condition.null.tensors["text"][1:], pipeline.condition([Prompt("", "")]).tensors["text"])
    assert not torch.equal(condition.null.tensors["text"], condition.tensors["text"])
    assert torch.equal(condition.null.null.tensors["text"], condition.null.tensors["text"])


@pytest.mark.parametrize(
    ("index", "rows"), [(2, [2]), (-1, [3]), (slice(1, 3), [1, 2]), ([3, 0], [3, 0]), (torch.tensor([1, 1]), [1, 1])]
)
def test_conditions_are_indexed_like_tensors_but_keep_their_batch(pipeline, index, rows):
    whole = pipeline.condition(PROMPTS[:4])
    chosen = whole[index]
    assert len(chosen) == len(rows)
    for tensors, originals in ((chosen.tensors, whole.tensors), (chosen.null_tensors, whole.null_tensors)):
        assert torch.equal(tensors["text"], originals["text"][rows])


def test_conditions_repeat_row_by_row_and_concatenate_in_order(pipeline):
    one, two = pipeline.condition(PROMPTS[:1]), pipeline.condition(PROMPTS[1:3])
    whole = Condition.cat([one, two])
    assert len(whole) == 3
    assert torch.equal(whole[1].tensors["text"], two[0].tensors["text"])
    twice = whole.repeat(2)
    assert len(twice) == 6
    assert len(twice.null) == 6
    assert torch.equal(twice.tensors["text"], whole[[0, 0, 1, 1, 2, 2]].tensors["text"])


def test_the_pooled_condition_is_one_vector_per_prompt(condition):
    assert condition.pooled.shape == (2, 96)
    torch.testing.assert_close(condition.pooled, condition.tensors["text"].sum(1) / 20)
    own = Condition(dict(condition.tensors) | {"pooled": torch.ones(2, 5)}, condition.null_tensors)
    assert torch.equal(own.pooled, torch.ones(2, 5))  # a model's own pooled embedding goes first


def test_conditions_move_between_devices_with_their_null(condition):
    away = condition.to("meta")
    assert {value.device.type for value in (*away.tensors.values(), *away.null_tensors.values())} == {"meta"}
    assert condition.tensors["text"].device.type == "cpu"


def test_a_fresh_lora_predicts_exactly_as_its_reference(fresh, latents, condition):
    before = native(fresh, latents, condition)
    policy = fresh.adapt(LoRA(), Key("a"))
    assert torch.equal(native(policy, latents, condition), before)
    assert torch.equal(native(policy.reference, latents, condition), before)


def test_a_trained_lora_leaves_reference_and_pipeline_alone(fresh, latents, condition):
    before = native(fresh, latents, condition)
    policy = moved_lora(fresh)
    assert (native(policy, latents, condition) - before).abs().max() > 0.01
    assert torch.equal(native(policy.reference, latents, condition), before)
    assert torch.equal(native(fresh, latents, condition), before)


def test_policies_on_one_pipeline_do_not_disturb_each_other(fresh, latents, condition):
    """Each predicts as on a pipeline of its own, in whatever order they are asked; `b` has other target layers."""
    narrow = LoRA(rank=2, targets=("to_q",))
    alone = {
        "a": native(moved_lora(load(), "a"), latents, condition),
        "b": native(moved_lora(load(), "b", narrow), latents, condition),
        "base": native(fresh, latents, condition),
    }
    assert not alone["a"].equal(alone["b"])
    together = {"base": fresh, "a": moved_lora(fresh, "a"), "b": moved_lora(fresh, "b", narrow)}
    for name in ["a", "b", "a", "base", "b", "base", "a", "a", "b"]:
        assert torch.equal(native(together[name], latents, condition), alone[name]), name


def test_a_policy_made_after_the_base_was_used_is_switched_on(fresh, latents, condition):
    """peft leaves layers that are switched off as they are when it adds an adapter to them."""
    fresh.adapt(LoRA(), Key("first"))
    before = native(fresh, latents, condition)
    policy = moved_lora(fresh, "second")
    assert (native(policy, latents, condition) - before).abs().max() > 0.01


def test_the_base_is_unchanged_when_a_policy_was_made_but_not_yet_used(fresh, latents, condition):
    before = native(fresh, latents, condition)
    moved_lora(fresh)
    assert torch.equal(native(fresh, latents, condition), before)


@pytest.mark.parametrize("between", ["reference", "pipeline", "other policy"])
def test_the_gradient_survives_a_forward_pass_of_another_policy(fresh, latents, condition, between):
    """The loss of DPO and every KL penalty run the reference between the policy's forward and backward pass."""
    policy, other = moved_lora(fresh, "a"), moved_lora(fresh, "b")

    def loss():
        return policy.predict(latents, T, condition).native.square().mean()

    expected = torch.autograd.grad(loss(), policy.parameters())
    interrupted = loss()
    native({"reference": policy.reference, "pipeline": fresh, "other policy": other}[between], latents, condition)
    interrupted.backward()
    for parameter, value in zip(policy.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, value)
    assert all(parameter.grad is None for parameter in other.parameters())


def test_losses_of_two_policies_can_be_summed(fresh, latents, condition):
    policies = [moved_lora(fresh, "a"), moved_lora(fresh, "b")]
    loss = sum(policy.predict(latents, T, condition).native.square().mean() for policy in policies)
    loss.backward()
    for policy in policies:
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in policy.parameters())


def test_lora_initialisation_depends_on_the_key_alone(fresh):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = fresh.adapt(LoRA(), Key("a")).state_dict()
        torch.manual_seed(2)
        fifth = [fresh.adapt(LoRA(), Key("a")).state_dict() for _ in range(4)][-1]
    assert list(first) == list(fifth)
    assert all(torch.equal(first[name], fifth[name]) for name in first)
    other = fresh.adapt(LoRA(), Key("b")).state_dict()
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)
    assert len({float(value.sum()) for name, value in first.items() if "lora_A" in name}) == len(first) / 2


def test_a_lora_starts_with_normal_down_and_zero_up_projections(fresh):
    state = fresh.adapt(LoRA(rank=8), Key("a")).state_dict()
    down = torch.cat([value.flatten() for name, value in state.items() if "lora_A" in name])
    up = torch.cat([value.flatten() for name, value in state.items() if "lora_B" in name])
    assert down.std() == pytest.approx(1 / 8, rel=0.02)
    assert up.abs().max() == 0
    assert len(down) > 10_000


def test_alpha_over_rank_scales_the_update(fresh, latents, condition):
    """(alpha / rank) B A: twice the alpha is twice the B."""
    base = fresh.adapt(LoRA(rank=2, targets=("to_q",)), Key("a"))
    double = fresh.adapt(LoRA(rank=2, alpha=4.0, targets=("to_q",)), Key("a"))
    for policy, up in ((base, 2.0), (double, 1.0)):
        with torch.no_grad():
            for name, parameter in policy.state_dict().items():
                if "lora_B" in name:
                    parameter.copy_(up * Key(name).normal(*parameter.shape))
    expected = native(base, latents, condition)
    assert (expected - native(fresh, latents, condition)).abs().max() > 0.01
    torch.testing.assert_close(native(double, latents, condition), expected, atol=1e-5, rtol=1e-4)


def test_the_reference_of_a_full_fine_tune_is_frozen(fresh, latents, condition):
    before = native(fresh, latents, condition)
    policy = fresh.adapt(FullFineTune(), Key("a"))
    assert torch.equal(native(policy, latents, condition), before)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    policy.predict(latents, T, condition, 3.0).native.square().mean().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    assert sum(bool(parameter.grad.abs().sum() > 0) for parameter in policy.parameters()) > 250  # of 286
    optimiser.step()
    assert (native(policy, latents, condition) - before).abs().max() > 0.01
    assert torch.equal(native(policy.reference, latents, condition), before)
    assert torch.equal(native(fresh, latents, condition), before)


def test_a_full_fine_tune_beside_loras_starts_at_the_base(fresh, latents, condition, tmp_path):
    before = native(fresh, latents, condition)
    lora = moved_lora(fresh)
    moved = native(lora, latents, condition)
    policy = fresh.adapt(FullFineTune(), Key("b"))
    assert len(policy.parameters()) == 286
    assert torch.equal(native(policy, latents, condition), before)
    assert torch.equal(native(lora, latents, condition), moved)
    policy.save(tmp_path)
    UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    move(policy, "b", 0.01)
    assert torch.equal(native(lora, latents, condition), moved)


def test_a_fine_tune_of_the_biases_trains_them_alone(fresh, latents, condition, tmp_path):
    policy = move(fresh.adapt(BiasFineTune(), Key("a")), "a", 0.05)
    assert all(name.endswith(".bias") for name in policy.state_dict())
    assert sum(parameter.numel() for parameter in policy.parameters()) == 14_660
    policy.save(tmp_path)
    saved = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    for name, parameter in fresh.components.denoiser.named_parameters():
        assert torch.equal(saved.get_parameter(name), parameter) != name.endswith(".bias"), name
    assert (native(policy, latents, condition) - native(fresh, latents, condition)).abs().max() > 0.01


@pytest.mark.parametrize("tuning", [LoRA(), FullFineTune(), BiasFineTune()], ids=["lora", "full", "bias"])
def test_the_gradient_reaches_the_policys_weights_and_no_others(fresh, condition, latents, tuning):
    policy = move(fresh.adapt(tuning, Key("a")), "a", 0.01)
    assert isinstance(policy, Policy)
    assert not isinstance(fresh, Policy)
    assert isinstance(fresh, Pipeline)
    policy.decode(policy.predict(latents, T, policy.condition(PROMPTS[:2]), 3.0).x0).square().mean().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    own = {id(parameter) for parameter in policy.parameters()}
    parts = fresh.components
    for network in (*parts.text.networks, parts.denoiser, parts.autoencoder, policy.denoiser):
        others = [parameter for parameter in network.parameters() if id(parameter) not in own]
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in others)
        assert not network.training


@pytest.mark.parametrize("tuning", [LoRA(), FullFineTune(), BiasFineTune()], ids=["lora", "full", "bias"])
def test_a_saved_state_brings_a_policy_back(fresh, latents, condition, tmp_path, tuning):
    policy = move(fresh.adapt(tuning, Key("a")), "a", 0.02)
    torch.save(policy.state_dict(), tmp_path / "state.pt")
    expected = native(policy, latents, condition)
    move(policy, "further", 0.02)
    assert not torch.equal(native(policy, latents, condition), expected)
    for other in (policy, fresh.adapt(tuning, Key("b")), load().adapt(tuning, Key("c"))):
        other.load_state_dict(torch.load(tmp_path / "state.pt"))
        assert torch.equal(native(other, latents, condition), expected)


@pytest.mark.parametrize(
    "other",
    [FullFineTune(), BiasFineTune(), LoRA(rank=1), LoRA(rank=8), LoRA(targets=("to_q",))],
    ids=["full", "bias", "1", "8", "targets"],
)
def test_a_state_of_another_tuning_is_refused(fresh, other):
    """A state of rank 1 would broadcast into any other rank."""
    policy = fresh.adapt(LoRA(rank=4), Key("a"))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    with pytest.raises(ValueError, match="the policy 112 with other names or shapes"):
        policy.load_state_dict(fresh.adapt(other, Key("b")).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_recomputed_densities_of_a_trained_lora_equal_the_stored_ones_exactly(fresh, dtype):
    policy = moved_lora(fresh)
    path = rollout(policy, policy.condition(PROMPTS[:6]), KEYS[:6], Sampling(10, 3.0, 1.0), dtype=dtype)
    assert torch.equal(path.latents, path.latents.to(dtype).float())
    assert len(path.actions) == 10
    for action in range(10):
        again = path.log_density(policy, action)
        assert again.requires_grad
        assert torch.equal(again.detach(), path.log_prob[:, action])
    assert not torch.equal(path.log_density(policy.reference, 5), path.log_prob[:, 5])


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, pytest.param(3.0, marks=pytest.mark.slow)])
def test_in_another_batch_the_log_ratio_is_zero_to_a_millionth(fresh, guidance):
    policy = moved_lora(fresh)
    whole = rollout(policy, policy.condition(PROMPTS), KEYS, Sampling(8, guidance, 1.0))
    for rows in (slice(0, 1), slice(1, 8), slice(8, 16)):
        latents, log_prob = whole.latents[:, rows], whole.log_prob[rows]
        part = replace(whole, latents=latents, log_prob=log_prob, condition=policy.condition(PROMPTS[rows]))
        for action in range(8):
            with torch.no_grad():
                ratio = part.log_density(policy, action) - log_prob[:, action]
            assert ratio.abs().max() <= 1e-6


def saved_pictures(policy, folder: Path) -> torch.Tensor:
    """Two pictures of the policy, far from the base's; its adapter is saved to `folder`."""
    sampler = PipelineSampler(policy, PLAIN)
    ours = sampler(PROMPTS[:2], KEYS[:2]).images
    base = PipelineSampler(policy.reference, PLAIN)(PROMPTS[:2], KEYS[:2]).images
    assert (ours - base).abs().mean() >= 0.05
    sampler.save(folder)
    return ours


@pytest.mark.parametrize(
    "tuning", [LoRA(), LoRA(rank=3, alpha=6.0, targets=("to_q", "to_v"))], ids=["default", "scaled"]
)
def test_a_saved_lora_gives_the_same_picture_in_plain_diffusers(fresh, tmp_path, tuning):
    moved_lora(fresh, "bystander")
    policy = move(fresh.adapt(tuning, Key("a")), "a", 0.2)
    ours = saved_pictures(policy, tmp_path)
    theirs = plain_diffusers()
    theirs.load_lora_weights(tmp_path)
    images = their_images(theirs, fresh.initial_noise(KEYS[:2]), PLAIN)
    torch.testing.assert_close(ours, images, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_saved_lora_gives_the_same_picture_in_a_fresh_process(fresh, tmp_path):
    ours = saved_pictures(move(fresh.adapt(LoRA(), Key("a")), "a", 0.2), tmp_path)
    asked = {"prompt": TEXTS[:2], "latents": fresh.initial_noise(KEYS[:2]), "guidance_scale": PLAIN.guidance}
    theirs = drawn_by_plain_diffusers(FOLDER, tmp_path, tmp_path, **asked, num_inference_steps=PLAIN.steps)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_saved_full_fine_tune_opens_as_a_diffusers_unet(fresh, latents, condition, tmp_path):
    policy = move(fresh.adapt(FullFineTune(), Key("a")), "a", 0.02)
    PipelineSampler(policy, PLAIN).save(tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    with torch.no_grad():
        theirs = unet(latents, T, encoder_hidden_states=condition.tensors["text"]).sample
    torch.testing.assert_close(theirs, native(policy, latents, condition, 1.0), atol=1e-5, rtol=0)


def test_an_untrained_pipeline_saves_nothing(pipeline, tmp_path):
    PipelineSampler(pipeline, PLAIN).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("guidance", "each"), [(1.0, 1), (0.0, 1), (3.0, 2)])
def test_guidance_of_at_most_one_evaluates_the_denoiser_once_per_image_and_more_twice(pipeline, guidance, each):
    before = pipeline.components.meter.total
    PipelineSampler(pipeline, Sampling(5, guidance, 1.0))(PROMPTS[:3], KEYS[:3])
    assert pipeline.components.meter.total - before == Cost(denoiser_forward=3 * 5 * each, decode_forward=3)


@pytest.mark.parametrize(("guidance", "each"), [(1.0, 1), (3.0, 2)])
def test_backward_evaluations_are_counted_when_a_gradient_flows(fresh, latents, condition, guidance, each):
    policy, meter = fresh.adapt(LoRA(), Key("a")), fresh.components.meter
    loss = policy.predict(latents, T, condition, guidance).native.square().mean()
    assert meter.total == Cost(denoiser_forward=2 * each)
    loss.backward()
    assert meter.total == Cost(denoiser_forward=2 * each, denoiser_backward=2 * each)


def test_backward_evaluations_add_up_over_forward_passes(fresh, latents, condition):
    policy = fresh.adapt(LoRA(), Key("a"))
    first = policy.predict(latents, T, condition).x0
    policy.predict(first, 200, condition).native.square().mean().backward()
    assert fresh.components.meter.total == Cost(denoiser_forward=4, denoiser_backward=4)


def test_the_gradient_with_respect_to_latents_is_counted_with_frozen_weights(fresh, latents, condition):
    """What test-time methods such as DOODL pay."""
    start = latents.clone().requires_grad_(True)
    image = fresh.decode(fresh.predict(start, T, condition).x0, clamp=False)
    (gradient,) = torch.autograd.grad(image.square().mean(), start)
    assert gradient.abs().max() > 0
    assert fresh.components.meter.total == Cost(
        denoiser_forward=2, denoiser_backward=2, decode_forward=2, decode_backward=2
    )


@pytest.fixture(scope="module")
def pictures():
    drawn = [render(sample_scene(Key("picture", i), parse(text))) for i, text in enumerate(TEXTS)]
    return torch.stack([torch.from_numpy(picture).permute(2, 0, 1) / 255 for picture in drawn])


def test_decoding_undoes_encoding(pipeline, pictures):
    with torch.no_grad():
        encoded = pipeline.encode(pictures)
        decoded = pipeline.decode(encoded)
    assert encoded.shape == (4, 4, 8, 8)
    assert (decoded - pictures).abs().mean() < 0.01  # the pictures' own spread is 0.3
    assert 0.7 < encoded.std() < 1.3  # the scale the noise schedule is made for


def test_latents_are_the_scaled_posterior_mean(pipeline, pictures):
    autoencoder = pipeline.components.autoencoder
    with torch.no_grad():
        posterior = autoencoder.encode(pictures * 2 - 1).latent_dist
        assert torch.equal(pipeline.encode(pictures), posterior.mode() * autoencoder.config.scaling_factor)
        assert torch.equal(pipeline.encode(pictures), pipeline.encode(pictures))


def test_only_decoding_without_clamp_passes_the_gradient_of_saturated_pixels(pipeline, pictures):
    with torch.no_grad():
        latents = 3 * pipeline.encode(pictures)  # three times too bright and too dark
    latents.requires_grad_(True)
    free, clamped = pipeline.decode(latents, clamp=False), pipeline.decode(latents)
    saturated = (free > 1) | (free < 0)
    assert saturated.float().mean() > 0.1
    assert clamped.min() >= 0
    assert clamped.max() <= 1
    assert torch.equal(clamped[~saturated], free[~saturated])
    (through,) = torch.autograd.grad(free[saturated].sum(), latents)
    (blocked,) = torch.autograd.grad(clamped[saturated].sum(), latents)
    assert through.abs().max() > 0.1
    assert blocked.abs().max() == 0


@pytest.mark.parametrize(
    ("dtype", "autoencoder", "tolerance"), [("float16", "float32", 0.03), ("bfloat16", "bfloat16", 0.2)]
)
def test_half_precision_computes_in_half_and_trains_in_float32(
    pipeline, latents, condition, dtype, autoencoder, tolerance
):
    """The float16 autoencoder is kept in float32, where `force_upcast` says that its activations overflow."""
    half = load(dtype)
    assert str(half.components.denoiser.dtype) == f"torch.{dtype}"
    assert str(half.components.text.networks[0].dtype) == f"torch.{dtype}"
    assert str(half.components.autoencoder.dtype) == f"torch.{autoencoder}"
    assert half.info()["dtype"] == dtype
    own = half.condition(PROMPTS[:2])
    base = native(half, latents, own)
    assert base.dtype == torch.float32
    single = native(pipeline, latents, condition)
    torch.testing.assert_close(base, single, atol=tolerance, rtol=0)
    assert not base.equal(single)
    picture = half.decode(latents)
    assert picture.dtype == half.encode(picture).dtype == torch.float32

    policy = half.adapt(LoRA(), Key("a"))
    assert torch.equal(native(policy, latents, own), base)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    output = policy.predict(latents, T, own).native
    assert output.dtype == torch.float32
    output.square().mean().backward()
    optimiser.step()
    for parameter in policy.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
    assert (native(policy, latents, own) - base).abs().max() > 0.01
    assert torch.equal(native(policy.reference, latents, own), base)

    full = half.adapt(FullFineTune(), Key("a"))
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}
    # its reference rounds as it does, not as the pipeline, so that they are equal before training
    assert full.reference.denoiser.dtype == torch.float32
    assert torch.equal(native(full.reference, latents, own), native(full, latents, own))
    torch.testing.assert_close(native(full, latents, own), base, atol=tolerance, rtol=0)
