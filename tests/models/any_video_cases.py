"""Tiny untrained checkpoints of pipelines of clips that have no leaf: SkyReels-V2 and SANA-Video.

Published ones carry solvers that look back; these a scheduler whose steps episodes take.
"""

from dataclasses import replace

from models.any_pipeline_cases import called, loud
from models.family_checks import Family
from models.sana_cases import gemma, gemma_tokenizer
from models.wan_cases import causal_vae, umt5

from pretraining.sd3_build import _t5_tokenizer
from unirl_env.prompts.shapes import words

LENGTH = 24


def euler(**settings):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **settings})


def build_skyreels(folder, scheduler=None):
    """SkyReels-V2: time in thousandths, two calls under guidance."""
    from diffusers import SkyReelsV2Pipeline, SkyReelsV2Transformer3DModel

    tokenizer = _t5_tokenizer(words())
    tokenizer.model_max_length = LENGTH
    network = SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=32, freq_dim=32, ffn_dim=48, num_layers=2, rope_max_seq_len=64,
    )  # fmt: skip
    SkyReelsV2Pipeline(
        tokenizer=tokenizer,
        text_encoder=loud(umt5(tokenizer), seed=1),
        vae=loud(causal_vae(), scale=0.7, seed=3),
        transformer=loud(network, seed=2),
        scheduler=scheduler or euler(),
    ).save_pretrained(folder)
    return folder


def build_sana_video(folder, scheduler=None):
    """SANA-Video: one doubled call under guidance, a mask, frames by another name."""
    from diffusers import SanaVideoPipeline, SanaVideoTransformer3DModel

    tokenizer = gemma_tokenizer()
    network = SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
        rope_max_seq_len=64,
    )  # fmt: skip
    SanaVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=loud(gemma(tokenizer), seed=1),
        vae=loud(causal_vae(), scale=0.7, seed=3),
        transformer=loud(network, seed=2),
        scheduler=scheduler or euler(),
    ).save_pretrained(folder)
    return folder


def build_mochi(folder):
    """Mochi: its scheduler counts the other way round. A folder with its settings alone."""
    import json

    (folder / "scheduler").mkdir(parents=True)
    (folder / "transformer").mkdir()
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "transformer" / "config.json").write_text(
        json.dumps({"_class_name": "MochiTransformer3DModel"})
    )
    index = {
        "_class_name": "MochiPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", "MochiTransformer3DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def family(build, pipeline, length, **arguments):
    return Family(
        "video_pipeline", "unirl/Diffusers-T2V-v0", build, pipeline,
        called(max_sequence_length=length, **arguments), {"max_sequence_length": length},
        height=32, width=48, frames=5,
    )  # fmt: skip


SKYREELS = family(build_skyreels, "SkyReelsV2Pipeline", LENGTH)
SANA_VIDEO = replace(
    family(build_sana_video, "SanaVideoPipeline", 40, use_resolution_binning=False), width=64
)
PIPELINES = {"SkyReelsV2": SKYREELS, "SanaVideo": SANA_VIDEO}
CASES = {SKYREELS.id: SKYREELS}
