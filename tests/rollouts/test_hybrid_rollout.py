"""Rollouts of hybrid episodes: an empty phase leaves those of the other one, and lots change nothing."""

import pytest
import torch

from unirl_env.models.tiny import TinyUnified
from unirl_env.policies.actor import Actor
from unirl_env.prompts.sources import PromptSource
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt
from unirl_env.worlds import make_vector_env

SHARED = {"array_backend": "torch", "autoreset_mode": "disabled", "prompts": "unified_train"}
DRAWN = {"name": "pictured", "scorer": "shapes"}
STEPS = (0, 2)


@pytest.fixture(scope="module")
def model():
    return TinyUnified()


@pytest.fixture(scope="module")
def prompts():
    return list(PromptSource.of("unified_train").take(0, 3, seed=1))


def maker(**options):
    def make_env(num_envs, num_steps=None):
        steps = {} if num_steps is None else {"num_steps": num_steps}
        return make_vector_env(num_envs, **SHARED, **{**options, **steps})

    return make_env


def hybrid(model, *, batch_size=None, **options):
    settings = {"max_new_tokens": 8, "max_prompt_tokens": 48, "num_steps": 4, "scorer": DRAWN, **options}
    return Rollout(maker(unified_model=model, **settings), Actor(model, eta=1.0), batch_size=batch_size)


@pytest.mark.parametrize("steps", [STEPS, ()])
def test_without_texts_it_is_the_rollout_of_the_image_view(model, prompts, steps):
    asked = {"seed": 7, "group_size": 2, "stochastic_steps": steps, "keep_mean": True, "keep_final": True}
    both = hybrid(model, max_new_tokens=0).collect(RolloutRequest(prompts, **asked))
    alone = Rollout(
        maker(denoiser=model.image, num_steps=4, scorer=DRAWN), Actor(model.image, eta=1.0)
    ).collect(RolloutRequest(prompts, **asked))
    assert list(both.phases) == ["image"]
    mine, theirs = both.phases["image"], alone.phases["image"]
    for name in ("action", "log_prob", "mask", "mean", "final"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    for name, tensor in mine.observation.items():
        assert torch.equal(tensor, theirs.observation[name])
    assert torch.equal(both.rewards, alone.rewards)
    assert all(torch.equal(a.image, b.image) for a, b in zip(both.samples, alone.samples, strict=True))


def test_without_pictures_it_is_the_rollout_of_the_text_view(model, prompts):
    plan = {"name": "plan"}
    both = hybrid(model, num_steps=0, scorer=plan).collect(RolloutRequest(prompts, seed=7, group_size=2))
    options = {"language_model": model.text, "max_new_tokens": 8, "max_prompt_tokens": 48, "scorer": plan}
    alone = Rollout(maker(**options), Actor(model.text))
    alone = alone.collect(RolloutRequest(prompts, seed=7, group_size=2))
    assert list(both.phases) == ["text"]
    mine, theirs = both.phases["text"], alone.phases["text"]
    for name in ("action", "log_prob", "mask"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    assert torch.equal(both.rewards, alone.rewards) and torch.equal(both.truncated, alone.truncated)
    assert [sample.text for sample in both.samples] == [sample.text for sample in alone.samples]


def test_lots_change_nothing_but_last_bits(model, prompts):
    whole = hybrid(model).collect(RolloutRequest(prompts, seed=3, group_size=3))
    parts = hybrid(model, batch_size=4).collect(RolloutRequest(prompts, seed=3, group_size=3))
    assert [sample.text for sample in whole.samples] == [sample.text for sample in parts.samples]
    assert whole.group.tolist() == parts.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for name, phase in whole.phases.items():
        assert torch.equal(phase.mask, parts.phases[name].mask)
        torch.testing.assert_close(phase.log_prob, parts.phases[name].log_prob, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(whole.rewards, parts.rewards, atol=2e-2, rtol=0)


def test_what_a_text_opens_with_is_context_and_no_action(model, prompts):
    batch = hybrid(model).collect(RolloutRequest(prompts, seed=3))
    text = batch.phases["text"]
    ends = torch.tensor(
        [model.opens[0] in row[mask].tolist() for row, mask in zip(text.action, text.mask, strict=True)]
    )
    drawn = torch.tensor([sample.image is not None for sample in batch.samples])
    assert torch.equal(ends, drawn) and torch.equal(batch.phases["image"].mask.any(1), drawn)


def test_texts_that_are_cut_off_have_masked_pictures(model, prompts):
    asked = {"seed": 3, "keep_mean": True, "keep_final": True}
    for steps in (STEPS, ()):
        batch = hybrid(model, max_new_tokens=1).collect(
            RolloutRequest(prompts, stochastic_steps=steps, **asked)
        )
        image = batch.phases["image"]
        assert batch.truncated.all() and not image.mask.any() and image.mean is not None
        assert image.action.shape == (3, len(steps) or 1, *model.image.latent_shape)
        assert image.final.shape == (3, *model.image.latent_shape) and (image.final == 0).all()
    assert (batch.rewards == 0).all() and batch.scores.valid.all(), "what `pictured` says it is paid"


def test_evaluation_takes_steps_of_its_own(model, prompts):
    batch = hybrid(model).collect(
        RolloutRequest(prompts, seed=3, stochastic_steps=(), num_steps=2, temperature=0.0)
    )
    again = hybrid(model).collect(
        RolloutRequest(prompts, seed=3, stochastic_steps=(), num_steps=2, temperature=0.0)
    )
    assert "image" not in batch.phases and torch.equal(batch.rewards, again.rewards)


def test_one_request_about_two_pictures_has_two_contexts(model):
    """The image view in the denoising environment: what a prompt brings belongs to its context."""
    pictures = (torch.zeros(3, 32, 32), torch.ones(3, 32, 32))
    asked = [Prompt("make it blue", str(i), images=(picture,)) for i, picture in enumerate(pictures)]
    rollout = Rollout(maker(denoiser=model.image, num_steps=2, scorer=DRAWN), Actor(model.image))
    batch = rollout.collect(RolloutRequest(asked, seed=1, group_size=2))
    phase = batch.phases["image"]
    assert phase.context_row.tolist() == [0, 0, 1, 1]
    first, second = phase.context["pixel_values"]
    assert not torch.equal(first, second)
