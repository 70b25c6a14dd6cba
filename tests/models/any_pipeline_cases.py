"""Tiny untrained checkpoints of pipelines that have no leaf: AuraFlow, Lumina-Image 2, Chroma and Bria."""

import torch
from models.family_checks import Family

from pretraining.qwen3_build import tiny_tokenizer
from pretraining.sd3_build import tiny_sd3_parts


def loud(network, scale=1.0, seed=0):
    """Weights with which every input shows in what is predicted, norms' own among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan = torch.Size(parameter.shape[1:]).numel() if parameter.ndim > 1 else 16
            parameter.copy_(scale * noise * fan**-0.5 + (parameter.ndim == 1) * parameter.mean())
    return network.eval()


def autoencoder(levels, seed=0):
    """`AutoencoderKL` of 4 channels, in which scale and shift matter."""
    from diffusers import AutoencoderKL

    return loud(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(8,) * levels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.7,
            shift_factor=0.1,
            force_upcast=False,
            mid_block_add_attention=False,
        ),
        scale=0.7,
        seed=seed,
    )


def build_aura_flow(folder, **scheduler):
    """AuraFlow: pictures as they are, one doubled call under guidance."""
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    parts = tiny_sd3_parts()
    tokenizer = parts["tokenizer_3"]
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
            dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    network = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1,
        num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32,
        caption_projection_dim=32, pos_embed_max_size=256,
    )  # fmt: skip
    AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=loud(encoder, seed=1),
        vae=autoencoder(3),
        transformer=loud(network, seed=2),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 1.73, **scheduler}),
    ).save_pretrained(folder)
    return folder


def build_lumina2(folder, **scheduler):
    """Lumina-Image 2: time runs the other way, velocities are negated, guidance keeps norms."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = tiny_tokenizer()
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        )
    )  # fmt: skip
    network = Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=48, num_layers=1, num_refiner_layers=1,
        num_attention_heads=4, num_kv_heads=2, multiple_of=16, axes_dim_rope=(4, 4, 4),
        axes_lens=(64, 16, 16), cap_feat_dim=32,
    )  # fmt: skip
    Lumina2Pipeline(
        tokenizer=tokenizer,
        text_encoder=loud(encoder, seed=1),
        vae=autoencoder(4),
        transformer=loud(network, seed=2),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **scheduler}),
    ).save_pretrained(folder)
    return folder


def build_chroma(folder, **scheduler):
    """Chroma: packed latents, places without an axis of prompts, a mask over texts and pictures."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    parts = tiny_sd3_parts()
    network = ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=64, axes_dims_rope=(4, 6, 6), approximator_num_channels=16,
        approximator_hidden_dim=32, approximator_layers=1,
    )  # fmt: skip
    ChromaPipeline(
        tokenizer=parts["tokenizer_3"],
        text_encoder=loud(parts["text_encoder_3"], seed=1),
        vae=autoencoder(3),
        transformer=loud(network, seed=2),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **scheduler}),
    ).save_pretrained(folder)
    return folder


def build_bria(folder, **scheduler):
    """Bria: time in thousandths, a schedule of its own, negatives that depend on each other in a batch."""
    from diffusers import BriaPipeline, BriaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    parts = tiny_sd3_parts()
    network = BriaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=64, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    BriaPipeline(
        tokenizer=parts["tokenizer_3"],
        text_encoder=loud(parts["text_encoder_3"], seed=1),
        vae=autoencoder(3),
        transformer=loud(network, seed=2),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 2.0, **scheduler}),
    ).save_pretrained(folder)
    return folder


def called(**arguments):
    """From prompts and guidance to the arguments of these pipelines."""

    def call(prompts, guidance):
        return {
            "prompt": [prompt.text for prompt in prompts],
            "negative_prompt": [prompt.negative for prompt in prompts],
            "guidance_scale": guidance,
            **arguments,
        }

    return call


def by_peft(pipeline, folder):
    """Adapters of a pipeline that has no loader of its own."""
    from peft import PeftModel

    pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, folder)


SYSTEM = "Draw."
ID = "unirl/Diffusers-T2I-v0"
AURA_FLOW = Family(
    "pipeline", ID, build_aura_flow, "AuraFlowPipeline", called(max_sequence_length=12),
    {"max_sequence_length": 12},
)  # fmt: skip
LUMINA2 = Family(
    "pipeline", ID, build_lumina2, "Lumina2Pipeline", called(max_sequence_length=60, system_prompt=SYSTEM),
    {"max_sequence_length": 60, "arguments": {"system_prompt": SYSTEM}},
)  # fmt: skip
CHROMA = Family(
    "pipeline", ID, build_chroma, "ChromaPipeline", called(max_sequence_length=12),
    {"max_sequence_length": 12},
)  # fmt: skip
BRIA = Family(
    "pipeline", ID, build_bria, "BriaPipeline", called(max_sequence_length=12), {"max_sequence_length": 12},
    together=False, load_adapters=by_peft,
)  # fmt: skip
PIPELINES = {"AuraFlow": AURA_FLOW, "Lumina2": LUMINA2, "Chroma": CHROMA, "Bria": BRIA}
CASES = {ID: AURA_FLOW}
