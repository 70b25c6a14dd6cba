"""Untrained tiny checkpoints of Qwen-Image and Qwen-Image-Edit in the published layout."""

from functools import partial

import torch
from models.family_checks import PROMPTS, Family

from pretraining.qwen_vl_build import CHAT_TEMPLATE, SPECIAL, word_tokenizer
from unirl_env.types import Prompt

WIDTH, LATENTS = 64, 4
MEAN, STD = [0.3, -0.2, 0.1, -0.4], [1.4, 0.8, 1.1, 0.6]
SCHEDULER = {
    **{"use_dynamic_shifting": True, "time_shift_type": "exponential", "shift_terminal": 0.02},
    **{"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192},
}
"""As published."""
EDIT = {"": "QwenImageEditPipeline", "plus": "QwenImageEditPlusPipeline"}
UNREAD = ("attn.add_q_proj", "attn.to_add_out", "attn.norm_added_q", "txt_mlp")
"""Of the last block, which makes more of a text than anybody reads."""
SIDE = 64
"""Pixels of a picture that is edited, in place of 1024."""


def tokenizer(kinds):
    """One that has every word of the templates of `kinds` and of the prompts; any text can be read."""
    import diffusers

    parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "transformer"))
    bare = [getattr(diffusers, kind) for kind in kinds]
    made = [kind(**parts, **({"processor": None} if "Edit" in kind.__name__ else {})) for kind in bare]
    words = [pipeline.prompt_template_encode for pipeline in made]
    words += [word for prompt in PROMPTS for word in (prompt.text, prompt.negative)]
    return word_tokenizer([*words, "Picture 1: Picture 2: Picture 3:"])


def text_encoder(tokens):
    """Qwen2.5-VL: weights large enough that words, pictures and places matter."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {token: tokens.convert_tokens_to_ids(token) for token in SPECIAL}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                **{"vocab_size": len(tokens), "hidden_size": WIDTH, "intermediate_size": 96},
                **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
                **{"max_position_embeddings": 2048, "initializer_range": 0.2, "bos_token_id": None},
                **{"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
            },
            vision_config={
                **{"depth": 2, "num_heads": 4, "hidden_size": 32, "intermediate_size": 48},
                **{"out_hidden_size": WIDTH, "patch_size": 4, "spatial_merge_size": 2},
                **{"temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [1]},
                "initializer_range": 0.2,
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=False,
        )
    )


def processor(tokens):
    """Pictures of at most 32 x 32 pixels, 16 tokens."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=4, merge_size=2, size={"shortest_edge": 128, "longest_edge": 1024}
        ),
        tokenizer=tokens,
        video_processor=Qwen2VLVideoProcessor(patch_size=4, merge_size=2),
        chat_template=CHAT_TEMPLATE,
    )


def build(folder, kind="QwenImagePipeline", seed=0, **network):
    """Write a checkpoint whose pipeline is `kind`."""
    import diffusers

    tokens = tokenizer([kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=LATENTS, dim_mult=[1, 2, 2], num_res_blocks=1,
            temperal_downsample=[False, True], latents_mean=MEAN, latents_std=STD,
        )  # fmt: skip
        transformer = diffusers.QwenImageTransformer2DModel(
            in_channels=4 * LATENTS, out_channels=LATENTS, num_layers=3, attention_head_dim=16,
            num_attention_heads=4, joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6), **network,
        )  # fmt: skip
        encoder = text_encoder(tokens)
        for parameter in transformer.parameters():
            if parameter.ndim > 1:
                parameter.data *= 2.0
    parts = {"vae": vae, "transformer": transformer, "text_encoder": encoder, "tokenizer": tokens}
    parts = {name: part.eval() if hasattr(part, "eval") else part for name, part in parts.items()}
    if "Edit" in kind:
        parts["processor"] = processor(tokens)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    getattr(diffusers, kind)(scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def call(prompts, guidance):
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "true_cfg_scale": guidance,
    }


def edit_call(prompts, guidance):
    """Of one prompt, whose pictures the pipeline of one takes as they are, and that of several as a list."""
    from unirl_env.media.pixels import to_pil

    (prompt,) = prompts
    images = [to_pil(image) for image in prompt.images]
    return {**call(prompts, guidance), "image": images if len(images) > 1 else images[0]}


def picture(seed, height=48, width=48):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


EDITS = [
    Prompt(PROMPTS[0].text, negative="", images=(picture(0),)),
    Prompt(PROMPTS[1].text, negative=PROMPTS[1].negative, images=(picture(1, 30, 60),)),
    Prompt(PROMPTS[2].text, negative="dog", images=(picture(2, 64, 40),)),
]
"""Their pictures have three aspects."""

QWEN_IMAGE = Family(
    "qwen_image", "unirl/QwenImage-T2I-v0", build, "QwenImagePipeline", call, {"max_sequence_length": 24},
    height=24, width=40,
    blind=tuple(f"transformer_blocks.2.{name}" for name in UNREAD),
)  # fmt: skip
QWEN_IMAGE_EDIT = Family(
    "qwen_image_edit", "unirl/QwenImage-Edit-v0", partial(build, kind=EDIT[""]), EDIT[""],
    edit_call, {"max_sequence_length": 96, "image_pixels": SIDE**2}, prompts=tuple(EDITS), together=False,
    blind=QWEN_IMAGE.blind,
)  # fmt: skip
CASES = {family.id: family for family in (QWEN_IMAGE, QWEN_IMAGE_EDIT)}
