"""The recipe of the embedded model: `python -m alignbench.shapes.train --output FOLDER`.

Stages, each seeded and resumable (type the same command again): pictures, autoencoder, denoiser with text encoder,
preference reward.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignbench.files import replace_file
from alignbench.keys import Key
from alignbench.shapes import autoencoder as autoencoding
from alignbench.shapes import denoiser as denoising
from alignbench.shapes import preference
from alignbench.shapes.fit import Fit
from alignbench.shapes.judge import grade, read
from alignbench.shapes.render import render, sample_scene
from alignbench.shapes.scene import Split, parse, sample_caption

PICTURES = 96_000
AUTOENCODER = Fit(steps=9000, learning_rate=8e-4, warmup=100, weight_decay=1e-4, average=0.998)
CAPTIONS = 3600  # with four generated pictures each
MATCHING = Fit(steps=5000, learning_rate=5e-4)
CHOOSING = Fit(steps=3000, learning_rate=2e-4)
DENOISER = Fit(steps=11_000, learning_rate=1e-3, average=0.9995)


def captioned_pictures(name: str, split: Split, count: int, folder: Path) -> tuple[np.ndarray, list[str]]:
    """`count` random pictures (n, 32, 32, 3) of a split with their captions, drawn once and kept in `folder`."""
    path = folder / f"pictures-{name}.npz"
    if not path.exists():
        key = Key("shapes", "pictures", name)
        captions, pictures = [], []
        for i in range(count):
            caption = sample_caption(key("caption", i), split)
            captions.append(caption.text)
            pictures.append(render(sample_scene(key("scene", i), caption)))
            if (i + 1) % 8000 == 0:
                print(f"pictures ({name}): {i + 1}/{count}", flush=True)
        with replace_file(path) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, pictures=np.stack(pictures), captions=np.array(captions))
    saved = np.load(path)
    return saved["pictures"], [str(text) for text in saved["captions"]]


def accuracy(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> dict[str, float]:
    """Share of pictures (3, 32, 32), 0 to 1, that the judge grades fully right, and the mean of each grade."""
    grades = [grade(parse(text), read(picture)) for picture, text in zip(pictures, captions, strict=True)]
    means = {"full": float(np.mean([g.full for g in grades])), "score": float(np.mean([g.score for g in grades]))}
    for name in ("number", "shape", "colour", "size", "relation", "background"):
        means[name] = float(np.mean([g.asked[name] for g in grades if name in g.asked]))
    return {name: round(value, 4) for name, value in means.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m alignbench.shapes.train", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the finished weights")
    options = parser.parse_args(arguments)
    folder: Path = options.output
    pictures, captions = captioned_pictures("train", "train", PICTURES, folder)
    held_out, held_out_captions = captioned_pictures("dev", "dev", 1000, folder)

    autoencoder = autoencoding.train(pictures, AUTOENCODER, 16, folder)
    print("autoencoder:", accuracy(autoencoding.reconstruct(autoencoder, held_out), held_out_captions), flush=True)
    if not (folder / "tiny" / "model_index.json").exists():
        denoising.train(autoencoder, pictures, captions, DENOISER, 64, folder, folder / "tiny")

    choices = preference.generated(folder / "tiny", "train", "train", CAPTIONS, folder)
    held_out_choices = preference.generated(folder / "tiny", "dev", "dev", 500, folder)
    network = preference.train(
        pictures, captions, choices, MATCHING, CHOOSING, folder, folder / "preference.safetensors"
    )
    print("preference:", preference.pair_accuracy(network, held_out_choices))


if __name__ == "__main__":
    main()
