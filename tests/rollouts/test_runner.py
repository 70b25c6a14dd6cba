"""The env runner, one at a time and without a cluster."""

from types import SimpleNamespace

import pytest
import torch
from toy import POINTS, toy_config

from unirl_env.agents import FlowDPPOConfig
from unirl_env.errors import CheckpointError, ContractError, NoWeights, StaleWeights
from unirl_env.prompts.sources import PromptSource
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.runner import GenerativeEnvRunner


def make_runner(worker_index=1, runners=1, **settings):
    config = toy_config(FlowDPPOConfig, **settings).env_runners(num_env_runners=runners)
    config.validate()
    return GenerativeEnvRunner(config=config, worker_index=worker_index)


def collect(runner, count=4, **options):
    prompts = list(PromptSource.of(POINTS))[:count]
    return runner.collect(
        RolloutRequest(prompts, **{"seed": 1, "weights_version": 0, "group_size": 8, **options})
    )


def test_a_rollout_of_whole_groups():
    runner = make_runner()
    runner.assert_healthy()
    batch = collect(runner, first_group=3, stochastic_steps=(0, 2), keep_mean=True)
    assert batch.group.tolist() == [3 + i // 8 for i in range(32)]
    assert batch.phases["image"].action.shape == (32, 2, 2) == batch.phases["image"].mean.shape
    assert batch.scores.valid.all() and len(batch.samples) == 32
    runner.stop()


def test_stale_weights_are_refused():
    runner = make_runner()
    with pytest.raises(NoWeights, match="Runner 1 must act with weights of version 2, got version 0"):
        collect(runner, weights_version=2)
    runner.load_weights(2, runner.module.get_state())
    assert collect(runner, weights_version=2).weights_version == 2
    with pytest.raises(StaleWeights, match="version 3, got version 2") as told:
        collect(runner, weights_version=3)
    assert not isinstance(told.value, NoWeights), "it has missed a publication, and has not restarted"


def test_published_weights_change_what_is_played():
    runner = make_runner()
    before = collect(runner)
    runner.load_weights(1, {name: t + 0.2 for name, t in runner.module.get_state().items()})
    after = collect(runner, weights_version=1)
    assert not torch.equal(before.rewards, after.rewards)
    assert torch.equal(collect(runner, weights_version=1, base=True).rewards, before.rewards)


def halves(runner, change=0.2):
    """All weights, changed, in two parts."""
    weights = {name: tensor + change for name, tensor in runner.module.get_state().items()}
    names = sorted(weights)
    return [{name: weights[name] for name in part} for part in (names[::2], names[1::2])]


def test_a_version_is_complete_with_its_last_part_and_there_is_none_before():
    runner, other = make_runner(), make_runner()
    first, second = halves(runner)
    other.load_weights(1, first | second)
    runner.load_weights(1, first, part=0, parts=2)
    for version in (0, 1):
        with pytest.raises(NoWeights, match=f"of version {version}, got a part of a version; publish"):
            collect(runner, weights_version=version)
    runner.load_weights(1, second, part=1, parts=2)
    assert torch.equal(collect(runner, weights_version=1).rewards, collect(other, weights_version=1).rewards)


def test_a_part_out_of_turn_is_no_version_and_the_next_publication_is():
    runner = make_runner()
    first, second = halves(runner)
    with pytest.raises(NoWeights, match=r"Runner 1 must be given all parts of version 1 .* got part 2 of 2"):
        runner.load_weights(1, second, part=1, parts=2)  # it has started again after the first part
    assert collect(runner).weights_version == 0, "nothing was changed"
    runner.load_weights(1, first, part=0, parts=2)
    with pytest.raises(NoWeights, match="all parts of version 2"):
        runner.load_weights(2, second, part=1, parts=2)
    for part, weights in enumerate((first, second)):
        runner.load_weights(2, weights, part=part, parts=2)
    assert collect(runner, weights_version=2).weights_version == 2


def test_a_publication_that_fails_half_way_leaves_no_version(monkeypatch):
    runner = make_runner()
    first, second = halves(runner)
    runner.load_weights(1, first, part=0, parts=2)
    with pytest.raises(CheckpointError, match="no such weight"):
        runner.load_weights(1, {"unknown": torch.zeros(1)}, part=1, parts=2)
    with pytest.raises(NoWeights, match="a part of a version"):
        collect(runner, weights_version=0)
    runner.load_weights(1, second, part=1, parts=2)
    assert collect(runner, weights_version=1).weights_version == 1
    # An engine beside the policy that takes over nothing: the weights before are gone, too.
    with monkeypatch.context() as patched:
        patched.setattr(runner, "_player", lambda: SimpleNamespace(load_weights=lambda version: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            runner.load_weights(2, first | second)
    with pytest.raises(NoWeights, match="a part of a version"):
        collect(runner, weights_version=1)


def test_an_attempt_returns_errors_as_themselves():
    runner = make_runner()
    number, error = runner.attempt(5, "collect", {"request": RolloutRequest([], seed=0, weights_version=9)})
    assert number == 5 and isinstance(error, StaleWeights)
    assert "require_version" in error.__notes__[0], "where it happened is not lost"
    number, spaces = runner.attempt(6, "get_spaces", {})
    assert number == 6 and "default_policy" in spaces


def test_the_drivers_runner_stays_empty_beside_remote_ones():
    runner = make_runner(worker_index=0, runners=2)
    runner.assert_healthy()
    assert runner.env is None and runner.module is None and runner.get_spaces() == {}
    runner.set_state({"rl_module": {"default_policy": {}}})
    assert "rl_module" not in runner.get_state()
    with pytest.raises(ContractError, match="remote runners"):
        collect(runner)


def test_the_drivers_runner_waits_for_the_learners_module():
    runner, other = make_runner(worker_index=0, runners=0), make_runner()
    assert runner.shares_module and runner.module is None
    with pytest.raises(ContractError, match="adopt"):
        collect(runner)
    runner.adopt(other.module)
    assert torch.equal(collect(runner).rewards, collect(other).rewards)


def test_other_numbers_of_episodes_and_steps_share_the_frozen_half():
    runner = make_runner()
    world, made = runner.world, []
    runner.world = SimpleNamespace(env=lambda *args: made.append(world.env(*args)) or made[-1])
    collect(runner)
    assert made == [], "the environment of the runner's share was there"
    collect(runner, count=3, num_steps=4, stochastic_steps=())
    collect(runner, count=3, num_steps=4, stochastic_steps=())
    assert len(made) == 1, "and every other one is built once"
    assert made[0].num_envs == 24 and made[0].unwrapped.num_steps == 4
    assert made[0].unwrapped.denoiser is world.model and made[0].scorer is runner.env.scorer


def test_states_hold_weights_and_version():
    runner, other = make_runner(), make_runner()
    runner.load_weights(4, {name: t + 0.2 for name, t in runner.module.get_state().items()})
    state = runner.get_state()
    other.set_state(state)
    assert other.weights_version == 4
    assert torch.equal(collect(other, weights_version=4).rewards, collect(runner, weights_version=4).rewards)
    assert "rl_module" not in runner.get_state(not_components="rl_module")
    # As RLlib's own synchronization sends them.
    other.set_state({"rl_module": {"default_policy": make_runner().module.get_state()}})
    assert torch.equal(collect(other, weights_version=4).rewards, collect(make_runner()).rewards)


def test_sampling_without_instructions_plays_the_environments_prompts():
    runner = make_runner(num_prompts=2)
    first, second = runner.sample(), runner.sample()
    assert len(first) == len(second) == 16
    assert {p.text for p in first.prompts} | {p.text for p in second.prompts} == set(POINTS)


def test_the_spaces_are_the_environments():
    runner = make_runner()
    spaces = runner.get_spaces()
    assert spaces["default_policy"] == (
        runner.env.single_observation_space,
        runner.env.single_action_space,
    )


def test_chunks_are_the_same_episodes():
    whole, chunks = collect(make_runner()), collect(make_runner(rollout_batch_size=5))
    assert torch.equal(whole.episode_seed, chunks.episode_seed)
    torch.testing.assert_close(whole.rewards, chunks.rewards)
    assert whole.group.tolist() == chunks.group.tolist()


def test_every_rollout_starts_groups_as_the_settings_say():
    def starts(**settings):
        batch = make_runner(steps={"kind": "all"}, **settings).sample()
        first = batch.phases["image"].observation["latent"][:, 0]
        return len(first.unique(dim=0))

    assert starts(same_noise=True) == 4 and starts() == 32
