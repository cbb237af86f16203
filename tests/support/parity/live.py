"""Compares alignbench's scorers with the official packages on the same random weights, and prints the differences.

    python tests/support/parity/live.py --oracle FOLDER [--full] [--pictures FOLDER] [--scorers NAME ...] [--write]

The isolated environment is built in FOLDER when it is not there (its packages cannot be installed beside ours).
--full uses random checkpoints of the published sizes instead of small ones, --pictures other pictures, --write keeps
what the official packages said of the small ones as tests/support/parity/golden.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import open_clip
import recipe
import torch
from PIL import Image

from alignbench import plugins

HERE = Path(__file__).parent
PINNED = (
    "torch==2.14.1 torchvision==0.29.1 transformers==4.36.2 timm==0.6.13 fairscale==0.4.13 huggingface_hub<0.26 "
    "setuptools<80 ftfy regex requests args clint starlette uvicorn"
).split()
OFFICIAL = ("image-reward==1.5", "hpsv2==1.2.0")  # without what they ask for, which cannot be installed together


def build(folder: Path) -> Path:
    """The interpreter of the isolated environment."""
    python = folder / "bin" / "python"
    if python.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "pip", "install", "--quiet"]
    subprocess.run([*pip, *PINNED], check=True)
    subprocess.run([*pip, "--no-deps", *OFFICIAL], check=True)
    words = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"  # hpsv2's wheel lacks it
    (package,) = folder.glob("lib/*/site-packages/hpsv2/src/open_clip")
    shutil.copy(words, package)
    return python


def plan(work: Path, architectures: Mapping[str, recipe.Architecture], pictures: list[np.ndarray]) -> dict[str, dict]:
    """What the official side is to do; checkpoints are written, and folders of transformers' format."""
    recipe.write(work, architectures)
    names = [f"{i}.png" for i in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture).save(work / name)
    pairs = cases(len(pictures))
    jobs: dict[str, dict] = {}
    for name, architecture in architectures.items():
        kind = plugins.load("rewards", name)
        places, a = [file.place for file in kind.files], dataclasses.asdict(architecture)
        own = [(names[i], recipe.PROMPTS[j]) for i, j in pairs]
        if name.startswith("hpsv2"):
            jobs[name] = {"runner": "hpsv2", "arguments": {"file": places[0], "a": a}, "cases": own}
        elif name == "imagereward":
            arguments = {"file": places[0], "words": places[1], "a": a}
            jobs[name] = {"runner": "image_reward", "arguments": arguments, "cases": own}
        elif name in ("pickscore", "clip_l14", "clip_h14"):
            tensors = recipe.drawn(recipe.KEY(places[0]), recipe.hugging_face_shapes(architecture))
            recipe.write_hugging_face_folder(architecture, tensors, work / name)
            if name != "pickscore":  # OpenAI's and LAION's code crops otherwise than transformers, and mends texts
                own = [
                    (picture, text)
                    for picture, content in zip(names, pictures, strict=True)
                    for text in recipe.PROMPTS
                    if even(content) and text != recipe.TO_MEND
                ]
            arguments = {"folder": name, "scaled": name == "pickscore"}
            jobs[name] = {"runner": "hugging_face", "arguments": arguments, "cases": own}
    return jobs


def cases(count: int) -> list[tuple[int, int]]:
    """(picture, prompt): two prompts with every picture."""
    return [(i, (i + j) % len(recipe.PROMPTS)) for i in range(count) for j in (0, 1)]


def even(picture: np.ndarray) -> bool:
    """Whether an even number of pixels is cropped off."""
    short, long = sorted(picture.shape[:2])
    return (int(224 * long / short) - 224) % 2 == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", type=Path, required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--scorers", nargs="+")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    python = build(options.oracle.absolute())
    pictures = recipe.pictures()
    if options.pictures:
        files = sorted(p for p in options.pictures.iterdir() if p.suffix in (".png", ".jpg", ".webp"))
        pictures = [np.array(Image.open(file).convert("RGB")) for file in files]
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        work = Path(folder)
        known = recipe.FULL if options.full else recipe.ARCHITECTURES
        architectures = {n: a for n, a in known.items() if n in (options.scorers or known)}
        jobs = plan(work, architectures, pictures)
        (work / "plan.json").write_text(json.dumps(jobs))
        subprocess.run([python, HERE / "official.py", work], check=True)
        official = json.loads((work / "official.json").read_text())
        os.environ["ALIGNBENCH_DATA"] = str(work)
        torch.set_num_threads(1)
        for name, job in jobs.items():
            reward = plugins.load("rewards", name)(allow_unverified=True, architecture=architectures[name])
            pairs = [(int(Path(picture).stem), text) for picture, text in job["cases"]]
            ours = recipe.score(reward, pictures, pairs)
            theirs = official["scores"][name]
            largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
            spread = max(theirs) - min(theirs)
            print(f"{name:12} {len(ours):3} scores  {min(theirs):+.5f} to {max(theirs):+.5f}  ", end="")
            print(f"largest difference {largest:.1e}, {largest / spread:.1e} of their range")
        print("official:", ", ".join(f"{name} {version}" for name, version in official["versions"].items()))
        if options.write and not (options.full or options.pictures or options.scorers):
            content = {"recipe": "tests/support/parity/recipe.py", **official}
            content["cases"] = {name: [[int(Path(p).stem), t] for p, t in job["cases"]] for name, job in jobs.items()}
            (HERE / "golden.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
