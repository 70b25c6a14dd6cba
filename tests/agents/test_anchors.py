"""Whose log-probs are the old ones: chosen by engine and algorithm, and shown with a low-precision engine."""

import pytest
from test_texts import AGENTS, config_of, trained
from toy import toy_config

from unirl_env.agents import DRPOConfig, FlowDPPOConfig, GRPOConfig
from unirl_env.errors import SelfCheckError

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
    assert config.needs_mean == (config_class is not GRPOConfig)
    assert not toy_config(config_class, anchor="replay").needs_mean


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
