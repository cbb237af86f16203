"""Ways of computing the same numbers, up to rounding, in less time: a compiled denoiser, another layout of the weights
of convolutions, another kernel of attention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from alignbench.choices import Attending, Compiling
from alignbench.devices import is_full
from alignbench.diffusion.registry import Hold
from alignbench.downloads import keep_compiled
from alignbench.errors import InputError, RunError, shown

KERNELS: dict[Attending, SDPBackend] = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
OF_PROCESSORS: tuple[Attending, ...] = ("math", "flash")
GRAPHS = 64  # that one network may be compiled to: with an adapter and without, with gradients and without, by shapes


@dataclass(frozen=True)
class Ways:
    """How the denoisers of a checkpoint are computed."""

    compiling: Compiling | None = None
    attention: Attending = "auto"

    def compile(self, network: Any) -> None:
        """Have a network compiled when it is next called. Its modules, and the names in its files, stay as they are.
        What was compiled is kept in the folder of caches, where another process finds it."""
        if self.compiling is None:
            return
        import torch._dynamo
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        keep_compiled(default_cache_dir())
        torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
        network.compile(mode=self.compiling, fullgraph=True)  # whole: what cannot be compiled raises

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Inside, attention has the kernel that was chosen."""
        with contextlib.nullcontext() if self.attention == "auto" else sdpa_kernel(KERNELS[self.attention]):
            yield

    def output(self, call: Callable[[], Tensor]) -> Tensor:
        """What calling a network gives. Raises RunError where it cannot be compiled: a process that is killed while it
        compiles leaves half a file in the cache."""
        if self.compiling == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            with self.used():
                found = call()
        except Exception as error:
            if self.compiling is None or is_full(error) or not _of_compiling(error):
                raise
            first = shown(str(error).strip().partition("\n")[0])
            raise RunError(
                f"--compile {self.compiling}: torch cannot compile the denoiser ({first}); if it could before, "
                "`alignbench cache --clear compiled` and the same command begin anew, else leave --compile out."
            ) from error
        # The next replay of a CUDA graph writes over its output.
        return found.clone() if self.compiling == "reduce-overhead" else found


def _of_compiling(error: Exception) -> bool:
    from torch._dynamo import exc

    return isinstance(error, exc.TorchDynamoException | exc.FailOnRecompileLimitHit)


def check(hold: Hold) -> None:
    """Raise InputError for a way that the device does not have."""
    device = torch.device(hold.device)
    if hold.compiling == "reduce-overhead" and device.type != "cuda":
        raise InputError("--compile reduce-overhead: CUDA graphs need a GPU; use --compile default.")
    if hold.attention == "auto":
        return
    if device.type == "cpu" and hold.attention not in OF_PROCESSORS:
        raise InputError(
            f"--attention {hold.attention}: a processor has auto, {' and '.join(OF_PROCESSORS)}; choose one."
        )
    asked = torch.ones(1, 1, 64, 64, device=device, dtype=getattr(torch, hold.dtype))
    try:
        with sdpa_kernel(KERNELS[hold.attention]):
            torch.nn.functional.scaled_dot_product_attention(asked, asked, asked)
    except RuntimeError as error:
        raise InputError(
            f"--attention {hold.attention}: this device does not have it in {hold.dtype}; use auto."
        ) from error


def arranged(network: Any, hold: Hold) -> Any:
    """The network on its device, with the weights of convolutions in the layout that was asked for."""
    layout = torch.channels_last if hold.channels_last else torch.preserve_format
    return network.to(hold.device, memory_format=layout)
