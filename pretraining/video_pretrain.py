"""Pre-train the embedded Wan: `python -m pretraining.video_pretrain --out DIR`.

Four parts: the autoencoder; its decoder alone; flow matching on true captions, until colours and motion
follow them; and flow matching on loosened captions (see `shapes_data.loosen`), which leaves a habit that
reinforcement learning corrects. The text encoder learns together with the transformer and is frozen after.
It takes about 22 minutes of one core; on a shared machine OMP_NUM_THREADS=1 is fastest.
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
from pretraining.moving_data import draw_clips, loosen, sample_captions
from pretraining.video_build import tiny_video_parts
from unirl_env.models.tiny import VIDEO_TOKENS
from unirl_env.prompts.moving import FRAMES, MovingCaption, split_captions
from unirl_env.registry import Registry
from unirl_env.types import Prompt, Sample

__all__ = [
    "PHASES",
    "STAGES",
    "evaluate",
    "pretrain",
    "save",
    "train_autoencoder",
    "train_decoder",
    "train_flow",
]

_LEARNED = ("transformer", "text_encoder")


def _decode(vae: Any, latents: Tensor) -> Tensor:
    """Clips of unscaled latents as `vae.decode` makes them, without its clamp, which has no gradient."""
    vae.clear_cache()
    places, frames = vae.post_quant_conv(latents), []
    for index in range(latents.shape[2]):
        vae._conv_idx = [0]
        frames.append(
            vae.decoder(places[:, :, index : index + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx)
        )
    vae.clear_cache()
    return torch.cat(frames, dim=2)


def train_autoencoder(vae: Any, *, stages: Sequence[tuple[int, int, int]], rng: np.random.Generator) -> None:
    """Fit the autoencoder, then state the mean and deviation of each of its channels, by which Wan scales.

    Args:
        vae: The autoencoder.
        stages: Each (steps, frames, clips a step): first frames alone teach shapes, a few of them motion.
        rng: Source of everything random.
    """
    sizes = [stage[1:] for stage in stages for _ in range(stage[0])]
    _fit(vae, list(vae.parameters()), sizes=sizes, rng=rng, peak_lr=3e-3)
    latents = _latents(vae, sample_captions(1024, rng), rng)
    std, mean = torch.std_mean(latents, dim=(0, 2, 3, 4))
    vae.register_to_config(
        latents_mean=[round(x, 5) for x in mean.tolist()], latents_std=[round(x, 5) for x in std.tolist()]
    )


def train_decoder(vae: Any, *, steps: int, rng: np.random.Generator) -> None:
    """Fit the decoder further, to latents that stay as they are: corners become sharp last."""
    weights = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    _fit(vae, weights, sizes=[(FRAMES, 12)] * steps, rng=rng, peak_lr=2e-3)


def _fit(
    vae: Any,
    weights: list[nn.Parameter],
    *,
    sizes: Sequence[tuple[int, int]],
    rng: np.random.Generator,
    peak_lr: float,
) -> None:
    """Train some weights of the autoencoder; each of `sizes` is (frames, clips) of a step."""
    vae.train().requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=peak_lr, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=len(sizes), pct_start=0.1)
    for step in steps_of(len(sizes), "autoencoder"):
        frames, batch = sizes[step]
        clips = draw_clips(sample_captions(batch, rng), rng)[:, :, :frames]
        posterior = vae.encode(clips).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32))
        error = _decode(vae, posterior.mean + posterior.std * noise) - clips
        # Much of every clip is background: the things and their outlines would fade from the mean.
        weight = 1 + 4 * (clips - clips[:, :, :1, :1, :1]).abs().amax(1, keepdim=True)
        loss = (weight * (error.abs() + error.square())).mean() + 1e-4 * _divergence(posterior)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    vae.eval().requires_grad_(True)


def _divergence(posterior: Any) -> Tensor:
    """From the standard normal distribution, per place of a latent and summed over its channels."""
    mean, logvar = posterior.mean, posterior.logvar
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()


@torch.no_grad()
def _latents(vae: Any, captions: Sequence[MovingCaption], rng: np.random.Generator) -> Tensor:
    """Unscaled latents `[N, 6, 3, 8, 8]` of a clip per caption, in parts to keep memory small."""
    parts = [captions[start : start + 128] for start in range(0, len(captions), 128)]
    return torch.cat([vae.encode(draw_clips(part, rng)).latent_dist.mean for part in parts])


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    return (latents - mean) / std


def _encode_text(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Context as the pipeline's `encode_prompt` makes it: `[N, 12, 64]`, 0 behind the text."""
    return encoder(ids, mask)[0] * mask[..., None]


def train_flow(
    parts: dict[str, Any],
    *,
    steps: int,
    rng: np.random.Generator,
    loose_rate: float = 0.0,
    clips: int = 6_000,
    batch: int = 64,
    peak_lr: float = 2e-3,
) -> None:
    """Flow matching of the transformer and the text encoder on latents of drawn clips.

    Args:
        parts: The pipeline's parts; the autoencoder is used as it is, the rest ends as the average of the
            last steps.
        steps: Optimizer steps.
        rng: Source of everything random.
        loose_rate: Probability that an attribute of a caption is replaced; see `loosen`.
        clips: How many distinct clips to train on.
        batch: Clips per step.
        peak_lr: Learning rate after warm-up; it falls linearly to a twentieth.
    """
    vae = parts["vae"]
    captions = sample_captions(clips, rng)
    latents = _scaled(vae, _latents(vae, captions, rng))
    known = ["", *(caption.text for caption in split_captions()[0])]
    said = parts["tokenizer"](known, padding="max_length", max_length=VIDEO_TOKENS, return_tensors="pt")

    def velocity(noisy: Tensor, sigma: Tensor, rows: list[int]) -> Tensor:
        context = _encode_text(parts["text_encoder"], said.input_ids[rows], said.attention_mask[rows])
        return parts["transformer"](noisy, sigma * 1000, context).sample

    networks = nn.ModuleList([parts[name] for name in _LEARNED])
    how = {"rng": rng, "loosen": loosen, "loose_rate": loose_rate, "batch": batch, "peak_lr": peak_lr}
    fit_flow(networks, latents, captions, known, velocity, steps=steps, **how)


def save(parts: dict[str, Any], directory: str | Path) -> Path:
    """Write the pipeline in float16; leaves `parts` in float16 precision, float32 storage."""
    from diffusers import WanPipeline

    return save_half(WanPipeline(**parts), directory, _LEARNED[1:])


@torch.no_grad()
def evaluate(
    directory: str | Path, captions: Sequence[MovingCaption], scorer: str, *, clips: int = 4, seed: int = 0
) -> dict[str, float]:
    """Mean scores of a saved model, 8 Euler steps, no guidance, `clips` clips per caption."""
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(directory)
    pipe.set_progress_bar_config(disable=True)
    prompts = [Prompt(caption.text, metadata=vars(caption)) for caption in captions for _ in range(clips)]
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for start in range(0, len(prompts), 64):
        drawn = pipe(
            [prompt.text for prompt in prompts[start : start + 64]],
            height=32,
            width=32,
            num_frames=FRAMES,
            num_inference_steps=8,
            guidance_scale=1.0,
            max_sequence_length=VIDEO_TOKENS,
            generator=generator,
            output_type="pt",
        ).frames
        samples += [Sample(video=clip.float()) for clip in drawn]
    # Models do not know rewards: the judge comes in by its name.
    scores = Registry("scorer").get(scorer)()(samples, prompts)
    means = {"value": scores.value, **scores.parts}
    return {name: round(value.nanmean().item(), 3) for name, value in means.items()}


# (steps, frames, clips a step) of the autoencoder.
STAGES = ((300, 1, 24), (700, 5, 12), (300, 9, 12))
# Steps of its decoder alone, each cycle from a high learning rate to none.
DECODER_CYCLES = (600, 500)
# (steps, rate of loosening, peak learning rate): what captions mean first, then the looseness.
PHASES = ((800, 0.0, 2e-3), (900, 0.4, 2e-3))


def pretrain(
    directory: str | Path,
    *,
    seed: int = 0,
    stages: Sequence[tuple[int, int, int]] = STAGES,
    decoder_cycles: Sequence[int] = DECODER_CYCLES,
    phases: Sequence[tuple[int, float, float]] = PHASES,
    clips: int = 6_000,
) -> Path:
    """Build, train and save the model; see the module's words."""
    parts = tiny_video_parts(seed=seed)
    # A stream for each part: changing one leaves the others as they are.
    rngs = [np.random.default_rng(seed + part) for part in range(3)]
    train_autoencoder(parts["vae"], stages=stages, rng=rngs[0])
    for steps in decoder_cycles:
        train_decoder(parts["vae"], steps=steps, rng=rngs[2])
    for steps, loose_rate, peak_lr in phases:
        train_flow(parts, steps=steps, rng=rngs[1], loose_rate=loose_rate, peak_lr=peak_lr, clips=clips)
    return save(parts, directory)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pre-train the embedded Wan.")
    parser.add_argument("--out", required=True, help="directory to write the pipeline to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scorer",
        default="unirl_env.rewards.videos.moving_shapes:MovingShapesScorer",
        help="judge at the end",
    )
    options = parser.parse_args(arguments)
    directory = pretrain(options.out, seed=options.seed)
    for name, captions in zip(("train", "held out"), split_captions(), strict=True):
        print(f"{name}: {evaluate(directory, captions, options.scorer)}")


if __name__ == "__main__":
    main()
