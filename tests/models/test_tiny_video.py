import json
from itertools import pairwise
from statistics import mode

import numpy as np
import pytest
import torch

from pretraining.moving_data import draw_clips, loosen, sample_captions
from pretraining.video_build import build_tiny_video
from pretraining.video_pretrain import evaluate, pretrain
from unirl_env.models.tiny import VIDEO_TOKENS, TinyVideoDenoiser, tiny_path
from unirl_env.prompts import moving
from unirl_env.prompts.shapes import BACKGROUND, COLOURS
from unirl_env.types import Prompt, Scores

TRAIN, HELD_OUT = moving.split_captions()


def read(clip):
    """What a clip `[9, 3, 32, 32]` shows, read as simply as can be: (colour, shape, direction) or None."""
    ink = (clip - torch.tensor(BACKGROUND)[:, None, None]).abs().sum(1)
    if ink.flatten(1).amax(1).min() < 0.3:
        return None
    inside = ink > ink.flatten(1).amax(1)[:, None, None] / 2
    rgb, reference = torch.tensor(BACKGROUND), torch.tensor(list(COLOURS.values()))
    colours, shapes, centres = [], [], []
    for frame, mask in zip(clip, inside, strict=True):
        likeness = torch.cosine_similarity(frame[:, mask].mean(1) - rgb, reference - rgb)
        colours.append(list(COLOURS)[likeness.argmax()])
        y, x = mask.nonzero(as_tuple=True)
        filled = len(y) / ((y.max() - y.min() + 1) * (x.max() - x.min() + 1))  # of its bounding box
        shapes.append("square" if filled > 0.9 else "triangle" if filled < 0.68 else "circle")
        centres.append(torch.stack([x.float().mean(), y.float().mean()]))
    way = centres[-1] - centres[0]
    directions = torch.tensor(list(moving.DIRECTIONS.values())).float()
    direction = list(moving.DIRECTIONS)[(directions @ way).argmax()] if way.abs().max() > 4 else None
    return mode(colours), mode(shapes), direction


def hits(shown, said):
    """Which of the attributes are right."""
    return [a == b for a, b in zip(shown or (None,) * 3, said, strict=True)]


class Reader:
    """A judge that stands for the rewards, of which models know nothing."""

    def __call__(self, samples, prompts):
        shown = [read(sample.video) for sample in samples]
        said = [tuple(prompt.metadata.values()) for prompt in prompts]
        right = torch.tensor([hits(*pair) for pair in zip(shown, said, strict=True)])
        parts = dict(zip(("colour", "shape", "direction"), right.float().unbind(1), strict=True))
        return Scores(value=right.all(1).float(), parts=parts)


@pytest.fixture(scope="module")
def pipe():
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(tiny_path("video"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_directory_is_small_and_half_precision():
    from safetensors import safe_open

    files = [path for path in tiny_path("video").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    for path in tiny_path("video").rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}, path


def test_the_files_name_no_machine():
    for path in tiny_path("video").rglob("*.json"):
        assert "/" not in str(json.loads(path.read_text()).get("_name_or_path", "")), path


def test_every_part_loads_in_float32(pipe):
    for name in ("transformer", "vae", "text_encoder"):
        assert {p.dtype for p in getattr(pipe, name).parameters()} == {torch.float32}, name


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_published_pipeline_runs_as_it_is(pipe, guidance):
    clip = pipe(
        "a red circle moves right",
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=guidance,
        max_sequence_length=VIDEO_TOKENS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]
    assert clip.shape == (9, 32, 32, 3)
    assert clip.std() > 0.02 and np.abs(np.diff(clip, axis=0)).max() > 0.2


def test_each_word_is_one_token_and_each_caption_fits(pipe):
    assert pipe.tokenizer.model_max_length == VIDEO_TOKENS
    rows = {tuple(pipe.tokenizer(caption.text).input_ids) for caption in moving.all_captions()}
    assert len(rows) == 72 and {len(row) for row in rows} == {6}


def test_the_autoencoder_keeps_what_a_rule_reads(pipe):
    captions = moving.all_captions() * 2
    clips = draw_clips(captions, np.random.default_rng(4))
    with torch.no_grad():
        latents = pipe.vae.encode(clips).latent_dist.mean
        restored = pipe.vae.decode(latents).sample.transpose(1, 2) / 2 + 0.5
    assert latents.shape == (144, 6, 3, 8, 8)
    said = [(c.colour, c.shape, c.direction) for c in captions]
    drawn = [read(clip) for clip in clips.transpose(1, 2) / 2 + 0.5]
    assert drawn == said
    right = torch.tensor([hits(read(clip), truth) for clip, truth in zip(restored, said, strict=True)])
    assert right.float().mean(0).min() > 0.9, right.float().mean(0)
    mean, std = (
        torch.tensor(pipe.vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    scaled = (latents - mean) / std
    assert scaled.mean().abs() < 0.1 and scaled.std() == pytest.approx(1.0, abs=0.1)


def test_the_base_is_right_about_as_often_as_wrong():
    """The margin that reinforcement learning needs: able to draw everything, loose on the prompt."""
    for captions in (TRAIN, HELD_OUT):
        scores = evaluate(tiny_path("video"), captions, f"{__name__}:Reader", clips=120 // len(captions))
        assert 0.5 < scores["direction"] < 0.8, scores
        assert 0.1 < scores["value"] < 0.5, scores


def test_an_untrained_directory_is_a_function_of_its_seed(tmp_path):
    from diffusers import WanTransformer3DModel

    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        before = torch.get_rng_state()
        directory = build_tiny_video(tmp_path / name, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        weights.append(WanTransformer3DModel.from_pretrained(directory, subfolder="transformer").state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["proj_out.weight"], weights[2]["proj_out.weight"])


def test_the_script_runs_every_stage(tmp_path):
    out = pretrain(
        tmp_path / "out",
        stages=[(1, 1, 4), (1, 9, 2)],
        decoder_cycles=[1],
        phases=[(2, 0.0, 1e-3), (1, 0.3, 1e-3)],
        clips=64,
    )
    scores = evaluate(out, TRAIN[:4], f"{__name__}:Reader", clips=1)
    assert set(scores) == {"value", "colour", "shape", "direction"} and 0 <= scores["value"] <= 1


def test_loosened_captions_stay_in_the_grammar():
    rng = np.random.default_rng(0)
    captions = sample_captions(200, rng)
    assert not set(captions) & set(HELD_OUT)
    assert [loosen(c, 0.0, rng) for c in captions] == captions
    loose = [loosen(c, 0.5, rng) for c in captions]
    assert all(moving.parse(c.text) == c for c in loose)
    assert 0.6 < np.mean([a != b for a, b in zip(loose, captions, strict=True)]) < 0.9


def test_an_episode_without_noise_is_the_clip_of_the_pipeline(pipe):
    denoiser = TinyVideoDenoiser(schedule="pipeline")
    assert denoiser.latent_shape == (6, 3, 8, 8)
    assert (denoiser.makes, denoiser.num_frames, denoiser.fps) == ("video", 9, 8.0)
    prompts = [Prompt("a red circle moves right"), Prompt("a cyan square moves up")]
    latent = start = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(3))
    context, network, sigmas = denoiser.encode(prompts), denoiser.network(), denoiser.sigmas(5)
    with torch.no_grad():
        for here, after in pairwise(sigmas):
            latent = latent + (after - here) * denoiser.velocity(network, latent, here.expand(2), context)
    clips = pipe(
        [prompt.text for prompt in prompts],
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=5,
        guidance_scale=1.0,
        max_sequence_length=VIDEO_TOKENS,
        latents=start,
        output_type="pt",
    ).frames
    made = torch.stack([sample.video for sample in denoiser.decode(latent)])
    assert made.dtype == torch.uint8 and made.shape == (2, 9, 3, 32, 32)
    assert (made / 255 - clips).abs().max() < 0.5 / 255 + 1e-3


def test_all_weights_are_written_as_diffusers_reads_them(tmp_path):
    from diffusers import WanTransformer3DModel

    denoiser = TinyVideoDenoiser()
    network = denoiser.network()
    denoiser.save_weights(network, tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())
