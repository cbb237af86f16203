"""Repositories that hold half-precision copies alone are fetched, and no copy is where the usual weights are there."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import random_models
from hub_cache import in_cache
from huggingface_hub import constants

from alignbench.diffusion import adapter_files, hub
from alignbench.diffusion.configs import check_folder
from alignbench.diffusion.hub import Repository
from alignbench.diffusion.layouts import network_of, pipeline_of
from alignbench.errors import RunError

COMMIT = "0123456789012345678901234567890123456789"


@pytest.fixture
def remote(tmp_path, monkeypatch) -> Path:
    """A folder that stands for the repository org/name: what is asked of it comes into the cache."""
    place = tmp_path / "remote"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "offline", lambda: False)
    usual = huggingface_hub.snapshot_download

    def download(name: str, local_files_only: bool = False, **asked) -> str:
        if local_files_only:
            return usual(name, local_files_only=True, **asked)
        snapshot = in_cache(tmp_path / "hub", name, COMMIT)
        for path in filter(Path.is_file, place.rglob("*")):
            inside = path.relative_to(place)
            if any(fnmatch.fnmatch(str(inside), pattern) for pattern in asked["allow_patterns"]):
                (snapshot / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / inside)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return place


def halved(folder: Path, keep: str = "") -> None:
    """The weights of each part under the name of their copy; of one part beside the usual ones, and once in shards."""
    for path in sorted(folder.rglob("*.safetensors")):
        if path.parent.name == "vae":
            shards = [path.with_name(f"{path.stem}.fp16-0000{i}-of-00002.safetensors") for i in (1, 2)]
            for shard in shards:
                shutil.copy(path, shard)
            weights = ", ".join(f'"{i}": "{shard.name}"' for i, shard in enumerate(shards))
            path.with_name(f"{path.name}.index.fp16.json").write_text(f'{{"weight_map": {{{weights}}}}}')
        else:
            shutil.copy(path, path.with_name(f"{path.stem}.fp16.safetensors"))
        if path.parent.name != keep:
            path.unlink()


def test_of_a_pipeline_the_copies_of_parts_without_usual_weights_are_fetched(remote):
    random_models.small_sd3(remote)
    halved(remote, keep="transformer")
    part = pipeline_of(Repository("org/name"))
    assert hub.local(part) is None
    found = hub.snapshot(part, "org/name")
    assert part.missing(found) == []
    names = {str(path.relative_to(found)) for path in found.rglob("*.safetensors")}
    encoders = {f"{encoder}/model.fp16.safetensors" for encoder in ("text_encoder", "text_encoder_2", "text_encoder_3")}
    vae = {f"vae/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert names == encoders | vae | {"transformer/diffusion_pytorch_model.safetensors"}
    assert hub.local(part) == found


def test_of_a_pipeline_in_full_precision_no_copy_is_fetched(remote):
    random_models.small_sd3(remote)
    for path in sorted(remote.rglob("*.safetensors")):
        shutil.copy(path, path.with_name(f"{path.stem}.fp16.safetensors"))
    found = hub.snapshot(pipeline_of(Repository("org/name")), "org/name")
    assert not list(found.rglob("*fp16*"))


@pytest.mark.parametrize(
    ("inside", "part"),
    [
        ("transformer", lambda: network_of(Repository("org/name", inside="transformer"))),
        (".", lambda: network_of(Repository("org/name"))),
        ("transformer", lambda: adapter_files.repository(Repository("org/name"))),
        ("best/transformer", lambda: adapter_files.repository(Repository("org/name", inside="best"))),
    ],
    ids=["a network", "a network at the root", "an adapter", "an adapter in a folder"],
)
def test_of_a_network_the_copy_is_fetched_where_nothing_else_is_there(
    remote, tmp_path, inside: str, part: Callable[[], hub.Part]
):
    random_models.small_sd3(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "transformer", remote / inside)
    halved(remote)
    found = hub.snapshot(part(), "org/name")
    assert (found / inside / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert part().missing(found) == []


def test_a_repository_with_neither_is_one_line_that_names_what_is_missing(remote):
    random_models.small_sd3(remote)
    (remote / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    found = hub.snapshot(pipeline_of(Repository("org/name")), "org/name")
    with pytest.raises(RunError, match=r"cannot load org/name: vae/diffusion_pytorch_model\.safetensors missing\.$"):
        check_folder(found, "org/name")
