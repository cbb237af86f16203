"""Runs in the isolated environment: scores pictures with the official packages, and writes what they say as JSON.

    oracle/bin/python official.py WORK [NAME]

WORK holds plan.json (architectures, cases), pictures, checkpoints in the published layouts, and folders of the format
that transformers saves; scores go to WORK/official.json. With a NAME of the plan, its scorer is served instead, as
alignbench/remote/official_packages.py serves the published sizes. alignbench is not installed there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "alignbench" / "remote"))
import official_packages as packages  # the server of the official packages

PACKAGES = ("torch", "torchvision", "transformers", "timm", "pillow", "numpy", "hpsv2", "image-reward")


def hpsv2(work: Path, file: str, a: dict) -> packages.Official:
    """The official scorer with a network of these sizes."""
    from hpsv2.src.open_clip import factory

    config = {
        "embed_dim": a["embedding"],
        "vision_cfg": {
            "image_size": 224, "layers": a["layers"], "width": a["width"], "head_width": a["width"] // a["heads"],
            "patch_size": a["patch"],
        },
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": a["text_width"], "heads": a["text_heads"],
            "layers": a["text_layers"],
        },
    }  # fmt: skip
    (work / "parity.json").write_text(json.dumps(config))
    factory.add_model_config(work / "parity.json")
    return packages.hpsv2(work / file, "cpu", "parity")


def image_reward(work: Path, file: str, words: str, a: dict) -> packages.Official:
    """The official scorer with networks of these sizes, some of which are written into its code."""
    packages.pass_over_init()
    from ImageReward.models.BLIP import blip_pretrain, vit

    if a["width"] != 1024:

        def small(*_, **__):
            return (
                vit.VisionTransformer(
                    img_size=224, patch_size=a["patch"], embed_dim=a["width"], depth=a["layers"], num_heads=a["heads"]
                ),
                a["width"],
            )

        blip_pretrain.create_vit = small
    config = {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": a["text_intermediate"], "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
        "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": a["text_layers"], "pad_token_id": 0,
        "add_type_embeddings": False, "vocab_size": a["vocabulary"], "encoder_width": a["width"],
        "add_cross_attention": True,
    }  # fmt: skip
    (work / "med_config.json").write_text(json.dumps(config))
    return packages.image_reward(work / file, work / "med_config.json", work / words, "cpu")


def hugging_face(work: Path, folder: str, scaled: bool) -> packages.Official:
    """PickScore's published snippet, with or without the scale."""
    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(work / folder)
    model = AutoModel.from_pretrained(work / folder).eval()
    options = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}

    def score(pictures: packages.Pictures, prompts: Sequence[str]) -> list[float]:
        scores = []
        for picture, text in zip(pictures, prompts, strict=True):
            with torch.no_grad():
                image = model.get_image_features(**processor(images=[picture], **options))
                text_ = model.get_text_features(**processor(text=text, **options))
                image, text_ = (x / torch.norm(x, dim=-1, keepdim=True) for x in (image, text_))
                value = (text_ @ image.T)[0, 0]
                scores.append(float(model.logit_scale.exp() * value if scaled else value))
        return scores

    return score


RUNNERS = {"hpsv2": hpsv2, "image_reward": image_reward, "hugging_face": hugging_face}


def main(work: Path) -> None:
    torch.set_num_threads(1)
    scores = {}
    for name, job in json.loads((work / "plan.json").read_text()).items():
        official = RUNNERS[job["runner"]](work, **job["arguments"])
        scores[name] = []
        for picture, text in job["cases"]:
            with Image.open(work / picture) as image:
                scores[name] += official([image.convert("RGB")], [text])
        del official
    versions = {package: metadata.version(package) for package in PACKAGES}
    (work / "official.json").write_text(json.dumps({"versions": versions, "scores": scores}))


def serve(work: Path, name: str) -> None:
    """Serve one of the plan's scorers, at a free port."""
    torch.set_num_threads(1)
    job = json.loads((work / "plan.json").read_text())[name]
    package = {"hpsv2": "hpsv2", "image_reward": "image-reward"}[job["runner"]]
    official = RUNNERS[job["runner"]](work, **job["arguments"])
    packages.serve(package, work / job["arguments"]["file"], official, port=0)


if __name__ == "__main__":
    serve(Path(sys.argv[1]).resolve(), sys.argv[2]) if len(sys.argv) > 2 else main(Path(sys.argv[1]).resolve())
