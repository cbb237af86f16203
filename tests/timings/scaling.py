"""Prints where training stops gaining from more GPUs, computed from what two processes on this machine send each other.

    python tests/timings/scaling.py [--output results/timings/scaling.json]

No cluster was at hand, so this is a simulation. Measured here: what a round of each algorithm exchanges (votes, bytes
gathered, bytes of gradients) in two processes on the embedded model, from which that of a true model follows by the
sizes of its latents and embeddings; how long gloo takes for a vote and for a gigabyte; the bytes of a checkpoint.
Counted: the arithmetic of the true denoisers, on networks without memory. Assumed: `ASSUMED`. Text encoders, decoder
and reward are left out, so that real rounds take longer and scale somewhat better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, log2
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support")]

GPUS = (1, 8, 64, 512)
ASSUMED = {
    "flops of a GPU": 0.4 * 989e12,  # of the bfloat16 peak of an H100 or H200
    "bytes/s of gradients": 40e9,  # NCCL's ring over a network card of 400 Gbit/s for each GPU
    "bytes/s of the shared disk": 2e9,
}
RANK = 32  # of an adapter
ON_TINY = {"rounds": 2, "samples_per_round": 12, "samples_per_prompt": 2, "updates_per_round": 2, "batch": 2}


@dataclass(frozen=True)
class Denoiser:
    """One of the true architecture, and how it is sampled in training."""

    forward_flops: float  # of one picture, without guidance
    weights: int
    adapter: int  # weights of an adapter of RANK
    latent: int  # bytes of one picture's, in float32
    condition: int  # bytes of one prompt's embeddings, in float32
    steps: int


@dataclass(frozen=True)
class Exchanged:
    """What two processes exchange in a round on the embedded model, and what it had to be by the sizes of its parts."""

    votes: int
    updates: int
    gathered_bytes: int  # of both together
    expected_bytes: int  # of paths and embeddings
    checkpoint_bytes_per_weight: float


def of_one_process(folder: Path, algorithm: str) -> None:
    """One of two processes: a run of one round, and one of two. The first process writes the difference."""
    import torch
    from on_tiny import pictures_with_pairs

    from alignbench import plugins
    from alignbench.asking.presets import build_algorithm
    from alignbench.experiment.align import align
    from alignbench.processes import Processes, joined

    torch.set_num_threads(1)
    counts: dict[str, int] = {}
    vote, every, summed = Processes._vote, Processes._all, Processes.sum_gradients

    def count(name: str, more: int) -> None:
        counts[name] = counts.get(name, 0) + more

    def counted_vote(self: Processes, *given: Any, **named: Any) -> Any:
        count("votes", 1)
        return vote(self, *given, **named)

    def counted_all(self: Processes, content: Any, lengths: Any) -> Any:
        count("gathered", sum(lengths))
        return every(self, content, lengths)

    def counted_sum(self: Processes, parameters: Any) -> None:
        count("updates", 1)
        summed(self, parameters)

    for name, counted in (("_vote", counted_vote), ("_all", counted_all), ("sum_gradients", counted_sum)):
        setattr(Processes, name, counted)
    kind = plugins.load("algorithms", algorithm)
    fields = {name: value for name, value in ON_TINY.items() if name in kind.__dataclass_fields__}
    with joined("cpu") as processes, processes.together():
        toy, found = pictures_with_pairs(steps=6), []
        for rounds in (1, 2):
            counts.clear()
            problem = toy.problem(folder / f"{rounds}-{processes.rank}")
            problem.processes = processes
            sampler: Any = align(build_algorithm(algorithm, kind, "tiny", fields | {"rounds": rounds})[0], problem)[0]
            found.append(dict(counts))
        if processes.first:
            trained = sum(p.numel() for p in sampler.pipeline.parameters())
            checkpoint = (folder / "2-0" / "checkpoint.pt").stat().st_size
            used = {name: found[1].get(name, 0) - found[0].get(name, 0) for name in ("votes", "updates", "gathered")}
            prompt = toy.pipeline.condition([toy.training[0]]).tensors.values()
            sizes = {"latent": 4 * torch.Size(toy.pipeline.latent_shape).numel()}
            sizes |= {"condition": sum(4 * value.numel() for value in prompt)}
            content = used | sizes | {"checkpoint_bytes_per_weight": checkpoint / trained}
            (folder / "found.json").write_text(json.dumps(content), encoding="utf-8")


def exchanged(algorithm: str) -> Exchanged:
    from several import environments

    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--process", folder, algorithm]
        running = [subprocess.Popen(words, env=own) for own in environments(2)]
        assert [process.wait(900) for process in running] == [0, 0]
        found = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    steps, images = 6, ON_TINY["samples_per_round"]
    expected = images * gathered_per_image(algorithm, found["latent"], found["condition"], steps)
    return Exchanged(
        found["votes"], found["updates"], found["gathered"], int(expected), found["checkpoint_bytes_per_weight"]
    )


def gathered_per_image(algorithm: str, latent: int, condition: int, steps: int) -> int:
    """Bytes: a path of latents and the embeddings of its prompt; nothing but numbers of preference pairs, and of paths
    that stay with the process that trains on them."""
    return 0 if algorithm in ("diffusion_dpo", "flow_grpo") else (steps + 1) * latent + condition


def of_gloo(folder: Path) -> None:
    """One of several processes: seconds of a vote and of a gathered byte."""
    import torch

    from alignbench.processes import joined

    torch.set_num_threads(1)
    with joined("cpu") as processes:
        part = [torch.zeros(16_000_000 // processes.size)]  # 64 MB of all
        times = {}
        for name, repeats, what in (
            ("vote", 300, lambda: processes.agree(0)),
            ("gather", 5, lambda: processes.gather(part)),
        ):
            what()
            started = time.monotonic()
            for _ in range(repeats):
                what()
            times[name] = (time.monotonic() - started) / repeats
        if processes.first:
            (folder / "found.json").write_text(json.dumps(times), encoding="utf-8")


def gloo(processes: int) -> dict[str, float]:
    from several import environments

    with tempfile.TemporaryDirectory() as folder:
        running = [
            subprocess.Popen([sys.executable, __file__, "--process", folder, "gloo"], env=own)
            for own in environments(processes)
        ]
        assert all(process.wait(600) == 0 for process in running)
        found: dict[str, float] = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    return {"vote_seconds": found["vote"], "gather_bytes_per_second": 64e6 / found["gather"]}


def denoisers() -> dict[str, Denoiser]:
    """Counted on networks without memory, at the published resolution."""
    import random_models
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from torch.utils.flop_counter import FlopCounterMode

    def counted(
        network: Any, inputs: Mapping[str, Any], latent: tuple[int, ...], condition: int, steps: int
    ) -> Denoiser:
        weights = sum(p.numel() for p in network.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(**inputs)
        inject_adapter_in_model(LoraConfig(r=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), network)
        adapter = sum(p.numel() for p in network.parameters()) - weights
        return Denoiser(
            counter.get_total_flops(), weights, adapter, 4 * torch.Size(latent).numel(), 4 * condition, steps
        )

    with torch.device("meta"):
        t, x15, xl, x3 = (
            torch.zeros(1),
            torch.zeros(1, 4, 64, 64),
            torch.zeros(1, 4, 128, 128),
            torch.zeros(1, 16, 64, 64),
        )
        text15, text_xl = torch.zeros(1, 77, 768), torch.zeros(1, 77, 2048)
        sd15 = random_models.UNet2DConditionModel(**random_models.TRUE_SD15)
        sdxl = random_models.UNet2DConditionModel(**random_models.TRUE_SDXL)
        sd35 = random_models.SD3Transformer2DModel(**random_models.TRUE_SD35_MEDIUM)
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        given15 = {"sample": x15, "timestep": t, "encoder_hidden_states": text15}
        given_xl = {"sample": xl, "timestep": t, "encoder_hidden_states": text_xl, "added_cond_kwargs": added}
        words = 77 + 128  # CLIP's and T5's, as Flow-GRPO reads them
        given_3 = {"hidden_states": x3, "timestep": t, "encoder_hidden_states": torch.zeros(1, words, 4096)}
        given_3 |= {"pooled_projections": torch.zeros(1, 2048)}
        return {
            "SD1.5, 512 pixels": counted(sd15, given15, (4, 64, 64), 77 * 768, 50),
            "SDXL, 1024 pixels": counted(sdxl, given_xl, (4, 128, 128), 77 * 2048 + 1280, 50),
            "SD3.5 medium, 512 pixels": counted(sd35, given_3, (16, 64, 64), words * 4096 + 2048, 10),
        }


@dataclass(frozen=True)
class Round:
    """A round of an algorithm at its paper's values: what all processes do together, and how it is cut."""

    images: int  # sampled, each `steps` guided forward passes
    items: int  # pairs or images in an update
    batch: int
    updates: int
    forwards: int  # of an item in an update, in passes of the denoiser: a backward pass counts as two
    full: bool  # all weights are trained

    @classmethod
    def of(cls, algorithm: str, steps: int) -> Round:
        from alignbench import plugins

        fields = {
            name: field.default for name, field in plugins.load("algorithms", algorithm).__dataclass_fields__.items()
        }
        updates, batch = fields["updates_per_round"], fields["batch"]
        if algorithm == "diffusion_dpo":  # two pictures, policy with gradient and reference without
            return cls(0, fields["pairs_per_update"], batch, updates, 2 * (3 + 1), True)
        images, reference = fields["samples_per_round"], 2 if algorithm == "flow_grpo" else 0
        return cls(images, images // updates, batch, updates, steps * (2 * 3 + reference), False)

    def parts(
        self, net: Denoiser, sent: Exchanged, algorithm: str, gpus: int, gloo: Mapping[str, float]
    ) -> dict[str, float]:
        """Seconds of what goes on one after another in a round."""
        from alignbench.experiment.problem import SELDOM

        trained = net.weights if self.full else net.adapter
        second = net.forward_flops / ASSUMED["flops of a GPU"]
        chunks = ceil(self.images / self.batch)
        work = (2 * net.steps * self.images + self.forwards * self.items * self.updates) * second / gpus
        longest = (
            2 * net.steps * min(self.images, ceil(chunks / gpus) * self.batch)
            + self.forwards * ceil(self.items / gpus) * self.updates
        ) * second
        several = gpus > 1
        gathered = self.images * gathered_per_image(algorithm, net.latent, net.condition, net.steps)
        votes = self.updates * sent.votes / sent.updates  # most go with an update
        parts = {
            "work": work,
            "shares of unequal size": longest - work,
            "gradients": several * 2 * 4 * trained / ASSUMED["bytes/s of gradients"] * self.updates,
            "gathering paths": several * gathered / gloo["gather_bytes_per_second"],
            "votes": votes * gloo["vote_seconds"] * ceil(log2(gpus)),
        }
        written = sent.checkpoint_bytes_per_weight * trained / ASSUMED["bytes/s of the shared disk"]
        short, times, longest = SELDOM
        if written > short:
            written = min(written, sum(parts.values()) * written / min(times * written, longest))
        return parts | {"the first process's checkpoint": written}


CASES = (
    ("diffusion_dpo", "SD1.5, 512 pixels"), ("diffusion_dpo", "SDXL, 1024 pixels"),
    ("diffusion_dpo", "SD3.5 medium, 512 pixels"), ("ddpo", "SD1.5, 512 pixels"), ("ddpo", "SDXL, 1024 pixels"),
    ("flow_grpo", "SD3.5 medium, 512 pixels"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--process", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.process:
        folder, what = Path(asked.process[0]), asked.process[1]
        of_gloo(folder) if what == "gloo" else of_one_process(folder, what)
        return
    measured = {str(n): gloo(n) for n in (2, 4)}
    sent = {name: exchanged(name) for name in dict.fromkeys(name for name, _ in CASES)}
    for name, found in sent.items():
        assert found.gathered_bytes >= found.expected_bytes, name
        print(f"{name}: a round on `tiny` gathers {found.gathered_bytes:,} bytes, paths are {found.expected_bytes:,}")
    nets, rows = denoisers(), []
    fastest = {
        "vote_seconds": min(found["vote_seconds"] / log2(int(n)) for n, found in measured.items()),  # of an exchange
        "gather_bytes_per_second": max(found["gather_bytes_per_second"] for found in measured.values()),
    }
    for algorithm, model in CASES:
        net = nets[model]
        spent = {n: Round.of(algorithm, net.steps).parts(net, sent[algorithm], algorithm, n, fastest) for n in GPUS}
        one = sum(spent[1].values())
        for n in GPUS[1:]:
            whole, rest = sum(spent[n].values()), {name: s for name, s in spent[n].items() if name != "work"}
            most = max(rest, key=lambda name: rest[name])
            rows.append({"algorithm": algorithm, "model": model, "gpus": n, "seconds": whole, "speed-up": one / whole})
            rows[-1] |= {"parts": spent[n], "most of the rest": most}
            print(f"{algorithm:14} {model:26} {n:4} GPUs  {whole:8.2f} s  x {one / whole:6.1f}  {most}")
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    content = {
        "machine": machine,
        "assumed": ASSUMED,
        "gloo": measured,
        "exchanged": {name: asdict(found) for name, found in sent.items()},
        "denoisers": {name: asdict(net) for name, net in nets.items()},
        "rounds": {
            f"{algorithm}, {model}": asdict(Round.of(algorithm, nets[model].steps)) for algorithm, model in CASES
        },
        "rows": rows,
    }
    if asked.output:
        asked.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
