"""A generator in the words of a configuration: what is made of them, what is shared, what is refused."""

import pytest
import torch
from talk import SpellingModel, say
from worlds import PlainDenoiser

from unirl_env import train
from unirl_env.envs import SingleEnv
from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.rewards import Gate, Pictured
from unirl_env.rewards.spec import build_scorer
from unirl_env.run.preflight import preflight
from unirl_env.types import Scores
from unirl_env.worlds import make_env, make_vector_env
from unirl_env.worlds.world import World
from unirl_env.wrappers import DrawWrapper, RewardWrapper

HERE = __name__


def painting(**options):
    """Arguments of an environment that draws what it spells."""
    limits = {"max_new_tokens": 3, "max_prompt_tokens": 20, "autoreset_mode": "disabled"}
    limits |= {"info_objects": True}
    return {"language_model": SpellingModel(), "prompts": ["1+1"], **limits, **options}


class Twice:
    """A reward of a user's own that wraps another one."""

    wraps = ("inner",)

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, samples, prompts):
        return Scores(2 * self.inner(samples, prompts).value)


def level(samples, prompts):
    return Scores(torch.stack([sample.image.mean() for sample in samples]))


def test_it_goes_inside_the_reward_and_draws_a_batch_together():
    spec = {"denoiser": PlainDenoiser(), "num_steps": 2, "pictures": 2, "after": None}
    env = make_vector_env(2, generator=spec, scorer=level, **painting())
    assert isinstance(env, RewardWrapper) and isinstance(env.env, DrawWrapper)
    assert env.env.together and env.env.num_pictures == 2
    assert not make_vector_env(2, generator={**spec, "together": False}, **painting()).together
    assert not make_vector_env(2, generator=spec, **painting(autoreset_mode="next_step")).together
    env.reset(seed=0)
    _, reward, _, _, info = say(env, "a~_", "abc")[-1]
    assert [sample.text for sample in info["samples"]] == ["a", "abc"]
    assert reward.tolist() == pytest.approx([sample.image.mean().item() for sample in info["samples"]])


def test_a_generator_goes_by_name_with_options_of_its_own(tiny_dir):
    spec = {"denoiser": "tiny_sd3", "pretrained": str(tiny_dir), "dtype": "bfloat16", "guidance": 2}
    world = World.of({"generator": spec, **painting()})
    env, other = world.env(1), world.env(3)
    assert env.generator.dtype == torch.bfloat16 and env.generator.pretrained == str(tiny_dir)
    assert next(env.network.parameters()).dtype == torch.bfloat16
    assert other.generator is env.generator and other.network is env.network and other.guidance == 2


def test_a_single_view_has_pictures_too():
    options = painting(info_objects=False)
    env = make_env(generator={"denoiser": PlainDenoiser(), "num_steps": 1}, scorer=level, **options)
    assert isinstance(env.unwrapped, SingleEnv)
    env.reset(seed=0)
    *_, info = [env.step(token) for token in (4, 5, 6)][-1]
    assert info["sample"]["image"].shape == (3, 4, 4)


@pytest.mark.parametrize(
    "spec, error, message",
    [
        ("tiny_sd3", ConfigError, "`generator` must be a mapping that names a `denoiser`"),
        ({}, ConfigError, "names a `denoiser`"),
        ({"num_steps": 4}, ConfigError, "names a `denoiser`"),
        ({"denoiser": "tiny_sd4"}, ConfigError, "`denoiser` must be one of"),
        ({"denoiser": "tiny_sd3", "steps": 4}, ConfigError, r"no arguments \['steps'\].*num_steps"),
        ({"denoiser": "tiny_sd3", "num_steps": 0}, ConfigError, "`num_steps` of a generator"),
        ({"denoiser": "sd3", "system": "be brief"}, ConfigError, "do not fit"),
        ({"denoiser": "sd3", "pretrained": "no/such/folder"}, ModelNotFound, "no/such/folder"),
        ({"denoiser": "tiny_sd3", "language_model": "tiny_qwen3"}, ConfigError, "One of `denoiser`"),
    ],
)
def test_words_that_cannot_be(spec, error, message, quiet_models):
    with pytest.raises(error, match=message):
        make_vector_env(1, generator=spec, **painting())


def test_what_draws_by_itself_takes_no_generator():
    with pytest.raises(ConfigError, match="`generator` must be None for a `denoiser`"):
        make_vector_env(1, denoiser=PlainDenoiser(), prompts=["a"], generator={"denoiser": PlainDenoiser()})


def test_any_scorer_may_wrap_scorers_that_are_built_like_itself():
    inner = {"name": "pictured", "scorer": "shapes"}
    mine = build_scorer({"name": f"{HERE}:Twice", "inner": inner})
    assert isinstance(mine, Twice) and isinstance(mine.inner, Pictured)
    gate = build_scorer(
        {
            "name": "gate",
            "gate": inner,
            "scorer": {"name": "overlong", "scorer": inner, "mode": "zero"},
            "threshold": 0.5,
        }
    )
    assert isinstance(gate, Gate) and isinstance(gate.parts["scorer"].scorer, Pictured)
    with pytest.raises(ConfigError, match=f"{HERE}:Twice' must have `inner`"):
        build_scorer(f"{HERE}:Twice")


def test_the_mode_is_told_by_the_generator():
    with pytest.raises(
        ConfigError, match="`mode` must be 'pe' for unirl/TinyPromptEnhancer-T2I-v0, got 'ar'"
    ):
        preflight(train.settings("pe/tiny_prompt_enhancer", ["mode=ar"]))
    without = ["mode=pe", "+model.options.generator=null", "prompts=sums", "reward=exact"]
    with pytest.raises(ConfigError, match="`mode` must be 'ar'"):
        preflight(train.settings("ar/tiny_qwen3", without))
    assert len(preflight(train.settings("pe/tiny_prompt_enhancer")).heldout) == 80
