"""The hybrid MDP, on models that spell and paint."""

import numpy as np
import pytest
import torch
from hybrid_worlds import (
    OPEN,
    QUESTIONS,
    Discrete,
    OneBackbone,
    TwoBackbones,
    hybrid,
    play,
    samples_of,
    seen,
    step,
)
from talk import EOS, MODEL, PAD, USER, plain, spelled

import unirl_env.functional as F
from unirl_env.envs import DenoiseVectorEnv, TokenVectorEnv
from unirl_env.types import Prompt
from unirl_env.wrappers.reward import RewardWrapper

BACKENDS = pytest.mark.parametrize("backend", ["numpy", "torch"])
BACKBONES = pytest.mark.parametrize("model", [TwoBackbones, OneBackbone])


class TestEpisodes:
    @BACKENDS
    def test_a_text_opens_a_picture_which_is_then_denoised(self, backend):
        env = hybrid(OneBackbone(), num_envs=2, array_backend=backend, autoreset_mode="disabled")
        options = {"prompts": ["ab", "c"]}
        results = play(env, "hi^", "yo^", options=options)
        first, last = results[0][0], results[3][0]
        assert plain(first["phase"]).tolist() == [0, 0] and plain(last["phase"]).tolist() == [1, 1]
        said = [USER, *spelled("ab"), EOS, MODEL, *spelled("hi"), OPEN, MODEL]
        assert plain(last["tokens"][0][: last["length"][0]]).tolist() == said
        assert plain(last["is_action"][0]).nonzero()[0].tolist() == [5, 6, 7], "the opening is no action"
        assert plain(last["length"]).tolist() == [9, 8] and plain(last["prompt_length"]).tolist() == [5, 4]
        assert [plain(result[0]["step"]).tolist() for result in results[3:]] == [[k, k] for k in range(4)]
        assert np.array_equal(plain(first["latent"]), plain(last["latent"])), "noise waits for its turn"
        assert np.allclose(plain(results[4][0]["sigma"]), F.flow_sigmas(3)[1])
        *_, (obs, reward, terminated, truncated, info) = results
        assert terminated.tolist() == [True, True] and not truncated.any() and not reward.any()
        for row, sample in enumerate(info["samples"]):
            assert sample.text == ("hi", "yo")[row] and not sample.truncated
            assert sample.tokens.tolist() == [*spelled(sample.text), OPEN, MODEL]
            latent = torch.as_tensor(obs["latent"][row])
            assert torch.equal(sample.image, torch.sigmoid(latent))

    def test_rows_enter_the_image_phase_at_different_steps(self):
        env = hybrid(autoreset_mode="disabled")
        results = play(env, "^", "abc^", "ab^", "abcdefg")
        phases = [result[0]["phase"].tolist() for result in results]
        assert phases == [
            [0, 0, 0, 0],
            [1, 0, 0, 0],
            [1, 0, 0, 0],
            [1, 0, 1, 0],
            [1, 1, 1, 0],
            [1, 1, 1, 0],
            [1, 1, 1, 0],
            [1, 1, 1, 0],
        ]
        ends = [(result[2] | result[3]).tolist() for result in results[1:]]
        assert ends.index([True, False, False, False]) == 3 and ends[5] == [True, False, True, True]
        samples = samples_of(results, 4)
        assert [sample.text for sample in samples] == ["", "abc", "ab", "abcdef"]
        assert [sample.image is None for sample in samples] == [False, False, False, True]

    @pytest.mark.parametrize(
        ("said", "phase", "terminated", "truncated"),
        [
            ("abcdef", 0, False, True),
            ("abcde~", 0, True, False),
            ("~", 0, True, False),
            ("abcde^", 1, False, False),
        ],
    )
    def test_texts_that_open_nothing_end_without_a_picture(self, said, phase, terminated, truncated):
        env = hybrid(num_envs=1, autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        for letter in said:
            obs, _, over, cut, info = step(env, obs, letter)
        assert (obs["phase"][0], over[0], cut[0]) == (phase, terminated, truncated)
        if phase == 0:
            sample = info["samples"][0]
            assert sample.image is None and sample.truncated == truncated
            assert len(sample.tokens) == len(said) and sample.text == said.strip("~")

    def test_finished_episodes_wait_and_keep_their_flags(self):
        env = hybrid(num_envs=3, autoreset_mode="disabled")
        results = play(env, "~", "abcdefg", "a^")
        assert [r[2].tolist() for r in results[1:]] == [[1, 0, 0]] * 4 + [[1, 0, 1]] * 2
        assert [r[3].tolist() for r in results[1:]] == [[0, 0, 0]] * 5 + [[0, 1, 0]]
        assert np.array_equal(results[1][0]["tokens"][0], results[-1][0]["tokens"][0])
        assert np.array_equal(results[5][0]["latent"][2], results[-1][0]["latent"][2])

    def test_the_context_of_two_backbones_is_the_finished_text(self):
        model = TwoBackbones()
        env = hybrid(model, num_envs=2, autoreset_mode="disabled")
        results = play(env, "ab^", "a^", options={"prompts": [Prompt("1 cat", id="x"), Prompt("2 dogs")]})
        assert not results[1][0]["pooled"].any() and not results[0][0]["prompt_embeds"].any()
        assert results[2][0]["pooled"].any(axis=1).tolist() == [False, True]
        for row, text in enumerate(("ab", "a")):
            expected = model.image.encode([Prompt(text)])
            for name in ("pooled", "prompt_embeds"):
                assert np.array_equal(results[3][0][name][row], expected[name][0].numpy())
        assert model.asked == {("1 cat", "ab"): 1, ("2 dogs", "a"): 1, ("1 cat", None): 1}

    @BACKBONES
    def test_negative_prompts_are_there_from_the_beginning(self, model):
        model = model()
        prompts = [Prompt("1 cat", negative="dogs"), Prompt("2 dogs", negative="a cat")]
        env = hybrid(model, num_envs=2, with_negative=True, prompts=prompts)
        obs, info = env.reset(seed=0)
        after, *_ = step(env, obs, "^a")
        expected = model.image.encode(list(info["prompt"]), negative=True)
        for name, tensor in expected.items():
            assert np.array_equal(obs[f"negative_{name}"], tensor.numpy())
            assert np.array_equal(after[f"negative_{name}"], tensor.numpy())
        assert env.observation_space.contains(obs)

    def test_a_prompt_and_its_opening_fill_what_they_need(self):
        env = hybrid(OneBackbone(), num_envs=1, max_new_tokens=2, max_prompt_tokens=5)
        assert env.max_length == 5 + 2 + 2
        obs, _ = env.reset(options={"prompts": ["ab"]})
        for letter in "a^":
            obs, *_ = step(env, obs, letter)
        assert obs["length"].tolist() == [8] and (obs["tokens"][0, 8:] == PAD).all()


class TestEmptyPhases:
    @BACKENDS
    @BACKBONES
    def test_without_texts_it_is_the_denoising_environment(self, model, backend):
        options = {
            "num_envs": 4,
            "group_size": 2,
            "num_steps": 3,
            "prompts": QUESTIONS,
            "array_backend": backend,
            "info_objects": True,
        }
        two, one = model(), model()
        both = RewardWrapper(hybrid(two, max_new_tokens=0, max_prompt_tokens=24, **options), seen)
        bare = RewardWrapper(DenoiseVectorEnv(one.image, **options), seen)
        (left, info), (right, other) = both.reset(seed=5), bare.reset(seed=5)
        assert info["episode_seed"].tolist() == other["episode_seed"].tolist()
        for _ in range(9):
            assert plain(left["phase"]).tolist() == [1] * 4
            for name in set(right) - {"tokens", "length"}:
                assert np.array_equal(plain(left[name]), plain(right[name])), name
            if "tokens" in right:
                assert left["length"].tolist() == right["length"].tolist()
                assert np.array_equal(plain(left["tokens"])[:, :24], plain(right["tokens"]))
            *first, info = both.step({"latent": left["latent"] * 0.7})
            *second, other = bare.step(right["latent"] * 0.7)
            left, right = first[0], second[0]
            assert all(np.array_equal(plain(a), plain(b)) for a, b in zip(first[1:], second[1:], strict=True))
            for a, b in zip(info.get("samples", []), other.get("samples", []), strict=True):
                assert torch.equal(a.image, b.image) and (a.text, a.tokens) == (b.text, b.tokens) == (
                    None,
                    None,
                )

    @BACKENDS
    def test_without_pictures_it_is_the_token_environment(self, backend):
        options = {"num_envs": 4, "prompts": QUESTIONS, "array_backend": backend, "info_objects": True}
        options |= {"max_new_tokens": 6, "max_prompt_tokens": 20}
        both = RewardWrapper(hybrid(num_steps=0, **options), seen)
        bare = RewardWrapper(TokenVectorEnv(TwoBackbones().text, **options), seen)
        (left, _), (right, _) = both.reset(seed=5), bare.reset(seed=5)
        assert set(left) == {*right, "phase"} and list(both.single_action_space) == ["token"]
        draw = np.random.default_rng(0)
        for _ in range(40):
            assert not plain(left["phase"]).any()
            assert all(np.array_equal(plain(left[name]), plain(right[name])) for name in right)
            token = draw.choice([*range(EOS, 12)], 4)
            token = torch.from_numpy(token) if backend == "torch" else token
            *first, info = both.step({"token": token})
            *second, other = bare.step(token)
            left, right = first[0], second[0]
            assert all(np.array_equal(plain(a), plain(b)) for a, b in zip(first[1:], second[1:], strict=True))
            for a, b in zip(info.get("samples", []), other.get("samples", []), strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert (a.text, a.truncated, a.image) == (b.text, b.truncated, None)
                    assert torch.equal(a.tokens, b.tokens)

    def test_without_texts_the_opening_follows_the_prompt(self):
        env = hybrid(OneBackbone(), num_envs=1, max_new_tokens=0)
        obs, _ = env.reset(options={"prompts": ["ab"]})
        said = [USER, *spelled("ab"), EOS, MODEL, OPEN, MODEL]
        assert obs["tokens"][0, :7].tolist() == said and not obs["is_action"].any()
        assert (obs["length"][0], obs["prompt_length"][0], obs["phase"][0]) == (7, 5, 1)


class TestPictureTokens:
    @BACKENDS
    def test_a_picture_is_painted_token_by_token(self, backend):
        model = Discrete()
        env = hybrid(model, num_envs=2, array_backend=backend, autoreset_mode="disabled")
        assert (env.num_steps, env.sigmas, env.stochastic_steps) == (4, None, ())
        assert env.single_action_space["image_token"].start == model.image.first_id
        results = play(env, "ab^", "^")
        assert [plain(r[0]["image_length"]).tolist() for r in results] == [
            [0, 0], [0, 0], [0, 1], [0, 2], [1, 3], [2, 4], [3, 4], [4, 4],
        ]  # fmt: skip
        assert [r[2].tolist() for r in results[-3:]] == [[False, True], [False, True], [True, True]]
        painted = torch.as_tensor(results[-1][0]["image_tokens"])
        for row, sample in enumerate(samples_of(results, 2)):
            assert torch.equal(sample.image, model.image.pictures(painted[row : row + 1])[0].image)
            assert sample.text == ("ab", "")[row]

    def test_an_episode_may_wait_with_its_picture(self):
        env = hybrid(Discrete(), num_envs=2, max_new_tokens=0, autoreset_mode="disabled")
        env.reset(seed=0)
        obs, *_ = env.step({"image_token": np.array([-1, 53])})
        assert obs["image_length"].tolist() == [0, 1] and obs["image_tokens"][1, 0] == 53


class TestBatches:
    @pytest.mark.parametrize("model", [TwoBackbones, OneBackbone, Discrete])
    def test_an_episode_is_bitwise_the_same_alone(self, model):
        texts = ("^", "abc^", "ab~", "abcdefg")
        whole = hybrid(model(), num_envs=4, group_size=4, autoreset_mode="disabled")
        together = play(whole, *texts, seed=2, options={"prompts": ["1 cat"]})
        for row in (0, 1, 3):
            alone = hybrid(model(), num_envs=1, autoreset_mode="disabled")
            options = {"prompts": ["1 cat"], "sample_offset": [row]}
            for expected, got in zip(
                together, play(alone, texts[row], seed=2, options=options), strict=False
            ):
                assert all(np.array_equal(got[0][name][0], expected[0][name][row]) for name in got[0])

    def test_a_half_precise_neighbour_leaves_the_noise_as_it_is(self):
        env = hybrid(num_envs=2, array_backend="torch", autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        noise = obs["latent"][1].clone()
        obs, *_ = step(env, obs, "^a")
        token = torch.tensor([4, 4])
        obs, *_ = env.step({"token": token, "latent": obs["latent"].bfloat16()})
        assert torch.equal(obs["latent"][1].float(), noise)

    def test_groups_share_prompts_and_can_share_noise(self):
        env = hybrid(num_envs=4, group_size=2)
        obs, info = env.reset(seed=1, options={"same_noise": True})
        assert info["group"].tolist() == [0, 0, 1, 1] and info["prompt"][0] is info["prompt"][1]
        assert np.array_equal(obs["latent"][0], obs["latent"][1])
        assert env.encodings[0] is env.encodings[1] and len(set(info["episode_seed"].tolist())) == 4
        assert np.array_equal(
            env.reset(seed=5)[0]["latent"], hybrid(num_envs=4, group_size=2).reset(seed=5)[0]["latent"]
        )
