"""Scores in the background: the same results, and the next lot does not wait for them."""

import pickle
import threading

import pytest
import torch
from toy import POINTS, PointDenoiser, make_points, nearness

from unirl_env.errors import ConfigError, ScorerError
from unirl_env.policies.actor import Actor
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards.compose import Background
from unirl_env.rewards.scoring import PendingScores, settled
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Scores
from unirl_env.worlds import make_env, make_vector_env
from unirl_env.wrappers.reward import RewardWrapper


class Watched:
    """`nearness` that says how it was called."""

    def __init__(self, fails_at=None):
        self.calls, self.threads, self.fails_at = [], set(), fails_at

    def __call__(self, samples, prompts):
        self.calls.append(tuple(prompt.text for prompt in prompts))
        self.threads.add(threading.current_thread().name)
        if len(self.calls) == self.fails_at:
            raise RuntimeError("the judge is ill")
        return nearness(samples, prompts)


def collect(scorer, batch_size=4, **options):
    def make(num_envs, num_steps=None):
        fixed = {"prompts": POINTS, "array_backend": "torch", "autoreset_mode": "disabled", "num_steps": 4}
        return make_points(num_envs, scorer=scorer, **{**fixed, **options})

    actor = Actor(PointDenoiser())
    rollout = Rollout(make, actor, batch_size=batch_size)
    return rollout.collect(RolloutRequest(list(PromptSource.of(POINTS)), seed=3, group_size=3))


def test_the_scores_and_calls_are_those_of_a_patient_rollout():
    patient, behind = Watched(), Watched()
    waited, overlapped = collect(patient), collect(Background(behind))
    assert torch.equal(waited.rewards, overlapped.rewards)
    assert torch.equal(waited.phases["image"].action, overlapped.phases["image"].action)
    assert patient.calls == behind.calls and len(behind.calls) == 3
    assert len(behind.threads) == 1 and "reward" in behind.threads.pop()


def test_lots_are_played_while_the_first_is_judged():
    waiting, released = threading.Event(), threading.Event()

    def slow(samples, prompts):
        waiting.set()
        assert released.wait(20), "nobody played on"
        return nearness(samples, prompts)

    class Decoder(PointDenoiser):
        decoded = 0

        def decode(self, latents):
            Decoder.decoded += 1
            if Decoder.decoded == 3:
                # The third lot ends while the first is still being judged.
                assert waiting.is_set() and not released.is_set()
                released.set()
            return super().decode(latents)

    collect(Background(slow), denoiser=Decoder())
    assert released.is_set()


def test_a_failure_is_data_or_stops_the_run_as_it_does_without():
    batch = collect(Background(Watched(fails_at=2)))
    assert batch.scores.valid.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    with pytest.raises(ScorerError, match="the judge is ill"):
        world = make_points(2, prompts=POINTS, autoreset_mode="disabled").env
        play(RewardWrapper(world, Background(Watched(fails_at=1)), on_invalid="raise"))


def play(env):
    env.reset(seed=1)
    ended = False
    while not ended:
        _, rewards, terminated, *_ = env.step(env.action_space.sample())
        ended = bool(terminated.all())
    return rewards, settled(env.scores)


def test_a_step_pays_nothing_that_it_does_not_know():
    env = make_points(2, scorer=Background(nearness), prompts=POINTS, autoreset_mode="disabled", num_steps=2)
    rewards, scores = play(env)
    assert rewards.isnan().all() if isinstance(rewards, torch.Tensor) else (rewards != rewards).all()
    assert scores.valid.all() and env.scored == 2


def test_words_of_an_environment():
    fixed = {"denoiser": "gaussian_mixture", "scorer": "linear", "num_steps": 2}
    fixed |= {"overlap": True, "prompts": ["a"]}
    env = make_vector_env(3, autoreset_mode="disabled", **fixed)
    assert isinstance(env.scorer, Background)
    _, scores = play(env)
    patient = make_vector_env(3, autoreset_mode="disabled", **{**fixed, "overlap": False})
    env.action_space.seed(5), patient.action_space.seed(5)
    assert torch.equal(play(env)[1].value, play(patient)[1].value) and len(scores) == 3
    with pytest.raises(ConfigError, match="`overlap` must be False"):
        make_vector_env(3, autoreset_mode="next_step", **fixed)
    with pytest.raises(ConfigError, match="`overlap` must be False for a single environment"):
        make_env(**fixed)


def test_it_travels_and_answers_at_once_when_called():
    copy = pickle.loads(pickle.dumps(Background(nearness)))
    copy.begin(lambda: Scores.failed(1)).result()
    again = pickle.loads(pickle.dumps(copy))
    assert again.begin(lambda: Scores.failed(2)).result().value.shape == (2,)
    assert isinstance(again.begin(lambda: Scores.failed(2)), PendingScores)
    scores = Scores.failed(1)
    assert settled(scores) is scores
