"""The law of rollouts of texts, with real networks: keyed draws, log-probabilities that the learner finds."""

import gymnasium as gym
import pytest
import torch

import unirl_env  # noqa: F401  # registers the ids
from pretraining.qwen_vl_build import build_tiny_qwen_vl
from unirl_env.episode import EpisodeBatch
from unirl_env.models.qwen_vl import QwenVL
from unirl_env.models.tiny import TinyQwen3
from unirl_env.policies.actor import Actor
from unirl_env.policies.packing import pack_continuations
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.drivers.tokens import TextDriver
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt, Scores

SUMS = [Prompt("What is 23 + 58?"), Prompt("7 + 11 = ?"), Prompt("Add 40 to 12.")]


def length(samples, prompts):
    return Scores(torch.tensor([float(len(sample.tokens)) for sample in samples]))


def player(actor, *, rows=None, batch_size=None, **options):
    def make_env(num_envs):
        return gym.make_vec(
            "unirl/TinyQwen3-Math-v0",
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            language_model=actor.model,
            scorer=length,
            array_backend="torch",
            autoreset_mode="disabled",
            **options,
        )

    return Rollout(make_env, {"text": TextDriver(LocalEngine(actor, rows=rows))}, batch_size=batch_size)


def deviation(actor, batch):
    """The largest difference between recorded log-probabilities and the learner's."""
    phase = batch.phases["text"]
    packed = pack_continuations(phase, torch.arange(len(batch)))
    with torch.no_grad():
        found = actor.score(packed.observation, packed.action).log_prob
    return float((found - phase.log_prob[packed.episode, packed.step]).abs().max())


def assert_same(one, other):
    assert torch.equal(one.phases["text"].action, other.phases["text"].action)
    assert torch.equal(one.phases["text"].mask, other.phases["text"].mask)
    torch.testing.assert_close(one.phases["text"].log_prob, other.phases["text"].log_prob, rtol=0, atol=2e-5)
    assert torch.equal(one.rewards, other.rewards) and torch.equal(one.episode_seed, other.episode_seed)


@pytest.fixture(scope="module")
def actor():
    return Actor(TinyQwen3())


@pytest.fixture(scope="module")
def whole(actor):
    return player(actor, max_new_tokens=24).collect(RolloutRequest(SUMS, seed=2, group_size=8))


class TestTheLaw:
    def test_ratio_one(self, actor, whole):
        assert deviation(actor, whole) <= 1e-5
        assert len({tuple(row.tolist()) for row in whole.phases["text"].action}) > 6

    @pytest.mark.parametrize("size", [1, 7, 23])
    def test_in_lots_of_any_size(self, actor, whole, size):
        lots = player(actor, batch_size=size, max_new_tokens=24)
        assert_same(lots.collect(RolloutRequest(SUMS, seed=2, group_size=8)), whole)

    def test_with_few_rows_at_a_time(self, actor, whole):
        assert_same(
            player(actor, rows=5, max_new_tokens=24).collect(RolloutRequest(SUMS, seed=2, group_size=8)),
            whole,
        )

    def test_shared_out_over_two_workers(self, actor, whole):
        parts = [
            player(actor, max_new_tokens=24).collect(
                RolloutRequest(prompts, seed=2, group_size=8, first_group=first)
            )
            for prompts, first in ((SUMS[:1], 0), (SUMS[1:], 1))
        ]
        joined = EpisodeBatch.cat(parts)
        assert_same(joined, whole)
        assert torch.equal(joined.group, whole.group) and deviation(actor, joined) <= 1e-5

    def test_alone(self, actor, whole):
        one = player(actor, max_new_tokens=24).collect(RolloutRequest(SUMS[1:2], seed=2, sample_offset=[5]))
        expected = whole.select(torch.tensor([13])).phases["text"].action
        assert torch.equal(one.phases["text"].action, expected[:, : one.phases["text"].action.shape[1]])

    def test_greedy_texts_of_a_group_are_one(self, actor):
        batch = player(actor, max_new_tokens=24).collect(
            RolloutRequest(SUMS, seed=0, group_size=2, temperature=0)
        )
        texts = [sample.text for sample in batch.samples]
        assert texts[::2] == texts[1::2] and batch.phases["text"].log_prob.abs().max() == 0


def test_ratio_one_across_the_turns_of_a_tool(actor):
    """Replies are context of what is said after them, and no actions."""
    asked = []

    def tool(text, prompt):
        asked.append(text)
        return "is that so"

    batch = player(actor, tool=tool, max_turns=3, max_new_tokens=160).collect(
        RolloutRequest(SUMS, seed=0, group_size=4)
    )
    phase = batch.phases["text"]
    heard = (phase.action >= 0) & ~phase.mask
    reply = actor.model.reply("is that so")
    assert 12 < len(asked) <= 24 and int(heard.sum()) > 12 * len(reply)
    assert (phase.log_prob[heard] == 0).all()
    assert deviation(actor, batch) <= 4e-5  # float32 of a hundred tokens; by the processor, up to 2.3e-5


class TestPictures:
    @pytest.fixture(scope="class")
    def seeing(self, tmp_path_factory):
        directory = build_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "vl", seed=4)
        actor = Actor(QwenVL(str(directory), max_images=2))
        with torch.no_grad():
            for parameter in actor.network.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)
        return actor

    def test_ratio_one(self, seeing):
        generator = torch.Generator().manual_seed(0)
        pictures = [torch.rand(3, *size, generator=generator) for size in ((32, 32), (24, 48), (40, 16))]
        prompts = [
            Prompt("how many?", id="a", images=tuple(pictures[:1])),
            Prompt("how many?", id="b", images=tuple(pictures[1:2])),
            Prompt("none here"),
            Prompt("which is larger?", images=tuple(pictures[1:])),
        ]
        options = {"max_new_tokens": 12, "max_prompt_tokens": 160}
        batch = player(seeing, **options).collect(RolloutRequest(prompts, seed=0, group_size=3))
        assert deviation(seeing, batch) <= 1e-5
        context = batch.phases["text"].context
        assert len(context["pixel_values"]) == 4 and context["image_grid_thw"].shape == (4, 2, 3)
        lots = player(seeing, batch_size=5, **options).collect(RolloutRequest(prompts, seed=0, group_size=3))
        assert_same(lots, batch)
        assert deviation(seeing, lots) <= 1e-5
        object.__setattr__(prompts[1], "images", prompts[0].images)
        other = player(seeing, **options).collect(RolloutRequest(prompts, seed=0, group_size=3))
        changed = (other.phases["text"].action[:, :12] != batch.phases["text"].action[:, :12]).any(1)
        assert changed.tolist() == [False] * 3 + [True] * 3 + [False] * 6, "pictures matter, each to its own"
