"""Who is compared, and which configurations they may try."""

import pytest

from unirl_env.agents import GRPOConfig
from unirl_env.bench.configurations import configured, draw, search_space
from unirl_env.bench.contestants import Contestant, contestants
from unirl_env.errors import ConfigError
from unirl_env.train import settings


def test_agents_are_names_paths_and_mappings():
    wide = {"name": "grpo", "label": "wide one", "settings": ["agent.lr=1e-3"]}
    ours, own, named = contestants(["drpo", "mylab.alg:ReinforceConfig", wide])
    assert (ours.label, ours.words) == ("drpo", ["agent=drpo"])
    assert (own.label, own.words) == ("Reinforce", ["agent.name=mylab.alg:ReinforceConfig"])
    assert (named.label, named.words) == ("wide_one", ["agent=grpo", "agent.lr=1e-3"])


def test_two_of_one_name_and_unknown_ones_are_refused():
    with pytest.raises(ConfigError, match="'grpo' twice"):
        contestants(["grpo", "grpo"])
    with pytest.raises(ConfigError, match="did you mean flow_dppo"):
        contestants(["flowdppo"])
    with pytest.raises(ConfigError, match="a list of `setting=value`"):
        contestants([{"name": "grpo", "settings": "agent.lr=1"}])
    with pytest.raises(ConfigError, match="got `lable`"):
        contestants([{"name": "grpo", "lable": "x"}])
    first, second = contestants(["a.b:SameConfig", "c.d:SameConfig"])
    assert first.label != second.label


def test_configurations_are_the_same_for_the_same_agent_and_begin_with_the_recipes_own():
    one = Contestant("grpo", "grpo")
    drawn = draw(one, 5, seed=0)
    assert drawn[0] == {} and len(drawn) == 5
    assert draw(one, 3, seed=0) == drawn[:3], "more configurations begin with the same ones"
    assert draw(one, 5, seed=1)[1:] != drawn[1:]
    rates = [factors["lr"] for factors in drawn[1:]]
    assert len(set(rates)) == 4 and all(0.2 <= rate <= 5 for rate in rates)
    assert set(search_space(Contestant("pg", "pg"))) == {"lr"}, "it has no trust region to be tuned"


def test_a_configuration_is_factors_on_the_recipes_own_values_within_their_bounds():
    cfg = settings("diffusion/gaussian_mixture", ["agent=grpo"])
    tried = configured(cfg, {"lr": 0.5, "clip_low_nats": 2.0, "token_clip_low": 100.0, "dual_clip": 3.0})
    assert tried.agent.lr == pytest.approx(0.5 * cfg.agent.lr)
    assert tried.agent.options["clip_low_nats"] == pytest.approx(2 * cfg.agent.options["clip_low_nats"])
    assert 0.99 < tried.agent.options["token_clip_low"] < 1, "a clip stays below one"
    assert "dual_clip" not in tried.agent.options, "there is none to multiply"
    assert "token_clip_low" not in cfg.agent.options, "the recipe stays as it was"
    tried.check()


def test_a_space_must_be_one(monkeypatch):
    monkeypatch.setattr(GRPOConfig, "search_space", lambda self: {"lr": [1, 2]})
    with pytest.raises(ConfigError, match="domains of ray"):
        search_space(Contestant("grpo", "grpo"))
