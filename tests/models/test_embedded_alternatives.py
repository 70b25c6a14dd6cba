"""Who cannot be loaded points to the embedded model of its kind: of clips where clips are made."""

import inspect

import gymnasium as gym
import pytest

from unirl_env.errors import ModelNotFound
from unirl_env.models import DENOISERS
from unirl_env.models.shared.loading import EMBEDDED
from unirl_env.models.shared.of_diffusers import OfDiffusers

CLIPS, PICTURES = r"`unirl/TinyVideo-T2V-v0`", r"`unirl/TinySD3-T2I-v0`"


def families():
    """Every class of a pipeline by its name among denoisers."""
    found = {name: DENOISERS.get(name) for name in DENOISERS}
    return {n: kind for n, kind in found.items() if inspect.isclass(kind) and issubclass(kind, OfDiffusers)}


def test_both_kinds_are_there_and_can_be_made():
    made = {kind.makes for kind in families().values()}
    assert made == set(EMBEDDED)
    for env_id in EMBEDDED.values():
        assert env_id in gym.registry


def test_every_family_points_to_the_model_of_its_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kind in families().values():
        with pytest.raises(ModelNotFound) as caught:
            kind(str(tmp_path / "nowhere"))
        assert EMBEDDED[kind.makes] in str(caught.value), kind
        others = set(EMBEDDED.values()) - {EMBEDDED[kind.makes]}
        assert not any(other in str(caught.value) for other in others), kind


@pytest.mark.parametrize("env_id", ["unirl/Wan-T2V-v0", "unirl/LTX-T2V-v0", "unirl/HunyuanVideo15-T2V-v0"])
def test_an_environment_of_clips_does_so_before_anything_is_loaded(env_id, tmp_path):
    with pytest.raises(ModelNotFound, match=CLIPS):
        gym.make(env_id, pretrained=str(tmp_path), prompts=["a red circle moves right"])


def test_one_of_pictures_points_to_pictures(tmp_path):
    with pytest.raises(ModelNotFound, match=PICTURES):
        gym.make("unirl/SD3-T2I-v0", pretrained=str(tmp_path), prompts=["a red circle"])
