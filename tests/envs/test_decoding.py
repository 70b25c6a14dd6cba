"""Decoding is given the context of the episodes that it decodes."""

import numpy as np
import pytest
import torch
from worlds import PROMPTS, PlainDenoiser, world

from unirl_env.envs.encodings import AtRows
from unirl_env.types import Sample


class Signed(PlainDenoiser):
    """Pictures that carry a number of their prompt in a corner."""

    seen: tuple = ()

    def decode(self, latents, context=None):
        Signed.seen = tuple(context)
        rows = torch.sigmoid(latents.float())
        rows[:, 0, 0, 0] = context["pooled"][:, 1].float()
        return [Sample(image=row) for row in rows]


def number_of(prompt):
    return float(PlainDenoiser().encode([prompt])["pooled"][0, 1])


@pytest.mark.parametrize("with_negative", [False, True])
def test_of_the_prompts_alone(with_negative):
    env = world(Signed(), num_steps=2, with_negative=with_negative)
    obs, _ = env.reset(seed=0)
    for _ in range(2):
        obs, _, _, _, info = env.step(obs["latent"] * 0.9)
    assert Signed.seen == ("prompt_embeds", "pooled")
    prompts = [prompt for prompt in env.unwrapped.playing]
    assert len({prompt.text for prompt in prompts}) > 1
    for sample, prompt in zip(info["samples"], prompts, strict=True):
        assert float(sample.image[0, 0, 0]) == pytest.approx(number_of(prompt))


def test_of_the_rows_that_end_where_others_go_on():
    env = world(Signed(), num_steps=3, autoreset_mode="disabled")
    obs, _ = env.reset(seed=0)
    late = np.array([False, True, False, True])
    for _ in range(2):
        obs, *_ = env.step(obs["latent"] * 0.9)
    obs, _ = env.reset(options={"reset_mask": late})
    prompts = list(env.unwrapped.playing)
    _, _, terminated, _, info = env.step(obs["latent"] * 0.9)
    assert terminated.tolist() == [True, False, True, False]
    for row in (0, 2):
        sample = info["samples"][row]
        assert float(sample.image[0, 0, 0]) == pytest.approx(number_of(prompts[row]))


def test_what_is_rendered_has_it_too():
    env = world(Signed(), num_steps=2, render_mode="rgb_array", prompts=PROMPTS[:1])
    env.reset(seed=0)
    expected = round(255 * min(1.0, number_of(env.unwrapped.prompts[0])))
    assert all(picture[0, 0, 0] == expected for picture in env.render())


def test_rows_of_a_context_are_copied_when_they_are_asked_for():
    context = {"a": torch.arange(6.0).view(3, 2), "b": torch.zeros(3)}
    some = AtRows(context, torch.tensor([2, 0]))
    assert list(some) == ["a", "b"] and len(some) == 2 and "c" not in some
    assert some["a"].tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_a_denoiser_that_takes_latents_alone_is_given_them_alone():
    env = world(PlainDenoiser(), num_steps=1, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    _, _, _, _, info = env.step(obs["latent"])
    assert all(sample.image is not None for sample in info["samples"])
    assert len(env.render()) == env.num_envs


def test_another_second_argument_is_not_taken_for_the_context():
    class Tiled(PlainDenoiser):
        def decode(self, latents, tiles=1):
            assert tiles == 1
            return super().decode(latents)

    env = world(Tiled(), num_steps=1, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    *_, info = env.step(obs["latent"])
    assert all(sample.image is not None for sample in info["samples"])
    assert len(env.render()) == env.num_envs
