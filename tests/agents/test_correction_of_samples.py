"""Advantages corrected for who sampled: in the learner, in a run, and where that is on by itself."""

from dataclasses import replace

import pytest
import torch
from batches import play
from test_learner import make_learner
from test_step_credit import gradient, update
from test_texts import AGENTS, config_of, trained

import unirl_env.functional as F
from unirl_env.agents.batching import share_out
from unirl_env.errors import ConfigError
from unirl_env.run.agent_setup import agent_config, chosen
from unirl_env.train import settings

ENGINE = "rounded_engine:RoundedEngine"
ALL = {"anchor": "replay", "grad_clip": None, "policy": {"lora_rank": None}}


def misread(batch):
    """The batch as another sampler would have recorded it, and the log-ratios `[B, S]` in nats of actions."""
    phase = batch.phases["image"]
    nats = 0.7 * torch.randn(phase.log_prob.shape, generator=torch.Generator().manual_seed(5))
    spoiled = replace(phase, log_prob=phase.log_prob - nats / phase.elements)
    return replace(batch, phases={"image": spoiled}), nats


@pytest.mark.parametrize("level", ["step", "episode"])
@pytest.mark.parametrize("how", ["truncate", "mask"])
def test_an_update_is_that_of_advantages_times_weights(how, level):
    batch = play(make_learner("grpo", **ALL).policy)
    spoiled, nats = misread(batch)
    advantages = F.group_advantages(batch.rewards, batch.group)
    nats = nats.sum(1, keepdim=True).expand_as(nats) if level == "episode" else nats
    ratio = nats.exp()
    out = (ratio > 1.5) | ((ratio < 1 / 1.5) & (how == "mask"))
    weight = torch.where(out, 1.5 if how == "truncate" else 0.0, ratio)

    settings = {"correction": how, "correction_level": level, "correction_bound": 1.5}
    learner, by_hand = (make_learner("grpo", **ALL, **more) for more in (settings, {"correction": "none"}))
    (shard,) = share_out(spoiled, {"image": advantages}, num_minibatches=1, num_learners=1)
    report = update(learner, shard).phases["image"]
    (shard,) = share_out(spoiled, {"image": weight * advantages[:, None]}, num_minibatches=1, num_learners=1)
    plain = update(by_hand, shard).phases["image"]
    torch.testing.assert_close(gradient(learner), gradient(by_hand), rtol=1e-4, atol=1e-7)
    assert plain.correction == {}
    count = weight.numel()
    assert report.correction == {
        "weight": pytest.approx(float(weight.sum()), rel=1e-4),
        "cut": float(out.sum()),
        "rows": count,
    }
    assert 0.1 < report.correction["cut"] / count < 0.95


def test_what_the_learner_itself_sampled_is_left_as_it_is():
    batch = play(make_learner("grpo", **ALL).policy)
    advantages = F.group_advantages(batch.rewards, batch.group)
    advantages[batch.group == 1] = 0.0  # not replayed, and not counted
    found = []
    for how in ("none", "truncate"):
        learner = make_learner("grpo", **ALL, correction=how)
        (shard,) = share_out(batch, {"image": advantages}, num_minibatches=1, num_learners=1)
        report = update(learner, shard).phases["image"]
        found.append(gradient(learner))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)
    assert report.correction["rows"] == 24 * 5 and report.correction["cut"] == 0.0
    assert report.correction["weight"] == pytest.approx(24 * 5, rel=1e-5)


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_it_is_on_where_another_engine_samples_and_the_learner_replays(name):
    assert config_of(name).correcting == "none", "the local engine's policy is the learner's"
    assert config_of(name, anchor="replay").correcting == "none"
    config = config_of(name, engine="vllm")
    assert config.correcting == ("none" if name == "flow_dppo" else "truncate")
    assert config_of(name, engine="vllm", anchor="rollout").correcting == "none"
    assert config_of(name, engine="vllm", anchor="replay", correction="none").correcting == "none"
    assert config_of(name, engine="vllm", anchor="replay").correcting == "truncate"
    assert config.own_correction_level == ("episode" if name == "gspo" else "step")
    with pytest.raises(ConfigError, match=r"`correction` must be none or null .* try anchor='replay'"):
        config_of(name, anchor="rollout", correction="mask").validate()


def test_a_run_says_so():
    cfg = settings("ar/tiny_qwen3", ["rollout=vllm"])
    notes = chosen(cfg, agent_config(cfg))
    assert "replayed by the learner" in notes[0] and "weights of at most 2 for who sampled" in notes[1]
    for words in (["agent.correction=none"], ["agent.anchor=rollout"], ["agent=flow_dppo"]):
        cfg = settings("ar/tiny_qwen3", ["rollout=vllm", *words])
        assert not any("who sampled" in note for note in chosen(cfg, agent_config(cfg)))


@pytest.mark.ray
def test_a_low_precision_engines_texts_are_weighed(cluster):
    weighed, (plain,) = {}, trained(config_of("grpo", engine=ENGINE, correction="none"), 1)[0]
    assert "correction" not in plain
    for name in ("grpo", "gspo"):
        (row,), _ = trained(config_of(name, engine=ENGINE), 1)
        weighed[name] = row
        assert row["correction"] != 1.0 and 0.5 < row["correction"] < 1.5
        assert 0.0 <= row["correction_cut"] < 0.3
    assert weighed["grpo"]["grad_norm"] != plain["grad_norm"]
    assert weighed["grpo"]["gap"] == pytest.approx(plain["gap"])
