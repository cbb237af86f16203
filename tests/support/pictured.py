"""Results with pictures beside them, for tests of what shows pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from result_files import writer

from alignbench.files import sha256_of_files
from alignbench.keys import Key
from alignbench.page.build import build
from alignbench.record.digests import digest as digest_of_picture
from alignbench.record.digests import digest_of

HOSTILE = "<img src=x onerror=alert(1)> </script><script>alert(2)</script> {{ 7*7 }} \u202e\u2028 &amp; 'quoted'"
CATEGORIES = ("single", "count")


def pictured(folder: Path) -> Callable[..., Path]:
    """A function like `result_files.writer`'s that also draws a picture per prompt, each of one colour, and keeps
    their digest in the result: by default, as older results do, of all files; with `rows`, of each picture. The first
    prompt's text is hostile; categories take turns."""
    write = writer(folder)

    def draw(name, scores, algorithm="base", red=0, side=32, kept=True, rows=False, **changes) -> Path:
        columns = scores if isinstance(scores, dict) else {"r": scores}
        count = len(next(iter(columns.values())))
        images = folder / name / "images"
        images.mkdir(parents=True)
        files = [images / f"{place:05d}-0.png" for place in range(count)]
        for place, file in enumerate(files):
            Image.new("RGB", (side, side), (red, 7 * place % 256, 90)).save(file)
        prompts = [
            {"id": f"p{i}", "text": f"prompt number {i}" if i else HOSTILE, "category": CATEGORIES[i % 2]}
            for i in range(count)
        ]
        digest: dict[str, object] = {"kept": {"pictures": sha256_of_files(files)}} if kept else {}
        if rows:
            own = [digest_of_picture(file, pixels=True) for file in files]
            every = {(place, 0): sha256 for place, sha256 in enumerate(own)}
            digest = {"kept": {"pictures": digest_of(every)}, "digests": own}
        return write(name, columns, algorithm, prompts=prompts, **digest, **changes)

    return draw


def curve(gains: dict[str, Sequence[float]]) -> list[dict[str, object]]:
    """The lines of a training curve with these held-out scores."""
    both = [f"{r}_{d}" for r in ("denoiser", "decode", "reward") for d in ("forward", "backward")]
    length = len(next(iter(gains.values())))
    return [
        {
            "round": i,
            "seconds": float(i),
            "held_out": {name: values[i] for name, values in gains.items()},
            **dict.fromkeys(both, 10 * i),
        }
        for i in range(length)
    ]


def some_methods(folder: Path, prompts: int = 30, side: int = 32) -> list[Path]:
    """Results of four methods: the baseline, one that wins on both scorers, one that wins its reward and loses the
    truth, with two training seeds, and one that is like the baseline. The number of prompts is even."""
    draw = pictured(folder)
    base = [0.1 * (i % 7) for i in range(prompts)]
    truth = [0.2 * (i % 5) for i in range(prompts)]
    up = [x + 1 + 0.01 * i for i, x in enumerate(base)]
    both = {"r": up, "truth": [x + 1 for x in truth]}
    dear = {"per_image": dict.fromkeys(
        [f"{r}_{d}" for r in ("denoiser", "decode", "reward") for d in ("forward", "backward")], 4.0)}  # fmt: skip
    hacked = {"r": [x + 0.5 for x in base], "truth": [x - 1 for x in truth]}
    paths = [
        draw("base", {"r": base, "truth": truth}, side=side),
        draw("best", both, "best_of_n", red=80, side=side, fields={"n": 4}, cost=dear),
        draw("same", {"r": [base[i ^ 1] for i in range(prompts)], "truth": truth}, "sft", red=120, side=side),
    ]
    for seed in (1, 2):
        rises = curve({"r": [0.0, 0.4, 0.5 + 0.1 * seed], "truth": [0.0, -0.2, -0.4 * seed]})
        paths.append(draw(f"refl{seed}", hacked, "refl", red=160, side=side, seed=seed, curve=rises))
    return paths


def many_methods(folder: Path, prompts: int, methods: int, side: int) -> list[Path]:
    """Results of many methods on many prompts, with pictures that are as hard to make small as photographs: smooth
    colours with some noise."""
    write, paths = writer(folder), []
    for method in range(methods):
        name = "base" if not method else f"method{method}"
        images = folder / name / "images"
        images.mkdir(parents=True)
        rng = Key("pictured", method).generator()
        for place in range(prompts):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int64)
            noisy = smooth + rng.integers(-9, 10, smooth.shape)
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            picture.save(images / f"{place:05d}-0.png", compress_level=1)
        scores = {key: (rng.normal(size=prompts) + 0.2 * method).tolist() for key in ("r", "truth", "style")}
        paths.append(write(name, scores, "base" if not method else f"algorithm_{method}"))
    return paths


def report_of_some_methods(folder: Path) -> Path:
    """The page of `some_methods`, beside their results."""
    some_methods(folder)
    path = folder / "report.html"
    path.write_text(build([folder], path).text, encoding="utf-8")
    return path
