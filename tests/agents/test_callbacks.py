"""RLlib's callbacks on agents: called where episodes are played, and what they log reaches the result."""

import math
from functools import partial

import pytest
import torch
from callback_cases import Diary
from ray.rllib.callbacks.callbacks import RLlibCallback
from toy import POINTS, toy_config

from unirl_env.agents import Agent, FlowDPPOConfig, GRPOConfig
from unirl_env.errors import ConfigError
from unirl_env.rollouts.callbacks import PlayedEpisode, RunnerCallbacks
from unirl_env.types import Prompt

pytestmark = pytest.mark.ray


@pytest.fixture
def build(cluster):
    agents = []

    def build(*callbacks, settings=(), **functions):
        config = toy_config(FlowDPPOConfig, **dict(settings)).callbacks(*callbacks, **functions)
        agents.append(config.build_algo())
        return agents[-1]

    yield build
    for agent in agents:
        agent.stop()


def test_a_class_of_callbacks_is_told_of_everything_in_its_order(build):
    Diary.lines = []
    agent = build(Diary)
    result = agent.train()
    found = agent.evaluate()
    assert Diary.lines == [
        ("environment", 32, 0),
        ("init", 0),
        ("samples", 32, False),
        ("evaluate", 1),
        ("samples", 10, True),
    ]
    told = result["env_runners"]
    assert told["trained"] == 32 and "evaluated" not in told
    assert told["mine"]["return"] == pytest.approx(agent.iteration_metrics["reward"], rel=1e-5)
    assert result["mine"] == told["mine"]["return"]
    assert found["env_runners"]["evaluated"] == 10
    assert found["twice"] == 2 * found["env_runners"]["episode_return_mean"]
    assert agent.train()["env_runners"]["trained"] == 32, "what was logged once is not told twice"


def test_an_episode_answers_what_is_asked_of_it(build):
    seen = []
    agent = build(on_sample_end=lambda *, samples, **kwargs: seen.extend(samples))
    agent.train()
    batch = agent.last_batch
    assert len(seen) == 32 and all(isinstance(episode, PlayedEpisode) for episode in seen)
    assert [episode.get_return() for episode in seen] == batch.rewards.tolist()
    assert [episode.prompt for episode in seen] == list(batch.prompts)
    assert [episode.group for episode in seen] == batch.group.tolist()
    assert len({episode.id_ for episode in seen}) == 32
    episode = seen[3]
    assert len(episode) == episode.env_steps() == episode.agent_steps() == 6
    assert episode.get_rewards() == [0.0] * 5 + [episode.get_return()]
    assert episode.is_terminated and episode.is_done and episode.is_valid and not episode.is_truncated
    assert torch.equal(episode.phases["image"].action[0], batch.phases["image"].action[3])
    assert torch.equal(episode.sample.latent, batch.samples[3].latent)
    assert episode.get_duration_s() > 0
    with pytest.raises(AttributeError, match=r"no `get_observations`; it has .*phases"):
        episode.get_observations()


def test_an_unjudgeable_episode_says_so(build):
    seen = []
    prompts = [*POINTS[:3], {"prompt": POINTS[3], "metadata": {"broken": True}}]
    agent = build(settings={"prompts": prompts}, on_episode_end=lambda *, episode, **_: seen.append(episode))
    agent.train()
    broken = [episode for episode in seen if not episode.is_valid]
    assert len(broken) == 8 and all(math.isnan(episode.get_return()) for episode in broken)


def test_callbacks_may_come_as_lists_and_partials(build):
    count = []

    class Counts(RLlibCallback):
        def __init__(self, step):
            super().__init__()
            self.step = step

        def on_sample_end(self, *, samples, **kwargs):
            count.append(self.step * len(samples))

    agent = build(
        [partial(Counts, 1), partial(Counts, 2)],
        on_sample_end=[lambda **kwargs: count.append("one"), lambda **kwargs: count.append("two")],
    )
    agent.train()
    assert count == [32, 64, "one", "two"]


def test_an_algorithm_is_finished_when_it_is_told_to_be(build):
    found = []

    def use(*, algorithm, metrics_logger, **kwargs):
        found.append(algorithm.rollout_eval([Prompt("1,0")]).rewards)
        algorithm.load_run_state(*state)

    first = build()
    first.train()
    state = first.run_state()
    agent = build(on_algorithm_init=use)
    assert len(found) == 1 and agent.iterations_done == agent.training_iteration == 1
    agent.train()
    first.train()
    assert agent.iteration_metrics["reward"] == first.iteration_metrics["reward"]


def test_callbacks_change_no_number(build):
    plain, watched = build(), build(Diary)
    for _ in range(2):
        plain.train()
        watched.train()
    assert plain.iteration_metrics["reward"] == watched.iteration_metrics["reward"]
    assert plain.iteration_metrics["grad_norm"] == watched.iteration_metrics["grad_norm"]


def test_measuring_by_hand_calls_nobody(build):
    Diary.lines = []
    agent = build(Diary)
    agent.rollout_eval([Prompt("1,0")])
    assert not any(line[0] == "samples" for line in Diary.lines)


class EveryStep(RLlibCallback):
    def on_episode_step(self, *, episode, **kwargs):
        raise AssertionError


@pytest.mark.parametrize(
    "callbacks",
    [
        lambda config: config.callbacks(EveryStep),
        lambda config: config.callbacks(partial(EveryStep)),
        lambda config: config.callbacks([RLlibCallback, EveryStep]),
        lambda config: config.callbacks(on_episode_step=print),
    ],
)
def test_a_callback_that_would_never_come_is_refused(callbacks):
    config = callbacks(toy_config(GRPOConfig, clip_low=2e-2))
    with pytest.raises(ConfigError, match=r"on_episode_step.*try `on_episode_end`"):
        config.validate()


def test_who_watches_results_only_costs_runners_nothing():
    class Watches(RLlibCallback):
        def on_train_result(self, **kwargs):
            pass

    assert not RunnerCallbacks(toy_config(GRPOConfig).callbacks(Watches)).wanted
    assert not RunnerCallbacks(toy_config(GRPOConfig).callbacks(partial(Watches))).wanted
    assert RunnerCallbacks(toy_config(GRPOConfig).callbacks(Diary)).wanted
    assert RunnerCallbacks(toy_config(GRPOConfig).callbacks(on_sample_end=print)).wanted


def test_an_error_in_a_callback_is_the_users_own(build):
    def wrong(**kwargs):
        raise KeyError("mine")

    agent = build(on_episode_end=wrong)
    with pytest.raises(KeyError, match="mine"):
        agent.train()


@pytest.mark.slow
def test_callbacks_are_called_in_every_runner(cluster):
    config = toy_config(FlowDPPOConfig, policy={"lora_rank": None}).callbacks(Diary)
    agent: Agent = config.env_runners(num_env_runners=2).build_algo()
    try:
        result = agent.train()
        assert result["env_runners"]["trained"] == 32
        mean = result["env_runners"]["mine"]["return"]
        assert mean == pytest.approx(agent.iteration_metrics["reward"], rel=1e-4)
        assert agent.evaluate()["env_runners"]["evaluated"] == 10
        assert agent.train()["env_runners"]["trained"] == 32
    finally:
        agent.stop()
