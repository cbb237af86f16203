"""On a CUDA device: the same pictures as on the CPU, exact importance ratios, training, half precision."""

from __future__ import annotations

import pytest
import torch

from alignbench import Key, LoRA, Prompt, Sampling
from alignbench.diffusion import models
from alignbench.diffusion.checkpoints import Options
from alignbench.diffusion.meter import Meter
from alignbench.diffusion.rollout import PipelineSampler, rollout
from alignbench.experiment.run import run_cell
from alignbench.experiment.spec import RunSpec, resolve

pytestmark = pytest.mark.gpu
PROMPTS = [Prompt(f"p{i}", "a red circle left of a blue star") for i in range(8)]
KEYS = [Key("gpu", i) for i in range(8)]


@pytest.fixture(autouse=True)
def _device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def load(device, dtype="float32"):
    return models.load(models.PRESETS["tiny"], Meter(), Options(device, dtype))


def test_the_pictures_are_those_of_the_cpu():
    images = [PipelineSampler(load(d), Sampling(20, 3.0, 1.0))(PROMPTS, KEYS).images.cpu() for d in ("cpu", "cuda")]
    assert (images[0] - images[1]).abs().mean() < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_importance_ratios_are_one_before_the_first_update(dtype):
    policy = load("cuda", dtype).adapt(LoRA(4), Key("adapter"))
    path = rollout(policy, policy.condition(PROMPTS), KEYS, Sampling(6, 3.0, 1.0))
    for action in range(len(path.actions)):
        again = path.log_density(policy, action).detach()
        assert (again - path.log_prob[:, action]).abs().max() <= 1e-6


def test_a_run_trains_and_finishes_on_the_device(tmp_path):
    fields = {"rounds": 2, "samples_per_round": 16, "steps": 5}
    outcome = run_cell(resolve(RunSpec(algo="ddpo", device="cuda", limit=8, output=tmp_path, set=fields)), quiet=True)
    assert outcome.result.status == "complete"
    assert outcome.result.environment["device"] == torch.cuda.get_device_name()
    assert outcome.result.cost.peak_memory_bytes == torch.cuda.max_memory_allocated()
