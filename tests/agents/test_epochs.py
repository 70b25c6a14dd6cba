"""Epochs and minibatches: the steps taken by hand, keyed shuffles, groups that stay whole, anchors."""

from dataclasses import replace

import pytest
import torch
from batches import advantages_of, play, shards_of, trainable
from test_learner import learn, make_learner
from test_shards import batch_of

import unirl_env.functional as F
from unirl_env.agents.batching import optimizer_steps, share_out
from unirl_env.agents.dealing import Work, spread
from unirl_env.agents.reports import Update
from unirl_env.errors import ShapeError

GROUP = torch.arange(8).repeat_interleave(6)


def steps_of(num_minibatches=4, num_epochs=3, shuffle=None, seed=1, group=GROUP):
    return optimizer_steps(
        group, num_minibatches=num_minibatches, num_epochs=num_epochs, shuffle=shuffle, seed=seed
    )


@pytest.mark.parametrize("shuffle", [None, "group", "episode"])
def test_every_epoch_is_a_pass_over_all_episodes(shuffle):
    steps = steps_of(shuffle=shuffle)
    assert len(steps) == 12 and all(len(step) == 12 for step in steps)
    for epoch in range(3):
        seen = torch.cat(steps[4 * epoch : 4 * epoch + 4])
        assert sorted(seen.tolist()) == list(range(48))
    assert all(step.tolist() == sorted(step.tolist()) for step in steps), "members of a group stay together"


def test_without_a_shuffle_minibatches_are_contiguous_and_the_same_in_every_epoch():
    assert [step.tolist() for step in steps_of()] == 3 * [list(range(12 * i, 12 * i + 12)) for i in range(4)]


def test_a_shuffle_by_group_cuts_none_and_pairs_them_anew():
    steps = steps_of(shuffle="group")
    pairs = [tuple(GROUP[step].unique().tolist()) for step in steps]
    assert all(len(pair) == 2 for pair in pairs)
    assert len({frozenset(pairs[4 * e : 4 * e + 4]) for e in range(3)}) == 3
    assert pairs[:4] != [(0, 1), (2, 3), (4, 5), (6, 7)], "the first epoch is shuffled, too"
    with pytest.raises(ShapeError, match=r"whole groups.*'episode'"):
        steps_of(num_minibatches=16, shuffle="group")
    with pytest.raises(ShapeError, match="5 minibatches, got 48"):
        steps_of(num_minibatches=5)


def test_a_shuffle_by_episode_mixes_groups():
    assert any(len(GROUP[step].unique()) > 4 for step in steps_of(shuffle="episode"))


@pytest.mark.parametrize("shuffle", ["group", "episode"])
def test_a_shuffle_follows_from_its_key(shuffle):
    torch.manual_seed(1)
    first = torch.stack(steps_of(shuffle=shuffle))
    torch.manual_seed(2)
    assert torch.equal(torch.stack(steps_of(shuffle=shuffle)), first)
    assert torch.equal(torch.stack(steps_of(shuffle=shuffle, num_epochs=1)), first[:4]), "epoch by epoch"
    assert not torch.equal(torch.stack(steps_of(shuffle=shuffle, seed=2)), first)


@pytest.mark.parametrize("learners", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [None, "group", "episode"])
def test_learners_split_every_step_evenly_and_hold_few_episodes_twice(learners, shuffle):
    steps = steps_of(shuffle=shuffle)
    alike = Work(torch.ones(48, dtype=torch.int64), torch.zeros(48, dtype=torch.int64), GROUP)
    shares = spread(steps, learners, alike)
    for number, step in enumerate(steps):
        parts = [share[number] for share in shares]
        assert {len(part) for part in parts} == {12 // learners}
        assert torch.cat(parts).sort().values.tolist() == step.tolist()
    held = sum(len(torch.cat(share).unique()) for share in shares)
    assert held == 48 if shuffle is None else 48 <= held <= 48 * 1.5


def test_an_episode_travels_once_whatever_the_number_of_epochs():
    batch = batch_of(groups=4, size=6)
    options = {"num_minibatches": 2, "num_epochs": 4, "shuffle": "episode", "seed": 5}
    for learners in (1, 2):
        shards = share_out(batch, {"image": torch.arange(24.0)}, num_learners=learners, **options)
        for shard in shards:
            seeds = shard.episode_seed.tolist()
            assert len(set(seeds)) == len(seeds) == len(shard.advantages["image"])
            assert shard.advantages["image"].tolist() == seeds, "advantages belong to their episodes"
            assert len(shard.phases["image"].context["point"]) == len(shard.group.unique())
            assert len(shard.steps) == len(shard.denominators) == 8
        for number, step in enumerate(
            optimizer_steps(batch.group, num_minibatches=2, num_epochs=4, shuffle="episode", seed=5)
        ):
            taken = torch.cat([shard.episode_seed[shard.steps[number]] for shard in shards])
            assert taken.sort().values.tolist() == step.tolist()


def test_denominators_count_the_step_that_they_divide():
    """Invalid episodes fall into other minibatches in every epoch."""
    batch = batch_of(groups=4, size=6, broken=(0, 1, 2, 3, 4))
    (shard,) = share_out(
        batch,
        {"image": torch.zeros(24)},
        num_minibatches=2,
        num_learners=0,
        num_epochs=3,
        shuffle="episode",
        seed=2,
    )
    valid = batch.scores.valid
    expected = [3.0 * int(valid[step].sum()) for step in shard.steps]
    assert [d["image"] for d in shard.denominators] == expected and len(set(expected)) > 1


@pytest.mark.parametrize("shuffle", [None, "episode"])
def test_two_epochs_are_the_steps_that_plain_torch_takes(shuffle):
    cut = {"num_minibatches": 2, "num_epochs": 2, "shuffle": shuffle, "seed": 3}
    settings = {"clip_low": 0.999, "clip_high": 1e6, "grad_clip": None, "policy": {"lora_rank": None}}
    learner, plain = make_learner("grpo", **settings), make_learner("grpo", **settings)
    batch = play(learner.policy)
    report = learn(learner, batch, lr=1e-2, **cut)
    assert len(report.grad_norm) == 4 and report.phases["image"].rows == [16 * 5] * 4

    phase, actor = batch.phases["image"], plain.policy.actor
    parameters = plain.get_parameters(plain.policy)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    order = steps_of(num_minibatches=2, num_epochs=2, shuffle=shuffle, seed=3, group=batch.group)
    for step, norm in zip(order, report.grad_norm, strict=True):
        new = actor.score(*phase.rows(step)).log_prob
        advantages = advantages_of(batch)[step].repeat_interleave(5)
        loss = -(advantages * (new - phase.log_prob[step].flatten()).exp()).mean()
        optimizer.zero_grad()
        loss.backward()
        assert norm == pytest.approx(
            float(torch.cat([p.grad.flatten() for p in parameters]).norm()), rel=1e-4
        )
        optimizer.step()
    torch.testing.assert_close(trainable(learner), trainable(plain), rtol=0, atol=2e-6)


def test_two_epochs_are_two_updates_against_the_policy_that_sampled():
    one, two = make_learner(), make_learner()
    batch = play(one.policy)
    whole, parts = learn(two, batch, num_epochs=2), [learn(one, batch), learn(one, batch)]
    assert torch.equal(trainable(one), trainable(two))
    assert whole.grad_norm == parts[0].grad_norm + parts[1].grad_norm and whole.skipped == [False] * 4
    of_whole, first, second = (report.phases["image"] for report in (whole, *parts))
    assert of_whole.metrics == first.metrics + second.metrics and of_whole.rows == first.rows + second.rows
    assert of_whole.gap == first.gap != second.gap, "the gap is that of before the first step"


@pytest.mark.parametrize("shuffle", [None, "group", "episode"])
@pytest.mark.parametrize("name", ["grpo", "flow_dppo"])
def test_a_replayed_anchor_is_taken_once_and_finds_ratio_one_bit_by_bit(name, shuffle):
    learner = make_learner(name, anchor="replay", micro_batch_size=5)
    batch = play(learner.policy)
    phase = replace(batch.phases["image"], log_prob=torch.zeros_like(batch.phases["image"].log_prob))
    report = learn(learner, replace(batch, phases={"image": phase}), num_epochs=2, shuffle=shuffle, seed=7)
    deviations = [metrics["ratio_max_deviation"] for metrics in report.phases["image"].metrics]
    assert deviations[0] == 0.0 and all(0 < deviation < 0.5 for deviation in deviations[1:])


def test_two_learners_replay_what_they_take_in_later_epochs(monkeypatch):
    """An episode that changes hands has an anchor of the old policy with both."""
    learner = make_learner("grpo", anchor="replay")
    batch = play(learner.policy)
    shards = shards_of(batch, num_learners=2, num_epochs=4, shuffle="episode", seed=1)
    assert sum(len(shard) for shard in shards) > len(batch)
    for shard in shards:
        report = Update()
        steps = learner._minibatches(shard, report)
        phase = shard.phases["image"]
        empty = replace(phase, log_prob=torch.full_like(phase.log_prob, torch.nan))
        spoiled = replace(shard, phases={"image": empty})
        found = learner._replayed(spoiled, steps, report).phases["image"].log_prob
        torch.testing.assert_close(found, phase.log_prob, rtol=0, atol=1e-5)


def test_the_key_of_an_iteration_is_its_own():
    seeds = {F.derive_seed(seed, "shuffle", iteration) for seed in range(4) for iteration in range(50)}
    assert len(seeds) == 200
