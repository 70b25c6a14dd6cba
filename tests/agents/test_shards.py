"""Sharing out: every episode once, global denominators, one copy of a shared context."""

from dataclasses import replace

import pytest
import torch

from unirl_env.agents.batching import share_out
from unirl_env.agents.kinds import by_episodes, episodes_at_once
from unirl_env.agents.rows import latent_rows
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.errors import ShapeError
from unirl_env.types import Prompt, Scores


def batch_of(groups=4, size=6, steps=3, broken=()):
    count = groups * size
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(count, generator=generator)
    value[list(broken)] = torch.nan
    latent = torch.randn(count, steps, 2, generator=generator)
    phase = Phase(
        observation={"latent": latent, "sigma": torch.full((count, steps), 0.5)},
        action=latent + 1,
        log_prob=torch.arange(count * steps, dtype=torch.float32).view(count, steps),
        mask=torch.ones(count, steps, dtype=torch.bool),
        context={"point": torch.arange(groups, dtype=torch.float32)[:, None]},
        context_row=torch.arange(groups).repeat_interleave(size),
    )
    return EpisodeBatch(
        phases={"image": phase},
        scores=Scores(value),
        group=torch.arange(groups).repeat_interleave(size),
        prompts=tuple(Prompt(str(i // size)) for i in range(count)),
        episode_seed=torch.arange(count),
    )


@pytest.mark.parametrize("learners", [0, 1, 2, 3])
def test_every_episode_goes_to_one_learner_and_one_minibatch(learners):
    batch = batch_of()
    shards = share_out(batch, {"image": torch.arange(24.0)}, num_minibatches=2, num_learners=learners)
    assert len(shards) == max(1, learners)
    for number in range(2):
        seen = torch.cat([s.episode_seed[s.steps[number]] for s in shards])
        assert seen.tolist() == list(range(12 * number, 12 * number + 12))
        assert all(s.denominators[number] == {"image": 36.0} for s in shards)
    advantages = torch.cat([shard.advantages["image"] for shard in shards])
    assert sorted(advantages.tolist()) == list(range(24))


def test_an_uneven_share_is_refused():
    with pytest.raises(ShapeError, match="24"):
        share_out(batch_of(), {"image": torch.zeros(24)}, num_minibatches=5, num_learners=1)


def test_a_shared_context_travels_once_and_belongs_to_its_rows():
    shards = share_out(batch_of(), {"image": torch.zeros(24)}, num_minibatches=1, num_learners=2)
    for shard, expected in zip(shards, ([0, 1], [2, 3]), strict=True):
        phase = shard.phases["image"]
        assert phase.context["point"].flatten().tolist() == expected
        rows = latent_rows(shard, "image", torch.tensor([0, 11]), 1.0)
        assert rows.observation["point"].flatten().tolist() == expected
        assert rows.observation["context_row"].tolist() == [0] * 3 + [1] * 3


def test_invalid_scores_leave_mask_and_denominator():
    batch = batch_of(broken=(0, 7, 13))
    (shard,) = share_out(batch, {"image": torch.zeros(24)}, num_minibatches=2, num_learners=0)
    mask = shard.phases["image"].mask
    assert torch.nonzero(~mask.any(1)).flatten().tolist() == [0, 7, 13]
    assert [d["image"] for d in shard.denominators] == [30.0, 33.0]
    assert batch.phases["image"].mask.all(), "the rollout's own batch stays as it is"


@pytest.mark.parametrize("learners", [1, 2])
def test_idle_episodes_may_be_left_out_of_denominators_that_count_all_learners(learners):
    advantages = torch.ones(24)
    advantages[[1, 2, 9, 20]] = 0.0
    batch = batch_of(broken=(0, 1))
    for choice, expected in (("count", [30.0, 36.0]), ("leave_out", [24.0, 33.0])):
        shards = share_out(
            batch, {"image": advantages}, num_minibatches=2, num_learners=learners, idle_episodes=choice
        )
        assert all([d["image"] for d in shard.denominators] == expected for shard in shards)
        kept = sum(int(shard.phases["image"].mask.sum()) for shard in shards)
        assert kept == sum(expected), "what is divided by is what is left"
    assert batch.phases["image"].mask.all()


def test_a_phase_has_a_validity_of_its_own():
    valid = torch.ones(24, dtype=torch.bool)
    valid[3] = False
    (shard,) = share_out(
        batch_of(broken=(0,)), {"image": torch.zeros(24)}, {"image": valid}, num_minibatches=1, num_learners=0
    )
    assert torch.nonzero(~shard.phases["image"].mask.any(1)).flatten().tolist() == [0, 3]


def test_a_phase_without_advantages_stays_behind():
    (shard,) = share_out(batch_of(), {}, num_minibatches=1, num_learners=0)
    assert not shard.phases and not shard.advantages


def test_rows_are_the_episodes_steps_in_order():
    (shard,) = share_out(batch_of(), {"image": torch.arange(24.0)}, num_minibatches=1, num_learners=1)
    phase = shard.phases["image"]
    rows = latent_rows(shard, "image", torch.tensor([2, 5]), 7.0)
    assert rows.episode.tolist() == [2, 2, 2, 5, 5, 5] and rows.step.tolist() == [0, 1, 2] * 2
    assert rows.weight.tolist() == [1.0] * 6
    assert rows.old_log_prob.tolist() == [6, 7, 8, 15, 16, 17]
    assert rows.advantages.tolist() == [2, 2, 2, 5, 5, 5]
    torch.testing.assert_close(rows.observation["latent"], phase.observation["latent"][[2, 5]].flatten(0, 1))
    assert rows.denominator == 7.0 and rows.old_mean is None


def test_micro_batches_hold_whole_episodes():
    phase = batch_of(groups=2, size=4, steps=2).phases["image"]
    busy = torch.tensor([2, 3, 6, 7])
    assert [part.tolist() for part in by_episodes(phase, busy, size=2, tokens=None)] == [[2, 3], [6, 7]]
    assert [part.tolist() for part in by_episodes(phase, busy, size=None, tokens=None)] == [[2, 3, 6, 7]]
    assert by_episodes(phase, busy[:0], size=2, tokens=None) == []


def test_samples_prompts_and_scores_stay_behind():
    (shard,) = share_out(batch_of(), {"image": torch.zeros(24)}, num_minibatches=1, num_learners=1)
    assert not {"batch", "samples", "prompts", "scores"} & vars(shard).keys()


@pytest.mark.parametrize(("forwards", "episodes"), [(1, 32), (2, 16)])
def test_auto_is_a_rule_of_sizes(forwards, episodes):
    phase = Phase(
        observation={},
        action=torch.zeros(3, 4, 4, 8, 8),
        log_prob=torch.zeros(3, 4),
        mask=torch.ones(3, 4, dtype=torch.bool),
    )
    assert episodes_at_once(phase, "cpu", forwards=forwards) == episodes
    assert episodes_at_once(phase, "cuda", forwards=forwards) is None
    huge = replace(phase, action=torch.zeros(3, 4, 16, 64, 64))
    assert episodes_at_once(huge, "cpu", forwards=forwards) == 1
