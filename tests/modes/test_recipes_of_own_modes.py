"""A run of a mode that is not among the shipped ones: named in a recipe, checked before anything loads."""

import mdp_cases  # noqa: F401, registers its ids
import pytest

from unirl_env.errors import ConfigError
from unirl_env.modes import MODES
from unirl_env.run.preflight import preflight
from unirl_env.train import settings

PROCESS = [
    "model.env=mdp_cases:cases/Walk-v0",
    "mode=mdp",
    "prompts.train=['1','2','3']",
    "prompts.heldout=null",
    "reward.train=mdp_cases:at_the_right_end",
    "reward.heldout=null",
    "policy.lora_rank=null",
    "rollout.num_prompts=3",
]


def checked(*changes, agent="grpo"):
    """Later words take the place of earlier ones."""
    words = {word.partition("=")[0]: word for word in (*PROCESS, f"agent={agent}", *changes)}
    return preflight(settings("diffusion/tiny_sd3", list(words.values())))


def test_a_process_is_a_run_without_denoising_steps_or_pictures():
    assert [prompt.text for prompt in checked("model.num_steps=null").train] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "change, words",
    [
        ("mode=diffusion", "`mode` must be 'mdp' for .*, got 'diffusion'; try `mode=mdp`"),
        ("mode=maze", "`mode` must be 'mdp' for .*, got 'maze', which is none of ar, diffusion, mdp"),
        ("model.max_new_tokens=8", "max_new_tokens"),
        ("rollout.engine=vllm", "`rollout.engine` must be 'local' in mode 'mdp'"),
        ("policy.top_k=4", "`policy.top_k` must stay 0 in mode 'mdp'"),
    ],
)
def test_what_a_process_has_not_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        checked("model.num_steps=null", change)


def test_rewards_of_what_a_mode_never_makes_are_refused_only_where_it_says_what_it_makes():
    from unirl_env.rewards import for_mode

    with pytest.raises(ConfigError, match="in mode 'ar'"):
        for_mode("shapes", MODES.get("ar"))
    assert for_mode("shapes", MODES.get("mdp")) == "shapes"
