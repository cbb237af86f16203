"""On a CUDA device: the same pictures as on the CPU, exact importance ratios, training, half precision, full memory."""

from __future__ import annotations

import pytest
import torch
from parity import recipe

from alignbench import Key, LoRA, Prompt, Sampling
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.diffusion import registry as models
from alignbench.diffusion.objectives import denoising_error
from alignbench.diffusion.registry import Hold
from alignbench.diffusion.rollout import PipelineSampler, rollout
from alignbench.experiment import problem
from alignbench.experiment.run import run_cell
from alignbench.meter import Meter

pytestmark = pytest.mark.gpu
PROMPTS = [Prompt(f"p{i}", "a red circle left of a blue star") for i in range(8)]
KEYS = [Key("gpu", i) for i in range(8)]


@pytest.fixture(autouse=True)
def _device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture
def plain_float32(monkeypatch):
    """No TF32, which PyTorch uses for convolutions and which rounds to 1e-3."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def load(device, dtype="float32", checkpointing=False):
    return models.load(models.named()["tiny"], Meter(), Hold(device, dtype, checkpointing=checkpointing))


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
    outcome = run_cell(
        resolve(RunOptions(algo="ddpo", device="cuda", limit=8, output=tmp_path, set=fields)), quiet=True
    )
    assert outcome.result.status == "complete"
    assert outcome.result.environment["device"] == torch.cuda.get_device_name()
    assert outcome.result.cost.peak_memory_bytes == torch.cuda.max_memory_allocated()


FIELDS = {
    "ddpo": {"rounds": 3, "samples_per_round": 16, "steps": 5},
    "diffusion_dpo": {"rounds": 3, "updates_per_round": 2, "pairs_per_update": 8, "batch": 8},
}


@pytest.mark.parametrize("algo", sorted(FIELDS))
def test_a_run_that_was_interrupted_ends_as_one_that_was_not_but_for_rounding(tmp_path, monkeypatch, algo):
    """PyTorch's kernels for a GPU add up in whatever order threads end; on an H200 rewards differed by 1e-3."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    more = {"pair_count": 16} if algo == "diffusion_dpo" else {}

    def cell(name):
        spec = RunOptions(algo=algo, device="cuda", limit=8, output=tmp_path, name=name, set=FIELDS[algo], **more)
        return resolve(spec)

    whole = run_cell(cell("whole"), quiet=True)
    real, calls = problem.append_line, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:  # after the line before training and that of the first round
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(problem, "append_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell("killed"), quiet=True)
    continued = run_cell(cell("killed"), quiet=True)
    assert continued.resumed_at == 1
    for row, same in zip(continued.result.rows, whole.result.rows, strict=True):
        assert row.scores["shapes_preference"] == pytest.approx(same.scores["shapes_preference"], abs=0.05)


def test_checkpointed_gradients_are_those_of_kept_activations(plain_float32):
    gradients = []
    for checkpointing in (False, True):
        policy = load("cuda", checkpointing=checkpointing).adapt(LoRA(4), Key("adapter"))
        x0, noise = (policy.initial_noise([key(name) for key in KEYS]) for name in ("x0", "noise"))
        t = torch.arange(8, device="cuda") * 100
        loss = denoising_error(policy, x0, noise, t, policy.condition(PROMPTS)).mean()
        gradients.append(torch.autograd.grad(loss, policy.parameters()))
        assert (policy.recomputations or 0) > 0 or not checkpointing
    scale = max(float(gradient.abs().max()) for gradient in gradients[0])
    for kept, again in zip(*gradients, strict=True):
        assert (kept - again).abs().max() <= 1e-5 * scale


def test_a_batch_that_does_not_fit_the_devices_memory_is_halved(tmp_path, capsys):
    """Where half of what all 200 pictures at once take is there."""
    spec = RunOptions(algo="base", device="cuda", output=tmp_path, limit=200, batch_size=200, scorers=("shapes_truth",))
    torch.cuda.empty_cache()
    whole = run_cell(resolve(spec.model_copy(update={"name": "roomy"})), quiet=True)
    torch.cuda.empty_cache()
    most = torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(most / 2)
    try:
        halved = run_cell(resolve(spec.model_copy(update={"name": "tight"})))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory: going on with 100 images at once" in capsys.readouterr().err
    assert halved.result.status == "complete"
    assert halved.result.cost.per_image == whole.result.cost.per_image


@pytest.mark.parametrize("name", sorted(recipe.ARCHITECTURES))
def test_learned_scorers_score_as_on_the_cpu(scorer_files, plain_float32, name):
    images = (Key("gpu", "pictures").uniform(8, 3, 40, 52) * 255).round() / 255
    reward = recipe.scorer(name)
    values = reward(images, PROMPTS)
    on_device = recipe.scorer(name)(images.cuda(), PROMPTS).cpu()
    assert values.std() > 0
    torch.testing.assert_close(on_device, values, rtol=1e-5, atol=1e-5)
