"""Every reward that ships composes with every mode, or is refused before anything is loaded."""

import pytest

from unirl_env.errors import ConfigError
from unirl_env.modes import MODES
from unirl_env.rewards import SCORERS, for_mode, needs_of
from unirl_env.run.compose.yaml import differences
from unirl_env.run.preflight import check_all
from unirl_env.run.world_setup import model_arguments
from unirl_env.settings import RewardSettings, RunConfig
from unirl_env.train import CONFIGS, settings

RECIPES = [
    "diffusion/tiny_sd3",
    "diffusion/tiny_video",
    "ar/tiny_qwen3",
    "pe/tiny_prompt_enhancer",
    "unified_model/tiny_unified",
]
REWARDS = sorted(path.stem for path in (CONFIGS / "reward").glob("*.yaml"))


def fits(cfg):
    specs = [spec for spec in (cfg.reward.train, cfg.reward.heldout) if spec is not None]
    given = set(MODES.get(cfg.mode).given(model_arguments(cfg)))
    return all(set(needs_of(spec)) <= given for spec in specs)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("reward", REWARDS)
def test_a_reward_composes_with_a_mode_or_says_why_not(reward, recipe):
    cfg = settings(recipe, [f"rewards={reward}"])
    if fits(cfg):
        check_all(cfg)
    else:
        with pytest.raises(ConfigError, match=r"`reward\.(train|heldout)` must be a reward of .* in mode"):
            check_all(cfg)


def test_every_mode_has_rewards_and_every_scorer_a_mode():
    chosen = {recipe: [reward for reward in REWARDS if fits(settings(recipe, [f"reward={reward}"]))]
              for recipe in RECIPES}  # fmt: skip
    assert all(len(rewards) >= 2 for rewards in chosen.values()), chosen
    assert set(REWARDS) == {reward for rewards in chosen.values() for reward in rewards}


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_every_scorer_says_what_it_looks_at(name):
    target = SCORERS.get(name)
    composed = name in ("weighted_sum", "product", "minimum")
    says = any(hasattr(target, word) for word in ("needs", "needs_with", "wraps"))
    assert says or composed or name == "remote"


def test_a_reward_of_pictures_is_paid_through_pictured_where_a_text_may_lack_one():
    assert for_mode("shapes", MODES.get("diffusion")) == "shapes"
    assert for_mode("shapes", MODES.get("pe")) == {"name": "pictured", "scorer": "shapes"}
    own = {"name": "pictured", "scorer": "shapes", "otherwise": -1.0}
    assert for_mode(own, MODES.get("pe")) == own
    mixed = {"name": "weighted_sum", "parts": {"shapes": 1.0, "format": {"pattern": "x", "weight": 0.1}}}
    assert needs_of(mixed) == {"image": True, "text": True}
    assert for_mode(mixed, MODES.get("unified_model"))["name"] == "pictured"
    with pytest.raises(ConfigError, match="one of image; try another reward"):
        for_mode(own, MODES.get("ar"))
    with pytest.raises(ConfigError, match=r"`reward\.heldout` must be a reward of image or latent"):
        for_mode("exact", MODES.get("diffusion"), "reward.heldout")


def test_what_says_nothing_is_taken_at_its_word():
    assert needs_of("json:dumps") == {} and needs_of(len) == {}


def test_overlap_by_the_words_that_people_type():
    small = ["rollout.batch_size=12"]
    assert settings("ar/tiny_qwen3", ["rewards.async=true", *small]).reward.overlap
    assert settings("ar/tiny_qwen3", ["reward.async=true", *small]).reward.overlap
    assert settings("ar/tiny_qwen3", ["rewards.heldout=format"]).reward.heldout == "format"
    cfg = settings("diffusion/tiny_sd3", ["rewards.async=true"])
    with pytest.raises(ConfigError, match=r"must be less than the 96 episodes .* try rollout.batch_size=12"):
        cfg.check()
    assert not RunConfig().reward.overlap


def test_a_run_goes_on_with_its_service_at_another_address():
    def asked(port, reward="clip", **more):
        spec = {"name": "remote", "urls": [f"http://127.0.0.1:{port}"], "reward": reward}
        return RunConfig(reward=RewardSettings(train=spec, **more))

    assert differences(asked(8191), asked(9000, overlap=True)) == []
    assert len(differences(asked(8191), asked(8191, reward="shapes"))) == 1
