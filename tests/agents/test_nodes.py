"""Players and learners on nodes of their own, and what becomes of a run when a process or a node dies."""

import logging
import time

import cluster as one_cluster
import pytest
import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from simulated_nodes import Holding, Nodes
from toy import toy_config

from unirl_env.agents import GRPOConfig
from unirl_env.errors import LearnerLost, RunnerLost

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

ITERATIONS = 8
SECONDS = 20
"""Within which a run must have stopped. Ray needs a few to see that a process or a node is gone."""


@pytest.fixture(scope="module")
def nodes():
    before = ray.is_initialized()
    ray.shutdown()
    with Nodes() as nodes:
        nodes.add("left", player=1)
        nodes.add("right", player=1)
        nodes.add("learners", learner=2)
        yield nodes
    if before:
        one_cluster.start()


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return Holding(tmp_path_factory.mktemp("held"))


@pytest.fixture
def build(nodes, scorer):
    agents = []

    def build(players=0, learners=0, parallel="replicated"):
        config = toy_config(
            GRPOConfig, policy={"lora_rank": None}, learner={"parallel": parallel}, num_minibatches=1
        )
        config.environment(env_config={"scorer": scorer})
        config.env_runners(
            num_env_runners=players,
            num_cpus_per_env_runner=0,
            custom_resources_per_env_runner={"player": 1} if players else {},
        )
        config.learners(
            num_learners=learners,
            num_cpus_per_learner=0,
            custom_resources_per_learner={"learner": 1} if learners else {},
        )
        config.fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=0.0)
        agents.append(config.build_algo())
        return agents[-1]

    yield build
    for agent in agents:
        agent.stop()


def iteration(agent):
    """Two numbers of an iteration, and which episodes it had: prompts, keys of their noise, groups."""
    agent.train()
    metrics, batch = agent.iteration_metrics, agent.last_batch
    texts = [prompt.text for prompt in batch.prompts]
    return (metrics["reward"], metrics["loss"]), (texts, batch.episode_seed.tolist(), batch.group.tolist())


@pytest.fixture
def same(build):
    """`same(agent)`: an iteration of `agent` is that of one process that nothing disturbs."""
    alone = build()
    undisturbed = []
    for _ in range(ITERATIONS):
        undisturbed.append(iteration(alone))
        _, (_, keys, _) = undisturbed[-1]
        assert len(set(keys)) == 32

    def same(agent):
        numbers, episodes = undisturbed[agent.iterations_done]
        found, played = iteration(agent)
        assert played == episodes
        torch.testing.assert_close(torch.tensor(found), torch.tensor(numbers), rtol=0, atol=1e-5)

    return same


def players_at(agent):
    """The runners that live: their nodes, and their processes' handles."""
    found = agent.env_runner_group.foreach_env_runner(
        lambda runner: (
            runner.worker_index,
            ray.get_runtime_context().get_node_id(),
            ray.get_runtime_context().current_actor,
        ),
        local_env_runner=False,
    )
    return {number: (node, actor) for number, node, actor in found}


def learners_at(agent):
    found = agent.learner_group.foreach_learner(lambda learner: ray.get_runtime_context().get_node_id())
    return [result.get() for result in found]


def stops(agent, **names):
    """The agent's next iteration is an error, in time."""
    began = time.monotonic()
    with pytest.raises(**names) as told:
        agent.train()
    assert time.monotonic() - began < SECONDS
    return told.value


def says_who_is_left(agent, living, tmp_path):
    """Every later call names the learners' death."""
    for call in (
        agent.train,
        agent.get_weights,
        lambda: agent.save_to_path(str(tmp_path / "checkpoint")),
        lambda: agent.drift(agent.source.take(0, 4, seed=0)),
    ):
        began = time.monotonic()
        with pytest.raises(LearnerLost, match=f"All 2 learners must live, got {living}"):
            call()
        assert time.monotonic() - began < 2


def restarted(actor):
    """Kill an actor's process, and wait until Ray has started another one."""
    ray.kill(actor, no_restart=False)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        time.sleep(1)
        try:
            return ray.get(actor.ping.remote(), timeout=60)
        except RayActorError:
            continue
    raise TimeoutError


def test_a_run_goes_on_while_a_player_is_left(nodes, scorer, build, same, caplog):
    agent = build(2, 2, "sharded")
    both = {nodes.id_of("left"), nodes.id_of("right")}
    assert {node for node, _ in players_at(agent).values()} == both
    assert set(learners_at(agent)) == {nodes.id_of("learners")}
    same(agent)

    # A node of players dies while it plays, and its player fits nowhere else.
    nodes.kill_at_play("left", scorer)
    same(agent)
    assert len(players_at(agent)) == 1
    began = time.monotonic()
    assert agent.restore_env_runners(agent.env_runner_group) == []
    assert time.monotonic() - began < agent.config.env_runner_health_probe_timeout_s + 0.5
    began = time.monotonic()
    same(agent)
    spent = sum(agent.iteration_metrics[f"seconds/{part}"] for part in ("rollout", "update", "sync"))
    assert time.monotonic() - began - spent < 2

    # There is room again: the player comes back, and plays by the present weights.
    nodes.add("left", player=1)
    end = time.monotonic() + 120
    while len(players_at(agent)) < 2 and time.monotonic() < end:
        agent.restore_env_runners(agent.env_runner_group)
    same(agent)
    assert {node for node, _ in players_at(agent).values()} == {nodes.id_of("left"), nodes.id_of("right")}

    # A player dies and starts again before anybody asks it for something.
    restarted(players_at(agent)[1][1])
    same(agent)
    assert len(players_at(agent)) == 2

    # A node dies when it has played, and nobody has fetched its episodes.
    update, gone = agent._update, []

    def late(*arguments):
        if not gone:
            gone.append(nodes.kill("left"))
        return update(*arguments)

    agent._update = late
    with caplog.at_level(logging.WARNING):
        same(agent)
    del agent._update
    assert "they are played again" in caplog.text

    # None is left, until one has started again.
    ((_, last),) = players_at(agent).values()
    ray.kill(last, no_restart=False)
    same(agent)
    assert "All runners have died; waiting up to 300 s" in caplog.text
    nodes.add("left", player=1)


@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
def test_a_run_stops_where_the_learners_node_dies(nodes, build, same, tmp_path, parallel):
    agent = build(0, 2, parallel)
    same(agent)
    state = agent.run_state()
    nodes.kill("learners")
    if parallel == "replicated":  # one of them would be asked to write
        began = time.monotonic()
        with pytest.raises(LearnerLost):
            agent.save_to_path(str(tmp_path / "without_weights"))
        assert time.monotonic() - began < SECONDS
        says_who_is_left(agent, "1", tmp_path)
    else:
        stops(agent, expected_exception=LearnerLost, match="A learner died during a rollout")
        says_who_is_left(agent, "none", tmp_path)
    resumed = build()
    resumed.load_run_state(*state)
    same(resumed)
    nodes.add("learners", learner=2)


def test_a_run_stops_with_the_cause_where_a_learner_dies_or_raises(build, same, tmp_path):
    agent = build(2, 2)
    same(agent)
    same(agent)
    state, _ = agent.run_state()
    checkpoint = agent.save_to_path(str(tmp_path / "before"))
    found = agent.learner_group.foreach_learner(lambda learner: ray.get_runtime_context().current_actor)
    first, collect = next(iter(found)).get(), agent._collect
    agent._collect = lambda request: (ray.kill(first), collect(request))[1]
    stops(agent, expected_exception=LearnerLost, match="A learner died during an update")
    says_who_is_left(agent, "1", tmp_path)
    del agent._collect
    kept, meta = agent.run_state()  # the other one has the same weights
    resumed = build()
    resumed.restore_from_path(checkpoint)
    for name, tensor in state.items():
        assert torch.equal(kept[name], tensor)
        assert torch.equal(resumed.run_state()[0][name], tensor)
    agent.stop()

    divided = build(0, 2, "sharded")
    divided.load_run_state(kept, meta)
    same(divided)
    state = divided.run_state()

    def broken(learner):
        def fail(*arguments):
            raise MemoryError("a learner of two")

        if dist.get_rank() == 1:
            learner._minibatches = fail

    divided.learner_group.foreach_learner(broken)
    error = stops(divided, expected_exception=MemoryError, match="a learner of two")
    assert any("Learner 1 failed by this during an update" in note for note in error.__notes__)
    says_who_is_left(divided, "none", tmp_path)
    resumed = build()
    resumed.load_run_state(*state)
    same(resumed)


def test_without_any_player_a_run_ends_in_time(build):
    agent = build()
    vars(agent.config)["env_runner_restore_timeout_s"] = 0.5
    agent.restore_env_runners = lambda group: []
    began = time.monotonic()
    with pytest.raises(RunnerLost, match=r"got none: all 0 have died, and none started again within 0.5 s"):
        agent._await_env_runner()
    assert time.monotonic() - began < 2
