"""Tiny Wan checkpoints of random weights in the published layout, and how their pipelines are called."""

from dataclasses import replace
from functools import partial

import torch
from models.family_checks import PROMPTS, Family
from models.sana_cases import by_eulers_steps
from transformers import UMT5Config, UMT5EncoderModel

from pretraining.sd3_build import _t5_tokenizer
from unirl_env.media.pixels import to_pil
from unirl_env.models.wan_i2v import SEEING_LENGTH
from unirl_env.prompts.shapes import words

SHIFT = 3.0
LENGTH = 24
BOUNDARY = 0.875
LOW_GUIDANCE = 2.2
WIDE = 12
"""Channels of a latent of TI2V-5B's kind."""


def umt5(tokenizer):
    return UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    ).eval()


def causal_vae(**options):
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.9, 1.1, 1.3, 0.7],
        **options,
    ).eval()


def transformer(**options):
    from diffusers import WanTransformer3DModel

    made = WanTransformer3DModel(
        **{
            **{"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12},
            **{"in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 32, "ffn_dim": 48},
            **{"num_layers": 2, "rope_max_seq_len": 64, **options},
        }
    ).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "attn2" in name or "proj_out" in name:
                parameter.mul_(3.0)
    return made


def residual_vae():
    """The autoencoder of TI2V-5B, small: 12 channels, 16 pixels a place, of which patches are 2."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=WIDE,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0] * 3,
        latents_std=[0.9, 1.1, 1.3, 0.7] * 3,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    ).eval()


def eyes():
    """What a picture is embedded by: 5 tokens of it."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3}
    return {
        "image_encoder": CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).eval(),
        "image_processor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    }


def build(
    folder,
    seed=1,
    scheduler=None,
    pipeline="WanPipeline",
    *,
    vae=causal_vae,
    networks=None,
    seeing=False,
    **more,
):
    """Write a checkpoint.

    Args:
        folder: Where.
        seed: Of the weights.
        scheduler: UniPC, unless it is given.
        pipeline: Its class.
        vae: Makes the autoencoder.
        networks: By folder, options of `transformer`; one of its own, unless they are given.
        seeing: Whether it embeds pictures.
        **more: Of the pipeline.
    """
    import diffusers

    tokenizer = _t5_tokenizer(words())
    tokenizer.model_max_length = LENGTH
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"text_encoder": umt5(tokenizer), "vae": vae()}
        for name, options in (networks or {"transformer": {}}).items():
            parts[name] = transformer(**options)
        parts |= eyes() if seeing else {}
    getattr(diffusers, pipeline)(
        tokenizer=tokenizer,
        scheduler=scheduler
        or diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
        ),
        **parts,
        **more,
    ).save_pretrained(folder)


def call(prompts, guidance):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "guidance_scale": guidance,
        "max_sequence_length": LENGTH,
    }


WAN = Family(
    "wan", "unirl/Wan-T2V-v0", build, "WanPipeline", call, {"max_sequence_length": LENGTH},
    height=32, width=48, frames=5, prepare=by_eulers_steps,
)  # fmt: skip
WAN_5B = replace(
    WAN,
    build=partial(
        build,
        vae=residual_vae,
        networks={"transformer": {"in_channels": WIDE, "out_channels": WIDE}},
        expand_timesteps=True,
    ),
    height=64,
    width=96,
)
"""Wan 2.2 TI2V-5B: a time for each token."""


def expert_call(prompts, guidance):
    return {**call(prompts, guidance), "guidance_scale_2": LOW_GUIDANCE}


def into_both(pipeline, folder):
    pipeline.load_lora_weights(folder / "transformer")
    pipeline.load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)


WAN_EXPERTS = replace(
    WAN,
    build=partial(build, networks={"transformer": {}, "transformer_2": {}}, boundary_ratio=BOUNDARY),
    call=expert_call,
    options={**WAN.options, "low_guidance": LOW_GUIDANCE},
    load_adapters=into_both,
    levels=(0.5, 0.9, 0.3),
)
"""Wan 2.2 A14B: two networks, each with a guidance of its own."""


def image_call(prompts, guidance):
    """Of one prompt, with its picture."""
    (prompt,) = prompts
    told = {**call(prompts, guidance), "max_sequence_length": SEEING_LENGTH}
    return {**told, "image": to_pil(prompt.images[0])}


def pictured_call(prompts, guidance):
    """Of one prompt, with its picture, for a network that does not look at it."""
    (prompt,) = prompts
    return {**call(prompts, guidance), "image": to_pil(prompt.images[0])}


def behind_what_is_overwritten(pipeline, latents, denoiser, prompts):
    """The pipeline puts the picture in the place of the first latent, whatever is there."""
    return torch.cat([torch.full_like(latents[:, :, :1], 7.0), latents], 2)


def image_expert_call(prompts, guidance):
    return {**image_call(prompts, guidance), **expert_call(prompts, guidance)}


def picture(seed, height, width):
    """Large patches: encoders make little of noise."""
    small = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")[0]


BESIDE = {"in_channels": 12, "out_channels": 4}
"""A latent of 4 channels, a mask of 4, a picture of 4."""
SIZES = ((32, 48), (40, 30), (64, 64))
WAN_I2V = replace(
    WAN,
    name="wan_i2v",
    id="unirl/Wan-I2V-v0",
    pipeline="WanImageToVideoPipeline",
    build=partial(
        build,
        pipeline="WanImageToVideoPipeline",
        networks={"transformer": {**BESIDE, "image_dim": 32, "added_kv_proj_dim": 24}},
        seeing=True,
    ),
    call=image_call,
    options={},
    prompts=tuple(
        replace(prompt, images=(picture(seed, *size),))
        for seed, (prompt, size) in enumerate(zip(PROMPTS, SIZES, strict=True))
    ),
    together=False,
)
"""Wan 2.1 from a picture, whose network reads its embeddings, too."""
WAN_5B_I2V = replace(
    WAN_5B,
    name="wan_i2v",
    id="unirl/Wan-I2V-v0",
    pipeline="WanImageToVideoPipeline",
    call=pictured_call,
    latents=behind_what_is_overwritten,
    prompts=WAN_I2V.prompts,
    together=False,
)
"""Wan 2.2 TI2V-5B from a picture, by the checkpoint of clips from text: no step moves its first latent."""
WAN_I2V_EXPERTS = replace(
    WAN_I2V,
    build=partial(
        build,
        pipeline="WanImageToVideoPipeline",
        networks={"transformer": BESIDE, "transformer_2": BESIDE},
        boundary_ratio=BOUNDARY,
    ),
    call=image_expert_call,
    options=WAN_EXPERTS.options,
    load_adapters=into_both,
    levels=WAN_EXPERTS.levels,
)
"""Wan 2.2 A14B from a picture."""
CASES = {WAN.id: WAN, WAN_I2V.id: WAN_I2V}
