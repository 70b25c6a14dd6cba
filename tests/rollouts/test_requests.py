"""Requests: whole groups in contiguous shares, answered completely or not at all."""

from itertools import chain

import pytest
from ray.exceptions import RayActorError

from unirl_env.errors import ConfigError, ContractError, NoWeights, RunnerLost
from unirl_env.rollouts.calls import share_requests
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.types import Prompt


@pytest.mark.parametrize("shares", [0, 1, 2, 3, 5, 9])
def test_shares_join_to_the_whole(shares):
    prompts = [Prompt(text) for text in "abcba"]
    request = RolloutRequest(prompts, seed=1, group_size=4)
    (whole,), parts = request.share_out(0), request.share_out(shares)
    assert len(parts) == min(max(1, shares), 5) and all(part.prompts for part in parts)
    assert list(chain(*(part.prompts for part in parts))) == prompts == whole.prompts
    offsets = list(chain(*(part.sample_offset for part in parts)))
    assert offsets == [0, 0, 0, 4, 4] == whole.sample_offset
    starts = [part.first_group for part in parts]
    assert starts == [sum(len(p.prompts) for p in parts[:i]) for i in range(len(parts))]
    assert all(part.group_size == 4 and part.seed == 1 for part in parts)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("shares", [2, 3, 8])
def test_whoever_plays_together_plays_equally_many_groups_and_none_is_left_out(count, shares):
    prompts = [Prompt(str(n % 3)) for n in range(count)]  # some occur again, with further samples
    request = RolloutRequest(prompts, seed=3, group_size=2, first_group=5)
    wanted = {episode.group: episode for episode in request.episodes()}
    dealt = request.deal_alike(shares)
    assert len(dealt) == shares and {len(part.prompts) for part in dealt} == {-(-count // shares)}
    starts = [part.first_group for part in dealt]
    assert starts == sorted(starts)
    played = {episode.group: episode for part in dealt for episode in part.episodes()}
    assert played == wanted, "one that is played twice is the same"


def test_episodes_are_listed_group_by_group():
    prompts = [Prompt("a"), Prompt("b"), Prompt("a")]
    request = RolloutRequest(prompts, seed=0, group_size=2, first_group=5)
    episodes = request.episodes()
    assert [(e.prompt.id, e.sample, e.group) for e in episodes] == [
        ("a", 0, 5), ("a", 1, 5), ("b", 0, 6), ("b", 1, 6), ("a", 2, 7), ("a", 3, 7),
    ]  # fmt: skip
    assert [*chain(*(part.episodes() for part in request.share_out(2)))] == episodes


@pytest.mark.parametrize("prompts, size, offset", [([], 1, None), ([Prompt("a")], 0, None)])
def test_there_must_be_an_episode_to_play(prompts, size, offset):
    with pytest.raises(ConfigError, match="an episode at least"):
        RolloutRequest(prompts, seed=0, group_size=size, sample_offset=offset).episodes()


class FakeGroup:
    """Runners that answer with what they were asked, or die on the way."""

    local_env_runner = None

    def __init__(self, runners, dies=(), restarts=True, bare=()):
        self.healthy, self.dies, self.restarts = list(runners), list(dies), restarts
        self.bare = list(bare)
        self.rounds = []

    def num_remote_env_runners(self):
        return 2

    def healthy_env_runner_ids(self):
        return list(self.healthy)

    def foreach_env_runner(self, func, *, kwargs, local_env_runner, remote_worker_ids):
        assert func == ["attempt"] * len(kwargs) and not local_env_runner
        self.rounds.append(list(remote_worker_ids))
        answers = []
        for number, call in zip(remote_worker_ids, kwargs, strict=True):
            if number in self.dies:
                self.dies.remove(number)
                self.healthy.remove(number)
                if not self.restarts:
                    raise RayActorError()
            elif number in self.bare:
                answers.append((call["number"], NoWeights()))
            else:
                answers.append((call["number"], call["arguments"]["value"]))
        return answers


REQUESTS = [{"value": i} for i in range(2)]


def test_every_request_is_answered_in_order():
    assert share_requests(FakeGroup([1, 2]), "collect", REQUESTS, revive=list, renew=list) == [0, 1]
    group = FakeGroup([2])
    assert share_requests(group, "collect", REQUESTS, revive=list, renew=list) == [0, 1]
    assert group.rounds == [[2], [2]]


def test_a_lost_share_goes_to_another_runner():
    group = FakeGroup([1, 2], dies=[1])
    assert share_requests(group, "collect", REQUESTS, revive=list, renew=list) == [0, 1]
    assert group.rounds == [[1, 2], [2]]


def test_a_lost_share_waits_for_the_runner_that_comes_back():
    group = FakeGroup([1], dies=[1])
    revived = []

    def revive():
        revived.append(1)
        group.healthy.append(1)

    assert share_requests(group, "collect", REQUESTS, revive=revive, renew=list) == [0, 1]
    assert revived == [1]


@pytest.mark.parametrize("runners", [[1], [1, 2]])
def test_a_runner_that_has_restarted_unnoticed_is_given_weights(runners):
    group, renewed = FakeGroup(runners, bare=[1]), []

    def renew(numbers):
        renewed.extend(numbers)
        group.bare.clear()

    assert share_requests(group, "collect", REQUESTS, revive=list, renew=renew) == [0, 1]
    assert renewed == [1]


def test_one_that_restarts_again_and_again_ends_it():
    group = FakeGroup([1], bare=[1])
    with pytest.raises(RunnerLost, match="3 rounds"):
        share_requests(group, "collect", REQUESTS, revive=list, renew=list)


def test_runners_that_never_come_back_end_it():
    with pytest.raises(RunnerLost, match="3 rounds of `collect` without a single answer"):
        share_requests(FakeGroup([1], dies=[1]), "collect", REQUESTS, revive=list, renew=list)


def test_without_restarts_a_loss_ends_it():
    with pytest.raises(RunnerLost, match="restart_failed_env_runners"):
        share_requests(
            FakeGroup([1, 2], dies=[2], restarts=False), "collect", REQUESTS, revive=list, renew=list
        )


def test_an_error_inside_a_runner_is_that_error():
    group = FakeGroup([1, 2])
    with pytest.raises(ContractError, match="broken"):
        share_requests(group, "collect", [{"value": ContractError("broken")}], revive=list, renew=list)
