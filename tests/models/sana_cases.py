"""A tiny SANA in the published layout, with the multistep solver of flows that it carries."""

import string

import torch
from models.family_checks import Family

SHIFT = 3.0


def gemma_tokenizer():
    """A Gemma tokenizer that knows letters, so that the pipeline's instruction is long, as published."""
    from transformers import GemmaTokenizer

    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n"]
    letters += [*string.ascii_letters, *string.digits, *string.punctuation]
    return GemmaTokenizer(vocab={letter: index for index, letter in enumerate(dict.fromkeys(letters))})


def gemma(tokenizer):
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=16,
            max_position_embeddings=2048,
            initializer_range=0.2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        )
    ).eval()


def deep_compression():
    """An autoencoder of 8 channels and 16 pixels a place, whose deepest block attends."""
    from diffusers import AutoencoderDC

    kinds, channels = (*("ResBlock",) * 4, "EfficientViTBlock"), (8, 8, 16, 16, 32)
    return AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        encoder_qkv_multiscales=(*((),) * 4, (5,)),
        decoder_qkv_multiscales=(*((),) * 4, (5,)),
        scaling_factor=0.41407,
    ).eval()


def build(folder, seed=1):
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    tokenizer = gemma_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SanaTransformer2DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=32,
            sample_size=8,
        ).eval()
        vae, text_encoder = deep_compression(), gemma(tokenizer)
    with torch.no_grad():
        transformer.caption_norm.weight.fill_(1.0)  # 0.01 as published, where trained weights make up for it
        for name, parameter in transformer.named_parameters():
            if "attn2" in name or "proj_out" in name or "scale_shift" in name:
                parameter.mul_(3.0)
    SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
        ),
    ).save_pretrained(folder)


def call(prompts, guidance):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "guidance_scale": guidance,
        "max_sequence_length": 40,
        "use_resolution_binning": False,
    }


def by_eulers_steps(pipeline, denoiser, num_steps):
    """Single steps at the noise levels of the checkpoint's solver, whatever the pipeline asks for."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    class AtGivenLevels(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, num_inference_steps=None, device=None, **asked):
            super().set_timesteps(sigmas=denoiser.sigmas(num_steps)[:-1].numpy(), device=device)

    pipeline.scheduler = AtGivenLevels(shift=1.0)


SANA = Family(
    "sana", "unirl/Sana-T2I-v0", build, "SanaPipeline", call, {"max_sequence_length": 40},
    height=64, width=96, prepare=by_eulers_steps,
)  # fmt: skip
CASES = {SANA.id: SANA}
