"""Options that compute the same numbers in another way: each is active, and changes nothing but rounding."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.utils._python_dispatch import TorchDispatchMode

from alignbench import FullFineTune, Key, LoRA, Prompt
from alignbench.asking.options import RunOptions
from alignbench.devices import keep_freed
from alignbench.diffusion.registry import Hold, family_of, find, load
from alignbench.downloads import COMPILED
from alignbench.errors import InputError, RunError
from alignbench.meter import Meter

PROMPTS = [Prompt("a", "a red circle"), Prompt("b", "a blue square")]
FLASH, MATH = "_scaled_dot_product_flash_attention_for_cpu.default", "_safe_softmax.default"


class Seen(TorchDispatchMode):
    """Which operations run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def predicted(pipeline, guidance=3.0, seen=None):
    latents, condition = Key("latents").normal(2, *pipeline.latent_shape), pipeline.condition(PROMPTS)
    with seen or contextlib.nullcontext():
        return pipeline.predict(latents, 500, condition, guidance).eps


def moved(policy):
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.02 * Key("moved", i).normal(*parameter.shape))
    return policy


@pytest.mark.parametrize("model", ["tiny", "tiny_flow"])
@pytest.mark.parametrize(("attention", "kernel"), [("math", MATH), ("flash", FLASH)])
def test_the_denoisers_attention_has_the_kernel_that_was_chosen(model, attention, kernel):
    plain, chosen = load(find(model), Meter()), load(find(model), Meter(), Hold(attention=attention))
    with torch.no_grad():
        expected, seen = predicted(plain), Seen()
        found = predicted(chosen, seen=seen)
    assert seen.names & {FLASH, MATH} == {kernel}
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_what_is_computed_again_in_the_backward_pass_has_the_same_kernel():
    policy = load(find("tiny"), Meter(), Hold(attention="math", checkpointing=True)).adapt(LoRA(2), Key("adapter"))
    loss = predicted(policy, 1.0).square().mean()
    with Seen() as seen:
        loss.backward()
    assert policy.recomputations > 0
    assert seen.names & {FLASH, MATH} == {MATH}


@pytest.mark.parametrize("tuning", [LoRA(2), FullFineTune()])
def test_weights_of_convolutions_lie_channels_last_and_so_do_copies(tuning, tmp_path):
    plain, chosen = load(find("tiny"), Meter()), load(find("tiny"), Meter(), Hold(channels_last=True))
    policy = chosen.adapt(tuning, Key("adapter"))
    for network in (chosen.denoiser, chosen.components.autoencoder, policy.denoiser):
        kernels = [p for p in network.parameters() if p.dim() == 4 and p.shape[2] > 1]
        assert kernels
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    with torch.no_grad():
        torch.testing.assert_close(predicted(chosen), predicted(plain), atol=2e-4, rtol=0)
    moved(policy).save(tmp_path)
    opened = family_of(find("tiny")).open_policy(plain, tmp_path)
    assert all(torch.equal(opened.state_dict()[name], value) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("tuning", [LoRA(2), FullFineTune()])
def test_what_is_trained_is_float32_under_bfloat16(tuning):
    policy = load(find("tiny"), Meter(), Hold(dtype="bfloat16")).adapt(tuning, Key("adapter"))
    predicted(policy, 1.0).square().mean().backward()
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in policy.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize(
    ("hold", "message"),
    [
        (Hold(attention="cudnn"), "--attention cudnn: a processor has auto, math and flash"),
        (Hold(attention="efficient"), "--attention efficient: a processor has"),
        (Hold(compiling="reduce-overhead"), "--compile reduce-overhead: CUDA graphs need a GPU; use --compile default"),
    ],
)
def test_what_a_processor_cannot_do_is_refused(hold, message):
    with pytest.raises(InputError, match=message):
        load(find("tiny"), Meter(), hold)


def test_a_compiled_denoiser_with_checkpointing_is_refused():
    options = RunOptions(algo="ddpo", compile="default", checkpointing=True)
    with pytest.raises(InputError, match="--compile: with --checkpointing it would compile nothing"):
        family_of(find("tiny")).refuse(find("tiny"), options, "ddpo", trains=True)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """`tiny` as `--compile` has it, but for the compiler itself, which takes minutes: what it was asked, and calls."""
    monkeypatch.setenv(COMPILED, default_cache_dir())  # as importing torch's compiler does
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    asked = []

    def compile_(network, **options):
        asked.append(options)
        network._compiled_call_impl = lambda *args, **told: calls.append(network) or network._call_impl(*args, **told)

    calls = []
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    return load(find("tiny"), Meter(), Hold(compiling="default")), asked, calls


def test_every_denoiser_that_is_called_is_compiled_whole(compiled):
    pipeline, asked, calls = compiled
    assert asked == [{"mode": "default", "fullgraph": True}]
    with torch.no_grad():
        predicted(pipeline)
        assert calls == [pipeline.denoiser]
        policy = pipeline.adapt(LoRA(2), Key("adapter"))
        predicted(policy)
        predicted(policy.reference)
        assert calls == [pipeline.denoiser] * 3
        full = pipeline.adapt(FullFineTune(), Key("adapter"))
        predicted(full)
    assert calls[3] is full.denoiser
    assert full.denoiser is not pipeline.denoiser


def test_what_was_compiled_is_kept_in_the_folder_of_caches(compiled, tmp_path):
    assert os.environ[COMPILED] == str(tmp_path / "caches" / "alignbench" / "compiled")


def test_what_cannot_be_compiled_is_one_line_that_says_what_to_type(compiled):
    pipeline, *_ = compiled

    def broken(*args, **told):
        raise torch._dynamo.exc.TorchDynamoException("ImportError: a.so: file too short\nSet TORCHDYNAMO_VERBOSE=1")

    pipeline.denoiser._compiled_call_impl = broken
    with pytest.raises(RunError) as raised:
        predicted(pipeline)
    assert str(raised.value) == (
        "--compile default: torch cannot compile the denoiser ('ImportError: a.so: file too short'); if it could "
        "before, `alignbench cache --clear compiled` and the same command begin anew, else leave --compile out."
    )


@pytest.mark.parametrize("tuning", [LoRA(2), FullFineTune()])
def test_names_of_compiled_weights_are_plain(compiled, tuning, tmp_path):
    pipeline, *_ = compiled
    policy = moved(pipeline.adapt(tuning, Key("adapter")))
    plain = load(find("tiny"), Meter()).adapt(tuning, Key("adapter"))
    assert list(policy.state_dict()) == list(plain.state_dict())
    policy.save(tmp_path)
    opened = family_of(find("tiny")).open_policy(load(find("tiny"), Meter()), tmp_path)
    assert all(torch.equal(opened.state_dict()[name], value) for name, value in policy.state_dict().items())


def compiled_and_plain():
    """What the slow test has each process do. Prints how many graphs there were, and how many no cache knew."""
    found = []
    for hold in (Hold(), Hold(compiling="default")):
        policy = moved(load(find("tiny"), Meter(), hold).adapt(LoRA(2), Key("adapter")))
        loss = predicted(policy, 1.0).square().mean()
        with torch.no_grad():
            reference = predicted(policy.reference, 1.0)  # between the two passes, with the adapter off
        gradients = torch.autograd.grad(loss, policy.parameters())
        found.append([loss.detach(), reference, *gradients])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-3)
    counted = torch._dynamo.utils.counters
    print(counted["stats"]["unique_graphs"], counted["inductor"]["fxgraph_cache_miss"])


@pytest.mark.slow
def test_a_compiled_policy_has_the_same_gradients_and_a_second_process_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv(COMPILED, raising=False)  # of the processes that follow
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    command = [sys.executable, "-c", "import test_ways_of_computing as own; own.compiled_and_plain()"]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
    assert [int(graphs) >= 2 for graphs, _ in runs] == [True, True]
    assert any((tmp_path / "alignbench" / "compiled").rglob("*"))
    assert [int(missed) > 0 for _, missed in runs] == [True, False]


def test_freed_memory_is_kept_where_the_c_library_knows_how():
    assert keep_freed() is (platform.libc_ver()[0] == "glibc")
