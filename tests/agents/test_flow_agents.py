"""Every agent on every family of latents that it is made for: ratio one, and one gradient however cut."""

import pytest
import torch
from batches import shards_of
from ray.rllib.core.learner.training_data import TrainingData
from test_forward_process import WORLDS, gradient, learner_of, played

from unirl_env.agents import (
    AWMConfig,
    DRPOConfig,
    ELBOPGConfig,
    FlowDPPOConfig,
    GRPOConfig,
    GRPOGuardConfig,
    NFTConfig,
    PGConfig,
    TempFlowGRPOConfig,
)
from unirl_env.agents.estimators import TRAJECTORY
from unirl_env.errors import ConfigError

WORLDS["unified pictures"] = (*WORLDS["unified"][:2], {**WORLDS["unified"][2], "train_phases": ["image"]})
WORLDS["composed"] = (
    "unirl/TinyEnhancerAndSD3-T2I-v0",
    {"num_steps": 2, "max_new_tokens": 8},
    {"policy": {"lora_rank": 4}, "num_prompts": 2, "group_size": 4, "train_phases": ["image"]},
)
FAMILIES = ("mixture", "tiny_sd3", "unified pictures", "composed")
AGENTS = {
    "awm": (AWMConfig, {}),
    "drpo": (DRPOConfig, {}),
    "elbo_pg": (ELBOPGConfig, {}),
    "elbo_pg_pulled": (ELBOPGConfig, {"pull": 1.0}),
    "elbo_grpo": (GRPOConfig, {"estimator": "elbo", "clip_low": 1e-2}),
    "flow_dppo": (FlowDPPOConfig, {"kl_threshold": 1.0}),
    "grpo": (GRPOConfig, {"clip_low": 0.9}),
    "grpo_guard": (GRPOGuardConfig, {"centred_clip": 0.5}),
    "mixed_grpo": (
        GRPOConfig,
        {"clip_low": 0.9, "sampler": "mixed", "steps": {"kind": "window", "window": 1}},
    ),
    "nft": (NFTConfig, {}),
    "nft_dpm2m": (NFTConfig, {"sampler": "dpm2m"}),
    "nft_sde": (NFTConfig, {"sampler": "sde"}),
    "pg": (PGConfig, {}),
    "temp_flow": (TempFlowGRPOConfig, {"clip_low": 0.9}),
}
each_agent = pytest.mark.parametrize("name", AGENTS)


def learner_for(name, family, **settings):
    config_class, knobs = AGENTS[name]
    settings = {"steps": {"kind": "all"}, "num_minibatches": 1, **knobs, **settings}
    return learner_of(config_class, family, **settings)


@pytest.mark.parametrize("family", FAMILIES)
@each_agent
def test_it_begins_at_ratio_one_and_learns_from_its_first_step(name, family):
    learner = learner_for(name, family)
    batch = played(learner, family)
    batch = type(batch)(**{**vars(batch), "phases": {"image": batch.phases["image"]}})
    (shard,) = shards_of(batch, num_minibatches=1)
    forward = learner.config.looks_forward
    whole, told = gradient(learner, shard, check=() if forward else ("image",))
    assert torch.isfinite(whole).all() and whole.norm() > 0
    if forward:
        metrics = told.metrics[0]
        assert metrics.get("ratio_max_deviation", metrics.get("drift_max")) <= 1e-6
        assert told.rows == [len(batch) * 4]
    else:
        assert told.check["self_check/ratio"] <= 1e-5
    parts = learner_for(name, family, micro_batch_size=1, micro_batch_steps=1)
    small, _ = gradient(parts, shard)
    torch.testing.assert_close(small, whole, rtol=1e-3, atol=1e-6 * float(whole.norm()))
    shares = []
    for part in shards_of(batch, num_minibatches=1, num_learners=2):
        shares.append(gradient(parts, part)[0])
    torch.testing.assert_close(sum(shares), whole, rtol=1e-3, atol=1e-6 * float(whole.norm()))


@each_agent
def test_where_all_are_paid_alike_nothing_moves(name):
    learner = learner_for(name, "mixture", num_minibatches=2, num_epochs=2)
    batch = played(learner, "mixture")
    scores = type(batch.scores)(torch.full((len(batch),), 0.5))
    batch = type(batch)(**{**vars(batch), "scores": scores})
    before = learner.policy.get_state()
    (shard,) = shards_of(batch, num_minibatches=2, num_epochs=2)
    report = learner.update(training_data=TrainingData(batch=shard), lr=1e-2)
    assert report.error is None
    after = learner.policy.get_state()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["nft", "awm"])
def test_agents_of_pictures_alone_say_so_where_texts_are_trained(name):
    with pytest.raises(ConfigError, match=r"loss on tokens.*train_phases"):
        learner_for(name, "unified")


@pytest.mark.parametrize("dynamics", ["flow", "cps"])
def test_the_distance_of_velocities_is_that_of_the_networks(dynamics):
    policy = {"lora_rank": None, "dynamics": dynamics, "eta": 0.6}
    learner = learner_for("grpo", "mixture", reference_kl=1.0, reference_distance="velocity", policy=policy)
    batch = played(learner, "mixture")
    state = learner.policy.get_state()
    learner.policy.set_state({name: value + 0.1 for name, value in state.items()})
    (shard,) = shards_of(batch, num_minibatches=1)
    seen = []
    estimate = TRAJECTORY.reference_kl

    def watched(new, reference, rows, config):
        seen.append((rows, *estimate(new, reference, rows, config)))
        return seen[-1][1:]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(TRAJECTORY), "reference_kl", lambda self, *given: watched(*given))
        gradient(learner, shard)
    total, kls = 0.0, 0.0
    for rows, pull, kl in seen:
        new = learner.policy.velocity("image", rows.observation)
        with learner.policy.reference():
            untrained = learner.policy.velocity("image", rows.observation)
        expected = rows.mean((new - untrained).square().mean(1))
        torch.testing.assert_close(pull, expected, rtol=1e-3, atol=1e-6)
        total, kls = total + float(expected.detach()), kls + float(kl)
    assert total > 1e-3 and abs(kls - total) > 1e-4
    with pytest.raises(ConfigError, match="`reference_distance` must be kl with `kl_in=return`"):
        learner_for("grpo", "mixture", reference_kl=1.0, reference_distance="velocity", kl_in="return")
