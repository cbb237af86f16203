"""Small random checkpoints in the published layouts, pictures and prompts: what parity with the official code is about.

Everything comes from keys, so that the tests make the same files as the script that ran the official packages. Names
and shapes are written down from the official code and from nothing of alignbench's loading, which they test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignbench import Key, Prompt, Reward, plugins
from alignbench.scoring.blip import BLIP_LARGE, BlipArchitecture
from alignbench.scoring.clip import VIT_H_14, VIT_L_14, ClipArchitecture, vocabulary

KEY = Key("parity", 1)
TINY = ClipArchitecture(
    embedding=768, patch=32, width=64, layers=2, heads=4, text_width=32, text_layers=2, text_heads=4, quick_gelu=False
)
TINY_OPENAI = replace(TINY, quick_gelu=True)
TINY_BLIP = BlipArchitecture(
    patch=32, width=64, layers=2, heads=4, text_layers=2, text_intermediate=256, vocabulary=160
)
LOGIT_SCALE = 2.6592  # ln(1 / 0.07), where CLIP starts
Architecture = ClipArchitecture | BlipArchitecture
ARCHITECTURES: dict[str, Architecture] = {
    "pickscore": TINY,
    "hpsv2_0": TINY,
    "hpsv2_1": TINY,
    "clip_l14": TINY_OPENAI,
    "clip_h14": TINY,
    "aesthetic_v1": TINY_OPENAI,
    "aesthetic_v2": TINY_OPENAI,
    "imagereward": TINY_BLIP,
}
FULL: dict[str, Architecture] = {
    "pickscore": VIT_H_14,
    "hpsv2_1": VIT_H_14,
    "clip_l14": VIT_L_14,
    "aesthetic_v2": VIT_L_14,
    "imagereward": BLIP_LARGE,
}
# Sizes as (width, height). One side or the other is odd, long or smaller than 224; none is 224 long and not square, or
# has other channels than RGB, on which the official HPSv2 fails. The first three have an even number of pixels to crop.
SIZES = ((300, 200), (64, 64), (224, 224), (225, 301), (517, 230), (131, 400))
EVEN = 3
TO_MEND = "a painting of “three” stars &amp; a circle, it's large"  # open_clip mends it, transformers does not
PROMPTS = (
    "a red circle left of a blue star",
    "A RED CIRCLE LEFT OF A BLUE STAR",
    TO_MEND,
    "a very long prompt about " + ", ".join(f"star {i} and circle {i}" for i in range(40)),
)
WORDS = "a an the of in on and red blue green star circle square left large small three painting very long".split()

Shapes = Mapping[str, tuple[int, ...]]


def scorer(name: str, **options: Any) -> Any:
    """The scorer on the small checkpoints of the folder that ALIGNBENCH_DATA names."""
    return plugins.load("rewards", name)(allow_unverified=True, architecture=ARCHITECTURES[name], **options)


def write(folder: Path, architectures: Mapping[str, Architecture] = ARCHITECTURES) -> None:
    """All checkpoints of the scorers named, below a folder as ALIGNBENCH_DATA wants them."""
    for name, architecture in architectures.items():
        for file, make in zip(plugins.load("rewards", name).files, MAKERS[name], strict=True):
            path = folder / file.place
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                make(KEY(file.place), architecture, path)


def pictures() -> list[np.ndarray]:
    """Smooth random pictures, 8-bit RGB, one of each size."""
    found = []
    for i, (width, height) in enumerate(SIZES):
        coarse = (KEY("picture", i).uniform(9, 11, 3).numpy() * 255).round().astype(np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
        noise = (KEY("grain", i).uniform(height, width, 3).numpy() * 40).round().astype(np.uint8)
        found.append(np.asarray(image) // 2 + noise)
    return found


def score(reward: Reward, images: list[np.ndarray], pairs: list[tuple[int, str]]) -> list[float]:
    """Reporting-path scores of (picture, text) pairs."""
    values = []
    for picture, text in pairs:
        image = torch.from_numpy(images[picture]).permute(2, 0, 1)[None].float() / 255
        values.append(reward(image, [Prompt("x", text)]).item())
    return values


def drawn(key: Key, shapes: Shapes) -> dict[str, Tensor]:
    """Weights that keep activations of a size at which every part of the network shows in the result."""
    tensors = {}
    for name, shape in shapes.items():
        noise = key(name).normal(*shape).float() if shape else torch.tensor(0.0)
        if name == "logit_scale":
            noise = torch.tensor(LOGIT_SCALE)
        elif len(shape) == 1:
            norm = name.endswith("weight")  # of a layer norm; all other vectors are biases or the class token
            noise = 1 + 0.1 * noise if norm else 0.1 * noise
        else:
            noise = noise * (2.0 if "mbed" in name else 1.0) / float(np.prod(shape[1:])) ** 0.5
        tensors[name] = noise.contiguous()
    return tensors


def hugging_face_shapes(a: ClipArchitecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes in transformers' CLIPModel."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "visual_projection.weight": (a.embedding, a.width),
        "text_projection.weight": (a.embedding, a.text_width),
        "vision_model.embeddings.class_embedding": (a.width,),
        "vision_model.embeddings.patch_embedding.weight": (a.width, 3, a.patch, a.patch),
        "vision_model.embeddings.position_embedding.weight": ((224 // a.patch) ** 2 + 1, a.width),
        "text_model.embeddings.token_embedding.weight": (49_408, a.text_width),
        "text_model.embeddings.position_embedding.weight": (77, a.text_width),
    }
    for norm, width in (
        ("vision_model.pre_layrnorm", a.width),
        ("vision_model.post_layernorm", a.width),
        ("text_model.final_layer_norm", a.text_width),
    ):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for tower, width, layers in (("vision", a.width, a.layers), ("text", a.text_width, a.text_layers)):
        for i in range(layers):
            layer = f"{tower}_model.encoder.layers.{i}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= {f"{layer}.self_attn.{part}.weight": (width, width)}
                shapes |= {f"{layer}.self_attn.{part}.bias": (width,)}
            for norm in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
            for part, out, into in (("fc1", 4 * width, width), ("fc2", width, 4 * width)):
                shapes |= {f"{layer}.mlp.{part}.weight": (out, into), f"{layer}.mlp.{part}.bias": (out,)}
    return shapes


def as_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers' CLIPModel in open_clip's layout."""
    found = {}
    renames = (
        ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.pre_layrnorm.", "visual.ln_pre."),
        ("vision_model.post_layernorm.", "visual.ln_post."),
        ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
        ("text_model.encoder.layers.", "transformer.resblocks."),
        ("text_model.embeddings.token_embedding.", "token_embedding."),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.final_layer_norm.", "ln_final."),
        (".self_attn.out_proj.", ".attn.out_proj."),
        (".layer_norm1.", ".ln_1."),
        (".layer_norm2.", ".ln_2."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
    )
    for name, tensor in tensors.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
            tensor = torch.cat(parts)
        elif name.endswith("projection.weight"):
            name = {"visual": "visual.proj", "text": "text_projection"}[name.split("_")[0]]
            tensor = tensor.T.contiguous()
        for old, new in renames:
            name = name.replace(old, new)
        found[name] = tensor
    return found


def image_reward_shapes(a: BlipArchitecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes in ImageReward.pt."""

    def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    w, vision, text = a.width, "blip.visual_encoder", "blip.text_encoder"
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}.cls_token": (1, 1, w),
        f"{vision}.pos_embed": (1, (224 // a.patch) ** 2 + 1, w),
        f"{vision}.patch_embed.proj.weight": (w, 3, a.patch, a.patch),
        f"{vision}.patch_embed.proj.bias": (w,),
        f"{text}.embeddings.word_embeddings.weight": (a.vocabulary, 768),
        f"{text}.embeddings.position_embeddings.weight": (512, 768),
    }
    shapes |= norm(f"{vision}.norm", w) | norm(f"{text}.embeddings.LayerNorm", 768)
    for i in range(a.layers):
        block = f"{vision}.blocks.{i}"
        shapes |= norm(f"{block}.norm1", w) | norm(f"{block}.norm2", w)
        shapes |= linear(f"{block}.attn.qkv", 3 * w, w) | linear(f"{block}.attn.proj", w, w)
        shapes |= linear(f"{block}.mlp.fc1", 4 * w, w) | linear(f"{block}.mlp.fc2", w, 4 * w)
    for i in range(a.text_layers):
        layer = f"{text}.encoder.layer.{i}"
        for attention, into in (("attention", 768), ("crossattention", w)):
            shapes |= linear(f"{layer}.{attention}.self.query", 768, 768)
            shapes |= linear(f"{layer}.{attention}.self.key", 768, into)
            shapes |= linear(f"{layer}.{attention}.self.value", 768, into)
            shapes |= linear(f"{layer}.{attention}.output.dense", 768, 768)
            shapes |= norm(f"{layer}.{attention}.output.LayerNorm", 768)
        shapes |= linear(f"{layer}.intermediate.dense", a.text_intermediate, 768)
        shapes |= linear(f"{layer}.output.dense", 768, a.text_intermediate) | norm(f"{layer}.output.LayerNorm", 768)
    shapes |= linear("blip.vision_proj", 256, w) | linear("blip.text_proj", 256, 768)
    return shapes | chain_shapes("mlp.")


def chain_shapes(prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Names and shapes of the five linear layers of LAION's second head and of ImageReward's."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, out, into in ((0, 1024, 768), (2, 128, 1024), (4, 64, 128), (6, 16, 64), (7, 1, 16)):
        shapes |= {f"{prefix}layers.{place}.weight": (out, into), f"{prefix}layers.{place}.bias": (out,)}
    return shapes


def _half_in_a_training_checkpoint(key: Key, a: ClipArchitecture, path: Path) -> None:
    tensors = as_open_clip(drawn(key, hugging_face_shapes(a)))
    torch.save({"epoch": 1, "state_dict": {name: tensor.half() for name, tensor in tensors.items()}}, path)


def _open_clip(key: Key, a: ClipArchitecture, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = as_open_clip(drawn(key, hugging_face_shapes(a)))
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


def _hugging_face(key: Key, a: ClipArchitecture, path: Path) -> None:
    tensors = drawn(key, hugging_face_shapes(a))
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # as older files have them
    torch.save(tensors, path)


def _image_reward(key: Key, a: BlipArchitecture, path: Path) -> None:
    tensors = drawn(key, image_reward_shapes(a))
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(tensors, path)


def _words(key: Key, a: BlipArchitecture, path: Path) -> None:
    letters = [f"{mark}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *",.;:'\"“”&!", *WORDS[1:]]
    words += [f"[unused{i}]" for i in range(a.vocabulary - 2 - len(words))]  # two are added to it and never used
    path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")


def _chain(key: Key, a: object, path: Path) -> None:
    torch.save(drawn(key, chain_shapes()), path)


def _map(key: Key, a: object, path: Path) -> None:
    torch.save(drawn(key, {"weight": (1, 768), "bias": (1,)}), path)


MAKERS: dict[str, tuple[Callable[..., None], ...]] = {
    "pickscore": (_hugging_face,),
    "hpsv2_0": (_half_in_a_training_checkpoint,),
    "hpsv2_1": (_half_in_a_training_checkpoint,),
    "clip_l14": (_open_clip,),
    "clip_h14": (_open_clip,),
    "aesthetic_v1": (_open_clip, _map),
    "aesthetic_v2": (_open_clip, _chain),
    "imagereward": (_image_reward, _words),
}


def write_hugging_face_folder(a: ClipArchitecture, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """A folder that transformers' own classes load: model, image processor and tokenizer, as the hub's are."""
    folder.mkdir(parents=True, exist_ok=True)
    act = "quick_gelu" if a.quick_gelu else "gelu"
    vision = {
        "hidden_size": a.width, "intermediate_size": 4 * a.width, "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads, "image_size": 224, "patch_size": a.patch, "hidden_act": act,
        "projection_dim": a.embedding, "model_type": "clip_vision_model",
    }  # fmt: skip
    text = {
        "hidden_size": a.text_width, "intermediate_size": 4 * a.text_width, "num_hidden_layers": a.text_layers,
        "num_attention_heads": a.text_heads, "hidden_act": act, "projection_dim": a.embedding, "vocab_size": 49_408,
        "max_position_embeddings": 77, "eos_token_id": 49_407, "bos_token_id": 49_406,
        "model_type": "clip_text_model",
    }  # fmt: skip
    config = {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": a.embedding,
        "vision_config": vision, "text_config": text,
    }  # fmt: skip
    processor = {
        "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "feature_extractor_type": "CLIPFeatureExtractor",
    }  # fmt: skip
    tokenizer = {
        "tokenizer_class": "CLIPTokenizer", "unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 77, "do_lower_case": True,
    }  # fmt: skip
    words, merges = vocabulary()
    files = {
        "config.json": config,
        "preprocessor_config.json": processor,
        "tokenizer_config.json": tokenizer,
        "vocab.json": words,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    torch.save(dict(tensors), folder / "pytorch_model.bin")
