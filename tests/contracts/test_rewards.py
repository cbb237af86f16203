"""Rewards: what each measures, by hand, and the contract that all of them keep."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from parity import recipe
from PIL import Image
from places import TESTS

from alignbench import Key, Prompt, Reward, plugins
from alignbench.contracts.contract import findings
from alignbench.contracts.rewards import CONTRACTS, Subject
from alignbench.errors import InputError
from alignbench.shapes.render import render, render_batch, sample_scene
from alignbench.shapes.scene import ATTRIBUTES, Scene, Thing, one_wrong, parse, sample_caption

KEY = Key("test", "rewards")
NAMES = plugins.own_names("rewards")
# What each reward said of itself when these were written, learned ones on the small checkpoints: results hold it.
IDENTITIES = json.loads((TESTS / "support" / "identities.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _small_checkpoints(scorer_files):
    """Learned scorers are tested on small random checkpoints."""


def make(name: str) -> Reward:
    return recipe.scorer(name) if name in recipe.ARCHITECTURES else plugins.load("rewards", name)()


def said(*texts: str) -> list[Prompt]:
    return [Prompt(str(i), text) for i, text in enumerate(texts)]


def as_images(pictures: np.ndarray) -> torch.Tensor:
    """Rendered pictures as rewards are handed images: (b, 3, h, w) in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def drawn(n: int) -> tuple[torch.Tensor, list[Prompt]]:
    """Clean renders with their captions."""
    captions = [sample_caption(KEY("caption", i), "test") for i in range(n)]
    scenes = [sample_scene(KEY("scene", i), caption) for i, caption in enumerate(captions)]
    return as_images(render_batch(scenes)), said(*(caption.text for caption in captions))


EXACT = {name for name in NAMES if name.startswith(("linear", "quadratic"))}


def examples(name: str, n: int) -> tuple[torch.Tensor, list[Prompt]]:
    """Images and prompts that the reward of this name can score: points for those of the exact testbed."""
    if name not in EXACT:
        return drawn(n)
    prompts = plugins.load("benchmarks", "overlap")().prompts("test")[:n]
    return KEY("points").normal(n, 2), list(prompts)


def wrongly_described(prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts with one attribute of each changed, whichever the caption states."""
    wrong = []
    for prompt in prompts:
        caption = parse(prompt.text)
        order = KEY("attributes", prompt.id).permutation(len(ATTRIBUTES))
        changed = (one_wrong(caption, ATTRIBUTES[a], KEY("wrong", prompt.id)) for a in order)
        wrong.append(Prompt(prompt.id, next(other.text for other in changed if other)))
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_keeps_its_contracts(name):
    images, prompts = examples(name, 6)
    if name not in EXACT:
        prompts = prompts[:3] + wrongly_described(prompts[3:])
    reward = make(name)
    found = list(findings(CONTRACTS, Subject(reward, images, prompts)))
    assert not [finding for finding in found if finding.state == "broken"]
    unasked = [finding.detail for finding in found if finding.state == "not asked"]
    assert (len(unasked) == 0) is reward.differentiable
    assert all(f"reward '{name}'" in detail for detail in unasked)
    assert torch.equal(make(name)(images, prompts), reward(images, prompts))
    info = reward.info()
    assert info == make(name).info()
    assert info.id.replace(".", "_").startswith(name)
    assert info.range


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_refuses_prompts_of_another_world_where_it_knows_its_own(name):
    reward, (_, prompts) = make(name), examples(name, 2)
    reason = reward.unsupported([*prompts, Prompt("x", "a photo of a cat")], (3, 32, 32))
    assert (reason is not None) is (name in EXACT or name.startswith("shapes_"))


def plain(value: object) -> object:
    """A default as JSON has it."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


@pytest.mark.parametrize("name", NAMES)
def test_a_rewards_files_and_fields_are_those_that_results_were_made_with(name):
    kind, golden = plugins.load("rewards", name), IDENTITIES[name]
    assert (kind.__qualname__, kind.differentiable) == (golden["class"], golden["differentiable"])
    assert [dataclasses.asdict(file) for file in getattr(kind, "files", ())] == golden["files"]
    assert {field.name: plain(field.default) for field in dataclasses.fields(kind)} == golden["fields"]
    assert kind.__dataclass_params__.frozen


@pytest.mark.parametrize("name", NAMES)
def test_a_rewards_identity_is_the_one_that_stands_in_results(name):
    """But for what depends on the machine: the content of random files, and the versions of libraries."""
    for case in IDENTITIES[name]["identities"]:
        said = dataclasses.asdict(dataclasses.replace(make(name), **case["options"]).info())
        said["id"], unverified, _ = said["id"].partition(" unverified ")
        said["files"] = sorted(said["files"]) if unverified else said["files"]
        said["versions"] = sorted(said["versions"])
        assert said == case["identity"]


def test_there_is_a_golden_identity_for_every_reward():
    assert sorted(IDENTITIES) == NAMES


def test_no_two_rewards_have_one_identity():
    assert len({make(name).info().id for name in NAMES}) == len(NAMES) >= 5


def jpeg_bytes(pixels: np.ndarray) -> int:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95, subsampling="4:2:0")
    return len(buffer.getvalue())


def test_jpeg_rewards_are_the_size_of_the_file_in_thousand_bytes():
    pictures = np.stack([render(sample_scene(KEY("jpeg", i), parse("two red stars"))) for i in range(4)])
    sizes = [jpeg_bytes(picture) / 1000 for picture in pictures]
    assert make("jpeg_incompressibility")(as_images(pictures), said(*"abcd")).tolist() == pytest.approx(sizes)
    assert make("jpeg_compressibility")(as_images(pictures), said(*"abcd")).tolist() == pytest.approx(
        [-s for s in sizes]
    )
    assert len(set(sizes)) > 1


def test_jpeg_quality_and_subsampling_are_those_of_the_paper():
    """Another quality or subsampling would give another size, by a margin that the test above would see."""
    noise = (KEY("noise").uniform(64, 64, 3).numpy() * 255).astype(np.uint8)
    found = make("jpeg_incompressibility")(as_images(noise[None]), said("x")).item() * 1000
    assert found == pytest.approx(jpeg_bytes(noise))
    for other in ({"quality": 90, "subsampling": "4:2:0"}, {"quality": 95, "subsampling": "4:4:4"}):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, format="JPEG", **other)
        assert abs(len(buffer.getvalue()) - found) > 200


def test_noise_makes_a_larger_file_than_a_flat_picture_and_the_prompt_does_not_matter():
    images = torch.stack([KEY("noise").uniform(3, 32, 32), torch.full((3, 32, 32), 0.5)])
    for name, sign in (("jpeg_incompressibility", 1), ("jpeg_compressibility", -1)):
        noise, flat = (sign * make(name)(images, said("a", "b"))).tolist()
        assert noise > 2 * flat > 0
        assert torch.equal(make(name)(images, said("a", "b")), make(name)(images, said("c", "d")))


@pytest.mark.parametrize(("side", "kilobytes"), [(64, 0.691), (256, 1.651), (512, 4.723), (1024, 17.011)])
def test_a_black_picture_has_the_size_that_was_measured_elsewhere(side, kilobytes):
    """Within three per cent: libraries may differ a little."""
    size = make("jpeg_incompressibility")(torch.zeros(1, 3, side, side), said("x")).item()
    assert size == pytest.approx(kilobytes, rel=0.03)


def test_jpeg_sizes_order_noise_a_drawing_and_a_flat_picture():
    drawing = render(sample_scene(KEY("jpeg", 0), parse("two red stars")))
    noise = (KEY("noise").uniform(32, 32, 3).numpy() * 255).astype(np.uint8)
    images = as_images(np.stack([noise, drawing, np.full((32, 32, 3), 128, np.uint8)]))
    first, second, third = make("jpeg_incompressibility")(images, said("a", "b", "c")).tolist()
    assert first > second > third


def test_jpeg_rewards_cut_off_values_outside_the_range():
    wild = 3 * KEY("wild").normal(1, 3, 32, 32)
    for name in ("jpeg_incompressibility", "jpeg_compressibility"):
        assert torch.equal(make(name)(wild, said("x")), make(name)(wild.clamp(0, 1), said("x")))


def test_truth_is_one_for_a_clean_render_and_less_with_one_wrong_attribute():
    images, prompts = drawn(40)
    truth = make("shapes_truth")
    assert truth(images, prompts).tolist() == [1.0] * 40
    wrong = truth(images, wrongly_described(prompts))
    assert (wrong < 1).all()
    assert (wrong >= 0).all()


def test_truth_is_the_mean_over_what_the_caption_asks_for():
    """A red circle on white for a red star on white: number, colour and background of four."""
    picture = render(Scene((Thing("circle", "red", "large", 0.5, 0.5, 0.22),), "white"))
    images = as_images(np.stack([picture] * 4))
    texts = ["a red circle", "a red star on a white background", "a blue star on a black background", "two red circles"]
    assert make("shapes_truth")(images, said(*texts)).tolist() == pytest.approx([1, 3 / 4, 1 / 4, 1 / 3], abs=1e-6)


def test_style_prefers_contrast_and_a_centred_thing_and_knows_nothing_of_the_caption():
    def one(colour: str, background: str, x: float, y: float) -> np.ndarray:
        return render(Scene((Thing("square", colour, "large", x, y, 0.22),), background))

    pictures = [
        one("yellow", "black", 0.5, 0.5),  # strong and centred
        one("yellow", "black", 0.35, 0.6),  # strong, off the centre
        one("yellow", "white", 0.35, 0.6),  # weak, off the centre
        np.full((32, 32, 3), 128, np.uint8),  # nothing
    ]
    style = make("shapes_style")
    values = style(as_images(np.stack(pictures)), said("a red star", "x", "y", "z")).tolist()
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4
    assert values[0] > 0.95
    assert values[-1] == 0
    assert style(as_images(np.stack(pictures)), said("1", "2", "3", "4")).tolist() == values


def test_style_lies_between_zero_and_one():
    images, prompts = drawn(30)
    noise = KEY("noise").uniform(10, 3, 32, 32)
    values = torch.cat([make("shapes_style")(images, prompts), make("shapes_style")(noise, prompts[:10])])
    assert 0 <= values.min() < values.max() <= 1


@pytest.mark.parametrize("name", ["shapes_truth", "shapes_style", "shapes_preference"])
def test_pictures_of_another_size_are_refused(name):
    with pytest.raises(ValueError, match=r"of (shape \()?3.*32.*32.*got \(3, 64, 64\)"):
        make(name)(torch.zeros(1, 3, 64, 64), said("a red circle"))


def test_the_preference_says_itself_that_a_size_is_wrong_input():
    for score in (make("shapes_preference"), make("shapes_preference").with_grad):
        with pytest.raises(InputError, match=r"shapes_preference scores pictures of 3 x 32 x 32, got \(3, 64, 64\)"):
            score(torch.zeros(1, 3, 64, 64), said("a red circle"))


def test_the_preference_scores_alike_with_and_without_gradient():
    images, prompts = drawn(5)
    reward = make("shapes_preference")
    torch.testing.assert_close(reward.with_grad(images, prompts), reward(images, prompts), atol=1e-5, rtol=0)


def test_the_preference_rises_along_its_gradient():
    images, prompts = drawn(4)
    reward = make("shapes_preference")
    moved = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward.with_grad(moved, prompts).sum(), moved)
    step = 0.05 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    assert (reward(images + step, prompts) > reward(images, prompts)).all()
    assert (reward(images - step, prompts) < reward(images, prompts)).all()


def test_the_preference_scores_a_right_caption_above_one_with_a_wrong_attribute():
    """Far more often than by chance, and far from always: it is a proxy (the model card gives its accuracies)."""
    images, prompts = drawn(150)
    reward = make("shapes_preference")
    margin = reward(images, prompts) - reward(images, wrongly_described(prompts))
    assert 0.6 <= (margin > 0).float().mean() <= 0.9


def test_the_preference_names_its_weights_by_their_content():
    (digest,) = make("shapes_preference").info().files.values()
    assert list(make("shapes_preference").info().files) == ["preference.safetensors"]
    assert set(digest) <= set("0123456789abcdef")
