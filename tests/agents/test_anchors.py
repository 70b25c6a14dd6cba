"""Whose log-probs are the old ones: chosen by engine and algorithm, and shown with a low-precision engine."""

import pytest
from test_texts import AGENTS, config_of, trained
from toy import toy_config

from unirl_env.agents import DRPOConfig, FlowDPPOConfig, GRPOConfig
from unirl_env.errors import ConfigError, SelfCheckError
from unirl_env.run.agent_setup import agent_config, chosen
from unirl_env.train import settings

ENGINE = "rounded_engine:RoundedEngine"


@pytest.mark.parametrize("name", sorted(AGENTS))
@pytest.mark.parametrize("engine", ["vllm", "vllm_server", "sglang", ENGINE])
def test_with_another_engine_old_log_probs_are_replayed_except_where_the_sampler_defines_them(name, engine):
    config = config_of(name, engine=engine)
    assert config.anchor is None
    assert config.old_log_probs == ("rollout" if name == "flow_dppo" else "replay")
    for anchor in ("rollout", "replay"):
        assert config_of(name, engine=engine, anchor=anchor).old_log_probs == anchor


@pytest.mark.parametrize("config_class", [GRPOConfig, FlowDPPOConfig, DRPOConfig])
def test_with_the_local_engine_they_are_the_rollouts(config_class):
    config = toy_config(config_class)
    assert config.old_log_probs == "rollout"
    assert config.needs == (set() if config_class is GRPOConfig else {"mean"})
    assert not toy_config(config_class, anchor="replay").needs


def test_a_low_precision_engine_trains_at_ratio_one(cluster):
    rows, _ = trained(config_of("grpo", engine=ENGINE, num_minibatches=1), 2)
    assert rows[0]["self_check/ratio"] == 0.0
    assert 0.01 < rows[0]["self_check/gap_mean"] < 0.25, "what the engine's rounding costs is told"
    assert all(row["gap"] > 0.01 and row["ratio_max_deviation"] == 0.0 for row in rows)


def test_against_its_own_log_probs_it_is_off_and_the_check_says_so(cluster):
    with pytest.raises(SelfCheckError, match="self_check_tolerance"):
        trained(config_of("grpo", engine=ENGINE, anchor="rollout"), 1)
    loose = {"self_check_tolerance": None, "num_minibatches": 1}
    (row,), _ = trained(config_of("flow_dppo", engine=ENGINE, **loose), 1)
    assert row["ratio_max_deviation"] > 0.01, "DPPO compares with the policy that sampled"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["rollout=vllm"], "replayed by the learner"),
        (["rollout=vllm", "agent=flow_dppo"], "the rollout's, as recorded"),
        (["model.dtype=bfloat16"], "replayed by the learner"),
        (["model.dtype=bfloat16", "agent.anchor=rollout"], None),
        (["rollout=vllm", "agent.anchor=replay"], "for who sampled"),
        (["rollout=vllm", "agent.anchor=replay", "agent.correction=none"], None),
        ([], None),
    ],
)
def test_a_run_says_what_was_chosen(options, words):
    cfg = settings("ar/tiny_qwen3", options)
    notes = chosen(cfg, agent_config(cfg))
    assert (words is None and not notes) or words in notes[0]


def test_recipes_with_an_engine_check_ratio_one_by_the_default():
    for recipe in ("ar/qwen3_math", "ar/qwen_vl_vqa", "pe/prompt_enhancer"):
        config = agent_config(settings(recipe))
        assert config.old_log_probs == "replay" and config.self_check_tolerance == 1e-4


def test_yaml_says_epochs_as_python_does():
    options = ["agent.num_epochs=8", "agent.shuffle_batch_per_epoch=group", "agent.grad_clip=null"]
    config = agent_config(settings("diffusion/tiny_sd3", options))
    config.validate()
    assert (config.num_epochs, config.shuffle, config.grad_clip, config.minibatches) == (8, "group", None, 2)
    config = agent_config(settings("diffusion/tiny_sd3", ["agent.shuffle_batch_per_epoch=true"]))
    assert config.shuffle == "group"
    with pytest.raises(ConfigError, match=r"`agent\.shuffle_batch_per_epoch`.*cut a group.*agent\.num_min"):
        settings("diffusion/tiny_sd3", [*options, "agent.minibatch_size=8"]).check()
