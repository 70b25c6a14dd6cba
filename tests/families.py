"""Which ids have tiny checkpoints that tests and benchmarks build."""

FAMILIES = {
    "unirl/Flux1-T2I-v0": "models.flux1_cases",
    "unirl/Flux2-T2I-v0": "models.flux2_cases",
    "unirl/Flux2Klein-T2I-v0": "models.flux2_cases",
    "unirl/QwenImage-T2I-v0": "models.qwen_image_cases",
    "unirl/QwenImage-Edit-v0": "models.qwen_image_cases",
    "unirl/ZImage-T2I-v0": "models.z_image_cases",
    "unirl/Sana-T2I-v0": "models.sana_cases",
    "unirl/PixArt-T2I-v0": "models.pixart_cases",
    "unirl/SD15-T2I-v0": "models.stable_diffusion_cases",
    "unirl/SDXL-T2I-v0": "models.stable_diffusion_cases",
    "unirl/Wan-T2V-v0": "models.wan_cases",
    "unirl/Wan-I2V-v0": "models.wan_cases",
    "unirl/HunyuanVideo-T2V-v0": "models.hunyuan_video_cases",
    "unirl/HunyuanVideo15-T2V-v0": "models.hunyuan_video15_cases",
    "unirl/HunyuanVideo15-I2V-v0": "models.hunyuan_video15_i2v_cases",
    "unirl/LTX-T2V-v0": "models.ltx_cases",
    "unirl/LTX-I2V-v0": "models.ltx_cases",
    "unirl/Diffusers-T2I-v0": "models.any_pipeline_cases",
    "unirl/Diffusers-T2V-v0": "models.any_video_cases",
}
"""By the id of a family of diffusers, where its tiny checkpoint is built."""
