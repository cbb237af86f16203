"""Weights that their authors released after aligning a model, as models of their own: to be evaluated, not trained.

Each entry was read where `read` says: files, licence, and how its authors sample. A repository without a revision is
one whose full commit was not to be seen. What the authors do not say is as in the base model. Not here, because their
files could not be read, or are pickles, or no model of their own: benchmarks/README.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from alignbench.diffusion.hub import Repository
from alignbench.diffusion.registry import Model

NOT_SAID = "not said by its repository; the base model's binds too"
NOT_READ = "see its repository; the base model's binds too"


@dataclass(frozen=True)
class Released:
    """A denoiser or a LoRA of a base model."""

    name: str
    base: str  # the model that it was trained from
    method: str
    weights: Repository
    licence: str
    read: str  # where files, licence and sampling were read
    lora: bool = False
    steps: int | None = None  # this and what follows: as the authors sample; None: as the base model
    guidance: float | None = None
    resolution: int | None = None
    tokens: int | None = None  # of T5's text

    def model(self, base: Model) -> Model:
        kind = "a LoRA" if self.lora else "a denoiser"
        return dataclasses.replace(
            base,
            name=self.name,
            like=base.name,
            denoiser=None if self.lora else self.weights,
            adapter=self.weights if self.lora else None,
            steps=base.steps if self.steps is None else self.steps,
            guidance=base.guidance if self.guidance is None else self.guidance,
            resolution=self.resolution or base.resolution,
            tokens=self.tokens or base.tokens,
            licence=self.licence,
            note=f"{self.method}: the released weights, {kind} of {base.name}; evaluation only",
        )


RELEASED = (
    Released(
        "sd15_dpo",
        "sd15",
        "Diffusion-DPO",
        Repository("mhdang/dpo-sd1.5-text2image-v1", inside="unet"),
        licence=NOT_READ,
        read="examples/research_projects/diffusion_dpo/README.md of huggingface/diffusers",
    ),
    Released(
        "sd15_kto",
        "sd15",
        "Diffusion-KTO",
        Repository("jacklishufan/diffusion-kto", inside="unet"),  # newest commit seen: 745f04e, of August 2024
        licence=NOT_SAID,
        read="README.md of github.com/jacklishufan/diffusion-kto; files: huggingface.co/jacklishufan/diffusion-kto",
        steps=50,
        guidance=7.0,
    ),
    Released(
        "sd15_spo",
        "sd15",
        "SPO",
        Repository("SPO-Diffusion-Models/SPO-SD-v1-5_4k-p_10ep", "c2e72b19c0cd343342d9ee112cf393825dff5e24", "unet"),
        licence="Apache-2.0; the base model's binds too",
        read="inference_scripts/inference_spo_sd-v1-5.py of github.com/RockeyCoss/SPO; files and licence: "
        "huggingface.co/SPO-Diffusion-Models/SPO-SD-v1-5_4k-p_10ep",
    ),
    Released(
        "sd15_spo_lora",
        "sd15",
        "SPO",
        Repository(
            "SPO-Diffusion-Models/SPO-SD-v1-5_4k-p_10ep_LoRA",
            "d85e1da51bd1d280c2340825aaf5b663109c6171",
            "spo-sd-v1-5_4k-p_10ep_lora_diffusers.safetensors",
        ),
        licence="Apache-2.0; the base model's binds too",
        read="huggingface.co/SPO-Diffusion-Models/SPO-SD-v1-5_4k-p_10ep_LoRA; sampling as of sd15_spo",
        lora=True,
    ),
    Released(
        "sdxl_dpo",
        "sdxl",
        "Diffusion-DPO",
        Repository("mhdang/dpo-sdxl-text2image-v1", inside="unet"),
        licence=NOT_READ,
        read="examples/research_projects/diffusion_dpo/README.md of huggingface/diffusers",
    ),
    Released(
        "sdxl_mapo",
        "sdxl",
        "MaPO",
        Repository("mapo-t2i/mapo-beta", "7d6af58a7bcc4f67521a56d2aeff97f025dc0d51", "."),
        licence="CreativeML OpenRAIL++-M",
        read="README.md of github.com/mapo-t2i/mapo; files and licence: huggingface.co/mapo-t2i/mapo-beta",
        steps=30,
    ),
    Released(
        "sdxl_spo",
        "sdxl",
        "SPO",
        Repository("SPO-Diffusion-Models/SPO-SDXL_4k-p_10ep", "5ba0a86c3438b4349031b168f5da865140775022", "unet"),
        licence="Apache-2.0; the base model's binds too",
        read="inference_scripts/inference_spo_sdxl.py of github.com/RockeyCoss/SPO; files and licence: "
        "huggingface.co/SPO-Diffusion-Models/SPO-SDXL_4k-p_10ep",
        guidance=5.0,
    ),
    Released(
        "sdxl_spo_lora",
        "sdxl",
        "SPO",
        Repository(
            "SPO-Diffusion-Models/SPO-SDXL_4k-p_10ep_LoRA",
            "d544c411fb01d079295445ceaf03a409186b5943",
            "spo_sdxl_10ep_4k-data_lora_diffusers.safetensors",
        ),
        licence="Apache-2.0; the base model's binds too",
        read="huggingface.co/SPO-Diffusion-Models/SPO-SDXL_4k-p_10ep_LoRA; sampling as of sdxl_spo",
        lora=True,
        guidance=5.0,
    ),
    Released(
        "sd35_flow_grpo_geneval",
        "sd35_medium",
        "Flow-GRPO on GenEval",
        Repository("jieliu/SD3.5M-FlowGRPO-GenEval"),  # was replaced by another training once, says its card
        licence=NOT_SAID,
        read="huggingface.co/jieliu/SD3.5M-FlowGRPO-GenEval",
        lora=True,
        steps=40,
        guidance=4.5,
        resolution=512,
        tokens=128,
    ),
    Released(
        "sd35_flow_grpo_text",
        "sd35_medium",
        "Flow-GRPO on rendered text",
        Repository("jieliu/SD3.5M-FlowGRPO-Text"),
        licence=NOT_READ,
        read="README.md of github.com/yifan123/flow_grpo; format and sampling as of sd35_flow_grpo_geneval",
        lora=True,
        steps=40,
        guidance=4.5,
        resolution=512,
        tokens=128,
    ),
    Released(
        "sd35_flow_grpo_pickscore",
        "sd35_medium",
        "Flow-GRPO on PickScore",
        Repository("jieliu/SD3.5M-FlowGRPO-PickScore"),
        licence=NOT_READ,
        read="README.md of github.com/yifan123/flow_grpo; format and sampling as of sd35_flow_grpo_geneval",
        lora=True,
        steps=40,
        guidance=4.5,
        resolution=512,
        tokens=128,
    ),
    Released(
        "sd35_diffusion_nft",
        "sd35_medium",
        "DiffusionNFT on several rewards, reproduced",
        Repository("worstcoder/SD3.5M-DiffusionNFT-MultiReward"),
        licence=NOT_READ,
        read="README.md and scripts/evaluation.py of github.com/NVlabs/DiffusionNFT",
        lora=True,
        steps=40,
        guidance=1.0,
        resolution=512,
        tokens=128,
    ),
    Released(
        "flux_srpo",
        "flux_dev",
        "SRPO, a copy in diffusers' layout of the authors' file, which has no configuration",
        Repository("Runware/flux.1-dev-SRPO", inside="transformer"),  # newest commit seen: b911d0a
        licence="Tencent Hunyuan Community License; the base model's binds too",
        read="README.md of github.com/Tencent-Hunyuan/SRPO; files and licence: huggingface.co/Runware/flux.1-dev-SRPO",
        steps=50,
        guidance=3.5,
    ),
)


def with_released(*models: Model) -> tuple[Model, ...]:
    """Models, and after them what was released of them."""
    bases = {model.name: model for model in models}
    return (*models, *(entry.model(bases[entry.base]) for entry in RELEASED if entry.base in bases))
