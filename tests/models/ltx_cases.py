"""Untrained tiny checkpoints of LTX-Video in the published layout, and how its pipeline is called."""

from dataclasses import replace

import torch
from models.family_checks import Family
from models.wan_cases import WAN_I2V

from pretraining.sd3_build import _t5_tokenizer
from unirl_env.media.pixels import to_pil
from unirl_env.models.shared.noisy_decoder import SEED
from unirl_env.prompts.shapes import words

LENGTH, CHANNELS, FPS = 24, 6, 8.0
SCHEDULER = {
    **{"use_dynamic_shifting": True, "time_shift_type": "exponential", "shift_terminal": 0.1},
    **{"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096},
}
"""As published."""
NOISY = {"timestep_conditioning": True, "decoder_inject_noise": (True,) * 5}
"""A decoder that takes a time and adds noise, as of 0.9.1."""
DECODING = {"decode_timestep": 0.5, "decode_noise_scale": 0.25}
"""What such a decoder is told."""


def text_encoder(tokens):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(tokens), d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    ).eval()


def decoder(**options):
    """Of 32 pixels and 8 frames a place, as published; its statistics are not neutral."""
    from diffusers import AutoencoderKLLTXVideo

    scaling = (True, True, True, False)
    made = AutoencoderKLLTXVideo(
        **{
            **{"latent_channels": CHANNELS, "block_out_channels": (8,) * 4, "layers_per_block": (1,) * 5},
            **{"decoder_block_out_channels": (8,) * 4, "decoder_layers_per_block": (1,) * 5},
            **{"spatio_temporal_scaling": scaling, "decoder_spatio_temporal_scaling": scaling},
            **{"patch_size": 4, "scaling_factor": 1.2, **options},
        }
    ).eval()
    made.latents_mean.copy_(torch.linspace(-0.3, 0.4, CHANNELS))
    made.latents_std.copy_(torch.linspace(0.7, 1.4, CHANNELS))
    for name, parameter in made.named_parameters():
        if "per_channel_scale" in name:
            parameter.data.fill_(0.3)  # zeros, which they begin as, would add no noise
    return made


def transformer():
    from diffusers import LTXVideoTransformer3DModel

    made = LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=32,
    ).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
    return made


def build(folder, seed=1, **vae):
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline

    tokens = _t5_tokenizer(words())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"text_encoder": text_encoder(tokens), "vae": decoder(**vae), "transformer": transformer()}
    LTXPipeline(
        tokenizer=tokens, scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER), **parts
    ).save_pretrained(folder)


def call(prompts, guidance):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "guidance_scale": guidance,
        "max_sequence_length": LENGTH,
        "frame_rate": FPS,
    }


def from_one_stream(pipeline, denoiser, num_steps):
    """Its decoder adds noise of torch's own stream."""
    decode = type(pipeline.vae).decode

    def seeded(*arguments, **options):
        torch.manual_seed(SEED)
        return decode(pipeline.vae, *arguments, **options)

    pipeline.vae.decode = seeded


LTX = Family(
    "ltx", "unirl/LTX-T2V-v0", build, "LTXPipeline", call,
    {"max_sequence_length": LENGTH, "fps": FPS}, height=64, width=96, frames=9,
)  # fmt: skip


def pictured_call(prompts, guidance):
    """Of one prompt, with its picture."""
    (prompt,) = prompts
    return {**call(prompts, guidance), "image": to_pil(prompt.images[0])}


def behind_the_picture(pipeline, latents, denoiser, prompts):
    """Whoever gives the pipeline latents has put the picture before them, as it does itself without any."""
    (prompt,) = prompts
    sizes = denoiser.height, denoiser.width
    pixels = pipeline.video_processor.preprocess(to_pil(prompt.images[0]), *sizes)
    keyed = torch.Generator().manual_seed(SEED)
    whole, _ = pipeline.prepare_latents(
        *(pixels.to(pipeline.vae.dtype), 1, CHANNELS, *sizes, denoiser.num_frames),
        *(torch.float32, "cpu", keyed),
    )
    return torch.cat([whole[:, : -latents.shape[1]], latents], 1)


LTX_I2V = replace(
    LTX,
    name="ltx_i2v",
    id="unirl/LTX-I2V-v0",
    pipeline="LTXImageToVideoPipeline",
    call=pictured_call,
    latents=behind_the_picture,
    prompts=WAN_I2V.prompts,
    together=False,
)
"""From a picture, by the same checkpoint."""
CASES = {LTX.id: LTX, LTX_I2V.id: LTX_I2V}
