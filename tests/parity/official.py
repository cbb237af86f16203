"""Runs in the isolated environment: scores pictures with the official packages, and writes what they say as JSON.

    oracle/bin/python official.py WORK

WORK holds plan.json (architectures, cases), pictures, checkpoints in the published layouts, and folders of the format
that transformers saves; scores go to WORK/official.json. Nothing here imports alignbench.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
import types
from importlib import metadata
from pathlib import Path

import torch
from PIL import Image

PACKAGES = ("torch", "torchvision", "transformers", "timm", "pillow", "numpy", "hpsv2", "image-reward")


def hpsv2(work: Path, file: str, a: dict, cases: list) -> list[float]:
    """`hpsv2.img_score.score`, its network made beforehand so that it downloads none."""
    from hpsv2 import img_score
    from hpsv2.src.open_clip import create_model_and_transforms, factory

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
    img_score.device = "cpu"
    model, _, preprocess = create_model_and_transforms(
        "parity", None, precision="amp", device="cpu", light_augmentation=True, output_dict=True, aug_cfg={}
    )
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    return [float(img_score.score(str(work / picture), text, cp=str(work / file))[0]) for picture, text in cases]


def image_reward(work: Path, file: str, words: str, a: dict, cases: list) -> list[float]:
    """`ImageReward.score`. Its package's own __init__ imports training code and is passed over."""
    place = Path(importlib.util.find_spec("ImageReward").submodule_search_locations[0])
    for name, folder in (("ImageReward", place), ("ImageReward.models", place / "models")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    from ImageReward.ImageReward import ImageReward
    from ImageReward.models.BLIP import blip_pretrain, vit

    if a["width"] != 1024:  # its sizes are written into the code

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
    tokenizer = work / "bert-base-uncased"  # looked for by this name in the working directory
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "vocab.txt").write_bytes((work / words).read_bytes())
    os.chdir(work)
    model = ImageReward(device="cpu", med_config=str(work / "med_config.json"))
    loaded = model.load_state_dict(torch.load(work / file, map_location="cpu"), strict=False)
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    assert not loaded.missing_keys, loaded.missing_keys
    model.eval()
    return [float(model.score(text, str(work / picture))) for picture, text in cases]


def hugging_face(work: Path, folder: str, scaled: bool, cases: list) -> list[float]:
    """PickScore's published snippet, with or without the scale."""
    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(work / folder)
    model = AutoModel.from_pretrained(work / folder).eval()
    options = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
    scores = []
    with torch.no_grad():
        for picture, text in cases:
            image_inputs = processor(images=[Image.open(work / picture).convert("RGB")], **options)
            image = model.get_image_features(**image_inputs)
            text_ = model.get_text_features(**processor(text=text, **options))
            image, text_ = (x / torch.norm(x, dim=-1, keepdim=True) for x in (image, text_))
            value = (text_ @ image.T)[0, 0]
            scores.append(float(model.logit_scale.exp() * value if scaled else value))
    return scores


def main(work: Path) -> None:
    torch.set_num_threads(1)
    plan = json.loads((work / "plan.json").read_text())
    runners = {"hpsv2": hpsv2, "image_reward": image_reward, "hugging_face": hugging_face}
    scores = {
        name: functools.partial(runners[job["runner"]], work, **job["arguments"])(cases=job["cases"])
        for name, job in plan.items()
    }
    versions = {}
    for package in PACKAGES:
        versions[package] = metadata.version(package)
    (work / "official.json").write_text(json.dumps({"versions": versions, "scores": scores}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
