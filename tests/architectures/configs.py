"""Every architecture at its real size, for ComfyUI's classes and for diffusers' classes.

Data only: read by tests in both interpreters. The sizes of ComfyUI's models are what its detection finds in
the published files, those of diffusers' models are the published configurations (defaults are left out).
"""

_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False,
    "use_temporal_resblock": False,
}  # fmt: skip
_SD = _UNET | {
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "adm_in_channels": None,
}  # fmt: skip
_FLUX = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True,
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "dim": 5120, "out_dim": 16, "num_heads": 40, "ffn_dim": 13824, "num_layers": 40,
    "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True,
    "cross_attn_norm": True, "eps": 1e-6,
}  # fmt: skip
_LUMINA = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "qk_norm": True}
_LLAMA_LAYERS = [*range(32), *[31] * 16]

# name -> (title, class of comfy.supported_models, its configuration)
COMFYUI = {
    "sd1": ("SD1.x", "SD15", _SD | {
        "context_dim": 768, "use_linear_in_transformer": False, "num_heads": 8,
    }),
    "sd2": ("SD2.x", "SD20", _SD | {
        "context_dim": 1024, "use_linear_in_transformer": True, "num_head_channels": 64,
    }),
    "sdxl": ("SDXL", "SDXL", _UNET | {
        "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
        "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential",
        "use_linear_in_transformer": True, "num_head_channels": 64,
    }),
    "sd3": ("SD3.5 Large", "SD3", {
        "input_size": None, "patch_size": 2, "in_channels": 16, "depth": 38, "adm_in_channels": 2048,
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 2432},
        },
        "num_patches": 36864, "pos_embed_max_size": 192, "pos_embed_scaling_factor": None, "qk_norm": "rms",
        "x_block_self_attn_layers": [],
    }),
    "flux": ("Flux.1", "Flux", _FLUX | {
        "image_model": "flux", "guidance_embed": True, "txt_ids_dims": [],
    }),
    "flux2": ("Flux.2", "Flux2", _FLUX | {
        "image_model": "flux2", "patch_size": 1, "in_channels": 128, "out_channels": 128, "vec_in_dim": None,
        "context_in_dim": 15360, "hidden_size": 6144, "num_heads": 48, "mlp_ratio": 3.0, "depth": 8,
        "depth_single_blocks": 48, "axes_dim": [32] * 4, "theta": 2000, "qkv_bias": False, "ops_bias": False,
        "global_modulation": True, "mlp_silu_act": True, "txt_ids_dims": [3], "guidance_embed": True,
    }),
    "chroma": ("Chroma", "Chroma", _FLUX | {
        "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072,
        "hidden_dim": 5120, "n_layers": 5, "vec_in_dim": None, "txt_ids_dims": [],
    }),
    "auraflow": ("AuraFlow", "AuraFlow", {
        "max_seq": 9216, "cond_seq_dim": 2048, "n_double_layers": 4, "n_layers": 36,
    }),
    "pixart": ("PixArt Sigma", "PixArtSigma", {
        "image_model": "pixart_sigma", "num_heads": 16, "patch_size": 2, "hidden_size": 1152,
        "in_channels": 4, "depth": 28, "model_max_length": 300, "input_size": 128, "pe_interpolation": 2,
        "micro_condition": False,
    }),
    "lumina2": ("Lumina Image 2", "Lumina2", _LUMINA | {
        "dim": 2304, "cap_feat_dim": 2304, "n_layers": 26, "n_heads": 24, "n_kv_heads": 8,
        "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0,
        "ffn_dim_multiplier": 4.0,
    }),
    "zimage": ("Z-Image", "ZImage", _LUMINA | {
        "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30,
        "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
        "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0,
    }),
    "qwen": ("Qwen-Image", "QwenImage", {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60}),
    "wan_t2v": ("Wan 2.1 and 2.2, 14B text to video", "WAN21_T2V", _WAN | {
        "model_type": "t2v", "in_dim": 16,
    }),
    "wan_i2v": ("Wan 2.1, 14B image to video", "WAN21_I2V", _WAN | {"model_type": "i2v", "in_dim": 36}),
    "hunyuan": ("HunyuanVideo", "HunyuanVideo", _FLUX | {
        "image_model": "hunyuan_video", "patch_size": [1, 2, 2], "depth": 20, "depth_single_blocks": 40,
        "theta": 256, "guidance_embed": True, "byt5": False, "meanflow": False,
        "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
    }),
    "ltx": ("LTX-Video", "LTXV", {
        "image_model": "ltxv", "num_layers": 28, "attention_head_dim": 64, "cross_attention_dim": 2048,
    }),
    "hidream": ("HiDream", "HiDream", {
        "image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32],
        "caption_channels": [4096, 4096], "max_resolution": [128, 128], "in_channels": 16,
        "llama_layers": _LLAMA_LAYERS, "num_attention_heads": 20, "num_routed_experts": 4,
        "num_activated_experts": 2, "num_layers": 16, "num_single_layers": 32, "out_channels": 16,
        "patch_size": 2, "text_emb_dim": 2048,
    }),
}  # fmt: skip

_XL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}

# name -> (pipeline, class of the denoiser, its configuration)
DIFFUSERS = {
    "sd1": ("StableDiffusionPipeline", "UNet2DConditionModel", {"cross_attention_dim": 768}),
    "sd2": ("StableDiffusionPipeline", "UNet2DConditionModel", {
        "cross_attention_dim": 1024, "use_linear_projection": True, "attention_head_dim": [5, 10, 20, 20],
    }),
    "sdxl": ("StableDiffusionXLPipeline", "UNet2DConditionModel", _XL_BLOCKS | {
        "cross_attention_dim": 2048, "use_linear_projection": True, "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }),
    "sd3": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", {
        "num_layers": 38, "attention_head_dim": 64, "num_attention_heads": 38, "caption_projection_dim": 2432,
        "pooled_projection_dim": 2048, "joint_attention_dim": 4096, "qk_norm": "rms_norm",
    }),
    "flux": ("FluxPipeline", "FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux2": ("Flux2Pipeline", "Flux2Transformer2DModel", {}),
    "chroma": ("ChromaPipeline", "ChromaTransformer2DModel", {}),
    "auraflow": ("AuraFlowPipeline", "AuraFlowTransformer2DModel", {}),
    "pixart": ("PixArtSigmaPipeline", "PixArtTransformer2DModel", {
        "caption_channels": 4096, "use_additional_conditions": False,
    }),
    "lumina2": ("Lumina2Pipeline", "Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
    "zimage": ("ZImagePipeline", "ZImageTransformer2DModel", {}),
    "qwen": ("QwenImagePipeline", "QwenImageTransformer2DModel", {}),
    "wan_t2v": ("WanPipeline", "WanTransformer3DModel", {}),
    "wan_i2v": ("WanImageToVideoPipeline", "WanTransformer3DModel", {
        "image_dim": 1280, "added_kv_proj_dim": 5120, "in_channels": 36,
    }),
    "hunyuan": ("HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", {}),
    "ltx": ("LTXPipeline", "LTXVideoTransformer3DModel", {}),
    "hidream": ("HiDreamImagePipeline", "HiDreamImageTransformer2DModel", {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "caption_channels": [4096, 4096],
        "axes_dims_rope": (64, 32, 32), "llama_layers": _LLAMA_LAYERS,
    }),
}  # fmt: skip
