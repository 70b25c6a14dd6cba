"""Noise on recorded log-probs, the cost of episodes, and the KL to the untrained model without a price."""

from dataclasses import replace

import pytest
import torch
from test_forward_process import config_of
from test_shards import batch_of
from test_texts import trained
from toy import toy_config

from unirl_env.agents import GRPOConfig
from unirl_env.agents.batching import misread
from unirl_env.agents.reports import function_evaluations
from unirl_env.errors import ConfigError
from unirl_env.train import settings


def test_noise_is_keyed_by_the_episode_and_of_the_asked_size():
    batch = batch_of(groups=8, size=64)
    noisy = misread(batch, 0.5)
    (before,), (after,) = batch.phases.values(), noisy.phases.values()
    moved = (after.log_prob - before.log_prob)[before.mask]
    assert float(moved.std()) == pytest.approx(0.5, rel=0.1) and abs(float(moved.mean())) < 0.05
    assert torch.equal(after.log_prob[~before.mask], before.log_prob[~before.mask])
    half = misread(batch.select(torch.arange(100, 300)), 0.5)
    (part,) = half.phases.values()
    assert torch.equal(part.log_prob, after.log_prob[100:300]), "not by its place in the batch"
    assert misread(batch, 0.0) is batch


@pytest.mark.parametrize(("kind", "bounded"), [("tokens", True), ("discrete", True), ("latents", False)])
def test_no_token_becomes_more_than_certain(kind, bounded):
    batch = batch_of(groups=8, size=64)
    phases = {name: replace(phase, kind=kind) for name, phase in batch.phases.items()}
    phases = {name: replace(phase, log_prob=0.01 * phase.log_prob) for name, phase in phases.items()}
    (after,) = misread(replace(batch, phases=phases), 0.5).phases.values()
    assert (float(after.log_prob[after.mask].max()) <= 0.0) == bounded


def test_a_run_with_noise_must_let_the_first_ratio_be_off():
    with pytest.raises(ConfigError, match="self_check_tolerance=null"):
        toy_config(GRPOConfig, log_prob_noise=0.1).validate()
    with pytest.raises(ConfigError, match=r"`agent\.self_check_tolerance` must be null"):
        settings("diffusion/gaussian_mixture", ["rollout.log_prob_noise=0.1"]).check()


def test_with_noise_ratios_differ_from_one_by_it(cluster):
    noisy = {"log_prob_noise": 0.1, "self_check_tolerance": None, "num_minibatches": 1}
    (row,), _ = trained(toy_config(GRPOConfig, **noisy), 1)
    assert 0.05 < row["gap"] < 0.12, "the mean size of normal noise is 0.8 of its std"
    assert row["ratio_max_deviation"] > 0.1


def test_the_kl_to_the_untrained_model_is_measured_where_it_is_due_and_changes_nothing(cluster):
    rows, weights = trained(toy_config(GRPOConfig, reference_kl_every=2), 3)
    plain, same = trained(toy_config(GRPOConfig), 3)
    assert ["reference_kl" in row for row in rows] == [True, False, True]
    assert rows[2]["reference_kl"] > rows[0]["reference_kl"] >= 0.0
    assert not any("reference_kl" in row for row in plain)
    assert all(torch.equal(weights[name], same[name]) for name in weights)


@pytest.mark.parametrize("name", ["negative_aware", "weighted_matching"])
@pytest.mark.parametrize(("kind", "known"), [("none", False), ("all", True)])
def test_where_no_step_explores_there_is_no_kl_to_measure(cluster, name, kind, known):
    (row,), _ = trained(config_of(name, "mixture", reference_kl_every=1, steps={"kind": kind}), 1)
    assert ("reference_kl" in row) == known
    assert row["grad_norm"] > 0


def test_a_text_that_never_comes_to_a_picture_costs_no_denoising():
    config = config_of("negative_aware", "unified")
    episodes = config.num_prompts * config.group_size
    image = batch_of(groups=config.num_prompts, size=config.group_size).phases["image"]
    mask = image.mask.clone()
    mask[:3] = False
    batch = replace(batch_of(groups=2, size=4), phases={"image": replace(image, mask=mask)})
    assert function_evaluations(batch, config) == (episodes - 3) * config.num_steps
    nothing = replace(batch, phases={})
    assert function_evaluations(nothing, config) == episodes * config.num_steps, "drawn, and not recorded"


def test_a_denoising_step_costs_two_evaluations_under_guidance():
    batch, config = batch_of(groups=2, size=4), toy_config(GRPOConfig)
    assert function_evaluations(batch, config) == 8 * config.num_steps
    guided = toy_config(GRPOConfig, policy={"guidance": 3.0})
    assert function_evaluations(batch, guided) == 16 * config.num_steps
