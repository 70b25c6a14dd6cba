"""Who takes which episodes: learners that are done at the same time, and none without work."""

from dataclasses import replace

import pytest
import torch
from one_learner import OneLearner
from test_shards import batch_of
from test_texts import config_of

from unirl_env.agents.batching import optimizer_steps, share_out
from unirl_env.agents.dealing import EVEN, Work, spread, work_of
from unirl_env.agents.reference import reference_kls
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.types import Scores

SIZE = 8


def texts(groups, prompts=0, seed=0, most=16_384):
    """Log-normal lengths whose mean is about 4000, of groups that are long or short together."""
    generator = torch.Generator().manual_seed(seed)
    count = groups * SIZE
    logs = torch.randn(count, generator=generator) * 0.7
    logs += (torch.randn(groups, generator=generator) * 0.7).repeat_interleave(SIZE)
    own = (2500 * logs.exp()).clamp(1, most).long()
    return Work(own, torch.full((count,), prompts), torch.arange(groups).repeat_interleave(SIZE))


def loads(shares, work, step=0):
    return torch.tensor([work.of(share[step].tolist()) for share in shares], dtype=torch.float64)


def uneven(found):
    return float(found.max() / found.mean())


@pytest.mark.parametrize(("learners", "groups"), [(8, 12), (8, 96), (64, 96), (64, 768), (512, 768)])
def test_the_busiest_learner_has_hardly_more_than_the_mean(learners, groups):
    """12 or 96 episodes of each learner, in one optimizer step."""
    work = texts(groups)
    step = torch.arange(groups * SIZE)
    assert uneven(work.own.view(learners, -1).sum(1).double()) > 1.2, "shares in order are not even"
    shares = spread([step], learners, work)
    assert uneven(loads(shares, work)) <= EVEN
    assert torch.cat([share[0] for share in shares]).sort().values.tolist() == step.tolist()
    again = spread([step], learners, work)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(shares, again, strict=True))


def test_every_optimizer_step_is_even_and_episodes_travel_little():
    work = texts(64)
    steps = optimizer_steps(work.group, num_minibatches=4, num_epochs=4, shuffle="episode", seed=1)
    shares = spread(steps, 8, work)
    for number, step in enumerate(steps):
        assert uneven(loads(shares, work, number)) <= EVEN
        assert torch.cat([share[number] for share in shares]).sort().values.tolist() == step.tolist()
    held = sum(len(torch.cat(share).unique()) for share in shares)
    assert held <= 2.5 * 512, "of 4 times"
    same = spread(optimizer_steps(work.group, num_minibatches=4, num_epochs=4), 8, work)
    assert sum(len(torch.cat(share).unique()) for share in same) == 512, "the same step is dealt alike"


def test_where_all_cost_about_the_same_they_stay_in_order():
    work = texts(4)
    alike = replace(work, own=torch.full((32,), 100))
    alike.own[7] = 80
    shares = spread([torch.arange(32)], 4, alike)
    assert [share[0].tolist() for share in shares] == torch.arange(32).view(4, 8).tolist()


def test_groups_stay_together_where_that_is_even_enough():
    """A prompt is read by each learner that has an episode of it."""
    work = texts(64, prompts=300)
    shares = spread([torch.arange(512)], 4, work)
    assert uneven(loads(shares, work)) <= EVEN
    assert sum(len(work.group[share[0]].unique()) for share in shares) == 64


def test_long_prompts_are_not_read_by_everybody():
    work = replace(texts(16, prompts=20_000, most=400), own=texts(16, most=400).own)
    found = loads(spread([torch.arange(128)], 8, work), work)
    assert found.max() < 2 * 20_000 + SIZE * 2 * 400 + 1, "two prompts each"


@pytest.mark.parametrize("prompts", [0, 5_000])
@pytest.mark.parametrize("learners", [2, 3, 8])
def test_nobody_has_nothing_while_another_has_two(learners, prompts):
    for own in ([10_000, *[1] * 23], [5, 5, 5, *[0] * 21], [1000] * 2 + [0] * 22):
        group = torch.arange(3).repeat_interleave(8)
        work = Work(torch.tensor(own), torch.full((24,), prompts), group)
        steps = optimizer_steps(group, num_minibatches=1, num_epochs=3)
        shares = spread([*steps, *optimizer_steps(group, num_minibatches=1, num_epochs=1)], learners, work)
        assert all(len(part) for share in shares for part in share)


def test_latents_leave_their_groups_for_nothing():
    """They are kept by groups, and would be fetched by everybody who has one."""
    work = replace(texts(3), own=torch.tensor([3] * 8 + [1] * 16), apart=False)
    for share in spread([torch.arange(24)], 2, work):
        assert all(int((work.group[share[0]] == group).sum()) in (0, 4, 8) for group in range(3))


def tokens_of(batch, lengths, prompts):
    """The batch with texts of so many tokens in place of its latents."""
    wide = max(lengths)
    there = torch.arange(wide) < torch.tensor(lengths)[:, None]
    phase = Phase(
        observation={},
        action=torch.where(there, 5, -1),
        log_prob=torch.where(there, -0.5, 0.0),
        mask=there.clone(),
        context={"prompt": torch.zeros(len(prompts), max(prompts)), "prompt_length": torch.tensor(prompts)},
        context_row=batch.group,
        ragged=True,
    )
    return replace(batch, phases={**batch.phases, "text": phase})


def test_work_is_what_is_read():
    batch = tokens_of(batch_of(groups=2, size=2), [3, 9, 1, 4], [5, 6])
    batch.phases["text"].mask[0, :2] = False  # the world's words are read, too
    batch.phases["text"].mask[3] = False  # a failed score
    text, both = work_of({"text": batch.phases["text"]}, batch.group), work_of(batch.phases, batch.group)
    assert text.own.tolist() == [2, 8, 0, 0] and text.shared.tolist() == [5, 5, 6, 0] and text.apart
    assert (both.own - text.own).tolist() == [6] * 4 and not both.apart, "3 steps of 2 numbers"
    assert text.of([0, 1, 2]) == 2 + 8 + 5 + 6
    light = {name: phase.light() for name, phase in batch.phases.items()}
    seen = work_of(light, batch.group)
    assert torch.equal(seen.own, both.own) and torch.equal(seen.shared, both.shared)


def test_shares_follow_the_work_and_know_their_places():
    lengths = [40, 1, 1, 1, 1, 1, 1, 2] * 3
    batch = tokens_of(batch_of(), lengths, [3] * 4)
    batch = EpisodeBatch(**{**vars(batch), "phases": {"text": batch.phases["text"]}})
    advantages = {"text": torch.arange(24.0)}
    (whole,) = share_out(batch, advantages, num_minibatches=1, num_learners=1)
    shards = share_out(batch, advantages, num_minibatches=1, num_learners=3)
    assert whole.places.tolist() == list(range(24))
    for shard in shards:
        assert torch.equal(shard.episode_seed, batch.episode_seed[shard.places])
        assert torch.equal(shard.advantages["text"], advantages["text"][shard.places])
        assert shard.denominators == whole.denominators
        assert 45 <= int(shard.phases["text"].mask.sum()) <= 51
    assert torch.cat([shard.places for shard in shards]).sort().values.tolist() == list(range(24))


def test_what_learners_pass_over_is_no_work():
    lengths, advantages = [10] * 24, torch.ones(24)
    advantages[:12] = 0.0
    batch = tokens_of(batch_of(), lengths, [1] * 4)
    batch = EpisodeBatch(**{**vars(batch), "phases": {"text": batch.phases["text"]}})
    for passed, expected in (((), [0, 6]), (("text",), [3, 3])):
        shards = share_out(batch, {"text": advantages}, num_minibatches=1, num_learners=4, passed_over=passed)
        busy = [int((shard.advantages["text"] != 0).sum()) for shard in shards]
        assert sorted({min(busy), max(busy)}) == sorted(set(expected))


def test_who_takes_what_changes_no_gradient(monkeypatch):
    """Of texts: the sum of the learners' gradients, and what each step paid, wherever episodes went."""
    work = replace(texts(4), group=torch.arange(32))
    monkeypatch.setattr("unirl_env.agents.batching.work_of", lambda phases, group: work)
    one = OneLearner(config_of(num_minibatches=1, grad_clip=None, micro_batch_tokens=60))
    batch = one.play()
    batch = replace(batch, scores=Scores(torch.arange(32.0)))
    (whole,), shards = one.shards(batch), one.shards(batch, learners=2)
    order = torch.cat([shard.places for shard in shards])
    assert order.tolist() != list(range(32)), "episodes left their order"

    def gradient(shard):
        one.update(shard, lr=0.0)
        return torch.cat([p.grad.flatten().clone() for p in one.network.parameters() if p.grad is not None])

    total = sum(gradient(shard) for shard in shards)
    torch.testing.assert_close(total, gradient(whole), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        for weight in one.network.parameters():
            weight.mul_(1.01)
    paid = torch.cat([reference_kls(one.learner, shard)["text"] for shard in shards])[order.argsort()]
    torch.testing.assert_close(paid, reference_kls(one.learner, whole)["text"], rtol=1e-4, atol=1e-5)
