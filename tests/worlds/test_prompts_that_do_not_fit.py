"""A prompt that does not fit ends the run before it begins, whenever its turn would have come."""

import pytest

from unirl_env.envs import PromptSource
from unirl_env.errors import PromptError
from unirl_env.run.world_setup import check_prompts
from unirl_env.settings import ModelSettings, PromptSettings, RewardSettings, RunConfig


def settings(**model):
    prompts = PromptSettings(train=["1+2=?", "3+4=?" + " and so on" * 20])
    model = ModelSettings(env="unirl/TinyQwen3-Math-v0", **model)
    return RunConfig(mode="ar", model=model, prompts=prompts, reward=RewardSettings(train="exact"))


def test_every_prompt_is_read():
    cfg = settings()
    with pytest.raises(PromptError, match=r"at most 32 tokens.*3\+4=.*max_prompt_tokens"):
        check_prompts(cfg, PromptSource.of(cfg.prompts.train))
    wide = settings(max_prompt_tokens=400)
    check_prompts(wide, PromptSource.of(wide.prompts.train))


def test_other_models_have_no_such_limit():
    check_prompts(RunConfig(), PromptSource.of("shapes_train"))
