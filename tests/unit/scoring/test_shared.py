"""Pictures that several scorers read: each thing made once, ahead of its use, and nothing kept that nobody reads."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from parity import recipe

from alignbench import Key, Prompt, RewardInfo
from alignbench.scoring.preprocessing import Crop, Pad, Preprocessing, exact
from alignbench.scoring.shared import SharedPictures, ahead
from alignbench.scoring.values import score_images

EVEN, ODD = (np.ascontiguousarray(recipe.pictures()[k]) for k in (1, 3))  # pixels to cut off
TURNED = np.ascontiguousarray(EVEN[::-1])
DOWN, HALF = Crop("down"), Crop("half-even")


class Whole:
    """A scorer that reads whole images."""

    differentiable = False

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))

    with_grad = __call__

    def info(self):
        return RewardInfo(id="it")

    def unsupported(self, prompts, image_shape):
        return None


@dataclass(frozen=True)
class Reader(Whole):
    """One that reads pictures fitted in its way."""

    fit: Preprocessing

    def of_pictures(self, pictures, prompts):
        return pictures.pixels(self.fit, range(len(pictures))).mean((1, 2, 3))


def shared(*scorers, pictures=(EVEN, TURNED)) -> SharedPictures:
    found = SharedPictures(scorers, "cpu")
    for picture in pictures:
        found.add(picture)
    return found


@pytest.mark.parametrize(("picture", "fitted"), [(EVEN, 1), (ODD, 2)], ids=["even", "odd"])
def test_ways_of_cropping_that_do_the_same_to_a_picture_are_one_piece_of_work(picture, fitted, monkeypatch):
    made = []
    square = Crop.square
    monkeypatch.setattr(Crop, "square", lambda fit, picture: made.append(fit) or square(fit, picture))
    found = shared(Reader(DOWN), Reader(HALF), Reader(DOWN), pictures=[picture])
    assert len(made) == fitted
    for fit in (DOWN, HALF):
        assert torch.equal(found.pixels(fit, [0])[0], exact(square(fit, picture)))


@pytest.mark.parametrize("size", [(64, 64), (225, 301), (517, 230), (131, 400), (300, 201)])
def test_a_crop_that_stands_for_another_does_the_same(size):
    picture = (Key("crop").uniform(*size, 3).numpy() * 255).round().astype(np.uint8)
    for fit in (DOWN, HALF):
        assert torch.equal(fit.on(*size).square(picture), fit.square(picture))


def test_a_picture_that_nobody_reads_as_a_whole_is_not_kept():
    assert shared(Reader(DOWN))._whole == []
    kept = shared(Reader(DOWN), Whole())
    assert torch.equal((kept.images * 255).round().byte()[0].permute(1, 2, 0), torch.from_numpy(EVEN))


def test_images_and_the_files_of_them_are_read_alike():
    files = shared(Reader(Pad()))
    images = torch.stack([torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in (EVEN, TURNED)])
    memory = SharedPictures.of(images, Reader(Pad()))
    assert memory.digests == files.digests
    assert torch.equal(memory.pixels(Pad(), [0, 1]), files.pixels(Pad(), [0, 1]))


def test_rows_are_some_of_the_pictures_in_the_order_asked_for():
    found = shared(Reader(DOWN), Whole())
    turned = found.rows([1, 0])
    assert turned.digests == found.digests[::-1]
    assert torch.equal(turned.images, found.images.flip(0))
    assert torch.equal(turned.pixels(DOWN, [0]), found.pixels(DOWN, [1]))
    assert found.rows([0, 1]) is found  # so that what was made of it serves the next scorer


def test_a_picture_that_fails_leaves_the_others_their_scores():
    class Fails(Reader):
        def of_pictures(self, pictures, prompts):
            if any(prompt.text == "bad" for prompt in prompts):
                raise ValueError("no")
            return super().of_pictures(pictures, prompts)

    scorer = Fails(DOWN)
    rows = score_images("it", scorer, shared(scorer), [Prompt("0", "bad"), Prompt("1", "good")])
    assert rows[0][1] == "ValueError: no"
    assert rows[1] == (pytest.approx(shared(scorer).pixels(DOWN, [1]).mean().item()), None)


def test_where_no_core_is_left_nothing_is_made_ahead(monkeypatch):
    monkeypatch.setattr("alignbench.scoring.shared.has_spare_core", lambda: False)
    made = []
    found = ahead(lambda i: made.append((i, threading.current_thread())) or i * i, range(3))
    assert next(found) == 0
    assert made == [(0, threading.main_thread())]
    assert list(found) == [1, 4]


def test_what_is_made_ahead_comes_in_order_from_another_thread_and_is_never_much(monkeypatch):
    monkeypatch.setattr("alignbench.scoring.shared.has_spare_core", lambda: True)
    made, used = [], []

    def make(item: int) -> int:
        made.append(threading.current_thread())
        assert len(made) <= len(used) + 3  # the one in use, the next, and one that is begun when it is asked for
        return item**2

    for square in ahead(make, range(20)):
        used.append(square)
    assert used == [item**2 for item in range(20)]
    assert threading.current_thread() not in made
    assert list(ahead(make, [])) == []


def test_what_cannot_be_made_is_raised_when_its_turn_comes():
    made = ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(made) == 1
    with pytest.raises(ZeroDivisionError):
        next(made)


def test_what_is_made_ahead_is_made_on_the_gpu_of_the_thread_that_asks(monkeypatch):
    """A new thread begins with the first GPU, and each of several processes has its own."""
    chosen: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda card: chosen.append((card, threading.get_ident())))
    made = list(ahead(lambda item: (item, threading.get_ident()), [1, 2]))
    assert [item for item, _ in made] == [1, 2]
    assert chosen == [(3, made[0][1])]
    assert made[0][1] == made[1][1] != threading.get_ident()
