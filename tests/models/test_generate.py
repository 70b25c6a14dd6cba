"""Drawing by the deterministic ODE: what an evaluation plays, whatever is drawn with it."""

import pytest
import torch
from worlds import PROMPTS, PlainDenoiser, world

import unirl_env.functional as F
from unirl_env.envs.encodings import Contexts
from unirl_env.errors import ConfigError, ShapeError
from unirl_env.models.shared.generate import draw_latents
from unirl_env.models.tiny import TinySD3Denoiser
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt

SEEDS = [3, 5, 2**62, 11]


def asked(negative=""):
    return [Prompt(text, negative=negative) for text in PROMPTS]


def evaluated(denoiser, prompts, guidance, num_steps=3):
    """What `Rollout` evaluates to: seeds, and the last latents by the actor's own steps."""
    actor = Actor(denoiser, guidance=guidance)
    env = world(
        denoiser,
        num_envs=len(prompts),
        num_steps=num_steps,
        with_negative=guidance != 1.0,
        array_backend="torch",
        autoreset_mode="disabled",
        scored=True,
    )
    rollout = Rollout(lambda num_envs, num_steps=None: env, actor)
    batch = rollout.collect(RolloutRequest(prompts, seed=4, stochastic_steps=()))
    return actor.network, batch.episode_seed.tolist(), batch.samples


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_it_is_what_an_evaluation_comes_to(guidance):
    denoiser, prompts = PlainDenoiser(), asked(negative="a mess")
    network, seeds, samples = evaluated(denoiser, prompts, guidance)
    latents = draw_latents(denoiser, network, prompts, seeds, num_steps=3, guidance=guidance)
    assert latents.shape == (4, 3, 4, 4) and not latents.requires_grad
    for latent, sample in zip(denoiser.decode(latents), samples, strict=True):
        assert torch.allclose(latent.image, sample.image, atol=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_in_lots_an_episode_is_bitwise_the_same_in_any_company(tiny, guidance):
    network = tiny.network()
    options = {"num_steps": 2, "guidance": guidance, "rows": 3}
    whole = draw_latents(tiny, network, asked(), SEEDS, **options)
    for rows in ([2], [3, 1], [1, 0, 3, 2]):
        part = draw_latents(
            tiny, network, [asked()[row] for row in rows], [SEEDS[row] for row in rows], **options
        )
        assert torch.equal(part, whole[rows])
    at_once = draw_latents(tiny, network, asked(), SEEDS, num_steps=2, guidance=guidance)
    assert torch.allclose(at_once, whole, atol=1e-4)


def test_each_distinct_text_is_encoded_once_and_alone():
    denoiser = PlainDenoiser()
    prompts = [Prompt("a cat"), Prompt("a dog"), Prompt("a cat")]
    draw_latents(denoiser, denoiser.network(), prompts, [1, 2, 3], num_steps=1, guidance=2.0)
    assert denoiser.encoded == {"a cat": 1, "a dog": 1, "": 1}


def test_prompts_are_encoded_in_lots_of_one_size_and_come_out_alike_in_any_company(monkeypatch):
    denoiser, seen = TinySD3Denoiser(), []
    assert denoiser.prompts_at_once == 8
    own = denoiser.encode
    monkeypatch.setattr(
        denoiser, "encode", lambda prompts, **how: seen.append(len(prompts)) or own(prompts, **how)
    )
    prompts = [Prompt(f"a red circle and {n} blue squares") for n in range(11)]

    def read(asked):
        return Contexts(denoiser, with_negative=False, size=16, device=torch.device("cpu")).of(asked)

    together = read(prompts)
    assert seen == [8, 8]
    for number in (0, 7, 10):
        alone = read(prompts[number : number + 1] * 2)
        for name, each in alone.items():
            assert torch.equal(each[0], together[name][number]) and torch.equal(each[1], each[0])
    assert seen[2:] == [8, 8, 8]


def test_remembered_contexts_change_nothing():
    denoiser = PlainDenoiser()
    network = denoiser.network()
    kept = Contexts(denoiser, with_negative=True, size=8, device=torch.device("cpu"))
    options = {"num_steps": 2, "guidance": 2.0, "rows": 2}
    fresh = draw_latents(denoiser, network, asked(), SEEDS, **options)
    denoiser.encoded.clear()
    for _ in range(2):
        assert torch.equal(
            draw_latents(denoiser, network, asked(), SEEDS, contexts=kept.of, **options), fresh
        )
    assert denoiser.encoded == {**dict.fromkeys(PROMPTS, 1), "": 1}


def test_the_noise_is_keyed_and_nothing_else_is_drawn():
    denoiser = PlainDenoiser()
    before = torch.get_rng_state()
    one, other = draw_latents(denoiser, denoiser.network(), asked()[:1] * 2, [1, 2], num_steps=1)
    assert not torch.equal(one, other) and torch.equal(before, torch.get_rng_state())
    noise = F.keyed_noise([1], -1, denoiser.latent_shape)
    still = draw_latents(denoiser, torch.nn.Identity(), [], [], num_steps=1)
    assert still.shape == (0, 3, 4, 4) and not torch.equal(one, noise[0])


@pytest.mark.parametrize(
    "seeds, options, error, message",
    [
        (SEEDS, {"num_steps": 0}, ConfigError, "`num_steps` must be at least 1"),
        (SEEDS, {"num_steps": 1, "rows": 0}, ConfigError, "`rows` must be at least 1"),
        (SEEDS[:2], {"num_steps": 1}, ShapeError, "must hold 4 seeds, got 2"),
    ],
)
def test_settings_that_cannot_be(seeds, options, error, message):
    denoiser = PlainDenoiser()
    with pytest.raises(error, match=message):
        draw_latents(denoiser, denoiser.network(), asked(), seeds, **options)
