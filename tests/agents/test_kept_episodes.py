"""Large tensors go from players to learners, and the driver sees shapes; what is lost is played again."""

import pickle
from dataclasses import replace

import pytest
import ray
import torch
from batches import play
from one_learner import OneLearner
from test_processes import assert_same_curve, train, weights
from toy import toy_config

from unirl_env.agents import GRPOConfig
from unirl_env.episode import EpisodeBatch, Phase
from unirl_env.errors import EpisodesLost
from unirl_env.rollouts.kept import fetched, put_away
from unirl_env.types import Prompt, Scores

pytestmark = pytest.mark.ray


def batch_of(seed=3):
    return play(OneLearner(toy_config(GRPOConfig)).learner.policy, seed=seed)


def test_what_is_put_away_has_shapes_and_comes_back_in_any_order(cluster):
    batch = batch_of()
    light = put_away(batch)
    assert light.phases["image"].observation["latent"].is_meta and light.phases["image"].action.is_meta
    assert light.phases["image"].action.shape == batch.phases["image"].action.shape
    assert torch.equal(light.phases["image"].log_prob, batch.phases["image"].log_prob)
    order = torch.tensor([20, 3, 3, 9, 31])
    both = EpisodeBatch.cat([light, put_away(batch)]).select(order + 32)
    found = fetched(both.phases, both.kept)["image"]
    wanted = batch.select(order).phases["image"]
    for name in ("action", "log_prob", "mask", "mean"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    for name, tensor in wanted.observation.items():
        assert torch.equal(found.observation[name], tensor), name
    rows = [phase.context["point"][phase.context_row] for phase in (found, wanted)]
    assert torch.equal(*rows)


def test_what_passes_through_the_driver_does_not_grow_with_latents(cluster):
    sizes = []
    for width in (1, 40):
        batch = batch_of()
        phase = batch.phases["image"]
        wide = {
            name: t.repeat(1, 1, width) if name == "latent" else t for name, t in phase.observation.items()
        }
        phase = replace(phase, observation=wide, action=phase.action.repeat(1, 1, width))
        sizes.append(len(pickle.dumps(put_away(replace(batch, phases={"image": phase})))))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def group_of(number, lengths, prompt, grid):
    """A group of episodes with a text and a picture, all of which read a prompt of so many tokens."""
    count, wide = len(lengths), max(lengths)
    there = torch.arange(wide) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(0, 99, (1, prompt), generator=generator)
    text = Phase(
        observation={"mean": torch.randn(count, wide, 3, generator=generator) * there[..., None]},
        action=torch.where(there, number, -1),
        log_prob=torch.where(there, -0.5, 0.0),
        mask=there,
        context={
            "prompt": tokens,
            "prompt_length": torch.tensor([prompt]),
            "pixel_values": torch.randn(1, grid, 4, generator=generator).bfloat16(),
        },
        context_row=torch.zeros(count, dtype=torch.int64),
        ragged=True,
    )
    latent = torch.randn(count, 2, 3, generator=generator).bfloat16()
    image = Phase({"latent": latent}, latent + 1, torch.zeros(count, 2), torch.ones(count, 2) > 0)
    image = replace(image, final=latent[:, -1])
    seeds = torch.arange(count) + 100 * number
    scores, prompts = Scores(torch.zeros(count)), (Prompt("a"),) * count
    return EpisodeBatch({"text": text, "image": image}, scores, torch.full((count,), number), prompts, seeds)


def test_texts_of_unequal_lengths_come_back_as_wide_as_the_longest(cluster):
    groups = [group_of(0, [2, 5], 3, 2), group_of(1, [1, 1, 9], 7, 1), group_of(2, [4], 1, 5)]
    whole = EpisodeBatch.cat(groups)
    light = EpisodeBatch.cat([put_away(EpisodeBatch.cat(groups[:2])), put_away(groups[2])])
    assert light.phases["text"].context["prompt_length"].tolist() == [3, 7, 1], "as dealing must know"
    for order in ([0, 1, 2, 3, 4, 5], [5, 0, 4, 3], [2, 1]):
        part = light.select(torch.tensor(order))
        found, wanted = fetched(part.phases, part.kept), whole.select(torch.tensor(order)).phases
        for name, phase in wanted.items():
            assert_same(vars(found[name]), vars(phase))


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, dict):
            assert_same(found[name], value)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name
        else:
            assert found[name] == value, name


@pytest.fixture(scope="module")
def apart(cluster):
    config = toy_config(GRPOConfig, policy={"lora_rank": None}, kl_in="return", reference_kl=0.1)
    agent = config.env_runners(num_env_runners=1).learners(num_learners=1).build_algo()
    yield agent
    agent.stop()


def test_it_is_the_curve_of_one_process(apart):
    alone = toy_config(GRPOConfig, policy={"lora_rank": None}, kl_in="return", reference_kl=0.1).build_algo()
    try:
        assert_same_curve(train(apart, 2), train(alone, 2))
        assert apart.last_batch.phases["image"].action.is_meta
        for name, tensor in weights(alone).items():
            torch.testing.assert_close(weights(apart)[name], tensor, rtol=0, atol=1e-5)
    finally:
        alone.stop()


def test_episodes_that_are_lost_are_played_again(apart, monkeypatch):
    collected, lost, done = [], [], apart.iterations_done
    collect, update = apart._collect, apart._update

    def losing(*arguments):
        if not lost:
            lost.append(EpisodesLost("a player is gone"))
            raise lost[0]
        return update(*arguments)

    monkeypatch.setattr(apart, "_collect", lambda request: collected.append(request) or collect(request))
    monkeypatch.setattr(apart, "_update", losing)
    apart.train()
    first, again = collected
    assert apart.iterations_done == done + 1 and (first.seed, first.prompts) == (again.seed, again.prompts)
    assert (first.occasion, again.occasion) == ("training", None), "callbacks were told of them"


def test_lost_again_and_again_they_are_an_error(apart, monkeypatch):
    def losing(*arguments):
        raise EpisodesLost("a player is gone")

    done = apart.iterations_done
    monkeypatch.setattr(apart, "_update", losing)
    with pytest.raises(EpisodesLost, match="a player is gone"):
        apart.train()
    assert apart.holds(done)


def test_what_ray_has_lost_is_told_as_such(cluster, monkeypatch):
    def get(sources):
        raise ray.exceptions.ReferenceCountingAssertionError("1234", "owner", "call site")

    light = put_away(batch_of())
    monkeypatch.setattr("unirl_env.rollouts.kept.ray.get", get)
    with pytest.raises(EpisodesLost, match="where they were played, got ReferenceCounting"):
        fetched(light.phases, light.kept)
