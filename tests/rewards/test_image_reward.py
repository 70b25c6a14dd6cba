"""ImageReward against the published package's own numbers, and the scorer around it by hand."""

import numpy as np
import pytest
import torch
from image_reward_cases import SPECIAL, WORDS, golden, golden_state, write_model
from PIL import Image

from unirl_env.errors import ConfigError, ContractError, ModelNotFound
from unirl_env.rewards import build_scorer, score_safely
from unirl_env.rewards.learned.image_reward import ImageRewardScore
from unirl_env.rewards.learned.image_reward_weights import load_network
from unirl_env.types import Prompt, Sample

MEAN, STD = 0.16717362830052426, 1.0333394966054072
PROMPTS = [Prompt("a red circle"), Prompt("a big blue square on the left of two cats"), Prompt("a dog")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image_reward")
    # Pictures of 8 x 8 say little to random weights; louder, they move the score.
    write_model(folder, pictures=100.0)
    return folder


def score(folder, **options):
    return ImageRewardScore(str(folder), tokenizer=str(folder / "tokenizer"), **options)


@pytest.fixture(scope="module")
def scorer(folder):
    return score(folder)


def picture(seed, height=20, width=32):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


SAMPLES = [Sample(image=picture(0)), Sample(image=picture(1, 40, 24)), Sample(image=picture(2, 8, 8))]


def by_hand(folder, sample, prompt):
    """The score by Pillow, NumPy and a word list, one picture at a time."""
    state, text = torch.load(folder / "ImageReward.pt"), golden()[1]
    network = load_network(state, text | {"vocab_size": len(SPECIAL) + len(WORDS) + 2})
    values = np.round(sample.image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    height, width = values.shape[:2]
    short = min(height, width)
    size = (width * 8 // short, height * 8 // short)
    file = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 8) / 2), round((size[1] - 8) / 2)
    values = np.asarray(file.crop((left, top, left + 8, top + 8)), dtype=np.float32) / 255
    values = (values - np.float32([0.48145466, 0.4578275, 0.40821073])) / np.float32(
        [0.26862954, 0.26130258, 0.27577711]
    )
    vocabulary = [*SPECIAL, *WORDS]
    known = [
        vocabulary.index(part) if part in vocabulary else 1
        for word in prompt.text.split()
        for part in (["cat", "##s"] if word == "cats" else [word])
    ]
    ids = torch.tensor([[2, *known[:33], 3]])
    with torch.no_grad():
        raw = network(torch.from_numpy(values).permute(2, 0, 1)[None], ids, torch.ones_like(ids))
    return (raw[0] - MEAN) / STD


def test_the_network_gives_the_published_packages_numbers():
    expected, text, _ = golden()
    network = load_network(golden_state(), text, vision_heads=2)
    with torch.no_grad():
        seen = network.vision(pixel_values=expected["pixels"]).last_hidden_state
        raw = network(expected["pixels"], expected["ids"], expected["mask"])
    assert (seen - expected["seen"]).abs().max() < 1e-5
    assert ((raw - MEAN) / STD - expected["rewards"]).abs().max() < 1e-5
    assert expected["rewards"].std() > 0.1


def test_the_scorer_prepares_pictures_and_texts_as_published(scorer, folder):
    scores = scorer(SAMPLES, PROMPTS)
    expected = torch.stack([by_hand(folder, *row) for row in zip(SAMPLES, PROMPTS, strict=True)])
    assert torch.allclose(scores.value, expected, atol=1e-5)
    assert expected.std() > 1e-2 and scores.valid.all()


def test_picture_and_text_both_matter(scorer):
    same_text = scorer(SAMPLES, [PROMPTS[0]] * 3).value
    same_picture = scorer([SAMPLES[0]] * 3, PROMPTS).value
    assert same_text.std() > 1e-3 and same_picture.std() > 1e-3


def test_a_text_is_cut_at_35_tokens(scorer):
    words = (WORDS[:19] * 2)[:33]
    texts = [words, [*words, "dog", "dog"], [*words[:32], "dog"]]
    values = scorer([SAMPLES[0]] * 3, [Prompt(" ".join(text)) for text in texts]).value
    assert (values[0] - values[1]).abs() < 1e-6 and (values[0] - values[2]).abs() > 1e-4


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_score_is_the_same_in_any_company(folder, rows):
    scorer = score(folder, rows_per_forward=rows)
    assert scorer.pointwise
    samples = [Sample(image=picture(i)) for i in range(7)]
    prompts = [PROMPTS[i % 3] for i in range(7)]
    together = scorer(samples, prompts).value
    alone = torch.cat([scorer([s], [p]).value for s, p in zip(samples, prompts, strict=True)])
    order = [3, 6, 0, 5, 1, 4, 2]
    shuffled = scorer([samples[i] for i in order], [prompts[i] for i in order]).value
    if rows == 1:
        assert torch.equal(together, alone) and torch.equal(together[order], shuffled)
    # With more, kernels of some processors treat the rows of a call unlike in their last bits.
    assert torch.allclose(together, alone, atol=1e-6) and torch.allclose(together[order], shuffled, atol=1e-6)
    assert torch.allclose(together, score(folder, batch_size=3)(samples, prompts).value, atol=1e-5)


def test_the_scale_multiplies_and_half_precision_stays_close(folder, scorer):
    value = scorer(SAMPLES, PROMPTS).value
    assert torch.allclose(score(folder, scale=0.5)(SAMPLES, PROMPTS).value, 0.5 * value)
    low = score(folder, dtype="bfloat16")
    assert low._network.head[0].weight.dtype == torch.float32
    assert low._network.vision.post_layernorm.weight.dtype == torch.bfloat16
    assert 0 < (low(SAMPLES, PROMPTS).value - value).abs().max() < 0.1


def test_loading_and_scoring_leave_the_random_numbers_alone(folder):
    before = torch.get_rng_state()
    score(folder)(SAMPLES, PROMPTS)
    assert torch.equal(before, torch.get_rng_state())


def test_a_picture_that_is_not_finite_is_invalid_and_no_picture_breaks_the_contract(scorer):
    bad = picture(0)
    bad[1, 2, 3] = torch.nan
    scores = score_safely(scorer, [Sample(image=bad), SAMPLES[0]], PROMPTS[:2])
    assert scores.valid.tolist() == [False, True]
    assert scores.value[1] == scorer(SAMPLES[:1], PROMPTS[1:2]).value[0]
    assert not scorer([Sample(image=bad)], PROMPTS[:1]).valid.any()
    with pytest.raises(ContractError, match=r"must be \[3, H, W\] for the reward `image_reward`"):
        score_safely(scorer, [SAMPLES[0], Sample(text="no picture")], PROMPTS[:2])


def test_settings_out_of_range_are_refused(folder):
    with pytest.raises(ConfigError, match="`dtype` must be one of"):
        score(folder, dtype="int8")
    with pytest.raises(ConfigError, match="`rows_per_forward` must be at least 1, got 0"):
        score(folder, rows_per_forward=0)
    with pytest.raises(ConfigError, match="`scale` must be a finite number, got nan"):
        score(folder, scale=float("nan"))
    with pytest.raises(ConfigError, match="options of reward 'image_reward' do not fit"):
        build_scorer({"name": "image_reward", "pretrained": str(folder)})


def test_a_model_that_cannot_be_loaded_is_named_with_a_way_out(folder, tmp_path):
    with pytest.raises(ModelNotFound, match=r"got '.*': FileNotFoundError.*'med_config.json', or the"):
        ImageRewardScore(str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"`tokenizer` must be a hub id or directory .*nowhere"):
        ImageRewardScore(str(folder), tokenizer=str(tmp_path / "nowhere"))
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIAL) + "\n")
    with pytest.raises(ModelNotFound, match=r"must have 27 tokens with \[DEC\] and \[ENC\], got 7"):
        ImageRewardScore(str(folder), tokenizer=str(tmp_path))


def test_it_is_the_reward_of_an_environment(folder, tiny_dir):
    import gymnasium as gym

    words = {"name": "image_reward", "model": str(folder), "tokenizer": str(folder / "tokenizer")}
    env = gym.make_vec(
        "unirl_env:unirl/TinySD3-T2I-v0",
        num_envs=2,
        info_objects=True,
        vectorization_mode="vector_entry_point",
        pretrained=str(tiny_dir),
        num_steps=2,
        group_size=2,
        scorer=words,
    )
    obs, _ = env.reset(seed=0)
    for _ in range(2):
        _, reward, *_, info = env.step(obs["latent"])
    alone = build_scorer(words)([info["samples"][1]], [info["prompt"][1]])
    assert info["scores"].valid.all() and np.allclose(reward, info["scores"].value)
    assert torch.allclose(alone.value, info["scores"].value[1:], atol=1e-6)
    env.close()
