"""The agents in one process: they learn, resume bit for bit, and refuse what cannot work."""

import json
import math

import pytest
import torch
from toy import POINTS, toy_config

from unirl_env.agents import GRPO, Agent, DRPOConfig, FlowDPPO, FlowDPPOConfig, GRPOConfig
from unirl_env.errors import CheckpointError, ContractError, SelfCheckError
from unirl_env.prompts.sources import PromptSource
from unirl_env.types import Prompt

pytestmark = pytest.mark.ray

CONFIGS = {
    "grpo": (GRPOConfig, {"clip_low": 2e-2}),
    "flow_dppo": (FlowDPPOConfig, {"kl_threshold": 1e-3}),
    "drpo": (DRPOConfig, {}),
}


@pytest.fixture
def build(cluster):
    agents = []

    def build(name="flow_dppo", **settings):
        config_class, knobs = CONFIGS[name]
        agents.append(toy_config(config_class, **{**knobs, **settings}).build_algo())
        return agents[-1]

    yield build
    for agent in agents:
        agent.stop()


def train(agent, iterations):
    curve = []
    for _ in range(iterations):
        agent.train()
        curve.append(agent.iteration_metrics["reward"])
    return curve


@pytest.mark.parametrize("name", CONFIGS)
def test_every_agent_learns_the_toy(build, name):
    agent = build(name, group_size=16, lr=1e-2)
    curve = train(agent, 20)
    assert curve[0] < -2.0
    assert max(curve[-3:]) > -0.3
    points = list(PromptSource.of(POINTS))
    trained = agent.rollout_eval(points, samples_per_prompt=8, seed=5)
    base = agent.rollout_eval(points, samples_per_prompt=8, seed=5, base=True)
    assert trained.rewards.mean() > base.rewards.mean() + 1.0


def test_an_iteration_reports_its_numbers(build):
    agent = build(self_check=True)
    result = agent.train()
    metrics = agent.iteration_metrics
    assert {
        "reward",
        "reward_std",
        "reward/failed",
        "zero_std_groups",
        "advantage_max",
        "ratio_max_deviation",
        "kl",
        "masked_fraction",
        "loss",
        "grad_norm",
        "lr",
        "episodes_per_second",
        "seconds/rollout",
        "seconds/update",
        "seconds/sync",
        "sync_bytes",
        "weights_version",
        "episodes",
        "noise_floor/log_prob",
        "noise_floor/kl",
    } <= set(metrics)
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert metrics["episodes"] == 32 and metrics["weights_version"] == 1
    assert metrics["noise_floor/kl"] <= 1e-9
    assert result["training_iteration"] == 1
    assert result["env_runners"]["episode_return_mean"] == metrics["reward"]
    assert result["learners"]["default_policy"]["grad_norm"] == metrics["grad_norm"]
    agent.train()
    assert "noise_floor/kl" not in agent.iteration_metrics, "only the first update is checked"


def test_the_last_batch_is_kept_with_its_samples(build):
    agent = build()
    agent.train()
    batch = agent.last_batch
    assert len(batch) == 32 and len(batch.samples) == 32
    assert batch.group.tolist() == [i // 8 for i in range(32)]
    assert {prompt.text for prompt in batch.prompts} == set(POINTS)
    assert all(torch.isfinite(sample.latent).all() for sample in batch.samples)
    bare = build(keep_samples=False)
    bare.train()
    assert bare.last_batch.samples is None


def test_everything_follows_from_the_seed(build):
    torch.manual_seed(1)
    curve = train(build(seed=3), 3)
    torch.manual_seed(2)
    assert train(build(seed=3), 3) == curve
    assert train(build(seed=4), 3) != curve


def test_each_iteration_has_prompts_and_noise_of_its_own(build):
    agent = build(num_prompts=2)
    seen = []
    for _ in range(2):
        agent.train()
        seen.append(agent.last_batch)
    assert {p.text for p in seen[0].prompts} | {p.text for p in seen[1].prompts} == set(POINTS)
    assert not set(seen[0].episode_seed.tolist()) & set(seen[1].episode_seed.tolist())


def test_a_prompt_that_occurs_twice_gets_noise_of_its_own(build):
    agent = build(num_prompts=6, group_size=4)
    agent.train()
    seeds = agent.last_batch.episode_seed.tolist()
    assert len(set(seeds)) == len(seeds) == 24
    assert agent.last_batch.group.unique().numel() == 6


def test_a_rollout_in_chunks_is_the_same_rollout(build):
    assert train(build(), 2) == pytest.approx(train(build(rollout_batch_size=5), 2), abs=1e-5)


EPOCHS = {"num_epochs": 2, "shuffle_batch_per_epoch": "episode"}


@pytest.mark.parametrize(("name", "epochs"), [*((name, {}) for name in CONFIGS), ("grpo", EPOCHS)])
def test_a_run_resumes_bit_for_bit(build, name, epochs):
    agent = build(name, seed=2, warmup_iterations=3, **epochs)
    train(agent, 2)
    tensors, meta = agent.run_state()
    meta = json.loads(json.dumps(meta))
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    expected = train(agent, 3)
    other = build(name, seed=2, warmup_iterations=3, **epochs)
    train(other, 1)
    other.load_run_state(tensors, meta)
    assert train(other, 3) == expected
    assert other.training_iteration == 5
    assert other.iteration_metrics["weights_version"] == 5
    mine, theirs = agent.run_state()[0], other.run_state()[0]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_resumed_run_is_checked_again_and_logs_what_it_would_have_logged(build):
    agent = build()
    train(agent, 2)
    state = agent.run_state()
    agent.train()
    other = build()
    other.load_run_state(*state)
    assert not other.first_update.found
    other.train()
    assert other.first_update.found["self_check/ratio"] <= 1e-6 and not other.first_update.pending
    mine, theirs = (
        {name: value for name, value in a.iteration_metrics.items() if "second" not in name}
        for a in (agent, other)
    )
    assert theirs == mine


def test_a_phase_stays_unchecked_until_there_is_something_to_compare(build):
    agent = build("grpo")
    runner = agent.env_runner_group.local_env_runner
    collect, broken = runner.collect, True

    def alike(*args, **kwargs):
        batch = collect(*args, **kwargs)
        if broken:
            batch.scores.value.fill_(0.5)
        return batch

    runner.collect = alike
    agent.train()
    assert agent.first_update.pending == {"image"} and "self_check/ratio" not in agent.iteration_metrics
    assert agent.run_state()[1]["checked"] == []
    broken = False
    agent.train()
    assert not agent.first_update.pending and agent.iteration_metrics["self_check/ratio"] <= 1e-6
    assert agent.run_state()[1]["checked"] == ["image"]


def test_every_optimizer_step_of_every_epoch_counts(build):
    agent = build("grpo", num_epochs=3, num_minibatches=4, shuffle_batch_per_epoch="group")
    agent.train()
    assert agent.iteration_metrics["trained_rows"] == 3 * 32 * 5
    learner = agent.learner_group._learner
    learner._gradient.clip = lambda norm: torch.tensor(math.nan)
    with pytest.raises(ContractError, match="every optimizer step"):
        agent.train()


def test_a_state_of_another_agent_is_refused(build):
    tensors, meta = build("grpo").run_state()
    with pytest.raises(CheckpointError, match=r"drpo, got one of grpo"):
        build("drpo").load_run_state(tensors, meta)


def test_rllibs_own_checkpoint_continues(build, tmp_path):
    agent = build("grpo")
    train(agent, 2)
    path = agent.save_to_path(str(tmp_path / "checkpoint"))
    expected = train(agent, 2)
    restored = GRPO.from_checkpoint(path)
    try:
        assert type(restored) is GRPO and restored.training_iteration == 2
        assert train(restored, 2) == expected
        other = build("grpo")
        other.restore_from_path(path)
        assert train(other, 2) == expected
    finally:
        restored.stop()


def test_evaluation_is_the_same_every_time_and_disturbs_nothing(build):
    agent = build()
    points = [Prompt("1,0"), Prompt("0,1"), Prompt("1,0")]
    first = agent.rollout_eval(points, samples_per_prompt=2, seed=1)
    assert torch.equal(first.rewards, agent.rollout_eval(points, samples_per_prompt=2, seed=1).rewards)
    assert not torch.equal(first.rewards, agent.rollout_eval(points, samples_per_prompt=2, seed=2).rewards)
    assert first.group.tolist() == [0, 0, 1, 1, 2, 2] and not first.phases
    assert len(set(first.episode_seed.tolist())) == 6, "the repeated prompt has noise of its own"
    assert not torch.equal(
        first.rewards, agent.rollout_eval(points, samples_per_prompt=2, seed=1, num_steps=3).rewards
    )
    assert agent.rollout_eval(points, keep_samples=False).samples is None
    expected = train(build(), 2)
    agent.train()
    agent.rollout_eval(points, num_steps=3)
    agent.train()
    assert agent.iteration_metrics["reward"] == expected[-1]


def test_the_base_stays_what_it_was(build):
    agent = build(lr=2e-2)
    points = list(PromptSource.of(POINTS))
    before = agent.rollout_eval(points, seed=1, base=True)
    assert torch.equal(agent.rollout_eval(points, seed=1).rewards, before.rewards)
    train(agent, 2)
    assert torch.equal(agent.rollout_eval(points, seed=1, base=True).rewards, before.rewards)
    assert not torch.equal(agent.rollout_eval(points, seed=1).rewards, before.rewards)


def test_invalid_scores_are_counted_and_left_out(build):
    prompts = [*POINTS[:3], {"prompt": POINTS[3], "metadata": {"broken": True}}]
    agent = build(prompts=prompts)
    agent.train()
    assert agent.iteration_metrics["reward/failed"] == 8
    assert math.isfinite(agent.iteration_metrics["reward"])
    assert agent.iteration_metrics["trained_rows"] == (16 + 8) * 5


def test_a_policy_that_disagrees_with_its_rollout_stops_the_run(build):
    agent = build()
    runner = agent.env_runner_group.local_env_runner
    collect = runner.collect

    def tampered(*args, **kwargs):
        batch = collect(*args, **kwargs)
        batch.phases["image"].log_prob.add_(1e-3)
        return batch

    runner.collect = tampered
    with pytest.raises(SelfCheckError, match="self_check_tolerance"):
        agent.train()


def test_thresholds_under_the_noise_floor_are_told(build, caplog):
    agent = build("flow_dppo", kl_threshold=1e-30, policy={"lora_rank": 8, "storage_dtype": "bfloat16"})
    agent.train()
    floor = agent.iteration_metrics["noise_floor/kl"]
    assert ("kl_threshold" in caplog.text) == (floor > 1e-30)


def test_latents_in_half_precision_keep_ratio_one(build):
    agent = build("grpo", policy={"lora_rank": 8, "storage_dtype": "bfloat16"})
    agent.train()
    assert agent.last_batch.phases["image"].action.dtype == torch.bfloat16
    assert agent.iteration_metrics["self_check/ratio"] <= 1e-6


def test_the_agents_belong_to_their_configurations():
    assert FlowDPPOConfig().algo_class is FlowDPPO
    assert type(FlowDPPO.get_default_config()) is FlowDPPOConfig
    assert issubclass(GRPO, Agent)
