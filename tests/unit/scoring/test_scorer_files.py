"""Weights of learned scorers: where they are looked for, what is refused, and what a result says of them."""

from __future__ import annotations

import dataclasses
import os
import pickle
import time

import pytest
import torch
from parity import recipe

from alignbench import Prompt, downloads, plugins
from alignbench.asking import needs as fetching
from alignbench.asking.options import RunOptions
from alignbench.cli import app as cli
from alignbench.downloads import File, content_of, obtain
from alignbench.errors import InputError, RunError, UnknownName
from alignbench.plugins import label, reward_of
from alignbench.scoring.weights import locate, tensors_of

PUBLISHED = "3f0cf1c6e533f478534404cb3ca6938103becbfe4312c6affc077c274a757972"
LEARNED = tuple(recipe.ARCHITECTURES)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine with nothing on it that cannot reach the hub."""
    import huggingface_hub.constants

    monkeypatch.delenv("ALIGNBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(downloads, "reachable", lambda endpoint: False)

    def refuse(*arguments, **named):
        raise OSError("no route to host")

    monkeypatch.setattr(downloads.urllib.request, "urlopen", refuse)
    return tmp_path


@pytest.mark.parametrize("name", LEARNED)
def test_making_a_scorer_reads_and_downloads_nothing(name, offline):
    reward = plugins.load("rewards", name)()
    assert reward.unsupported([Prompt("x", "a cat")], ()) is None
    assert reward.unsupported([Prompt("x", "a cat")], (3, 512, 512)) is None
    assert "(2,)" in reward.unsupported([Prompt("x", "a cat")], (2,))


@pytest.mark.parametrize("name", LEARNED)
def test_offline_the_message_names_file_size_hash_and_place_at_once(name, offline):
    reward = plugins.load("rewards", name)()
    started = time.monotonic()
    with pytest.raises(RunError) as caught:
        reward.info()
    assert time.monotonic() - started < 5
    file, message = reward.files[0], str(caught.value)
    assert f"{file.place} is not on this machine" in message
    assert file.sha256 in message
    assert file.size is None or f"{file.size} bytes" in message
    assert str(offline / "cache" / "alignbench" / file.place) in message
    assert "ALIGNBENCH_DATA" in message
    assert "\n" not in message


def test_another_file_under_the_published_name_is_refused_naming_both_hashes(scorer_files):
    with pytest.raises(InputError, match="--allow-unverified") as caught:
        plugins.load("rewards", "pickscore")().info()
    assert PUBLISHED in str(caught.value)
    assert content_of(scorer_files / "yuvalkirstain/PickScore_v1/pytorch_model.bin") in str(caught.value)


@pytest.mark.parametrize("name", LEARNED)
def test_unverified_weights_are_recorded_in_the_identity(name, scorer_files):
    reward = recipe.scorer(name)
    info = reward.info()
    for file in reward.files:
        digest = content_of(scorer_files / file.place)
        assert info.files[file.place] == digest
        assert digest[:12] in info.id
    assert " unverified " in info.id


def test_published_weights_stand_under_the_plain_name(real_data, scorer_files, monkeypatch, tmp_path):
    """The real head is verified; the tower beside it is not, and only that is named."""
    head = plugins.load("rewards", "aesthetic_v1").files[1]
    reward = recipe.scorer("aesthetic_v1", weights=real_data / head.name)
    assert reward.info().files[head.place] == head.sha256
    assert head.sha256[:12] not in reward.info().id
    assert locate(head, real_data / head.name).published


def test_a_path_of_ones_own_is_used_and_must_exist(scorer_files, tmp_path):
    file = plugins.load("rewards", "hpsv2_1").files[0]
    (tmp_path / "mine.pt").write_bytes((scorer_files / file.place).read_bytes())
    kind = plugins.load("rewards", f"hpsv2={tmp_path / 'mine.pt'}")
    reward = kind(allow_unverified=True, architecture=recipe.TINY)
    assert reward.weights == tmp_path / "mine.pt"
    images = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt("x", "a cat")]
    assert torch.equal(reward(images, prompts), recipe.scorer("hpsv2_1")(images, prompts))
    with pytest.raises(InputError, match=r"there is no file of weights .*missing.pt.*expected xswu/HPSv2"):
        plugins.load("rewards", f"hpsv2={tmp_path / 'missing.pt'}")().info()


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    torch.save({"state_dict": {"a": torch.ones(2)}, "trap": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pt", "plain.pt"):
        with pytest.raises(RunError, match=r"cannot be read as a file of tensors alone .* it is not loaded\."):
            tensors_of(tmp_path / name)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04N."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_that_are_no_checkpoints_are_refused_in_one_line(content, suffix, tmp_path):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"broken.*(alone|no dictionary)") as caught:
        tensors_of(path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_architecture_are_refused_by_the_first_tensor(scorer_files):
    reward = dataclasses.replace(recipe.scorer("clip_l14"), architecture=dataclasses.replace(recipe.TINY, layers=3))
    with pytest.raises(RunError, match=r"lacks visual\.transformer\.resblocks\.2\.attn\.in_proj_bias and 11 more"):
        reward.features  # noqa: B018
    reward = dataclasses.replace(reward, architecture=dataclasses.replace(recipe.TINY, layers=1))
    with pytest.raises(RunError, match=r"has other tensors: visual\.transformer\.resblocks\.1"):
        reward.features  # noqa: B018
    reward = dataclasses.replace(reward, architecture=dataclasses.replace(recipe.TINY, width=128))
    with pytest.raises(RunError, match="has other shapes: "):
        reward.features  # noqa: B018


def test_a_content_is_hashed_once_while_the_file_stays_as_it_is(tmp_path, monkeypatch):
    counted = []
    real = downloads.sha256_of
    monkeypatch.setattr(downloads, "sha256_of", lambda path: counted.append(path) or real(path))
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert content_of(path) == content_of(path)
    assert len(counted) == 1
    first = content_of(path)
    path.write_bytes(b"other")
    assert content_of(path) != first


def test_files_are_found_in_the_folder_named_then_in_the_cache(tmp_path, monkeypatch):
    file = File("a.bin", "https://example.invalid/a.bin", "2" * 64, 3, repository="org/model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ALIGNBENCH_DATA", str(tmp_path / "data"))
    assert downloads.look_up(file) is None
    for folder in (tmp_path / "alignbench", tmp_path / "data"):
        (folder / "org/model").mkdir(parents=True)
        (folder / "org/model/a.bin").write_bytes(b"abc")
        assert downloads.look_up(file) == folder / "org/model/a.bin"


def test_a_file_in_the_hubs_cache_is_found(tmp_path, monkeypatch, offline):
    import huggingface_hub

    seen = []
    (tmp_path / "vocab.txt").write_text("a\n")

    def cached(repository, name, revision, repo_type):
        seen.append((repository, name, revision))
        return str(tmp_path / "vocab.txt")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    file = plugins.load("rewards", "imagereward").files[1]
    assert downloads.look_up(file) == tmp_path / "vocab.txt"
    assert seen == [("google-bert/bert-base-uncased", "vocab.txt", "main")]
    with pytest.raises(InputError, match=file.sha256):
        obtain(file)


# Names


def test_a_name_without_a_version_means_one_version_and_says_which(capsys):
    assert plugins.aliases("rewards") == {"hpsv2": "hpsv2_1", "clip": "clip_l14", "aesthetic": "aesthetic_v2"}
    for short, name in plugins.aliases("rewards").items():
        assert plugins.load("rewards", short) is plugins.load("rewards", name)
        assert plugins.full_name("rewards", f"{short}=x.pt") == f"{name}=x.pt"
    spec = RunOptions(algo="base", reward="clip", scorers=("hpsv2", "hpsv2_1", "shapes_truth"))
    assert (spec.reward, spec.scorers) == ("clip_l14", ("hpsv2_1", "hpsv2_1", "shapes_truth"))
    assert cli.run_command_line(["list", "rewards"]) == 0
    assert "means hpsv2_1." in capsys.readouterr().out
    with pytest.raises(UnknownName, match=r"Did you mean hpsv2"):
        plugins.load("rewards", "hpsv3")


def test_options_reach_the_rewards_that_have_them():
    options = RunOptions(algo="base", scorer_dtype="bfloat16", allow_unverified=True).scoring
    assert options == {"dtype": "bfloat16", "allow_unverified": True}
    assert reward_of("pickscore", options) == plugins.load("rewards", "pickscore")(
        dtype="bfloat16", allow_unverified=True
    )
    reward_of("shapes_truth", options)
    assert RunOptions(algo="base").scoring == {}


def test_a_reward_with_weights_of_ones_own_has_a_name_of_its_own():
    assert label("hpsv2_1=/models/mine.pt") == "hpsv2_1-mine"
    with pytest.raises(InputError, match="reward 'jpeg_compressibility' reads no weights"):
        plugins.load("rewards", "jpeg_compressibility=mine.pt")


# Fetching


def test_the_list_of_scorers_says_which_files_are_here(scorer_files, capsys, offline, monkeypatch):
    monkeypatch.setenv("ALIGNBENCH_DATA", str(scorer_files))
    (offline / "empty").mkdir()
    assert cli.run_command_line(["list", "--scorers"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in LEARNED)
    assert "of another size" in out  # the small one of hpsv2
    assert f"here: {scorer_files / 'yuvalkirstain/PickScore_v1/pytorch_model.bin'}" in out
    monkeypatch.setenv("ALIGNBENCH_DATA", str(offline / "empty"))
    assert cli.run_command_line(["list", "--scorers"]) == 0
    assert "missing (1,972.5 MB)" in capsys.readouterr().out


def test_fetch_puts_verified_files_where_a_run_finds_them(real_data, offline, monkeypatch, capsys):
    name = "sac+logos+ava1-l14-linearMSE.pth"
    content = (real_data / name).read_bytes()

    class Answer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self, size):
            return content[:size]

    kind = plugins.load("rewards", "aesthetic_v2")
    monkeypatch.setattr(kind, "files", kind.files[1:])
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda *_, **__: Answer())
    assert cli.run_command_line(["fetch", "scorers", "aesthetic", "--to", str(offline / "there")]) == 0
    out = capsys.readouterr().out
    assert f"1 of 1: {name} (3.7 MB)" in out
    assert f"ALIGNBENCH_DATA={offline / 'there'}" in out
    monkeypatch.setenv("ALIGNBENCH_DATA", str(offline / "there"))
    assert downloads.look_up(kind.files[0]).read_bytes() == content
    (offline / "there" / name).write_bytes(content[:-1])
    assert cli.run_command_line(["fetch", "scorers", "aesthetic", "--to", str(offline / "there")]) == 2
    assert kind.files[0].sha256 in capsys.readouterr().err


def test_fetch_asks_the_hub_library_to_keep_files_in_the_folder(offline, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, name, revision, **named):
        asked.append((repository, name, revision, named))
        folder = named["local_dir"]
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"other")
        return str(folder / name)

    monkeypatch.setattr(downloads, "reachable", lambda endpoint: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(InputError, match="expected 07cb0d20626232204ca3a6ec53ff5984"):
        fetching.fetch("scorers", ["hpsv2_0"], offline / "there", print)
    assert asked == [
        (
            "xswu/HPSv2",
            "HPS_v2_compressed.pt",
            "main",
            {"repo_type": "model", "local_dir": offline / "there" / "xswu" / "HPSv2"},
        )
    ]


def test_fetch_refuses_what_needs_no_files():
    for kind, name in (("scorers", "shapes_truth"), ("prompts", "shapes"), ("models", "tiny")):
        with pytest.raises(InputError, match=f"{name!r} needs no"):
            fetching.fetch(kind, [name], None, print)
