"""Names of models, and loading them from folders and from the hub's cache."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from hub_cache import in_cache
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from alignbench import Prompt, Sampling, downloads
from alignbench.diffusion import hub as model_hub
from alignbench.diffusion import registry as models
from alignbench.diffusion.rollout import PipelineSampler
from alignbench.errors import InputError, RunError, UnknownName
from alignbench.keys import Key
from alignbench.meter import Meter
from alignbench.shapes.autoencoder import initialise
from alignbench.testbed.pipeline import MixturePipeline

TINY = Path(models.__file__).parents[1] / "shapes" / "weights" / "tiny"
PROMPTS = [Prompt("a", "a red circle"), Prompt("b", "two small blue stars")]
KEYS = [Key("models", i) for i in range(2)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def load(name: str | Path):
    return models.load(models.find(str(name)), Meter())


def write(path: Path, **content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def change(path: Path, **values: object) -> None:
    write(path, **(json.loads(path.read_text()) | values))


def rewrite(path: Path, edit) -> None:
    """Replace the tensors of a weight file by `edit` of them."""
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A copy of the embedded model."""
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


@pytest.fixture
def velocity(tmp_path) -> Path:
    """A random Stable Diffusion 2 in miniature in the published layout: 16 pixels, v-prediction, linear projections."""
    folder = tmp_path / "velocity"
    shutil.copytree(TINY / "tokenizer", folder / "tokenizer")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 241, "eos_token_id": 242, "pad_token_id": 242}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=243, max_position_embeddings=20, **sizes, **special))
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=(2, 2),
        norm_num_groups=4,
        use_linear_projection=True,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    for part, network in (("text_encoder", text), ("unet", unet), ("vae", autoencoder)):
        initialise(network, Key("velocity", part))
        network.save_pretrained(folder / part)
    # Published checkpoints name text weights and the autoencoder's attention as older libraries did.
    rewrite(folder / TEXT, lambda tensors: {f"text_model.{name}": value for name, value in tensors.items()})
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile("|".join(map(re.escape, old)))
    rewrite(
        folder / VAE, lambda tensors: {pattern.sub(lambda m: old[m[0]], name): value for name, value in tensors.items()}
    )
    settings = json.loads((TINY / "scheduler" / "scheduler_config.json").read_text())
    settings |= {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction", "skip_prk_steps": True}
    write(folder / "scheduler" / "scheduler_config.json", **settings)
    shutil.copy(TINY / "model_index.json", folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch) -> None:
    def refuse(*arguments, **options):
        raise AssertionError(f"uses the network: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def snapshot(cache: Path, repository: str = "org/name") -> Path:
    """The embedded model as the hub's cache keeps a download of it."""
    return Path(shutil.copytree(TINY, in_cache(cache, repository, COMMIT)))


@pytest.mark.parametrize(("name", "source"), [("tiny", "embedded"), ("mixture", "exact")])
def test_a_preset_is_found_by_name(name, source):
    assert models.find(name) == models.named()[name]
    assert models.find(name).source == source


def test_sd15_means_the_mirror_of_the_removed_repository():
    found = models.find("sd15")
    assert found.source == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (found.steps, found.guidance, found.eta) == (50, 7.5, 0.0)


def test_a_folder_is_found_by_path_and_named_after_itself(tiny, monkeypatch):
    assert models.find(str(tiny)) == models.Model("copy", source=str(tiny))
    monkeypatch.chdir(tiny)
    assert models.find(".") == models.Model("copy", source=str(tiny))


def test_a_folder_goes_before_a_hub_id(tiny, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    shutil.copytree(tiny, Path("org") / "name")
    assert models.find("org/name") == models.Model("name", source=str(tiny.parent / "org" / "name"))


@pytest.mark.parametrize("word", ["embedded", "exact"])
def test_a_folder_named_like_a_built_in_source_is_still_a_folder(tiny, monkeypatch, word):
    monkeypatch.chdir(tiny.parent)
    tiny.rename(word)
    assert load(word).info()["source"] == "folder"


def test_a_hub_id_is_taken_as_it_is():
    assert models.find("org/some-model.v1_0") == models.Model("org--some-model.v1_0", source="org/some-model.v1_0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinny", "no model named 'tinny'. Did you mean tiny or tiny_flow?"),
        ("sd1.5", "no model named 'sd1.5'. Did you mean sd15"),
        (
            "unheard",
            f"Known: a diffusers folder, a hub id such as org/name, {', '.join(sorted(models.named()))}.",
        ),
        ("./missing/folder", "no model named './missing/folder'."),
        ("../missing", "no model named '../missing'."),
        ("a/b/c", "no model named 'a/b/c'."),
        ("org/na me", "no model named 'org/na me'."),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName, match=re.escape(message)):
        models.find(name)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is a folder without model_index\.json; expected a saved diffusers"):
        models.find(str(tmp_path))


def test_a_hub_id_that_cannot_exist_is_refused_in_one_line(cache, no_network):
    with pytest.raises(InputError, match=r"^'org/name\.git' is neither a folder nor a hub id: .*$"):
        load("org/name.git")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("tiny", (4, 8, 8)), ("mixture", (2,)), ("sd15", (4, 64, 64)), ("sd21", (4, 64, 64)), ("org/name", None)],
)
def test_latent_shapes_are_known_without_loading(name, shape, no_network):
    assert models.latent_shape(models.find(name)) == shape


def test_the_latent_shape_of_a_folder_is_its_own_even_if_it_bears_a_presets_name(tiny):
    own = tiny.rename(tiny.with_name("sd15"))
    change(own / "unet" / "config.json", sample_size=12)
    assert models.latent_shape(models.find(str(own))) == (4, 12, 12)


@pytest.mark.parametrize("name", ["tiny", "mixture"])
def test_what_was_promised_without_loading_holds_when_loaded(name):
    pipeline = load(name)
    assert pipeline.latent_shape == models.latent_shape(models.find(name))
    latents = pipeline.initial_noise(KEYS)
    assert pipeline.decode(latents).shape[1:] == tuple(pipeline.info()["image_shape"])
    assert pipeline.info()["name"] == name
    assert isinstance(pipeline, MixturePipeline) == (name == "mixture")


def test_the_mixture_and_the_embedded_model_need_no_network(no_network):
    assert load("tiny").info()["source"] == "embedded"
    assert load("mixture").train_timesteps == 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"model_index.json is not JSON"),
        (b"\xff\xfe", r"model_index.json is not JSON"),
        (b"[]", r"model_index.json does not hold a JSON object"),
        (b'{"_class_name": "QwenImagePipeline"}', r"'QwenImagePipeline' are not supported; .* FLUX\.2 \[klein\]\)"),
        (b"{}", r"class None are not supported; expected StableDiffusionPipeline"),
    ],
)
def test_an_index_that_is_not_understood_is_refused(tiny, content, message):
    (tiny / "model_index.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(tiny)


def test_a_folder_without_a_scheduler_is_refused(tiny):
    shutil.rmtree(tiny / "scheduler")
    with pytest.raises(RunError, match=r"scheduler/scheduler_config\.json missing\.$"):
        load(tiny)


@pytest.mark.parametrize(
    "name",
    [UNET, VAE, TEXT, "unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/merges.txt"],
)
def test_a_missing_file_is_named_in_one_line(tiny, name):
    (tiny / name).unlink()
    with pytest.raises(RunError, match=rf"^cannot load {re.escape(str(tiny))}: {re.escape(name)} missing\.$"):
        load(tiny)


def test_a_missing_tokenizer_is_no_empty_vocabulary(tiny):
    """transformers would make one up, in which every word is unknown."""
    shutil.rmtree(tiny / "tokenizer")
    with pytest.raises(RunError, match=r"tokenizer/vocab\.json, tokenizer/merges\.txt missing\.$"):
        load(tiny)


def test_pickled_weights_are_not_read(tiny):
    """They can run code, and the digest of the weights would not cover them."""
    torch.save(load_file(tiny / UNET), tiny / "unet" / "diffusion_pytorch_model.bin")
    (tiny / UNET).unlink()
    with pytest.raises(RunError, match=rf"{UNET} missing"):
        load(tiny)


@pytest.mark.parametrize("name", [UNET, VAE, TEXT, "tokenizer/vocab.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize("cut", ["half", "git-lfs pointer"])
def test_a_broken_file_gives_a_reason_in_one_line(tiny, name, cut):
    content = (tiny / name).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tiny / name).write_bytes(content[: len(content) // 2] if cut == "half" else pointer)
    place = re.escape(str(tiny))
    with pytest.raises((RunError, InputError), match=rf"^cannot load {place}: .+$|^{place}/\S+ is not JSON .+$"):
        load(tiny)


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
def test_weights_that_are_not_in_the_file_are_not_made_up(tiny, name):
    """diffusers and transformers draw them at random and only print a notice."""
    lost = sorted(load_file(tiny / name))[-1]
    rewrite(tiny / name, lambda tensors: {key: value for key, value in tensors.items() if key != lost})
    part, shown = name.split("/")[0], re.escape(lost.removeprefix("text_model."))
    with pytest.raises(RunError, match=rf"^cannot load .*: {part} lacks 1 weights, such as {shown}; copy it again\.$"):
        load(tiny)


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
def test_weights_of_another_shape_are_refused(tiny, name):
    first = sorted(load_file(tiny / name))[0]
    rewrite(tiny / name, lambda tensors: tensors | {first: tensors[first][:-1].clone()})
    with pytest.raises(RunError, match=r"^cannot load .+$"):
        load(tiny)


def test_a_velocity_model_in_the_published_layout_samples_as_in_diffusers(velocity):
    pipeline = load(velocity)
    assert pipeline.components.schedule.kind == "v_prediction"
    assert pipeline.latent_shape == (4, 8, 8)
    assert pipeline.info()["image_shape"] == [3, 16, 16]
    ours = PipelineSampler(pipeline, Sampling(10, 4.0, 0.0))(PROMPTS, KEYS).images

    theirs = StableDiffusionPipeline.from_pretrained(velocity, dtype=torch.float32)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    assert theirs.scheduler.config.prediction_type == "v_prediction"
    theirs.set_progress_bar_config(disable=True)
    images = theirs(
        prompt=[prompt.text for prompt in PROMPTS],
        latents=pipeline.initial_noise(KEYS),
        guidance_scale=4.0,
        num_inference_steps=10,
        output_type="pt",
    ).images
    assert images.shape == (2, 3, 16, 16)
    assert images.std() > 0.05
    assert (images[0] - images[1]).abs().max() > 0.05
    torch.testing.assert_close(ours, images, atol=1e-4, rtol=0)


def test_the_prediction_type_decides_how_the_denoiser_is_read(velocity):
    as_velocity = load(velocity)
    change(velocity / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    as_noise = load(velocity)
    latents, condition = as_noise.initial_noise(KEYS), as_noise.condition(PROMPTS)
    with torch.no_grad():
        v, eps = (pipeline.predict(latents, 500, condition) for pipeline in (as_velocity, as_noise))
    assert torch.equal(v.native, eps.native)
    assert torch.equal(v.v, v.native)
    assert torch.equal(eps.eps, eps.native)
    assert (v.x0 - eps.x0).abs().max() > 0.1


def test_a_folder_saved_by_the_installed_libraries_loads_equally(tmp_path):
    """transformers 5 writes tokenizer.json in place of the vocabulary, and text weights without their prefix."""
    StableDiffusionPipeline.from_pretrained(TINY, dtype=torch.float32).save_pretrained(tmp_path / "saved")
    saved, embedded = load(tmp_path / "saved"), load("tiny")
    assert torch.equal(saved.condition(PROMPTS).tensors["text"], embedded.condition(PROMPTS).tensors["text"])
    sampling = Sampling(3, 3.0, 1.0)
    images = [PipelineSampler(pipeline, sampling)(PROMPTS, KEYS).images for pipeline in (saved, embedded)]
    torch.testing.assert_close(*images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
def test_the_digest_tells_models_apart_by_their_weights(tiny, name):
    same, before = load(TINY).info(), load(tiny).info()
    assert re.fullmatch("[0-9a-f]{64}", before["sha256"])
    assert before["sha256"] == same["sha256"] == load("tiny").info()["sha256"]
    assert "revision" not in before

    def nudge(tensors):
        first = sorted(tensors)[0]
        changed = tensors[first].clone()
        changed.view(-1)[0] += 1
        return tensors | {first: changed}

    rewrite(tiny / name, nudge)
    assert load(tiny).info()["sha256"] != before["sha256"]


def test_a_folder_does_not_show_its_path(tiny):
    """Results are shared; the place of a folder on somebody's disk is not."""
    info = load(tiny).info()
    assert info["name"] == "copy"
    assert info["source"] == "folder"
    assert str(tiny.parent) not in json.dumps(dict(info))


def offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def unreachable(monkeypatch) -> None:
    monkeypatch.setattr(model_hub, "reachable", lambda endpoint: False)


@pytest.mark.parametrize("cut_off", [offline, unreachable])
@pytest.mark.parametrize("name", ["sd15", "org/name"])
def test_a_hub_model_that_is_not_here_says_what_to_do(cache, no_network, monkeypatch, cut_off, name):
    cut_off(monkeypatch)
    model = models.find(name)
    with pytest.raises(RunError) as caught:
        models.load(model, Meter())
    message = str(caught.value)
    for part in (
        f"model {name!r} is not on this machine: {model.source} (model_index.json, denoiser, vae, "
        "text encoders, tokenizers, scheduler)",
        f"looked for in {cache}",
        "cannot be reached",
        "pass its path as --model",
        "`--model tiny` works offline",
    ):
        assert part in message
    assert "\n" not in message


def test_a_cached_snapshot_is_found_without_network(cache, no_network):
    snapshot(cache)
    pipeline = load("org/name")
    info = pipeline.info()
    assert (info["name"], info["source"], info["revision"]) == ("org--name", "org/name", COMMIT)
    assert "sha256" not in info
    assert torch.equal(pipeline.condition(PROMPTS).tensors["text"], load("tiny").condition(PROMPTS).tensors["text"])


def test_a_revision_is_looked_for_by_its_own_name(cache, no_network, monkeypatch):
    offline(monkeypatch)
    snapshot(cache)
    pinned = models.Model("pinned", source="org/name", revision=COMMIT)
    assert models.load(pinned, Meter()).info()["revision"] == COMMIT
    with pytest.raises(RunError, match="model 'other' is not on this machine"):
        models.load(models.Model("other", source="org/name", revision="f" * 40), Meter())


@pytest.mark.parametrize("name", [UNET, "tokenizer/vocab.json", "scheduler/scheduler_config.json", "vae/config.json"])
def test_half_a_snapshot_is_not_taken_for_a_whole_one(cache, no_network, monkeypatch, name):
    """An interrupted download leaves one behind; the next run has to go on with it rather than load it."""
    offline(monkeypatch)
    (snapshot(cache) / name).unlink()
    with pytest.raises(RunError, match="model 'org/name' is not on this machine"):
        load("org/name")


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download of `org/name` needs; other repositories do not exist."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        content = None
        if path.startswith("/api/models/org/name/revision/"):
            content = json.dumps({"id": "org/name", "sha": COMMIT, "siblings": []}).encode()
        elif path.startswith("/api/models/org/name/tree/"):
            rows = [{"type": "file", "path": n, "size": len(c), "oid": f"{n}"} for n, c in self.files.items()]
            content = json.dumps(rows).encode()
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
            content = self.files.get(name)
            if body:
                self.asked.append(name)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("ETag", f'"{abs(hash(path)):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


@pytest.fixture
def hub(cache, monkeypatch) -> Iterator[type[Hub]]:
    """A hub on this machine with the embedded model, and with files that nobody needs."""
    names = [path.relative_to(TINY) for path in TINY.rglob("*") if path.is_file()]
    Hub.files = {str(name): (TINY / name).read_bytes() for name in names}
    unneeded = ["v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors", "README.md"]
    Hub.files |= dict.fromkeys(unneeded, b"large")
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_hub_model_is_downloaded_once_and_without_what_it_does_not_need(hub, cache, monkeypatch):
    first = load("org/name")
    assert first.info()["revision"] == COMMIT
    assert sorted(hub.asked) == sorted(str(p.relative_to(TINY)) for p in TINY.rglob("*") if p.is_file())
    offline(monkeypatch)
    again = load("org/name")
    assert torch.equal(first.condition(PROMPTS).tensors["text"], again.condition(PROMPTS).tensors["text"])


def test_of_two_half_precision_copies_the_one_that_is_read_is_downloaded_and_the_other_where_it_is_alone(hub, cache):
    files = hub.files
    networks = [f"{part}.safetensors" for part in WEIGHTS]
    for name in networks:
        content = files.pop(name)
        for variant in ("fp16", "bf16")[name == networks[0] :]:  # of the first there is bf16 alone
            files[name.replace(".safetensors", f".{variant}.safetensors")] = content
    assert load("org/name").info()["revision"] == COMMIT
    fetched = {name for name in hub.asked if "16." in name}
    expected = {name.replace(".safetensors", ".fp16.safetensors") for name in networks[1:]}
    assert fetched == expected | {networks[0].replace(".safetensors", ".bf16.safetensors")}


def test_an_interrupted_download_is_continued(hub, cache):
    (snapshot(cache) / UNET).unlink()
    assert load("org/name").info()["revision"] == COMMIT
    assert UNET in hub.asked


def test_a_failed_download_gives_the_servers_reason_in_one_line(hub, cache):
    with pytest.raises(RunError, match=r"^model 'org/other' is not on this machine: .*downloading failed: .*404.*$"):
        load("org/other")


def test_a_closed_port_is_unreachable_and_an_open_one_is_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert downloads.reachable(url)
    assert not downloads.reachable(url)


@pytest.mark.parametrize(("endpoint", "port"), [("https://hub.example", 443), ("http://hub.example", 80)])
def test_a_silent_server_is_given_up_after_the_timeout_on_the_schemes_port(monkeypatch, endpoint, port):
    asked = []

    def silent(address, timeout):
        asked.append((address, timeout))
        raise TimeoutError

    monkeypatch.setattr(downloads, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", silent)
    assert not downloads.reachable(endpoint, seconds=1.5)
    assert asked == [(("hub.example", port), 1.5)]


def test_behind_a_proxy_only_the_proxy_knows(monkeypatch, no_network):
    monkeypatch.setattr(downloads, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert downloads.reachable("https://hub.example")


def test_folders_of_one_name_are_different_models_and_take_no_preset(tmp_path):
    found = []
    for place in ("one", "two"):
        (tmp_path / place / "tiny").mkdir(parents=True)
        (tmp_path / place / "tiny" / "model_index.json").write_text("{}")
        found.append(models.find(str(tmp_path / place / "tiny")))
    assert [model.name for model in found] == ["tiny", "tiny"]
    assert found[0].identity != found[1].identity
    assert {model.preset for model in found} == {"other"}
    assert (models.named()["tiny"].identity, models.named()["tiny"].preset) == ("tiny", "tiny")
    assert models.find("org/name").identity == "org--name"
