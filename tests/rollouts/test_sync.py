"""Publications by buckets: what is in flight is bounded, and who cannot go on is left out."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import RayActorError

from unirl_env.errors import NoWeights, RunnerLost
from unirl_env.rollouts import sync
from unirl_env.rollouts.sync import WeightSync

STATE = {f"layer.{n}": torch.full((64 if n != 3 else 1000,), float(n)) for n in range(9)}
SIZE = sum(tensor.nbytes for tensor in STATE.values())


class OneLearner:
    is_remote = False

    def foreach_learner(self, function):
        learner = SimpleNamespace(policy=SimpleNamespace(actor=SimpleNamespace(state=lambda: STATE)))
        answer = function(learner)
        return [SimpleNamespace(ok=True, get=lambda: answer)]


class Players:
    """Of whom each does with a part what it was made with."""

    local_env_runner = None

    def __init__(self, *players):
        self.players = dict(enumerate(players, 1))

    def num_remote_env_runners(self):
        return len(self.players)

    def healthy_env_runner_ids(self):
        return list(self.players)

    def foreach_env_runner(self, methods, *, kwargs, remote_worker_ids, **options):
        calls = zip(remote_worker_ids, kwargs, strict=True)
        answers = [(number, self.players[number](**call["arguments"])) for number, call in calls]
        return [each for each in answers if each[1] != "died"]


class Player:
    def __init__(self):
        self.weights, self.parts = {}, []

    def __call__(self, version, weights, part, parts):
        self.parts.append((version, part, parts))
        self.weights |= {name: tensor.clone() for name, tensor in weights.tensors().items()}


@pytest.fixture
def in_flight(monkeypatch):
    """The most bytes that lay in the store at once, and the largest bucket."""
    living, found = weakref.WeakSet(), SimpleNamespace(most=0, largest=0)

    class Memory:
        def __init__(self, bucket):
            self.tensors, self.size = bucket.tensors, bucket.memory.nbytes

    def put(bucket):
        memory = Memory(bucket)
        living.add(memory)
        found.most = max(found.most, sum(each.size for each in living))
        found.largest = max(found.largest, memory.size)
        return memory

    monkeypatch.setattr(sync.ray, "put", put)
    return found


def publish(players, limit, version=3):
    made = WeightSync(OneLearner(), Players(*players))
    made.bucket_bytes = limit
    return made.publish(version)


@pytest.mark.parametrize(("limit", "buckets"), [(600, 6), (1, 9), (1 << 20, 1)])
def test_every_player_gets_all_of_it_and_one_bucket_is_in_flight(in_flight, limit, buckets):
    players = Player(), Player()
    report = publish(players, limit)
    assert (report.size, report.buckets, report.version) == (SIZE, buckets, 3)
    assert in_flight.most == in_flight.largest == (SIZE if buckets == 1 else 4000)
    for player in players:
        assert player.parts == [(3, part, buckets) for part in range(buckets)]
        assert player.weights.keys() == STATE.keys()
        assert all(torch.equal(player.weights[name], tensor) for name, tensor in STATE.items())


def test_one_that_dies_or_starts_again_on_the_way_is_left_out(in_flight):
    class Fails(Player):
        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def __call__(self, version, weights, part, parts):
            super().__call__(version, weights, part, parts)
            return self.answer if part == 1 else None

    lives, dies, fresh = Player(), Fails("died"), Fails(NoWeights("started again"))
    assert publish([dies, lives, fresh], 600).size == SIZE
    assert len(lives.parts) == 6 and len(dies.parts) == len(fresh.parts) == 2
    dies = Fails("died")
    publish([dies], 600)
    assert len(dies.parts) == 2, "and nobody gathers weights for nobody"


def test_an_error_in_loading_is_raised_as_itself(in_flight):
    with pytest.raises(ZeroDivisionError):
        publish([Player(), lambda **arguments: ZeroDivisionError()], 600)

    def dies(**arguments):
        raise RayActorError

    with pytest.raises(RunnerLost, match="died during `load_weights`"):
        publish([dies], 600)
