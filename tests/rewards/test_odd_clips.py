"""The rewards of videos on clips and prompts of every kind that users have."""

import copy
import math
import pickle

import pytest
import torch
from degenerate_clips import things, way
from tiny_clips import tiny_open_clip

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards import build_scorer
from unirl_env.rewards.asks import require_judgeable
from unirl_env.rewards.scoring import score_safely
from unirl_env.types import Prompt, Sample

NAMES = ["temporal_consistency", "motion", "moving_shapes", "moving_template", "subject_consistency", "clip"]
RED = Prompt("a red circle moves right")
WORDS = {"colour": "red", "shape": "circle", "direction": "right"}
GOOD = things(32, 32, way(9))


@pytest.fixture(scope="module")
def scorers(tmp_path_factory, quiet_models):
    import transformers as t

    dino = tmp_path_factory.mktemp("dino")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    clip, _ = tiny_open_clip(tmp_path_factory.mktemp("clip"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = t.ViTModel(t.ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False)
    network.save_pretrained(dino)
    return {
        **{name: build_scorer(name) for name in NAMES[:4]},
        "subject_consistency": build_scorer({"name": NAMES[4], "model": str(dino), "side": 32}),
        "clip": build_scorer({"name": NAMES[0], "model": clip, "rows_per_forward": 1}),
    }


@pytest.fixture(params=NAMES)
def scorer(request, scorers):
    return scorers[request.param]


def judge(scorer, *clips, prompt=RED):
    return scorer([Sample(video=clip) for clip in clips], [prompt] * len(clips))


def test_bytes_halves_and_any_strides_are_the_same_clip(scorer):
    byte = (GOOD * 255).round().to(torch.uint8)
    clip = byte.float() / 255
    strided = clip.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    assert not strided.is_contiguous()
    value = judge(scorer, clip, byte, strided, clip.double(), clip.clone().requires_grad_()).value
    assert torch.allclose(value, value[:1].expand(5), atol=1e-6) and not value.requires_grad
    halves = judge(scorer, clip.half(), clip.bfloat16()).value
    assert torch.allclose(halves, value[:1].expand(2), atol=0.02)


@pytest.mark.parametrize("sides", [(31, 47), (47, 31), (33, 33), (1, 1), (2, 3), (8, 64), (120, 208)])
@pytest.mark.parametrize("frames", [2, 3, 5])
def test_clips_of_odd_sizes_are_read(scorer, sides, frames):
    clip = things(*sides, way(frames))
    scores = judge(scorer, clip)
    invalid = scorer.name == "motion" and frames < 3
    assert scores.value.dtype == torch.float32 and scores.valid.tolist() == [not invalid]
    assert invalid or -1e-6 <= float(scores.value) <= 1 + 1e-6
    if scorer.name.startswith("moving") and min(sides) > 30:
        assert scores.value > 0.75


def test_a_strip_is_refused_before_it_is_enlarged(scorers):
    for name in NAMES[:5]:
        for sides in ((3, 2000), (90, 10)):
            with pytest.raises(
                ContractError, match=rf"longer than 8 times.*got {sides[0]} x {sides[1]}.*try"
            ):
                score_safely(scorers[name], [Sample(video=torch.rand(4, 3, *sides))], [RED])


def test_what_is_not_finite_or_one_frame_is_invalid_alone_and_in_company(scorer):
    broken = [GOOD.clone() for _ in range(2)]
    broken[0][3, 0, 0, 0], broken[1][-1, 2, 5, 5] = math.nan, -math.inf
    clips = [*broken, GOOD * math.nan, GOOD[:1], GOOD.half() * math.inf]
    alone, company = judge(scorer, *clips), judge(scorer, *clips, GOOD)
    assert not alone.valid.any() and alone.value.isnan().all()
    assert company.valid.tolist() == [False] * 5 + [True]
    assert torch.equal(company.value[5:], judge(scorer, GOOD).value)


def test_of_nothing_there_are_no_scores(scorer):
    assert len(scorer([], [])) == 0


def test_scorers_are_pickled_and_copied(scorer):
    value = judge(scorer, GOOD).value
    for twin in (pickle.loads(pickle.dumps(scorer)), copy.deepcopy(scorer)):
        assert torch.equal(judge(twin, GOOD).value, value)


@pytest.mark.parametrize("name", ["moving_shapes", "moving_template"])
@pytest.mark.parametrize(
    "prompt, got",
    [
        (Prompt("a cat"), "'a cat'"),
        (Prompt(""), "''"),
        (Prompt(RED.text, metadata={"caption": "a dog"}), "'a dog'"),
        (Prompt(RED.text, metadata={**WORDS, "direction": "away"}), "'direction': 'away'} in `metadata`"),
        (Prompt(RED.text, metadata={**WORDS, "colour": ["red"]}), r"'colour': \['red'\]"),
        (Prompt("a cat", metadata={"colour": "red"}), "'a cat'"),
    ],
)
def test_an_error_says_what_the_prompt_meant(scorers, name, prompt, got):
    assert not judge(scorers[name], GOOD, prompt=prompt).valid.any()
    with pytest.raises(Exception, match=f"must be a caption of the moving world.*got.*{got}.*try 'a red"):
        require_judgeable(scorers[name], [prompt])


@pytest.mark.parametrize("name", ["moving_shapes", "moving_template"])
def test_a_caption_of_none_is_none(scorers, name):
    prompt = Prompt(RED.text, metadata={"caption": None, "colour": None})
    assert judge(scorers[name], GOOD, prompt=prompt).value == judge(scorers[name], GOOD).value


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"name": "motion", "enough": "x"}, "`floor` and `enough` must be .* got 0.002 and 'x'; try"),
        ({"name": "motion", "floor": None}, "`floor` and `enough` must be .* got None and 0.01; try"),
        ({"name": "motion", "share": "all"}, r"`share` must be a number in \(0, 1\], got 'all'; try 0.05"),
        ({"name": "motion", "share": True}, "`share` must be .* got True; try 0.05"),
        ({"name": "motion", "pairs": True}, "`pairs` must be a whole number from 1 on, got True; try 16"),
        (
            {"name": "temporal_consistency", "pretrained": "openai"},
            "`pretrained` must be None without a `mod",
        ),
        ({"name": "temporal_consistency", "side": None}, "`side` must be .*got None; try 64"),
    ],
)
def test_options_out_of_range_are_named_with_a_remedy(spec, words):
    with pytest.raises(ConfigError, match=words):
        build_scorer(spec)
