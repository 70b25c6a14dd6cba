"""Samples with arrays, lists and other things in place of tensors and texts are refused by their fields."""

import numpy as np
import pytest
import torch

from unirl_env.errors import ContractError
from unirl_env.rewards import build_scorer
from unirl_env.rewards.inputs import picture_of, video_of
from unirl_env.rewards.scoring import score_safely
from unirl_env.rewards.wire.messages import ScoreRequest, encode_request
from unirl_env.types import Prompt, Sample

RED = Prompt("a red circle moves right")
CLIP = np.zeros((9, 3, 32, 32), dtype=np.uint8)
CLIPS = ["motion", "moving_shapes", "moving_template", "temporal_consistency"]
PICTURES = ["jpeg", "saturation", "sharpness", "shapes", "template", "geneval"]
TEXTS = ["length", "exact", "format", "plan", "letter"]


@pytest.mark.parametrize(
    "video, words",
    [
        (CLIP, r"got ndarray \[9, 3, 32, 32\]; try `torch.as_tensor\(video\)`\."),
        (CLIP.astype(np.float32), r"got ndarray \[9, 3, 32, 32\]; try `torch.as_tensor\(video\)`\."),
        (CLIP.transpose(0, 2, 3, 1), r"got ndarray \[9, 32, 32, 3\]; try .*\.movedim\(-1, -3\)`\."),
        (CLIP.tolist(), r"got list; try `torch.as_tensor\(video\)`"),
        ([torch.zeros(3, 4, 4)] * 9, "got list"),
        ("clip.mp4", "got str"),
    ],
)  # fmt: skip
def test_a_clip_that_is_no_tensor_is_named(video, words):
    said = r"`Sample\.video` must be a tensor \[F, 3, H, W\] for the reward `mine`, "
    with pytest.raises(ContractError, match=said + words):
        video_of(Sample(video=video), "mine")


def test_what_the_remedy_says_is_a_clip():
    assert video_of(Sample(video=torch.as_tensor(CLIP)), "mine").shape == (9, 3, 32, 32)
    last = torch.as_tensor(CLIP.transpose(0, 2, 3, 1)).movedim(-1, -3)
    assert video_of(Sample(video=last), "mine").shape == (9, 3, 32, 32)


def test_a_picture_that_is_no_tensor_is_named():
    said = r"`Sample\.image` must be a tensor \[3, H, W\] for the reward `mine`, got ndarray \[32, 32, 3\]"
    with pytest.raises(ContractError, match=said):
        picture_of(Sample(image=np.zeros((32, 32, 3))), "mine")


@pytest.mark.parametrize("name", [*CLIPS, "over_frames"])
def test_every_reward_of_clips_says_so(name):
    scorer = build_scorer({"name": name, "scorer": "shapes"} if name == "over_frames" else name)
    with pytest.raises(ContractError, match=rf"`Sample\.video` must be a tensor .* reward `{name}`"):
        score_safely(scorer, [Sample(video=CLIP)], [RED])


@pytest.mark.parametrize("name", [*PICTURES, "pictured", "over_pictures"])
def test_every_reward_of_pictures_says_so(name):
    scorer = build_scorer(
        {"name": name, "scorer": "shapes"} if name in ("pictured", "over_pictures") else name
    )
    with pytest.raises(ContractError, match=r"`Sample\.image` must be a tensor \[3, H, W\]"):
        score_safely(scorer, [Sample(image=CLIP[0])], [Prompt("a red circle")])


@pytest.mark.parametrize("name", ["pictured", "over_pictures"])
def test_several_pictures_that_are_no_tensor_are_named(name):
    scorer = build_scorer({"name": name, "scorer": "shapes"})
    sample = Sample(image=torch.rand(3, 32, 32), pictures=CLIP)
    with pytest.raises(ContractError, match=r"`Sample\.pictures` must be a tensor \[K, 3, H, W\]"):
        score_safely(scorer, [sample], [Prompt("a red circle")])


@pytest.mark.parametrize("name", ["linear", "near"])
def test_a_latent_that_is_no_tensor_is_named(name):
    with pytest.raises(ContractError, match=r"`Sample\.latent` must be a tensor for .* got list"):
        score_safely(build_scorer(name), [Sample(latent=[0.0, 1.0])], [RED])


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_none_is_named(name):
    spec = {"name": "length", "target": 3, "unit": "characters"} if name == "length" else name
    prompt = Prompt("a red circle", metadata={"answer": "3"})
    with pytest.raises(ContractError, match=r"`Sample\.text` must be a text .* got bytes"):
        score_safely(build_scorer(spec), [Sample(text=b"3")], [prompt])


def test_nothing_but_tensors_is_sent_to_a_service():
    request = ScoreRequest("1", "motion", (Sample(video=CLIP),), (RED,))
    with pytest.raises(ContractError, match=r"`Sample\.video` must be a tensor \[F, 3, H, W\]"):
        encode_request(request)
