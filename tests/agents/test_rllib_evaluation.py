"""`evaluate()` and `config.evaluation(...)` as RLlib has them, and the names of results."""

import math

import pytest
from toy import POINTS, toy_config

from unirl_env.agents import FlowDPPOConfig, GRPOConfig, GSPOConfig
from unirl_env.errors import ConfigError, PromptError

OF_EPISODES = {
    "agent_episode_return_mean/default_agent",
    "episode_duration_sec_mean",
    "episode_len_max",
    "episode_len_mean",
    "episode_len_min",
    "episode_return_max",
    "episode_return_mean",
    "episode_return_min",
    "module_episode_return_mean/default_policy",
    "num_agent_steps_sampled/default_agent",
    "num_agent_steps_sampled_lifetime/default_agent",
    "num_env_steps_sampled",
    "num_env_steps_sampled_lifetime",
    "num_episodes",
    "num_episodes_lifetime",
    "num_module_steps_sampled/default_policy",
    "num_module_steps_sampled_lifetime/default_policy",
    "sample",
    "weights_seq_no",
}
"""What RLlib's PPO says of its runners and has a meaning here, but for throughput and connectors."""
OF_A_LEARNER = {
    "default_optimizer_learning_rate",
    "gradients_default_optimizer_global_norm",
    "num_module_steps_trained",
    "num_module_steps_trained_lifetime",
    "num_non_trainable_parameters",
    "num_trainable_parameters",
    "total_loss",
    "weights_seq_no",
}
EVERYWHERE = {
    "env_runner_group/actor_manager_num_outstanding_async_reqs",
    "fault_tolerance/num_healthy_workers",
    "learners/__all_modules__/num_env_steps_trained_lifetime",
    "learners/__all_modules__/num_module_steps_trained",
    "learners/__all_modules__/num_trainable_parameters",
    "num_env_steps_sampled_lifetime",
    "num_training_step_calls_per_iteration",
    "timers/env_runner_sampling_timer",
    "timers/learner_update_timer",
    "timers/restore_env_runners",
    "timers/synch_weights",
    "timers/training_iteration",
    "timers/training_step",
    "training_iteration",
}


def flat(result, prefix=""):
    found = {}
    for name, value in result.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def refused(**evaluation):
    config = toy_config(FlowDPPOConfig).evaluation(**evaluation)
    with pytest.raises((ConfigError, PromptError)) as caught:
        config.validate()
    return str(caught.value)


@pytest.fixture
def build(cluster):
    agents = []

    def build(config_class=FlowDPPOConfig, settings=(), **evaluation):
        config = toy_config(config_class, **dict(settings)).evaluation(**evaluation)
        agents.append(config.build_algo())
        return agents[-1]

    yield build
    for agent in agents:
        agent.stop()


@pytest.mark.ray
def test_a_result_has_the_names_that_rllibs_users_read(build):
    agent = build(evaluation_interval=2, evaluation_duration=6)
    first, second = flat(agent.train()), flat(agent.train())
    assert {f"env_runners/{name}" for name in OF_EPISODES} <= set(first)
    assert {f"learners/default_policy/{name}" for name in OF_A_LEARNER} <= set(first)
    assert EVERYWHERE <= set(first)
    assert not any(name.startswith("evaluation") for name in first)
    assert {f"evaluation/env_runners/{name}" for name in OF_EPISODES} <= set(second)
    assert all(math.isfinite(value) for value in second.values() if isinstance(value, float))

    runners = {name.removeprefix("env_runners/"): v for name, v in second.items() if "evaluation" not in name}
    batch = agent.last_batch
    assert runners["episode_return_mean"] == float(batch.rewards.mean())
    assert runners["episode_return_max"] == float(batch.rewards.max())
    assert runners["episode_return_min"] == float(batch.rewards.min())
    assert (runners["episode_len_mean"], runners["num_episodes"], runners["num_episodes_lifetime"]) == (
        6,
        32,
        64,
    )
    assert runners["num_env_steps_sampled"] == 32 * 6 and runners["num_env_steps_sampled_lifetime"] == 64 * 6
    assert second["num_env_steps_sampled_lifetime"] == 64 * 6
    assert second["learners/default_policy/total_loss"] == agent.iteration_metrics["loss"]
    assert second["learners/default_policy/num_module_steps_trained"] == 32 * 5
    assert second["learners/default_policy/num_trainable_parameters"] == 568
    assert second["evaluation/env_runners/num_episodes"] == 6
    assert second["evaluation/env_runners/num_env_steps_sampled"] == 36


@pytest.mark.ray
def test_an_evaluation_is_the_same_every_time_and_disturbs_nothing(build):
    agent, other = build(evaluation_duration=8), build()
    first, again = (agent.evaluate()["env_runners"]["episode_return_mean"] for _ in range(2))
    assert first == again
    seeded = build(evaluation_duration=8, evaluation_config={"seed": 5})
    assert seeded.evaluate()["env_runners"]["episode_return_mean"] != first
    agent.train()
    agent.evaluate()
    agent.train()
    other.train()
    other.train()
    assert agent.iteration_metrics["reward"] == other.iteration_metrics["reward"]
    assert agent.evaluate()["env_runners"]["episode_return_mean"] != first


@pytest.mark.ray
def test_what_is_evaluated_is_what_the_settings_say(build):
    few = {"prompts": ["1,0"], "group_size": 4, "env_config": {"num_steps": 3}}
    agent = build(evaluation_duration=8, evaluation_config=few)
    found = agent.evaluate()["env_runners"]
    assert (found["num_episodes"], found["num_env_steps_sampled"], found["episode_len_mean"]) == (8, 24, 3)
    asked = []
    collect = agent._collect
    agent._collect = lambda request: (
        asked.append((len(request.prompts), {p.text for p in request.prompts}, request.group_size))
        or collect(request)
    )
    agent.evaluate()
    assert asked == [(2, {"1,0"}, 4)]
    assert found["reward"] == found["episode_return_mean"] and found["reward/failed"] == 0


@pytest.mark.ray
@pytest.mark.parametrize(("steps", "episodes"), [(1, 1), (6, 1), (7, 2), (60, 10), (61, 11)])
def test_an_evaluation_may_last_a_number_of_steps(build, steps, episodes):
    agent = build(evaluation_duration=steps, evaluation_duration_unit="timesteps")
    found = agent.evaluate()["env_runners"]
    assert found["num_episodes"] == episodes and found["num_env_steps_sampled"] == 6 * episodes


@pytest.mark.ray
def test_an_evaluation_of_ones_own(build):
    def own(algorithm, runners):
        batch = algorithm.rollout_eval(list(algorithm.source)[:2], base=True)
        return {"base": float(batch.rewards.mean())}, 12, 12

    agent = build(custom_evaluation_function=own, evaluation_interval=1)
    assert agent.train()["evaluation"]["base"] < 0


def test_evaluation_makes_no_second_model():
    config = toy_config(FlowDPPOConfig).evaluation(evaluation_interval=1)
    config.validate()
    plain = toy_config(FlowDPPOConfig)
    asked, usual = (
        config.algo_class.default_resource_request(one.to_dict()).bundles for one in (config, plain)
    )
    assert asked == usual


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"evaluation_num_env_runners": 2}, "`evaluation_num_env_runners` must stay 0, got 2: .*num_env_run"),
        ({"evaluation_parallel_to_training": True}, "`evaluation_parallel_to_training` must stay False"),
        ({"evaluation_duration": "auto"}, "`evaluation_duration` must be a number, got 'auto'"),
        ({"evaluation_duration": 0}, "`evaluation_duration` must be at least 1, got 0"),
        ({"evaluation_duration": 2.5}, "`evaluation_duration` must be a whole number"),
        ({"evaluation_duration_unit": "hours"}, "must be 'episodes' or 'timesteps', got 'hours'"),
        ({"evaluation_interval": 1.5}, "`evaluation_interval` must be a whole number"),
        ({"evaluation_interval": -1}, "`evaluation_interval` must be at least 1, got -1"),
        ({"offline_evaluation_interval": 1}, "`offline_evaluation_interval` must stay None"),
        ({"evaluation_sample_timeout_s": 3}, "`evaluation_sample_timeout_s` must stay 120.0, got 3"),
        ({"evaluation_config": {"groupsize": 4}}, "got 'groupsize'.*did you mean 'group_size'"),
        ({"evaluation_config": {"lr": 1e-4}}, "got 'lr', which evaluation takes from training"),
        ({"evaluation_config": {"group_size": 3}}, r"divisible by .*3, got 10; try 12"),
        ({"evaluation_config": {"group_size": 0}}, "`group_size of evaluation_config` must be at least 1"),
        ({"evaluation_config": {"env_config": {"scorer": "clip"}}}, "must say `num_steps` alone"),
        ({"evaluation_config": {"policy": {"eta": 0.1}}}, "must say `eval_temperature` alone"),
        ({"evaluation_config": {"explore": True}}, "`explore` of `evaluation_config` must be False"),
        ({"evaluation_config": {"prompts": "no_such_set"}}, "no_such_set"),
    ],
)
def test_what_evaluation_cannot_do_is_refused_with_the_reason(settings, words):
    import re

    assert re.search(words, refused(**settings)), refused(**settings)


def test_texts_without_exploration_are_the_likeliest_ones():
    config = GSPOConfig().environment("unirl/TinyQwen3-Math-v0")
    for overrides, temperature in [
        ({"explore": False}, 0.0),
        ({"policy": {"eval_temperature": 0.3}}, 0.3),
        ({}, None),
    ]:
        one = config.copy(copy_frozen=False).evaluation(evaluation_config=overrides)
        one.validate()
        played = one.get_evaluation_config_object()
        assert played.policy.eval_temperature == temperature and played.in_evaluation
        assert played.get_evaluation_config_object() is None
        assert one.policy.eval_temperature is None, "training keeps its own"


def test_a_configuration_survives_a_dictionary():
    config = toy_config(GRPOConfig, clip_low=2e-2).evaluation(evaluation_interval=3, evaluation_duration=4)
    config.validate()
    again = GRPOConfig.from_dict(config.to_dict())
    again.validate()
    assert (again.clip_low, again.num_prompts, again.evaluation_interval) == (2e-2, 4, 3)
    assert again.prompt_source() == POINTS and again.policy == config.policy
