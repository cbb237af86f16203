"""What is made of each field of the configuration files of SD3, FLUX.1 and FLUX.2; see configs.py. Imports no torch."""

from __future__ import annotations

from alignbench.diffusion.layouts import FLUX2 as KLEIN
from alignbench.diffusion.layouts import QWEN, T5
from alignbench.diffusion.readings import NOTES, Reading, words

FLOW_SCHEDULER = Reading(
    classes=("FlowMatchEulerDiscreteScheduler",),
    honoured=words(
        "num_train_timesteps shift use_dynamic_shifting base_shift max_shift base_image_seq_len max_image_seq_len",
        "time_shift_type shift_terminal",
    ),
    # Of other grids, and of noise that its solver would add.
    fixed={
        "invert_sigmas": False,
        "stochastic_sampling": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
    },
    otherwise=", which describes no levels of a flow model",
)
SD3 = Reading(
    classes=("SD3Transformer2DModel",),
    honoured=words(
        "sample_size patch_size in_channels out_channels num_layers attention_head_dim num_attention_heads",
        "joint_attention_dim caption_projection_dim pooled_projection_dim pos_embed_max_size dual_attention_layers",
        "qk_norm",
    ),
)
FLUX = Reading(
    classes=("FluxTransformer2DModel",),
    honoured=words(
        "in_channels out_channels num_layers num_single_layers attention_head_dim num_attention_heads",
        "joint_attention_dim pooled_projection_dim guidance_embeds axes_dims_rope",
    ),
    fixed={"patch_size": 1},  # its pipeline packs the latents before
)
T5_TEXT = Reading(
    classes=(T5,),
    honoured=words(
        "vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads relative_attention_num_buckets",
        "relative_attention_max_distance layer_norm_epsilon feed_forward_proj dense_act_fn is_gated_act",
        "pad_token_id bos_token_id eos_token_id",
    ),
    silent=NOTES
    | words(
        "dropout_rate classifier_dropout output_past n_positions is_encoder_decoder is_decoder scale_decoder_outputs"
    ),
    fixed={
        "model_type": "t5",
        "add_cross_attention": False,
        "output_hidden_states": False,
        "return_dict": True,
        "torchscript": False,
        "pruned_heads": {},
        "chunk_size_feed_forward": 0,
    },
)
FLUX2 = Reading(
    classes=(KLEIN.network,),
    honoured=words(
        "in_channels out_channels num_layers num_single_layers attention_head_dim num_attention_heads mlp_ratio eps",
        "joint_attention_dim timestep_guidance_channels axes_dims_rope rope_theta guidance_embeds",
    ),
    fixed={"patch_size": 1},  # its autoencoder's latents are folded before
)
FLUX2_AUTOENCODER = Reading(
    classes=(KLEIN.autoencoders,),
    honoured=words(
        "down_block_types up_block_types block_out_channels decoder_block_out_channels layers_per_block act_fn",
        "latent_channels norm_num_groups sample_size force_upcast use_quant_conv use_post_quant_conv",
        "mid_block_add_attention batch_norm_eps",
    ),
    silent=words("batch_norm_momentum"),  # of training
    fixed={"in_channels": 3, "out_channels": 3, "patch_size": [KLEIN.folded, KLEIN.folded]},
)
QWEN_TEXT = Reading(
    classes=(QWEN,),
    honoured=words(
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim",
        "max_position_embeddings hidden_act rms_norm_eps rope_theta rope_scaling rope_parameters attention_bias",
        "layer_types sliding_window use_sliding_window max_window_layers pad_token_id bos_token_id eos_token_id",
    ),
    silent=NOTES,
    fixed={**T5_TEXT.fixed, "model_type": "qwen3", "is_decoder": False, "is_encoder_decoder": False},
)
QWEN_TOKENIZERS = ("Qwen2TokenizerFast", "Qwen2Tokenizer")
CLIP_AND_T5_TOKENIZERS = ("T5TokenizerFast", "T5Tokenizer", "CLIPTokenizer", "CLIPTokenizerFast")
