"""What the official code of Flow-GRPO, DiffusionNFT and AWM makes of small numbers, written from its formulas.

    python tests/support/official/flow_formulas.py --write

puts the entries into golden.json. Nothing of alignbench is imported: each function says the file and lines it was
written from, and works in the flow model's own coordinates x = (1 − σ) x_0 + σ ε, in float64, with the linear models of
README.md. A test holds the committed numbers to this file.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden.json"
GRPO = {"repo": "yifan123/flow_grpo", "commit": "74db69191de9a0a54869c9c3341ce4b54db7005f"}
STEP = {
    "repo": "yifan123/flow_grpo",
    "file": "flow_grpo/diffusers_patch/sd3_sde_with_logprob.py",
    "commit": "54809b5fcf4d3930d2a17fa553928704bd0b719e",
}
TRACKER = {
    "repo": "yifan123/flow_grpo",
    "file": "flow_grpo/stat_tracking.py",
    "commit": "94e23ee5405ab7241fc1f75d30cac8147e2b1f53",
}
GUARD = {
    "repo": "zhtmike/flow_grpo",
    "file": "scripts/train_sd3_GRPO_Guard.py",
    "commit": "2e2f712e9feb19246fa0db9527878e2766b5353f",
}
NFT = {
    "repo": "pkuhxy/DiffusionNFT",
    "file": "scripts/train_nft_sd3.py",
    "commit": "619456aabc96a9203baa525d6bcb24f0f4560117",
}
AWM = {
    "repo": "scxue/advantage_weighted_matching",
    "file": "advantage_weighted_matching/scripts/train_sd3_awm.py",
    "commit": "12b1397b2267a7cb7962e8f49f9d12da870b5abb",
}
COPY = "; read in a copy of the authors' repository"
COPIES = "; read in two copies of the authors' repository, which agree"
Entry = dict[str, Any]
Weights = tuple[Tensor, Tensor]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(seed: int, *shape: int, scale: float = 1.0) -> list[Any]:
    """Standard normal numbers of four digits."""
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scale * made).mul(1e4).round().div(1e4).tolist()


def levels(n: int, shift: float = 3.0, timesteps: int = 1000) -> Tensor:
    """SD3's grid of n steps and 0, as its scheduler makes it by itself (diffusers' FlowMatchEulerDiscreteScheduler)."""

    def shifted(u: Tensor) -> Tensor:
        return shift * u / (1 + (shift - 1) * u)

    first, last = shifted(tensor([1.0, 1 / timesteps])).tolist()
    return torch.cat([shifted(torch.linspace(first, last, n, dtype=torch.float64)), torch.zeros(1).double()])


def weights(name: str, trained: bool = False) -> Weights:
    """A and b of a denoiser; `between` is the mean of both that golden.json has."""
    both = json.loads(GOLDEN.read_text(encoding="utf-8"))["denoiser"]
    names = ("reference", "policy") if name == "between" else (name,)
    a, b = (sum(tensor(both[each][part]) for each in names) / len(names) for part in ("a", "b"))
    return a.requires_grad_(trained), b.requires_grad_(trained)


def velocity(own: Weights, x: Tensor, sigma: Tensor, text: Tensor, guidance: float = 1.0) -> Tensor:
    """A x + σ b + c, under guidance w: v(null) + w (v(c) − v(null)); train_sd3.py, compute_log_prob."""
    null = tensor(json.loads(GOLDEN.read_text(encoding="utf-8"))["denoiser"]["null"])
    plain = x.flatten(1) @ own[0].T + sigma.reshape(-1, 1) * own[1]
    told, untold = (plain + words for words in (text, null))
    return (untold + guidance * (told - untold) if guidance != 1 else told).reshape(x.shape)


def each(values: Tensor) -> Tensor:
    """The mean over all but the first axis."""
    return values.flatten(1).mean(1)


def step(v: Tensor, x: Tensor, following: Tensor, at: int, grid: Tensor, a: float, kind: str) -> dict[str, Tensor]:
    """sde_step_with_logprob, of `sde` and of `cps`: mean, what they call std, and log probability of what follows."""
    sigma, after = grid[at], grid[at + 1]
    dt = after - sigma
    if kind == "sde":
        std = a * torch.sqrt(sigma / (1 - (grid[1] if sigma == 1 else sigma)))
        mean = x * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
        length = std * torch.sqrt(-dt)
        log_prob = -((following - mean) ** 2) / (2 * length**2) - torch.log(length) - math.log(math.sqrt(2 * math.pi))
    else:
        std = length = after * math.sin(a * math.pi / 2)
        clean, noise = x - sigma * v, x + v * (1 - sigma)
        mean = clean * (1 - after) + noise * torch.sqrt(after**2 - std**2)
        log_prob = -((following - mean) ** 2)
    return {"mean": mean, "std": std, "length": length, "root": torch.sqrt(-dt), "log_prob": each(log_prob)}


def steps() -> Iterator[Entry]:
    for kind, a in (("sde", 0.7), ("cps", 0.8)):
        inputs = {
            "kernel": {"sde": "flow_sde", "cps": "cps"}[kind], "steps": 10, "noise_level": a, "places": [0, 1, 5, 8],
            "latents": drawn(1, 4, 2, 1, 2, 2), "output": drawn(2, 4, 2, 1, 2, 2), "noise": drawn(3, 4, 2, 1, 2, 2),
            "given_next_latents": drawn(4, 4, 2, 1, 2, 2),
        }  # fmt: skip
        grid, outputs = levels(10), {"sigmas": levels(10), "mean": {}, "next_latents": {}, "log_prob": {}}
        for k, place in enumerate(inputs["places"]):
            x, v, z, given = (tensor(inputs[n][k]) for n in ("latents", "output", "noise", "given_next_latents"))
            found = step(v, x, given, place, grid, a, kind)
            outputs["mean"][str(place)] = found["mean"]
            outputs["next_latents"][str(place)] = found["mean"] + found["length"] * z
            outputs["log_prob"][str(place)] = found["log_prob"]
        yield entry(f"flow_grpo/step/{kind}", [STEP], inputs, outputs, 1e-10, "latents in the flow model's coordinates")


def path(inputs: Mapping[str, Any], kind: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Latents of a path that the weights between policy and reference drew, its log probabilities and its means."""
    grid, text, old = levels(inputs["steps"]), tensor(inputs["text"]), weights("between")
    x, noise = tensor(inputs["initial_latents"]), tensor(inputs["noise"])
    latents, log_probs, means = [x], [], []
    for at in range(inputs["steps"]):
        v = velocity(old, x, grid[at], text, inputs["guidance"])
        found = step(v, x, x, at, grid, inputs["noise_level"], kind)
        x = (found["mean"] + found["length"] * noise[at]).mul(1e4).round().div(1e4)
        latents.append(x)
        log_probs.append(step(v, latents[-2], x, at, grid, inputs["noise_level"], kind)["log_prob"])
        means.append(found["mean"])
    return (plain(torch.stack(latents)), plain(torch.stack(log_probs, 1)), plain(torch.stack(means)))


def grpo(inputs: Mapping[str, Any], kind: str, guard: bool = False, drop: bool = False) -> dict[str, Any]:
    """train_sd3.py and train_sd3_fast.py from "# grpo logic" on; with `guard` train_sd3_GRPO_Guard.py, rationorm. The
    losses of a path's steps are averaged, as gradient accumulation does. Samples of advantage 0 are dropped before."""
    grid, policy, reference = levels(inputs["steps"]), weights("policy", trained=True), weights("reference")
    latents, old, means = (tensor(inputs[name]) for name in ("latents", "old_log_prob", "old_means"))
    text, advantages = tensor(inputs["text"]), tensor(inputs["advantage"])
    if drop:
        kept = advantages != 0
        latents, old, means = latents[:, kept], old[kept], means[:, kept]
        text, advantages = text[kept], advantages[kept]
    advantages = advantages.clamp(-5, 5)
    losses, ratios = [], []
    for at in range(inputs["trained"]):
        x, following = latents[at], latents[at + 1]
        v, at_first = (velocity(own, x, grid[at], text, inputs["guidance"]) for own in (policy, reference))
        found = step(v, x, following, at, grid, inputs["noise_level"], kind)
        log_ratio = found["log_prob"] - old[:, at]
        if guard:
            bias = each((found["mean"] - means[at]) ** 2) / (2 * found["length"] ** 2)
            log_ratio = (log_ratio + bias) * found["length"]
        ratio = torch.exp(log_ratio)
        clipped = ratio.clamp(1 - inputs["clip"], 1 + inputs["clip"])
        loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
        if guard:
            loss = loss / found["root"] ** 2
        mean = step(at_first, x, following, at, grid, inputs["noise_level"], kind)["mean"].detach()
        kl = (each((found["mean"] - mean) ** 2) / (2 * found["std"] ** 2)).mean()
        losses.append(loss + inputs["beta"] * kl)
        ratios.append(ratio)
    loss = torch.stack(losses).mean()
    gradient_a, gradient_b = torch.autograd.grad(loss, policy)
    return {"ratio": torch.stack(ratios, 1), "loss": loss, "gradient_a": gradient_a, "gradient_b": gradient_b}


def grpo_losses() -> Iterator[Entry]:
    plainly = [{**GRPO, "file": "scripts/train_sd3.py"}, STEP]
    fast = [{**GRPO, "file": "scripts/train_sd3_fast.py"}, STEP]
    every, some = [1.3, -0.4, 0.6, -7.0], [1.3, 0.0, -0.4, 0.0]
    cases: list[tuple[str, str, dict[str, Any], dict[str, bool], list[Any], str]] = [
        ("sde", "sde", {"advantage": every}, {}, plainly, ""),
        ("sde/beta_0", "sde", {"advantage": every, "beta": 0.0, "clip": 1e-4}, {}, plainly, ""),
        ("guided", "sde", {"advantage": every, "guidance": 4.5}, {}, plainly,
         "guidance through both branches, as in this version; older ones detach the empty prompt's"),
        ("cps", "cps", {"advantage": every, "noise_level": 0.8}, {}, fast, ""),
        ("guard", "sde", {"advantage": every, "clip": 2e-3}, {"guard": True}, [GUARD, STEP], "rationorm" + COPY),
        ("without_advantage", "sde", {"advantage": some}, {"drop": True}, plainly,
         "officially images of advantage 0 are dropped on each GPU; here they stay, and keep their KL"),
    ]  # fmt: skip
    for name, kind, changed, how, source, remark in cases:
        inputs = {
            "model": "policy", "kernel": {"sde": "flow_sde", "cps": "cps"}[kind], "steps": 6, "trained": 5,
            "noise_level": 0.7, "guidance": 1.0, "clip": 0.01, "beta": 0.04, "guard": bool(how.get("guard")),
            "text": drawn(11, 4, 4, scale=0.3), "initial_latents": drawn(12, 4, 1, 2, 2),
            "noise": drawn(13, 6, 4, 1, 2, 2), **changed,
        }  # fmt: skip
        inputs["latents"], inputs["old_log_prob"], inputs["old_means"] = path(inputs, kind)
        del inputs["initial_latents"], inputs["noise"]
        outputs = grpo(inputs, kind, **how)
        if how.get("drop"):
            del outputs["ratio"]  # of other rows
        made = entry(f"flow_grpo/loss/{name}", source, inputs, outputs, 1e-9, remark)
        yield {**made, "departs": bool(how.get("drop"))}


def advantages() -> Iterator[Entry]:
    """PerPromptStatTracker.update, type grpo: less the prompt's mean, over the population's spread of all or of it."""
    prompts = [0, 1, 0, 2, 1, 0, 2, 1, 2, 2]
    rewards = tensor(drawn(21, len(prompts)))
    for spread in ("round", "prompt"):
        found = torch.empty_like(rewards)
        for prompt in set(prompts):
            rows = tensor(prompts) == prompt
            std = (rewards if spread == "round" else rewards[rows]).std(correction=0) + 1e-4
            found[rows] = (rewards[rows] - rewards[rows].mean()) / std
        inputs = {"prompts": prompts, "rewards": rewards.tolist(), "spread": spread}
        yield entry(f"flow_grpo/advantages/{spread}", [TRACKER], inputs, {"advantages": found}, 1e-6, "in float32 here")


def nft(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """train_nft_sd3.py, from "# Policy Gradient Loss" to the loss that is scaled for accumulation."""
    x0, t = tensor(inputs["winner"]), levels(inputs["steps"])[inputs["places"]]
    rows = t.reshape(-1, 1, 1, 1)
    xt = (1 - rows) * x0 + rows * tensor(inputs["noise"])
    text = tensor(inputs["text"])
    own = weights("policy", trained=True)
    ahead, old, reference = (velocity(w, xt, t, text) for w in (own, weights("between"), weights("reference")))
    r = (tensor(inputs["advantage"]).clamp(-5, 5) / 5 / 2 + 0.5).clamp(0, 1)
    b, losses = inputs["mixing"], []
    for v in (b * ahead + (1 - b) * old, (1 + b) * old - b * ahead):
        away = xt - rows * v - x0
        weight = away.detach().abs().flatten(1).mean(1).clip(min=1e-5)
        losses.append(each(away**2 / weight.reshape(-1, 1, 1, 1)))
    policy = 5 * (r * losses[0] / b + (1 - r) * losses[1] / b)
    distance = each((ahead - reference) ** 2)
    loss = policy.mean() + inputs["beta"] * distance.mean()
    gradient_a, gradient_b = torch.autograd.grad(loss, own)
    made = {"r": r, "positive": losses[0], "negative": losses[1], "distance": distance, "loss": loss}
    return {**made, "gradient_a": gradient_a, "gradient_b": gradient_b}


def nft_losses() -> Iterator[Entry]:
    for name, mixing, beta in (("1", 1.0, 1e-4), ("0.1", 0.1, 0.05)):
        inputs = {
            "model": "policy", "steps": 10, "places": [0, 3, 6, 9], "mixing": mixing, "beta": beta,
            "advantage": [1.2, -0.7, 6.0, 0.0], "winner": drawn(31, 4, 1, 2, 2), "noise": drawn(32, 4, 1, 2, 2),
            "text": drawn(33, 4, 4, scale=0.3),
        }  # fmt: skip
        remark = "winner are the images; the last level is nearly 0, where the weight is bounded" + COPIES
        yield entry(f"diffusion_nft/loss/{name}", [NFT], inputs, nft(inputs), 1e-8, remark)


def decays() -> Iterator[Entry]:
    """train_nft_sd3.py, return_decay."""
    for name, start, rate, most in (("1", 0, 0.001, 0.5), ("2", 75, 0.0075, 0.999)):
        updates = [0, 1, 74, 75, 76, 208, 209, 499, 500, 1000]
        found = [0.0 if k < start else min((k - start) * rate, most) for k in updates]
        inputs = {"updates": updates, "decay_start": start, "decay_rate": rate, "decay_most": most}
        yield entry(
            f"diffusion_nft/decay/{name}", [NFT], inputs, {"decay": tensor(found)}, 1e-12, "decay_type" + COPIES
        )


def awm(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """train_sd3_awm.py, compute_log_prob_awm and from "# grpo logic" on, loss_type exp_first, kl_weight Uniform."""
    x0, eps = tensor(inputs["winner"]), tensor(inputs["noise"])
    own = weights("policy", trained=True)
    values, rewarded, distances, away = [], [], [], []
    for noise, places in zip(eps, inputs["places"], strict=True):  # a level of each image
        t = levels(inputs["steps"])[places]
        rows = t.reshape(-1, 1, 1, 1)
        x = (1 - rows) * x0 + rows * noise
        text = tensor(inputs["text"])
        three = [velocity(w, x, t, text) for w in (own, weights("between"), weights("reference"))]
        scores = [awm_score(-each((v - (noise - x0)) ** 2), t, inputs) for v in three]
        values.append(scores[0])
        rewarded.append(scores[1].detach() if inputs["later"] else scores[0].detach())
        away.append(each((three[0] - three[1]) ** 2))
        distances.append(each((three[0] - three[2]) ** 2))
    advantage = tensor(inputs["advantage"]).clamp(-5, 5) / 5
    score, old = torch.stack(values), torch.stack(rewarded)
    ratio = torch.exp(score - old)
    clipped = ratio.clamp(1 - inputs["clip"], 1 + inputs["clip"])
    loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
    loss = loss + inputs["beta"] * torch.stack(distances).mean() + inputs["ema_beta"] * torch.stack(away).mean()
    gradient_a, gradient_b = torch.autograd.grad(loss, own)
    return {"score": score, "ratio": ratio, "loss": loss, "gradient_a": gradient_a, "gradient_b": gradient_b}


def awm_score(negative: Tensor, t: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    if inputs["weighting"] == "ghuber":
        p = inputs["power"]
        return -((-negative + 1e-10) ** p - 1e-10**p) * t / p
    return negative * t if inputs["weighting"] == "sigma" else negative


def awm_losses() -> Iterator[Entry]:
    cases = [("ghuber", 0.25, 1.0, False), ("t", 1.0, 1.0, False), ("uniform", 1.0, 0.02, True)]
    cases += [("ghuber_later", 0.25, 0.01, True)]
    for name, power, clip, later in cases:
        weighting = {"t": "sigma", "ghuber_later": "ghuber"}.get(name, name)
        inputs = {
            "model": "policy", "steps": 14, "places": [[1, 2, 4, 3], [8, 10, 9, 11]], "weighting": weighting,
            "power": power, "clip": clip, "later": later, "beta": 0.003, "ema_beta": 1.0,
            "advantage": [1.2, -0.7, 6.0, -2.0], "winner": drawn(41, 4, 1, 2, 2), "noise": drawn(42, 2, 4, 1, 2, 2),
            "text": drawn(43, 4, 4, scale=0.3),
        }  # fmt: skip
        remark = "winner are the images; places: levels by image; later: old is the average, not the policy itself"
        yield entry(f"awm/loss/{name}", [AWM], inputs, awm(inputs), 1e-7, remark)


def plain(value: Any) -> Any:
    """Numbers of twelve digits."""
    if isinstance(value, Mapping):
        return {name: plain(of) for name, of in value.items()}
    if isinstance(value, Tensor):
        value = value.tolist()
    return [plain(of) for of in value] if isinstance(value, list) else float(f"{value:.12g}")


def entry(name: str, source: list[Any], inputs: Any, outputs: Any, tolerance: float, remark: str) -> Entry:
    about = {"name": name, "source": source, "run": "transcribed", "inputs": inputs, "outputs": plain(outputs)}
    return {**about, "tolerance": tolerance, "departs": False, "remark": remark}


def entries() -> list[Entry]:
    """All of them."""
    makers = (steps, grpo_losses, advantages, nft_losses, decays, awm_losses)
    return [made for maker in makers for made in maker()]


def main() -> None:
    content = json.loads(GOLDEN.read_text(encoding="utf-8"))
    made = {new["name"]: new for new in entries()}
    kept = [old for old in content["entries"] if old["name"].split("/")[0] not in ("flow_grpo", "diffusion_nft", "awm")]
    lines = ",\n".join(f"  {json.dumps(of)}" for of in [*kept, *made.values()])
    head = [f' "{name}": {json.dumps(value)}' for name, value in content.items() if name != "entries"]
    text = "{\n" + ",\n".join([*head, f' "entries": [\n{lines}\n ]']) + "\n}\n"
    if "--write" in sys.argv:
        GOLDEN.write_text(text, encoding="utf-8")
    else:
        print(text == GOLDEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
