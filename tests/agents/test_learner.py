"""The learner without a cluster: ratio one, micro-batches, anchors, skipped rows, the self-check."""

from dataclasses import replace

import pytest
import torch
from batches import advantages_of, play, shards_of, trainable
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from toy import POINTS, toy_config

from unirl_env.agents import DRPOConfig, FlowDPPOConfig, GRPOConfig
from unirl_env.errors import CheckpointError, SelfCheckError
from unirl_env.types import Prompt

CONFIGS = {
    "grpo": (GRPOConfig, {"clip_low": 1e-2}),
    "flow_dppo": (FlowDPPOConfig, {"kl_threshold": 1e-3}),
    "drpo": (DRPOConfig, {}),
}


def make_learner(name="flow_dppo", **settings):
    config_class, knobs = CONFIGS[name]
    config = toy_config(config_class, **{**knobs, **settings})
    config.validate()
    env_spaces = play_spaces()
    return config.build_learner(spaces={DEFAULT_MODULE_ID: env_spaces})


def play_spaces():
    from toy import make_points

    env = make_points(1, prompts=POINTS, num_steps=6)
    return env.single_observation_space, env.single_action_space


def learn(learner, batch, *, lr=5e-3, check=(), **cut):
    (shard,) = shards_of(batch, **cut)
    report = learner.update(training_data=TrainingData(batch=shard), lr=lr, check=check)
    if report.error is not None:
        raise report.error
    return report


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("anchor", ["rollout", "replay"])
def test_the_first_update_finds_ratio_one(name, anchor):
    learner = make_learner(name, anchor=anchor, micro_batch_size=3)
    report = learn(learner, play(learner.policy), check=("image",))
    assert report.phases["image"].check["self_check/ratio"] <= 1e-6
    assert report.phases["image"].check["noise_floor/log_prob"] <= 1e-6
    assert report.phases["image"].check["noise_floor/kl"] <= 1e-9
    assert report.phases["image"].metrics[0]["ratio_max_deviation"] <= 1e-6
    assert report.phases["image"].metrics[1]["ratio_max_deviation"] > 1e-5, (
        "the second step is off the old policy"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_gradient_is_the_plain_policy_gradient(name):
    learner = make_learner(name, grad_clip=None, micro_batch_size=3)
    batch = play(learner.policy)
    report = learn(learner, batch, num_minibatches=1, lr=0.0)
    phase, actor = batch.phases["image"], learner.policy.actor
    obs, action = phase.rows(torch.arange(len(batch)))
    advantages = advantages_of(batch).repeat_interleave(phase.log_prob.shape[1])
    loss = -(advantages * actor.score(obs, action).log_prob).mean()
    gradients = torch.autograd.grad(loss, learner.get_parameters(learner.policy))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert report.grad_norm == [pytest.approx(float(norm), rel=1e-4)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("reference_kl", [0.0, 0.1])
def test_micro_batches_change_nothing(name, reference_kl):
    reports, weights = [], []
    for size, steps in ((None, None), (1, None), (5, None), (2, 1), (None, 3)):
        learner = make_learner(
            name, micro_batch_size=size, micro_batch_steps=steps, reference_kl=reference_kl
        )
        reports.append(learn(learner, play(learner.policy)))
        weights.append(trainable(learner))
    assert not torch.equal(weights[0], trainable(make_learner(name))), "something was learned"
    for other, weight in zip(reports[1:], weights[1:], strict=True):
        torch.testing.assert_close(weight, weights[0], rtol=0, atol=2e-6)
        assert other.grad_norm == pytest.approx(reports[0].grad_norm, rel=1e-5)
        for mine, theirs in zip(
            other.phases["image"].metrics, reports[0].phases["image"].metrics, strict=True
        ):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("anchor", ["rollout", "replay"])
def test_no_more_steps_go_through_the_network_than_are_asked_for(anchor):
    learner, rows = make_learner(micro_batch_size=2, micro_batch_steps=2, anchor=anchor), []
    batch = play(learner.policy)
    score = learner.policy.actor.score

    def counted(obs, action, **more):
        rows.append(len(action))
        return score(obs, action, **more)

    learner.policy.actor.score = counted
    learn(learner, batch, check=("image",))
    assert batch.phases["image"].log_prob.shape[1] % 2 and set(rows) == {2, 4}


@pytest.mark.parametrize("anchor", ["rollout", "replay"])
def test_anchors_agree_where_sampling_and_scoring_do(anchor):
    learner, other = make_learner(), make_learner(anchor=anchor)
    batch = play(learner.policy)
    if anchor == "replay":
        # What the rollout recorded must not be looked at.
        phase = replace(batch.phases["image"], log_prob=torch.zeros_like(batch.phases["image"].log_prob))
        spoiled = replace(batch, phases={"image": replace(phase, mean=None)})
    else:
        spoiled = batch
    learn(learner, batch)
    learn(other, spoiled)
    torch.testing.assert_close(trainable(other), trainable(learner), rtol=0, atol=2e-6)


def test_rows_of_advantage_zero_are_skipped_and_counted_in_the_denominator():
    learner = make_learner()
    batch = play(learner.policy, group_size=4)
    value = batch.scores.value.clone()
    value[4:8] = 0.25  # a group that teaches nothing
    batch = replace(batch, scores=type(batch.scores)(value))
    (shard,) = shards_of(batch, num_minibatches=1)
    assert shard.denominators[0]["image"] == 16 * 5
    report = learn(learner, batch, num_minibatches=1)
    assert report.phases["image"].rows == [12 * 5]
    with_reference = learn(make_learner(reference_kl=0.1), batch, num_minibatches=1)
    assert with_reference.phases["image"].rows == [16 * 5], "the KL to the reference reaches every row"


def test_invalid_scores_teach_nothing():
    learner, other = make_learner(), make_learner()
    prompts = [Prompt(point, metadata={"broken": point == "0,1"}) for point in POINTS]
    batch = play(learner.policy, prompts=prompts)
    assert (~batch.scores.valid).sum() == 8
    report = learn(learner, batch)
    assert sum(report.phases["image"].rows) == 24 * 5
    # Whatever such episodes hold, it has no influence.
    phase = batch.phases["image"]
    action = phase.action.clone()
    action[~batch.scores.valid] += 100.0
    learn(other, replace(batch, phases={"image": replace(phase, action=action)}))
    assert torch.equal(trainable(other), trainable(learner))


def test_a_minibatch_without_anything_to_learn_is_a_step_all_the_same():
    learner = make_learner()
    batch = play(learner.policy)
    batch = replace(batch, scores=type(batch.scores)(torch.full((32,), 0.5)))
    before = trainable(learner)
    report = learn(learner, batch)
    assert (
        report.phases["image"].rows == [0, 0]
        and report.grad_norm == [0.0, 0.0]
        and report.phases["image"].metrics == [{}, {}]
    )
    assert torch.equal(trainable(learner), before)


@pytest.mark.parametrize("shift", [1e-3, float("nan")])
def test_the_self_check_stops_on_tampered_log_probs(shift):
    learner = make_learner("grpo")
    batch = play(learner.policy)
    phase = batch.phases["image"]
    log_prob = phase.log_prob.clone()
    log_prob[3, 2] += shift
    spoiled = replace(batch, phases={"image": replace(phase, log_prob=log_prob)})
    before = trainable(learner)
    with pytest.raises(SelfCheckError, match=r"\|ratio - 1\| = (0.001|nan)"):
        learn(learner, spoiled, check=("image",))
    assert torch.equal(trainable(learner), before), "nothing was learned from it"
    learn(make_learner("grpo"), batch, check=("image",))


def test_the_self_check_stops_on_other_weights():
    learner = make_learner()
    batch = play(learner.policy)
    moved = {name: tensor + 0.05 for name, tensor in learner.policy.get_state().items()}
    learner.policy.set_state(moved)
    with pytest.raises(SelfCheckError, match="KL = "):
        learn(learner, batch, check=("image",))


def test_a_gradient_that_is_not_finite_is_left_out():
    learner = make_learner("grpo")
    batch = play(learner.policy)
    phase = batch.phases["image"]
    latent = phase.observation["latent"].clone()
    latent[0] = torch.inf
    spoiled = replace(
        batch, phases={"image": replace(phase, observation={**phase.observation, "latent": latent})}
    )
    report = learn(learner, spoiled)
    assert report.skipped == [True, False]
    assert torch.isfinite(trainable(learner)).all()


def test_a_run_state_continues_bit_for_bit():
    learner = make_learner()
    first, second = play(learner.policy), play(learner.policy, seed=4)
    learn(learner, first)
    state = learner.run_state()
    assert {name.split("/")[0] for name in state} == {"policy", "optimizer"}
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
    learn(learner, second)
    resumed = make_learner()
    resumed.load_run_state(state)
    learn(resumed, second)
    assert torch.equal(trainable(resumed), trainable(learner))
    fresh = make_learner()
    fresh.load_run_state({name: t for name, t in state.items() if name.startswith("policy/")})
    learn(fresh, second)
    assert not torch.equal(trainable(fresh), trainable(learner)), "the optimizer's memory matters"


def test_a_run_state_of_another_policy_is_refused():
    state = make_learner(policy={"lora_rank": 4}).run_state()
    with pytest.raises(CheckpointError, match="lora"):
        make_learner(policy={"lora_rank": 8}).load_run_state(state)
    learner = make_learner()
    learn(learner, play(learner.policy))
    state = learner.run_state()
    del state[next(name for name in state if "exp_avg_sq" in name)]
    with pytest.raises(CheckpointError, match="exp_avg_sq"):
        make_learner().load_run_state(state)


def test_all_weights_can_be_trained_and_compared_with_the_untrained_ones():
    learner = make_learner(policy={"lora_rank": None}, reference_kl=0.1)
    batch = play(learner.policy)
    report = learn(learner, batch, check=("image",))
    assert report.phases["image"].metrics[0]["reference_kl"] == pytest.approx(0.0, abs=1e-9)
    assert report.phases["image"].metrics[1]["reference_kl"] > 0
    assert {name.split(".")[0] for name in learner.policy.get_state()} == {"inner", "outer"}


def test_the_optimizer_takes_the_learning_rate_of_the_iteration():
    weights = []
    for lr in (0.0, 1e-3, 1e-2):
        learner = make_learner()
        before = trainable(learner)
        learn(learner, play(learner.policy), lr=lr)
        weights.append((trainable(learner) - before).abs().max())
    assert weights[0] == 0 < weights[1] < weights[2]
