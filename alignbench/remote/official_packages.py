"""Serves the official hpsv2 and image-reward packages in an environment of their own, without alignbench.

    OTHER/bin/python alignbench/remote/official_packages.py hpsv2 --weights HPS_v2.1_compressed.pt --port 8001
    OTHER/bin/python alignbench/remote/official_packages.py image-reward --weights ImageReward.pt --port 8002 \\
        --med-config med_config.json --words vocab.txt

How that environment is made stands in tests/support/parity/live.py. Files of weights are read as tensors alone. What
is served is said by the packages' own `score`, one picture after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import os
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
try:
    import server  # type: ignore[import-not-found]  # beside this file; alignbench is not here
except ImportError as error:
    raise SystemExit(f"{error}; the server needs: pip install starlette uvicorn") from None

Pictures = Sequence[Image.Image]
Official = Callable[[Pictures, Sequence[str]], list[float]]


def hpsv2(weights: Path, device: str, network: str = "ViT-H-14") -> Official:
    """`hpsv2.img_score.score` with these weights. The package reads them, and downloads others first, whenever it is
    called; here the network is made beforehand and the file read once."""
    from hpsv2 import img_score
    from hpsv2.src.open_clip import create_model_and_transforms

    img_score.device = device
    model, _, preprocess = create_model_and_transforms(
        network, None, precision="amp", device=device, light_augmentation=True, output_dict=True, aug_cfg={}
    )
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    model.load_state_dict(torch.load(weights, map_location=device, weights_only=True)["state_dict"])
    model.load_state_dict = lambda _: None  # they are in
    img_score.torch = _Loaded()

    def score(pictures: Pictures, prompts: Sequence[str]) -> list[float]:
        values = [0.0] * len(prompts)
        for prompt in dict.fromkeys(prompts):  # it takes many pictures, but of one prompt
            places = [i for i, text in enumerate(prompts) if text == prompt]
            for i, value in zip(places, img_score.score([pictures[i] for i in places], prompt, cp="read"), strict=True):
                values[i] = float(value)
        return values

    return score


class _Loaded:
    """torch, for a module that would read its weights again."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def load(self, *_: Any, **__: Any) -> dict[str, None]:
        return {"state_dict": None}


def image_reward(weights: Path, med_config: Path, words: Path, device: str) -> Official:
    """`ImageReward.score`. Its package's __init__ imports training code that needs more packages; it is passed over."""
    pass_over_init()
    from ImageReward.ImageReward import ImageReward

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:  # the words are looked for under this name in the working directory
        (Path(folder) / "bert-base-uncased").mkdir()
        (Path(folder) / "bert-base-uncased" / "vocab.txt").write_bytes(words.read_bytes())
        os.chdir(folder)
        try:
            model = ImageReward(device=device, med_config=str(before / med_config)).to(device)
        finally:
            os.chdir(before)
    loaded = model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=False)
    if loaded.missing_keys or loaded.unexpected_keys:
        raise SystemExit(f"{weights} does not fit: {[*loaded.missing_keys, *loaded.unexpected_keys][:3]}.")
    model.eval()

    def score(pictures: Pictures, prompts: Sequence[str]) -> list[float]:
        with torch.no_grad():
            return [float(model.score(text, picture)) for picture, text in zip(pictures, prompts, strict=True)]

    return score


def pass_over_init() -> None:
    """Make the modules of image-reward importable without what its __init__ imports."""
    if "ImageReward" in sys.modules:
        return
    spec = importlib.util.find_spec("ImageReward")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package image-reward is not installed in this environment.")
    place = Path(next(iter(spec.submodule_search_locations)))
    for name, folder in (("ImageReward", place), ("ImageReward.models", place / "models")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module


def identity(package: str, weights: Path) -> dict[str, Any]:
    """What a result file keeps of the scorer."""
    with open(weights, "rb") as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    return {
        "id": f"official {package} {metadata.version(package)}",
        "files": {weights.name: sha256},
        "preprocessing": "the package's own",
        "range": "-1 to 1, about 0.2 to 0.35" if package == "hpsv2" else "real, about -2.5 to 2",
        "versions": {name: metadata.version(name) for name in (package, "torch", "torchvision", "pillow")},
    }


def serve(package: str, weights: Path, official: Official, port: int) -> None:
    """Serve until interrupted."""

    def score(contents: Sequence[bytes], prompts: Sequence[str]) -> list[float | None]:
        try:
            return list(official([opened(content) for content in contents], prompts))
        except Exception as error:
            if len(prompts) > 1:  # one picture that cannot be scored is a row without a score
                return [score([content], [text])[0] for content, text in zip(contents, prompts, strict=True)]
            print(ascii(f"not scored: {type(error).__name__}: {error}")[1:-1], file=sys.stderr, flush=True)
            return [None]

    running = server.make_server(identity(package, weights), score, port)
    print(f"official {package} at http://{server.HOST}:{running.port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        running.serve()


def opened(content: bytes) -> Image.Image:
    """A PNG file as an RGB picture."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return image.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", choices=("hpsv2", "image-reward"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--med-config", type=Path, help="of image-reward")
    parser.add_argument("--words", type=Path, help="of image-reward: BERT's vocab.txt")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.package == "hpsv2":
        official = hpsv2(options.weights, options.device)
    elif options.med_config and options.words:
        official = image_reward(options.weights, options.med_config, options.words, options.device)
    else:
        parser.error("image-reward needs --med-config and --words")
    serve(options.package, options.weights, official, options.port)


if __name__ == "__main__":
    main()
