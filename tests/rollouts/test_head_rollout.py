"""Episodes that a head plays: keyed, ragged, and scored as they were drawn."""

import pytest
import torch
from mdp_cases import Throw, Walk, at_the_right_end, closeness
from plain_ring import Compass, RingVectorEnv, at_home

from unirl_env.agents.batching import share_out
from unirl_env.agents.kinds import KINDS
from unirl_env.envs import MDPVectorEnv
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ContractError
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.drivers import actions
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt
from unirl_env.wrappers.reward import RewardWrapper

CASES = {"walk": (Walk, ["1", "2", "3"], at_the_right_end), "throw": (Throw, ["1,0", "0,1"], closeness)}


def rollout(case="walk", *, batch_size=None, backend="torch", keep_reference=False, **options):
    kind, prompts, scorer = CASES[case]
    process = kind(rows_per_forward=4)

    def make_env(num_envs):
        how = {"array_backend": backend, "autoreset_mode": "disabled", **options}
        return RewardWrapper(MDPVectorEnv(process, num_envs=num_envs, prompts=prompts, **how), scorer)

    actor = Actor(process, keep_reference=keep_reference)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in actor.network.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return Rollout(make_env, actor, batch_size=batch_size), [Prompt(text) for text in prompts]


def fields(batch):
    phase = batch.phases["actions"]
    found = {**phase.observation, "action": phase.action, "log_prob": phase.log_prob, "mask": phase.mask}
    return {**found, "reward": batch.rewards, "seed": batch.episode_seed, "truncated": batch.truncated}


def equal(one, other):
    width = min(one.shape[1], other.shape[1]) if one.ndim > 1 else None
    return one.equal(other) if width is None else one[:, :width].equal(other[:, :width])


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("case", CASES)
def test_episodes_do_not_depend_on_how_they_are_batched(case, backend):
    play, prompts = rollout(case, backend=backend)
    whole = fields(play.collect(RolloutRequest(prompts, seed=7, group_size=5)))
    apart, _ = rollout(case, batch_size=2)
    parts = fields(apart.collect(RolloutRequest(prompts, seed=7, group_size=5)))
    for name, value in whole.items():
        assert value.equal(parts[name]), name
    # One prompt alone, as another runner would play it.
    alone = fields(
        play.collect(RolloutRequest(prompts[1:2], seed=7, group_size=5, sample_offset=[0], first_group=1))
    )
    for name, value in alone.items():
        assert equal(whole[name][5:10], value), name


@pytest.mark.parametrize("case", CASES)
def test_scoring_what_was_played_finds_what_was_recorded(case):
    play, prompts = rollout(case)
    batch = play.collect(RolloutRequest(prompts, seed=7, group_size=5))
    phase = batch.phases["actions"]
    (shard,) = share_out(batch, {"actions": torch.ones(len(batch))}, num_minibatches=1, num_learners=1)
    kind = KINDS[phase.kind]
    assert phase.kind == ("discrete" if case == "walk" else "continuous") and phase.ragged
    for lot in kind.micro_batches(phase, torch.arange(len(batch)), size=3, tokens=None):
        rows = kind.rows(shard, "actions", lot, 1.0)
        new = play.drivers["actions"].actor.score(rows.observation, rows.action)
        assert new.log_prob.equal(rows.old_log_prob) and new.log_prob.requires_grad
        assert rows.mask.all() and len(rows.mask) == int(phase.mask[lot].sum())
        assert rows.episode.unique().tolist() == lot.tolist()


def test_ragged_episodes_end_where_they_end():
    play, prompts = rollout()
    batch = play.collect(RolloutRequest(prompts, seed=7, group_size=5))
    phase, lengths = batch.phases["actions"], torch.stack([sample.latent[1] for sample in batch.samples])
    assert phase.mask.sum(1).equal(lengths.long()) and len(set(lengths.tolist())) > 2
    assert (phase.action[~phase.mask] == -1).all() and (phase.log_prob[~phase.mask] == 0).all()
    assert batch.rewards.equal(torch.stack([(s.latent[0] == 4).float() for s in batch.samples]))


def test_what_the_limit_ends_is_truncated():
    play, prompts = rollout(max_steps=2)
    batch = play.collect(RolloutRequest(prompts, seed=7, group_size=5))
    reached = torch.stack([(s.latent[0] % 4 == 0) for s in batch.samples])
    assert batch.truncated.equal(~reached) and batch.truncated.any() and reached.any()


def test_groups_that_begin_alike_and_other_seeds():
    play, prompts = rollout("throw")
    one = play.collect(RolloutRequest(prompts, seed=1, group_size=3))
    other = play.collect(RolloutRequest(prompts, seed=2, group_size=3))
    assert not set(one.episode_seed.tolist()) & set(other.episode_seed.tolist())
    assert one.group.tolist() == [0, 0, 0, 1, 1, 1]
    alike = play.collect(RolloutRequest(prompts, seed=1, group_size=3, same_noise=True))
    assert len(set(alike.episode_seed.tolist())) == 6


def test_the_likeliest_actions_and_the_untrained_model():
    play, prompts = rollout("throw", keep_reference=True)
    greedy = play.collect(RolloutRequest(prompts, seed=1, group_size=2, temperature=0))
    assert greedy.phases["actions"].mask.sum() == 4
    thrown = torch.stack([sample.latent for sample in greedy.samples])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    mean, _ = play.drivers["actions"].actor.network({"target": targets})
    assert torch.allclose(thrown, mean.clamp(-2, 2), atol=0.25)
    before = play.collect(RolloutRequest(prompts, seed=1, group_size=2, temperature=0, base=True))
    untrained = torch.stack([sample.latent for sample in before.samples])
    assert torch.allclose(untrained, torch.zeros(4, 2), atol=0.25) and not torch.allclose(thrown, untrained)


def test_an_environment_that_derives_from_nothing_of_ours():
    def make_env(num_envs):
        return RewardWrapper(
            RingVectorEnv(num_envs=num_envs, prompts=["0", "3"], autoreset_mode="disabled"), at_home
        )

    play = Rollout(make_env, Actor(Compass()))
    batch = play.collect(RolloutRequest([Prompt("0"), Prompt("3")], seed=0, group_size=4))
    assert isinstance(batch, EpisodeBatch) and len(batch) == 8
    assert batch.phases["actions"].action.shape == (8, 4)
    ends = torch.stack([sample.latent[0] for sample in batch.samples])
    assert batch.rewards.equal((ends == torch.tensor([0] * 4 + [3] * 4)).float())


def test_an_episode_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(actions, "ENDLESS", 3)
    play, prompts = rollout(max_steps=9)
    play.drivers["actions"].actor.network.logits.weight.data.zero_()
    with pytest.raises(ContractError, match=r"Episodes must end, got \d+ that did not in 3 steps"):
        play.collect(RolloutRequest(prompts, seed=0, group_size=8))
