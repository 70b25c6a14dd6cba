"""Texts become pictures: who is drawn, when, from which noise, and what is left alone."""

import copy
import pickle

import numpy as np
import pytest
import torch
from talk import SpellingModel, say, talk
from worlds import PlainDenoiser

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.shared.generate import draw_latents
from unirl_env.types import Prompt, Scores
from unirl_env.wrappers import DrawWrapper, RewardWrapper
from unirl_env.wrappers.draw import FrozenNetwork

DISABLED = {"autoreset_mode": "disabled", "array_backend": "torch"}
TEXTS = ("ab~", "abc", "c~_", "~__")


def drawn(denoiser=None, env=None, *, num_envs=4, **options):
    """A drawing environment; `env` are the options of what it goes around."""
    inner = talk(num_envs=num_envs, **{**DISABLED, "max_new_tokens": 3, **(env or {})})
    return DrawWrapper(inner, denoiser or PlainDenoiser(), **{"num_steps": 2, **options})


def finish(env, *texts, seed=0, **options):
    """Reset, spell, and gather what `info` says of each row at its end."""
    _, info = env.reset(seed=seed, options=options or None)
    samples, steps = [None] * env.num_envs, say(env, *texts)
    for _, _, _, _, info in steps:
        for row, sample in enumerate(info.get("samples", ())):
            samples[row] = sample if sample is not None else samples[row]
    return samples, info, steps


class BrokenDenoiser(PlainDenoiser):
    def decode(self, latents):
        return super().decode(latents * torch.nan)


class TestWhatIsDrawn:
    def test_a_text_gets_its_picture_and_keeps_the_rest(self):
        bare = talk(**DISABLED, max_new_tokens=3)
        plain, _, _ = finish(bare, *TEXTS)
        env = drawn()
        samples, info, _ = finish(env, *TEXTS)
        for sample, before in zip(samples[:3], plain, strict=False):
            assert sample.image.shape == (3, 4, 4) and sample.pictures is None
            assert sample.text == before.text and torch.equal(sample.tokens, before.tokens)
            assert sample.truncated == before.truncated
        assert samples[1].truncated and not samples[0].truncated
        assert samples[3].text == "" and samples[3].image is None
        assert (env.drawn, env.undrawn) == (3, 1)
        assert {prompt.text for prompt in info["prompt"]} == {"1+1", "2*3+4", "7-5", "say hello"}

    def test_a_picture_is_that_of_its_text_and_its_noise(self):
        denoiser = PlainDenoiser()
        samples, info, _ = finish(drawn(denoiser), *TEXTS)
        seeds = [F.derive_seed("picture", int(info["episode_seed"][row]), 0) for row in (0, 2)]
        latents = draw_latents(
            denoiser, denoiser.network(), [Prompt("ab"), Prompt("c")], seeds, num_steps=2, rows=16
        )
        assert torch.equal(samples[0].image, torch.sigmoid(latents[0]))
        assert torch.equal(samples[2].image, torch.sigmoid(latents[1]))

    def test_several_pictures_of_one_text_have_noise_of_their_own(self):
        (one, *_), _, _ = finish(drawn(), *TEXTS)
        (three, *_), _, _ = finish(drawn(pictures=3), *TEXTS)
        assert three.pictures.shape == (3, 3, 4, 4)
        assert torch.equal(three.image, three.pictures[0]) and torch.equal(three.image, one.image)
        assert len({picture.sum().item() for picture in three.pictures}) == 3

    def test_only_what_follows_the_mark_is_drawn(self):
        denoiser = PlainDenoiser()
        env = drawn(denoiser, {"max_new_tokens": 9}, after=">", max_characters=3)
        samples, _, _ = finish(env, "a>b>cd~", "abcd~__", "ab>~___", "a>bcde~")
        assert [sample.image is None for sample in samples] == [False, True, True, True]
        assert denoiser.encoded["cd"] == 1 and not denoiser.encoded["bcde"]
        assert samples[0].text == "a>b>cd"

    def test_the_users_negative_prompt_goes_along_under_guidance(self):
        denoiser = PlainDenoiser()
        prompts = [Prompt("1+1", negative="blurry"), Prompt("7-5")]
        with_guidance = drawn(denoiser, {"prompts": prompts}, num_envs=2, guidance=2.0)
        (sample, _), _, _ = finish(with_guidance, "ab~", "cd~", prompts=prompts)
        assert denoiser.encoded["blurry"] == 1 and denoiser.encoded[""] == 1
        (plain, _), _, _ = finish(drawn(num_envs=2, env={"prompts": prompts}), "ab~", "cd~", prompts=prompts)
        assert not torch.equal(sample.image, plain.image)

    def test_pictures_that_are_not_finite_are_told_and_left_to_the_scorer(self, caplog):
        samples, _, _ = finish(drawn(BrokenDenoiser(), together=True), *TEXTS)
        assert samples[0].image.isnan().all()
        assert "3 of 3 pictures that are not finite" in caplog.text

    def test_a_model_without_pictures_is_refused(self):
        with pytest.raises(ContractError, match="decodes to no picture"):
            finish(drawn(PlainDenoiser((2, 4))), *TEXTS)


class TestWhen:
    def test_texts_are_drawn_at_their_ends(self):
        _, _, steps = finish(drawn(), *TEXTS)
        finished = [info.get("_samples", np.zeros(4, bool)).tolist() for *_, info in steps]
        assert finished == [
            [False, False, False, True],
            [False, False, True, False],
            [True, True, False, False],
        ]

    def test_or_together_at_the_end_of_the_batch_with_the_same_pictures(self):
        apart, _, _ = finish(drawn(), *TEXTS)
        env = RewardWrapper(drawn(together=True), lambda samples, _: Scores(torch.ones(len(samples))))
        together, _, steps = finish(env, *TEXTS)
        assert ["samples" in info for *_, info in steps] == [False, False, True]
        assert steps[-1][-1]["_samples"].all() and steps[-1][1].tolist() == [1, 1, 1, 1]
        for one, other in zip(apart[:3], together[:3], strict=True):
            assert torch.equal(one.image, other.image) and one.text == other.text

    def test_a_reset_forgets_what_waits(self):
        env = drawn(together=True)
        env.reset(seed=0)
        say(env, "~", "a", "a", "a")
        env.reset(seed=1, options={"reset_mask": np.array([True, False, False, False])})
        samples = say(env, "ab~", "~__", "~__", "~__")[-1][-1]["samples"]
        assert [sample.text for sample in samples] == ["ab", "a", "a", "a"]
        assert samples[0].image is not None

    def test_every_text_of_an_environment_that_resets_itself(self):
        env = drawn(env={"autoreset_mode": "next_step", "array_backend": "numpy", "group_size": 1})
        env.reset(seed=0)
        seen = []
        for _ in range(8):
            *_, info = env.step(np.full(4, 4))
            seen += [sample.image for sample in info.get("samples", ()) if sample is not None]
        assert len(seen) == 8 and all(image is not None for image in seen)
        assert len({image.sum().item() for image in seen}) == 8

    def test_a_batch_that_resets_itself_has_no_common_end(self):
        with pytest.raises(ConfigError, match="`together` must be False"):
            drawn(env={"autoreset_mode": "next_step"}, together=True)


def test_a_picture_is_bitwise_the_same_whatever_is_drawn_with_it(tiny):
    """By the real architecture, whose last bits change with the size of a batch."""
    options = {"num_steps": 2, "guidance": 2.0, "rows": 3}
    whole, info, _ = finish(drawn(tiny, **options), *TEXTS)
    for row, text in ((0, "ab~"), (2, "c~")):
        env = drawn(tiny, num_envs=1, **options)
        prompt = info["prompt"][row]
        (alone,), _, _ = finish(env, text, prompts=[prompt])
        assert torch.equal(alone.image, whole[row].image)


def test_many_environments_draw_with_one_network_that_loads_when_it_is_needed(monkeypatch):
    loaded, generator = [], PlainDenoiser()
    network = generator.network
    monkeypatch.setattr(generator, "network", lambda: loaded.append(1) or network())
    shared = FrozenNetwork(generator)
    one, other = (DrawWrapper(talk(num_envs=1, **DISABLED), generator, network=shared) for _ in range(2))
    assert not loaded
    assert one.network is other.network and len(loaded) == 1
    assert not any(parameter.requires_grad for parameter in one.network.parameters())
    assert copy.deepcopy(other).network is one.network
    assert len(pickle.dumps(shared)) < 1000, "weights do not travel"


@pytest.mark.parametrize(
    "option, message",
    [
        ({"num_steps": 0}, "`num_steps` of a generator"),
        ({"pictures": 0}, "`pictures`"),
        ({"rows": 2.5}, "`rows`"),
        ({"max_characters": True}, "`max_characters`"),
        ({"context_cache": 0}, "`context_cache`"),
        ({"guidance": float("nan")}, "`guidance`"),
        ({"after": ""}, "`after`"),
        ({"network": "sd3"}, "`network`"),
        ({"denoiser": SpellingModel()}, "`generator` must be a Denoiser, got SpellingModel"),
    ],
)
def test_settings_that_cannot_be(option, message):
    with pytest.raises(ConfigError, match=message):
        drawn(**option)


def test_what_has_no_text_cannot_be_drawn():
    from fakes import FakeDenoiseEnv, walk

    with pytest.raises(ContractError, match=r"`Sample\.text`"):
        walk(DrawWrapper(FakeDenoiseEnv(), PlainDenoiser()))
