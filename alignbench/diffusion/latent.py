"""Latent diffusion and flow models through diffusers, with LoRA through peft, or all weights or the biases fine-tuned.

The text encoders, autoencoder and base denoiser are frozen. A LoRA policy shares the base denoiser and switches its own
adapter on before each forward pass; its reference, and the pipeline it came from, switch all adapters off.
"""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from alignbench.choices import Guiding
from alignbench.diffusion.architecture import Architecture
from alignbench.diffusion.architectures import ARCHITECTURES
from alignbench.diffusion.checkpointing import Recomputation
from alignbench.diffusion.flow_schedule import FlowSchedule
from alignbench.diffusion.latent_scale import LatentScale, scale_of
from alignbench.diffusion.layouts import Layout
from alignbench.diffusion.policy_files import lora_config, save_denoiser, save_lora
from alignbench.diffusion.rollout import initial_noise
from alignbench.diffusion.schedule import Schedule
from alignbench.diffusion.text import TextEncoder, truncated
from alignbench.diffusion.ways import Ways
from alignbench.errors import Unsupported
from alignbench.interface import FullFineTune, LoRA, Prompt, Tuning
from alignbench.keys import Key
from alignbench.meter import Meter
from alignbench.quantities import Condition, Prediction, Steps, guided

if TYPE_CHECKING:
    from peft import LoraConfig


def sides(sample_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of what a denoiser's `sample_size` says."""
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return (height, width)


@dataclass(eq=False)
class Components:
    """The networks of one checkpoint, on one device."""

    text: TextEncoder
    denoiser: Any
    autoencoder: Any
    schedule: Schedule | FlowSchedule
    sides: tuple[int, int]  # height and width of the latents
    info: Mapping[str, Any]
    meter: Meter
    layout: Layout
    checkpointing: bool = False  # policies compute activations again in the backward pass instead of keeping them
    ways: Ways = field(default_factory=Ways)
    notes: Sequence[str] = ()  # what was done to make it work, a sentence each
    adapters: dict[str, list[nn.Parameter]] = field(default_factory=dict)  # the weights of each
    owners: WeakValueDictionary[str, LatentPolicy] = field(default_factory=WeakValueDictionary)  # the policy of each
    numbers: Iterator[int] = field(default_factory=itertools.count)  # for the names of the next
    active: str | None = None  # the adapter that is switched on
    scale: LatentScale = field(init=False)

    def __post_init__(self) -> None:
        self.scale = scale_of(self.autoencoder)
        for network in (*self.text.networks, self.denoiser, self.autoencoder):
            network.requires_grad_(False).eval()
        self.ways.compile(self.denoiser)

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.layout.network]

    @property
    def idle(self) -> tuple[str, ...]:
        """Layers whose output nothing uses."""
        return self.architecture.idle(self.denoiser.config)

    @property
    def guiding(self) -> Guiding:
        return self.layout.guiding(self.denoiser.config)

    def switch(self, adapter: str | None) -> None:
        """Use one adapter of the denoiser, or none."""
        if adapter == self.active:
            return
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self.denoiser.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(adapter is not None)
                if adapter is not None:
                    module.set_adapter(adapter)
        # peft freezes what it switches off; but a policy's backward pass may come after its reference's forward pass.
        for weights in self.adapters.values():
            for weight in weights:
                weight.requires_grad_(True)
        self.active = adapter

    def forget(self) -> None:
        """Delete the adapters of policies that are no more: a run that goes back a round makes its policy anew."""
        gone = [name for name in self.adapters if name not in self.owners]
        if gone:
            self.switch(None)  # peft may otherwise switch another one on
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one of them was in use, says peft
                self.denoiser.delete_adapters(gone)
        for name in gone:
            del self.adapters[name]

    def restore(self) -> Callable[[], None]:
        """What switches back to the adapter in use now: a recomputation comes after others may have been used."""
        return functools.partial(self.switch, self.active)


class LatentPipeline:
    """A latent diffusion model behind the pipeline interface."""

    adapter: str | None = None
    recomputation: Recomputation | None = None

    def __init__(self, components: Components, denoiser: Any = None, aligned: Mapping[str, str] | None = None) -> None:
        self.components = components
        self.aligned = dict(aligned or {})  # what was done to the model that `info` names, before this run
        self.denoiser = components.denoiser if denoiser is None else denoiser
        self._null: dict[str, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        weight = next(self.denoiser.parameters())  # diffusers' own property walks through all layers
        return torch.device(weight.device)

    @property
    def train_timesteps(self) -> int:
        return len(self.components.schedule)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (len(self.components.scale.mean), *self.components.sides)

    def info(self) -> Mapping[str, Any]:
        return self.components.info

    def truncated(self, prompts: Sequence[Prompt]) -> list[bool]:
        """Which prompts are longer than a text encoder reads."""
        return truncated(self.components.text.tokenizers, [prompt.text for prompt in prompts])

    @torch.no_grad()
    def condition(self, prompts: Sequence[Prompt]) -> Condition:
        if self._null is None:
            self._null = self.components.text.null()
        rows = self.components.text.encode([prompt.text for prompt in prompts])
        return Condition(rows, {name: self._null[name].expand_as(value) for name, value in rows.items()})

    def initial_noise(self, keys: Sequence[Key]) -> Float[Tensor, "b c h w"]:
        return initial_noise(keys, self.latent_shape).to(self.device)

    def timesteps(self, n: int) -> Steps:
        return self.components.schedule.steps(n)

    def training_timesteps(self, uniform: Float[Tensor, " b"]) -> Real[Tensor, " b"]:
        return self.components.schedule.draw(uniform)

    def add_noise(
        self, x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Real[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        return self.components.schedule.add_noise(x0, noise, t)

    def predict(
        self, latents: Float[Tensor, "b c h w"], t: float | Tensor, condition: Condition, guidance: float = 1.0
    ) -> Prediction:
        self.components.switch(self.adapter)
        guiding = self.components.guiding
        time = torch.as_tensor(t, device=latents.device).expand(len(latents))
        seen = self.components.schedule.scaled(latents, t)
        if guiding == "embedded":
            scale = torch.full((len(latents),), guidance, device=latents.device)
            native = self._denoise(seen, time, {**condition.tensors, "guidance": scale})
        elif not guided(guidance):
            native = self._denoise(seen, time, condition.tensors)
        elif guiding == "none":
            raise Unsupported(f"guidance {guidance:g}: this model has no guidance; use 1.")
        else:
            both = Condition.cat([condition.null, condition]).tensors
            null, conditional = self._denoise(torch.cat([seen, seen]), torch.cat([time, time]), both).chunk(2)
            native = null + guidance * (conditional - null)
        return self.components.schedule.predict(native, latents, t)

    def _denoise(
        self, latents: Float[Tensor, "n c h w"], t: Real[Tensor, " n"], tensors: Mapping[str, Tensor]
    ) -> Float[Tensor, "n c h w"]:
        """The denoiser in its own precision, in and out in float32."""
        n = len(latents)
        if self.device.type == "cpu" and n % 4:
            # The processor's matrix kernels round a row otherwise where the number of rows is no multiple of four, and
            # sampling amplifies that. With rows added to make it one, an image depends on its batch by 1e-6 to 1e-5,
            # as the processor is (by 3e-5 on a single thread, where the kernels are others).
            rows = torch.arange(n + -n % 4).clamp(max=n - 1)
            latents, t, tensors = latents[rows], t[rows], {name: value[rows] for name, value in tensors.items()}
        call = functools.partial(self.components.architecture.call, self.denoiser, latents, t, tensors)
        output = self.components.ways.output(call).float()[:n]
        self.components.meter.forward("denoiser", n)
        self.components.meter.watch("denoiser", output, n, recomputed=self.recomputation is not None)
        return output

    def decode(self, latents: Float[Tensor, "b c h w"], clamp: bool = True) -> Float[Tensor, "b 3 height width"]:
        autoencoder = self.components.autoencoder
        own = self.components.scale.to_autoencoder(latents)
        images: Tensor = autoencoder.decode(own.to(autoencoder.dtype)).sample.float() / 2 + 0.5
        self.components.meter.forward("decode", len(latents))
        self.components.meter.watch("decode", images, len(latents), recomputed=self.recomputation is not None)
        return images.clamp(0, 1) if clamp else images

    def encode(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        autoencoder = self.components.autoencoder
        posterior = autoencoder.encode((2 * images - 1).to(self.device, autoencoder.dtype)).latent_dist
        return self.components.scale.to_denoiser(posterior.mean.float())

    def adapt(self, tuning: Tuning, key: Key) -> LatentPolicy:
        if isinstance(tuning, LoRA):
            return self.adapt_with(lora_config(tuning, self.components.architecture.targets, self.components.idle), key)
        self.components.forget()
        denoiser = copy.deepcopy(self.components.denoiser)
        if any(".lora_" in name or ".base_layer" in name for name, _ in denoiser.named_modules()):
            denoiser.unload_lora()  # other policies' adapters, and what peft leaves of those that are no more
        half = denoiser.dtype != torch.float32
        denoiser.float().requires_grad_(False)
        # Compared with a reference that rounds otherwise, the policy would differ from it before it is trained.
        reference = copy.deepcopy(denoiser) if half else self.components.denoiser
        for copied in (denoiser, reference) if half else (denoiser,):
            self.components.ways.compile(copied)  # a copy is not compiled
        trained = {
            name: parameter.requires_grad_(True)
            for name, parameter in denoiser.named_parameters()
            if (isinstance(tuning, FullFineTune) or name.endswith(".bias"))
            and name.rpartition(".")[0] not in self.components.idle
        }
        if not trained:
            raise Unsupported("this denoiser has no biases to train; choose another tuning.")
        return LatentPolicy(self.components, denoiser, None, trained, self._recomputation(), reference)

    def adapt_with(self, config: LoraConfig, key: Key) -> LatentPolicy:
        """A policy with a new adapter on the shared denoiser, of layers, ranks and alphas as peft describes them."""
        return _lora_policy(self.components, config, key, self._recomputation())

    def _recomputation(self) -> Recomputation | None:
        components = self.components
        return Recomputation(components.restore, components.ways.used) if components.checkpointing else None


class LatentPolicy(LatentPipeline):
    """A latent diffusion model with trainable weights in float32: one LoRA adapter, or a denoiser of its own."""

    def __init__(
        self,
        components: Components,
        denoiser: Any,
        adapter: str | None,
        trained: Mapping[str, nn.Parameter],
        recomputation: Recomputation | None = None,
        reference: Any = None,
    ) -> None:
        super().__init__(components, denoiser)
        self.adapter, self._trained, self.recomputation = adapter, trained, recomputation
        self._reference = reference
        if recomputation is not None:
            for network in (denoiser, components.autoencoder):
                network.enable_gradient_checkpointing(recomputation)

    @property
    def reference(self) -> LatentPipeline:
        return LatentPipeline(self.components, self._reference)

    @property
    def recomputations(self) -> int | None:
        return None if self.recomputation is None else self.recomputation.count

    def networks(self) -> list[nn.Module]:
        return [self.denoiser, *self.components.text.networks, self.components.autoencoder]

    def adapt(self, tuning: Tuning, key: Key) -> LatentPolicy:
        raise Unsupported("a trained policy cannot be adapted again; adapt the pipeline it came from.")

    def parameters(self) -> list[nn.Parameter]:
        return list(self._trained.values())

    def state_dict(self) -> dict[str, Any]:
        return {name: parameter.detach() for name, parameter in self._trained.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own, given = ({name: value.shape for name, value in tensors.items()} for tensors in (self._trained, state))
        if own != given:
            raise ValueError(
                f"the state has {len(given)} tensors, the policy {len(own)} with other names or shapes: "
                "it was trained with another tuning."
            )
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(state[name])

    def save(self, folder: Path) -> None:
        """A LoRA as `load_lora_weights` reads it; a fine-tuned denoiser as diffusers' folder of one."""
        part = self.components.layout.denoiser
        if self.adapter is None:
            save_denoiser(self.denoiser, folder / part)
        else:
            save_lora(self.denoiser, self.adapter, folder, part, self.components.architecture.matrices)


def _lora_policy(
    components: Components, config: LoraConfig, key: Key, recomputation: Recomputation | None
) -> LatentPolicy:
    """A new adapter on the shared denoiser: A ~ N(0, 1 / rank²) drawn from the key, B = 0."""
    from alignbench.diffusion.lora_layers import merge_linears

    components.forget()
    adapter = f"policy{next(components.numbers)}"
    components.denoiser.add_adapter(config, adapter_name=adapter)
    merge_linears(components.denoiser)
    trained = {}
    for name, parameter in components.denoiser.named_parameters():
        if f".{adapter}." not in name:
            continue
        # The name inside the key leaves the adapter's number out: the same draw for every policy of one key.
        plain = name.replace(f".{adapter}.", ".")
        parameter.data = parameter.data.float()
        if "lora_A" in name:
            parameter.data.copy_(key(plain).normal(*parameter.shape) / len(parameter))  # its rows are the rank
        else:
            parameter.data.zero_()
        trained[plain] = parameter
    components.adapters[adapter] = list(trained.values())
    components.active = None  # layers that were switched off before stay off when peft adds an adapter
    components.switch(adapter)
    policy = components.owners[adapter] = LatentPolicy(components, components.denoiser, adapter, trained, recomputation)
    return policy
