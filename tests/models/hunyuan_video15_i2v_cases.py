"""Untrained tiny checkpoints of HunyuanVideo 1.5 from a picture, and how its pipeline is called."""

from dataclasses import replace

import torch
from models.hunyuan_video15_cases import HUNYUAN_VIDEO15, PROMPT_SET, Guided, call, parts

PICTURES = ((16, 24), (32, 48), (24, 36))
"""Rows and columns of pictures of one aspect, that of the clips."""


def image_encoder():
    """SigLIP, of 4 patches."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    return SiglipVisionModel(config).eval(), SiglipImageProcessor(size={"height": 8, "width": 8})


def build(folder, seed=0, **network):
    from diffusers import HunyuanVideo15ImageToVideoPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, processor = image_encoder()
    HunyuanVideo15ImageToVideoPipeline(
        # 25 places of 4 pixels: 4 by 6 of them for pictures of that aspect.
        **parts(PROMPT_SET, seed, **{"task_type": "i2v", "target_size": 20, **network}),
        image_encoder=encoder,
        feature_extractor=processor,
    ).save_pretrained(folder)


def picture(seed, rows, columns):
    return torch.rand(3, rows, columns, generator=torch.Generator().manual_seed(seed))


def call_with_a_picture(prompts, guidance):
    from unirl_env.media.pixels import to_pil

    (prompt,) = prompts
    return {**call(prompts, guidance), "image": to_pil(prompt.images[0])}


class Unsized:
    """A pipeline that takes its clips' size from the picture."""

    def __init__(self, pipeline):
        self.pipeline = pipeline

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def __call__(self, *, height, width, **options):
        made = self.pipeline(**options)
        latent = options["output_type"] == "latent"
        assert latent or made.frames.shape[-2:] == (height, width), "the picture must have the clip's aspect"
        return made


class Pictured(Guided):
    """Whose pipeline is told no size, and one picture at a time."""

    def by_pipeline(self, pipeline, denoiser, latents, guidance, num_steps, prompts, output="pt"):
        if isinstance(pipeline, Unsized):
            return super().by_pipeline(pipeline, denoiser, latents, guidance, num_steps, prompts, output)
        unsized, rows = Unsized(pipeline), range(len(prompts))
        return torch.cat(
            [
                super(Pictured, self).by_pipeline(
                    unsized,
                    denoiser,
                    latents[row : row + 1],
                    guidance,
                    num_steps,
                    prompts[row : row + 1],
                    output,
                )
                for row in rows
            ]
        )


PROMPTS = [
    replace(prompt, images=(picture(row, *size),))
    for row, (prompt, size) in enumerate(zip(PROMPT_SET, PICTURES, strict=True))
]
HUNYUAN_VIDEO15_I2V = Pictured(
    "hunyuan_video15_i2v", "unirl/HunyuanVideo15-I2V-v0", build, "HunyuanVideo15ImageToVideoPipeline",
    call_with_a_picture, HUNYUAN_VIDEO15.options, height=16, width=24, frames=5,
    prepare=HUNYUAN_VIDEO15.prepare, load_adapters=HUNYUAN_VIDEO15.load_adapters, prompts=tuple(PROMPTS),
    blind=HUNYUAN_VIDEO15.blind[1:],
)  # fmt: skip
CASES = {HUNYUAN_VIDEO15_I2V.id: HUNYUAN_VIDEO15_I2V}
