"""Several processes: the same curve and weights, and no run that goes on with less than it asked for."""

from contextlib import contextmanager

import pytest
import ray
import torch
from test_stored import assert_same
from toy import POINTS, toy_config

from unirl_env.agents import FlowDPPOConfig, GRPOConfig
from unirl_env.errors import RunnerLost, SelfCheckError, StaleWeights
from unirl_env.prompts.sources import PromptSource

pytestmark = [pytest.mark.ray, pytest.mark.slow]


# Every process imports its libraries anew, which takes longer than its work: few are started here, and most
# train all weights, which spares them peft.
ALL_WEIGHTS = {"policy": {"lora_rank": None}}


@pytest.fixture
def build(cluster):
    agents = []

    def build(runners=0, learners=0, config_class=FlowDPPOConfig, restart=False, **settings):
        config = (
            toy_config(config_class, **{**ALL_WEIGHTS, **settings})
            .env_runners(num_env_runners=runners)
            .learners(num_learners=learners)
            .fault_tolerance(restart_failed_env_runners=restart, delay_between_env_runner_restarts_s=0.0)
        )
        agents.append(config.build_algo())
        return agents[-1]

    yield build
    for agent in agents:
        agent.stop()


def train(agent, iterations=3):
    curve = []
    for _ in range(iterations):
        agent.train()
        metrics = agent.iteration_metrics
        curve.append([metrics[name] for name in ("reward", "loss", "grad_norm", "kl", "ratio_max_deviation")])
    return torch.tensor(curve)


def weights(agent):
    return {name: t for name, t in agent.run_state()[0].items() if name.startswith("policy/")}


@contextmanager
def whole_and_shared(config_of, players, atol):
    """An agent of one process, and one of two learners that share its network: alike after two iterations.

    Args:
        config_of: The configuration for a number of learners; 0 is one process.
        players: Env runners of the second.
        atol: How far their weights may lie apart.
    """
    agents = []
    try:
        for learners in (0, 2):
            config = config_of(learners).learners(num_learners=learners)
            agents.append(config.env_runners(num_env_runners=players if learners else 0).build_algo())
        whole, shared = agents
        assert_same_curve(train(shared, 2), train(whole, 2))
        for name in ("trained_rows", "scored_rows", "episodes"):
            assert shared.iteration_metrics[name] == whole.iteration_metrics[name], "each counts once"
        state = shared.run_state()[0]
        for name, tensor in weights(whole).items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=atol)
        yield whole, shared
        whole.load_run_state(*shared.run_state())
        shared.load_run_state(*whole.run_state())
        assert_same(shared.run_state()[0], state)
    finally:
        for agent in agents:
            agent.stop()


def assert_same_curve(curve, expected):
    torch.testing.assert_close(curve, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("processes", "rank"), [(1, 8), (2, None)])
def test_the_curve_does_not_depend_on_the_number_of_processes(build, processes, rank):
    # Episodes change hands between learners in the second epoch.
    epochs = {"num_epochs": 2, "shuffle_batch_per_epoch": "episode"} if processes > 1 else {}
    settings = {"policy": {"lora_rank": rank}, **epochs}
    local, agent = build(**settings), build(processes, processes, **settings)
    assert_same_curve(train(agent), train(local))
    expected = weights(local)
    for name, tensor in weights(agent).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4)
    metrics = agent.iteration_metrics
    assert metrics["weights_version"] == 3 and metrics["sync_bytes"] > 0
    assert len(agent.last_batch.samples) == 32

    points = list(PromptSource.of(POINTS))[:3]
    for base in (False, True):
        mine, theirs = (a.rollout_eval(points, samples_per_prompt=3, base=base) for a in (agent, local))
        torch.testing.assert_close(mine.rewards, theirs.rewards, rtol=1e-3, atol=1e-4)
        assert mine.group.tolist() == theirs.group.tolist()

    state = agent.run_state()
    other = build(**settings)
    other.load_run_state(*state)
    agent.load_run_state(*state)
    assert_same_curve(train(other, 1), train(agent, 1))

    agent.weights_version += 1
    with pytest.raises(StaleWeights, match="version 5, got version 4"):
        agent.train()
    agent.weights_version -= 1

    # Restarts are off: a run must not go on with fewer episodes than it asked for.
    kill(agent, processes, no_restart=True)
    with pytest.raises(RunnerLost, match="restart_failed_env_runners"):
        agent.train()


def test_learners_stop_together_and_where_one_would(build):
    """Beside it, a schedule and another optimizer, whose state goes from two learners to one."""
    settings = {
        "stop_kl": 2e-3,
        "num_epochs": 4,
        "shuffle_batch_per_epoch": "episode",
        "optimizer": "torch.optim:RMSprop",
        "optimizer_options": {"momentum": 0.5},
        "lr_schedule": "cosine",
        "lr_iterations": 5,
        "lr": 1e-3,
    }
    local, agent = build(**settings), build(0, 2, **settings)
    for _ in range(2):
        local.train()
        agent.train()
        mine, theirs = agent.iteration_metrics, local.iteration_metrics
        assert mine["stopped_steps"] == theirs["stopped_steps"] > 0
        assert mine["stop_kl"] == pytest.approx(theirs["stop_kl"], rel=1e-3)
        assert mine["trained_rows"] == theirs["trained_rows"] and mine["lr"] == theirs["lr"]
    for name, tensor in weights(agent).items():
        torch.testing.assert_close(tensor, weights(local)[name], rtol=0, atol=1e-4)
    state = agent.run_state()
    local.load_run_state(*state)
    agent.load_run_state(*state)
    local.train()
    agent.train()
    assert agent.iteration_metrics["loss"] == pytest.approx(
        local.iteration_metrics["loss"], rel=1e-3, abs=1e-5
    )


def test_a_killed_runners_share_is_played_by_another(build):
    local, agent = build(), build(runners=2, restart=True)
    assert_same_curve(train(agent, 1), train(local, 1))
    kill(agent, 1, no_restart=False)
    assert_same_curve(train(agent, 2), train(local, 2))
    assert agent.iteration_metrics["episodes"] == 32


def test_a_learner_that_fails_stops_all_of_them_and_names_the_cause(build):
    agent = build(learners=2, config_class=GRPOConfig)
    collect = agent.env_runner_group.local_env_runner.collect

    def tampered(*args, **kwargs):
        batch = collect(*args, **kwargs)
        batch.phases["image"].log_prob[9] += 1e-3  # the second learner's part of the first minibatch
        return batch

    agent.env_runner_group.local_env_runner.collect = tampered
    with pytest.raises(SelfCheckError, match="ratio"):
        agent.train()


def kill(agent, number, no_restart):
    runners = agent.env_runner_group.foreach_env_runner(
        lambda runner: (runner.worker_index, ray.get_runtime_context().current_actor),
        local_env_runner=False,
    )
    ray.kill(dict(runners)[number], no_restart=no_restart)
