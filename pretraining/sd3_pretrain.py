"""Pre-train the embedded Stable Diffusion 3: `python -m pretraining.sd3_pretrain --out DIR`.

Three parts: the autoencoder; flow matching on true captions, until the model draws everything well; and
a short last part on loosened captions (see `shapes_data.loosen`), which leaves it a habit that
reinforcement learning corrects. Text encoders learn together with the transformer and are frozen after.
It takes about half an hour of one core; on a shared machine OMP_NUM_THREADS=1 is fastest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretraining.flow_matching import fit_flow, save_half, steps_of
from pretraining.sd3_build import tiny_sd3_parts
from pretraining.shapes_data import draw_in_parts, loosen, sample_captions
from unirl_env.models.tiny import SD3_TOKENS
from unirl_env.prompts.shapes import Caption, split_captions
from unirl_env.registry import Registry
from unirl_env.types import Prompt, Sample

__all__ = ["PHASES", "evaluate", "pretrain", "save", "train_autoencoder", "train_flow"]

_LEARNED = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
_SCORER = "unirl_env.rewards.pictures.shapes_scorers:ShapesScorer"


def train_autoencoder(vae: Any, *, steps: int, rng: np.random.Generator, batch: int = 48) -> None:
    """Fit the autoencoder, then set its scale and shift so that latents have mean 0 and deviation 1."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in steps_of(steps, "autoencoder"):
        pictures = draw_in_parts(sample_captions(batch, rng), rng) * 2 - 1
        posterior = vae.encode(pictures).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32))
        restored = vae.decode(posterior.mean + posterior.std * noise).sample
        error = restored - pictures
        # Much of every picture is background: the objects and their outlines would fade from the mean.
        weight = 1 + 4 * (pictures - pictures[:, :, :1, :1]).abs().amax(1, keepdim=True)
        loss = (weight * (error.abs() + error.square())).mean() + 1e-4 * posterior.kl().mean() / 16
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    latents = _encode(vae, draw_in_parts(sample_captions(1024, rng), rng))
    vae.register_to_config(
        shift_factor=round(latents.mean().item(), 5), scaling_factor=round(1 / latents.std().item(), 5)
    )


@torch.no_grad()
def _encode(vae: Any, pictures: Tensor) -> Tensor:
    """Unscaled latents `[N, 4, 8, 8]` of pictures in [0, 1]."""
    return torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in pictures.split(256)])


def _tokenize(parts: dict[str, Any], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    settings = {"padding": "max_length", "max_length": SD3_TOKENS, "truncation": True}
    clip = parts["tokenizer"](list(texts), return_tensors="pt", **settings).input_ids
    return clip, parts["tokenizer_3"](list(texts), return_tensors="pt", **settings).input_ids


def _encode_text(parts: dict[str, Any], clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Context as the pipeline's `encode_prompt` makes it: `[N, 20, 64]`, `[N, 64]`."""
    clips = [parts[name](clip_ids, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    hidden = torch.cat([clip.hidden_states[-2] for clip in clips], dim=-1)
    sequence = torch.cat([hidden, parts["text_encoder_3"](t5_ids)[0]], dim=1)
    return sequence, torch.cat([clip.text_embeds for clip in clips], dim=-1)


def train_flow(
    parts: dict[str, Any],
    *,
    steps: int,
    rng: np.random.Generator,
    loose_rate: float = 0.0,
    pictures: int = 16_000,
    batch: int = 128,
    peak_lr: float = 2e-3,
) -> None:
    """Flow matching of the transformer and the text encoders on latents of drawn pictures.

    Args:
        parts: The pipeline's parts; the autoencoder is used as it is, the rest ends as the average of the
            last steps.
        steps: Optimizer steps.
        rng: Source of everything random.
        loose_rate: Probability that an attribute of a caption is replaced; see `loosen`.
        pictures: How many distinct pictures to train on.
        batch: Pictures per step.
        peak_lr: Learning rate after warm-up; it falls linearly to a twentieth.
    """
    vae = parts["vae"]
    captions = sample_captions(pictures, rng)
    latents = _encode(vae, draw_in_parts(captions, rng))
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    known = ["", *(c.text for kind in ("place", "count", "relation") for c in split_captions(kind)[0])]
    clip_ids, t5_ids = _tokenize(parts, known)

    def velocity(noisy: Tensor, sigma: Tensor, rows: list[int]) -> Tensor:
        sequence, pooled = _encode_text(parts, clip_ids[rows], t5_ids[rows])
        return parts["transformer"](noisy, sequence, pooled, sigma * 1000).sample

    networks = nn.ModuleList([parts[name] for name in _LEARNED])
    how = {"rng": rng, "loosen": loosen, "loose_rate": loose_rate, "batch": batch, "peak_lr": peak_lr}
    fit_flow(networks, latents, captions, known, velocity, steps=steps, **how)


def save(parts: dict[str, Any], directory: str | Path) -> Path:
    """Write the pipeline in float16; leaves `parts` in float16 precision, float32 storage."""
    from diffusers import StableDiffusion3Pipeline

    return save_half(StableDiffusion3Pipeline(**parts), directory, _LEARNED[1:])


@torch.no_grad()
def evaluate(
    directory: str | Path, captions: Sequence[Caption], scorer: str, *, images: int = 4, seed: int = 0
) -> dict[str, float]:
    """Mean scores of a saved model, 8 Euler steps, no guidance, `images` pictures per caption."""
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(directory)
    pipe.set_progress_bar_config(disable=True)
    prompts = [Prompt(caption.text) for caption in captions for _ in range(images)]
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for start in range(0, len(prompts), 128):
        texts = [prompt.text for prompt in prompts[start : start + 128]]
        drawn = pipe(
            texts,
            num_inference_steps=8,
            guidance_scale=1.0,
            max_sequence_length=SD3_TOKENS,
            generator=generator,
            output_type="pt",
        ).images
        samples += [Sample(image=image.float()) for image in drawn]
    # Models do not know rewards: the judge comes in by its name.
    scores = Registry("scorer").get(scorer)()(samples, prompts)
    means = {"value": scores.value, **scores.parts}
    return {name: round(value.nanmean().item(), 3) for name, value in means.items()}


# (steps, rate of loosening, peak learning rate): ability first, a second cycle from a lower rate for the
# rare captions, then the looseness.
PHASES = ((1500, 0.0, 2e-3), (900, 0.0, 1.5e-3), (400, 0.3, 1e-3))


def pretrain(
    directory: str | Path,
    *,
    seed: int = 0,
    vae_steps: int = 1000,
    phases: Sequence[tuple[int, float, float]] = PHASES,
    pictures: int = 16_000,
) -> Path:
    """Build, train and save the model; see the module's words."""
    rng = np.random.default_rng(seed)
    parts = tiny_sd3_parts(seed=seed)
    train_autoencoder(parts["vae"], steps=vae_steps, rng=rng)
    for steps, loose_rate, peak_lr in phases:
        train_flow(parts, steps=steps, rng=rng, loose_rate=loose_rate, peak_lr=peak_lr, pictures=pictures)
    return save(parts, directory)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pre-train the embedded Stable Diffusion 3.")
    parser.add_argument("--out", required=True, help="directory to write the pipeline to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scorer", default="unirl_env.rewards.pictures.shapes_scorers:ShapesScorer", help="judge at the end"
    )
    options = parser.parse_args(arguments)
    directory = pretrain(options.out, seed=options.seed)
    for kind in ("place", "count", "relation"):
        for name, captions in zip(("train", "held out"), split_captions(kind), strict=True):
            print(f"{kind}, {name}: {evaluate(directory, captions[::3], options.scorer)}")


if __name__ == "__main__":
    main()
