"""The command line and Python refuse the same settings, in the same words."""

import dataclasses
import math

import pytest

from unirl_env import train
from unirl_env.agents import DRPOConfig, FlowDPPOConfig, GRPOConfig, GSPOConfig
from unirl_env.errors import ConfigError
from unirl_env.run.agent_setup import agent_config
from unirl_env.settings import AgentSettings, PolicySettings, RolloutSettings, StepSettings
from unirl_env.settings.fields import python_name

GROUPS = {"agent": AgentSettings, "rollout": RolloutSettings, "steps": StepSettings, "policy": PolicySettings}
FIELDS = [
    (group, each.name)
    for group, kind in GROUPS.items()
    for each in dataclasses.fields(kind)
    if python_name(each)
]
VALUES = (None, -1, 0, math.inf, False, "word", ["word"], {"word": 0.0})
TRAINS_NOTHING = [
    ("policy", "eta", 0.0),
    ("policy", "temperature", 0.0),
    ("policy", "top_k", 1),
    ("policy", "lora_alpha", 0),
    ("policy", "lora_targets", []),
    ("rollout", "group_size", 1),
    ("rollout", "num_prompts", 0),
    ("steps", "fraction", (0.5, 0.5)),
    ("steps", "kind", "random"),
    ("agent", "lr", 0.0),
    ("agent", "train_phases", []),
    ("agent", "phase_weights", {"image": 0.0}),
    ("agent", "advantage_parts", {"red": 0.0}),
    ("agent", "max_log_ratio", 0.0),
    ("agent", "advantage_clip", 0.0),
    ("agent", "grad_clip", 0.0),
    ("agent", "num_epochs", 0),
    ("agent", "kl_estimator", "k1"),
]


@pytest.fixture(scope="module")
def run():
    return train.settings("diffusion/gaussian_mixture", ["agent=grpo"])


@pytest.fixture(scope="module")
def config(run):
    return agent_config(run)


def of_the_command_line(run, group, name, value):
    changed = dataclasses.replace(getattr(run, group), **{name: value})
    try:
        agent_config(dataclasses.replace(run, **{group: changed})).validate()
    except ConfigError as error:
        return str(error)


def of_python(config, group, name, value):
    changed = config.copy()
    (field,) = [each for each in dataclasses.fields(GROUPS[group]) if each.name == name]
    flat = group in ("agent", "rollout")
    setattr(changed, *((python_name(field), value) if flat else (group, {name: value})))
    try:
        changed.validate()
    except ConfigError as error:
        return str(error)


def without_prefix(message, name, called):
    if message is None:
        return None
    for prefix in ("agent.", "rollout."):
        message = message.replace(prefix, "")
    return message.replace(f"`{name}`", f"`{called}`")


@pytest.mark.parametrize(("group", "name"), FIELDS, ids=[".".join(each) for each in FIELDS])
def test_every_setting_is_judged_alike(run, config, group, name):
    """Whatever is tried, both refuse it with one sentence, or neither does."""
    (field,) = [each for each in dataclasses.fields(GROUPS[group]) if each.name == name]
    judged = set()
    for value in VALUES:
        here, there = (
            door(given, group, name, value)
            for door, given in ((of_the_command_line, run), (of_python, config))
        )
        if group == "rollout" and here and "is watched" in here:
            continue  # what else a run watches is no agent's business
        assert without_prefix(here, name, python_name(field)) == there, value
        judged.add(here is None)
    assert False in judged, "nothing is refused"


@pytest.mark.parametrize(("group", "name", "value"), TRAINS_NOTHING)
def test_what_would_train_nothing_is_refused_at_both_doors(run, config, group, name, value):
    said = of_the_command_line(run, group, name, value), of_python(config, group, name, value)
    for message, prefix in zip(
        said, (f"{group}.", "" if group in ("agent", "rollout") else f"{group}."), strict=True
    ):
        assert message is not None and (
            f"`{prefix}{name}`" in message or "`steps`" in message or f"{name}" in message
        )
        assert "try" in message


@pytest.mark.parametrize("name", ["self_check_tolerance", "self_check_gap_max", "self_check_kl", "grad_clip"])
def test_without_a_bound_means_the_same_at_both_doors(run, config, name):
    assert of_the_command_line(run, "agent", name, None) is None is of_python(config, "agent", name, None)
    changed = dataclasses.replace(run, agent=dataclasses.replace(run.agent, **{name: None}))
    assert getattr(agent_config(changed), name) is None


def test_weighing_of_texts_is_the_algorithms_own_unless_it_is_given():
    assert [kind().weighing for kind in (GSPOConfig, GRPOConfig, DRPOConfig, FlowDPPOConfig)] == [
        "sequence_mean",
        *["token_mean"] * 3,
    ]
    for words, weighing in ((["agent=gspo"], "sequence_mean"), (["agent=grpo"], "token_mean")):
        cfg = train.settings("ar/tiny_qwen3", words)
        assert cfg.agent.aggregate is None and agent_config(cfg).weighing == weighing
    cfg = train.settings("ar/tiny_qwen3", ["agent=grpo", "agent.aggregate=sequence_mean"])
    assert agent_config(cfg).weighing == "sequence_mean"
    cfg = train.settings("ar/tiny_qwen3", ["agent=gspo", "agent.aggregate=token_mean"])
    with pytest.raises(ConfigError, match="`aggregate` must be sequence_mean for GSPO, got 'token_mean'"):
        agent_config(cfg).validate()


def test_a_knob_is_called_as_it_was_given(run):
    words = {"clip_low": 1.5}
    wrong = dataclasses.replace(run, agent=dataclasses.replace(run.agent, options=words))
    with pytest.raises(ConfigError, match=r"`agent\.options\.clip_low` must lie in \(0, 1\)"):
        agent_config(wrong)
    with pytest.raises(ConfigError, match=r"^`clip_low` must lie in \(0, 1\)"):
        GRPOConfig().environment("unirl/GaussianMixture-v0").training(**words).validate()
