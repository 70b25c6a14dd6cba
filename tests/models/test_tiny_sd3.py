import json
from pathlib import Path

import numpy as np
import pytest
import torch

import unirl_env
from pretraining.sd3_build import build_tiny_sd3
from pretraining.sd3_pretrain import evaluate, pretrain
from pretraining.shapes_data import loosen, sample_captions
from unirl_env.models.tiny import SD3_TOKENS, tiny_path
from unirl_env.prompts import shapes
from unirl_env.rewards.pictures.shapes_scorers import ShapesScorer
from unirl_env.types import Prompt, Sample

SCORER = "unirl_env.rewards.pictures.shapes_scorers:ShapesScorer"
(_place, _held_place), (_count, _held_count) = map(shapes.split_captions, ("place", "count"))
TRAIN, HELD_OUT = _place + _count, _held_place + _held_count


@pytest.fixture(scope="module")
def pipe():
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_path("sd3"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_directory_is_small_and_half_precision():
    from safetensors import safe_open

    files = [path for path in tiny_path("sd3").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    for path in tiny_path("sd3").rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            kept = {weights.get_tensor(key).dtype for key in weights.keys()}
        assert kept <= {torch.float16, torch.int64}, path


def test_the_files_name_no_machine():
    for path in tiny_path("sd3").rglob("*.json"):
        assert "/" not in str(json.loads(path.read_text()).get("_name_or_path", "")), path


def test_every_part_loads_in_float32(pipe):
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        assert {p.dtype for p in getattr(pipe, name).parameters()} == {torch.float32}, name


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_published_pipeline_runs_as_it_is(pipe, guidance):
    image = pipe(
        "a red circle at the top left",
        num_inference_steps=4,
        guidance_scale=guidance,
        max_sequence_length=SD3_TOKENS,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert image.size == (32, 32)
    assert np.asarray(image).std() > 5


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2", "tokenizer_3"])
def test_each_word_is_one_token_and_each_caption_fits(pipe, name):
    tokenizer = getattr(pipe, name)
    assert tokenizer.model_max_length == SD3_TOKENS
    marks = 1 if name == "tokenizer_3" else 2
    rows = set()
    for caption in TRAIN + HELD_OUT + shapes.all_captions("relation"):
        ids = tokenizer(caption.text).input_ids
        assert len(ids) == len(caption.text.split()) + marks <= SD3_TOKENS
        rows.add(tuple(ids))
    assert len(rows) == 90 + 36 + 1080  # no two captions read the same


def test_the_autoencoder_keeps_what_the_reward_reads(pipe):
    captions = sample_captions(120, np.random.default_rng(3))
    pictures = shapes.draw(captions, np.random.default_rng(4))
    with torch.no_grad():
        latents = pipe.vae.encode(pictures * 2 - 1).latent_dist.mean
        restored = (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    scores = ShapesScorer()([Sample(image=p) for p in restored], [Prompt(c.text) for c in captions])
    assert scores.parts["partial"].mean() > 0.95
    scaled = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    assert scaled.mean().abs() < 0.1 and scaled.std() == pytest.approx(1.0, abs=0.1)


def test_the_base_is_right_about_as_often_as_wrong():
    """The margin that reinforcement learning needs: able to draw everything, loose on the prompt."""
    for captions in (TRAIN[::2], HELD_OUT):
        scores = evaluate(tiny_path("sd3"), captions, SCORER, images=4)
        assert 0.15 < scores["strict"] < 0.6, scores
        assert 0.6 < scores["partial"] < 0.9, scores


def test_an_untrained_directory_is_a_function_of_its_seed(tmp_path):
    from diffusers import SD3Transformer2DModel

    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        before = torch.get_rng_state()
        directory = build_tiny_sd3(tmp_path / name, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        weights.append(SD3Transformer2DModel.from_pretrained(directory, subfolder="transformer").state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["proj_out.weight"], weights[2]["proj_out.weight"])


def test_the_script_runs_every_stage(tmp_path):
    out = pretrain(tmp_path / "out", vae_steps=2, phases=[(2, 0.0, 1e-3), (1, 0.3, 1e-3)], pictures=64)
    scores = evaluate(out, TRAIN[:4], SCORER, images=1)
    assert set(scores) >= {"value", "partial", "strict"} and 0 <= scores["value"] <= 1


def test_loosened_captions_stay_in_the_grammar():
    rng = np.random.default_rng(0)
    for kind in ("place", "count", "relation"):
        captions = shapes.split_captions(kind)[0][:60]
        assert [loosen(c, 0.0, rng) for c in captions] == captions
        loose = [loosen(c, 0.5, rng) for c in captions]
        assert all(shapes.parse_caption(c.text) == c for c in loose)
        assert sum(a != b for a, b in zip(loose, captions, strict=True)) > len(captions) / 2


def test_the_prompt_files_are_the_split():
    folder = Path(unirl_env.__file__).parent / "prompts" / "sets"
    names = ("train", "heldout", "hard")
    lines = {name: (folder / f"shapes_{name}.txt").read_text().splitlines() for name in names}
    assert lines["train"] == [c.text for c in TRAIN]
    assert lines["heldout"] == [c.text for c in HELD_OUT]
    assert {shapes.parse_caption(text).kind for text in lines["hard"]} == {"relation"}


def test_all_weights_are_written_as_diffusers_reads_them(tmp_path):
    from diffusers import SD3Transformer2DModel

    from unirl_env.models.tiny import TinySD3Denoiser

    denoiser = TinySD3Denoiser()
    network = denoiser.network()
    denoiser.save_weights(network, tmp_path)
    loaded = SD3Transformer2DModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())
