"""Token environments before the judges: Gymnasium's, Stable-Baselines3's and our own."""

import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from talk import EOS, QUESTIONS, SeeingModel, SpellingModel, length_score, spelled, talk

from unirl_env.envs import SingleEnv, TokenVectorEnv, check_vector_env
from unirl_env.errors import ConfigError, ContractError
from unirl_env.types import Prompt
from unirl_env.wrappers import EpisodeStatistics, RecordMedia, RewardWrapper

MODES = [(backend, mode) for backend in ("numpy", "torch") for mode in ("next_step", "disabled")]
MODELS = pytest.mark.parametrize("model", [SpellingModel, SeeingModel])


def reply_once(text, prompt):
    """A tool that answers the turns that begin with an a."""
    return "ok" if text.startswith("a") else None


def make_single(model="spelling", render_mode=None, **options):
    """Entry point of the single environment."""
    model = SeeingModel() if model == "seeing" else SpellingModel()
    options = {"autoreset_mode": "disabled", "info_objects": False, "render_mode": render_mode, **options}
    return SingleEnv(talk(model, num_envs=1, scored=True, **options))


gym.register("toy/Spelling-v0", entry_point=f"{__name__}:make_single")


class TestOthers:
    @pytest.mark.parametrize("model", ["spelling", "seeing"])
    def test_gymnasium_accepts_it(self, model):
        env = gym.make("toy/Spelling-v0", model=model, render_mode="ansi")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Pixel values are not bounded.
            warnings.filterwarnings("ignore", message=".*infinity.*")
            check_env(env.unwrapped)

    @pytest.mark.parametrize("model", ["spelling", "seeing"])
    def test_stable_baselines_accepts_it(self, model):
        sb3_check_env(make_single(model), warn=False)

    @pytest.mark.parametrize("wrap", [int, np.int64, np.array])
    def test_an_episode_of_one(self, wrap):
        env = make_single(render_mode="ansi")
        obs, info = env.reset(seed=0, options={"prompt": Prompt("1+1", id="sum")})
        assert env.observation_space.contains(obs) and obs["length"].shape == (1,)
        assert info["prompt"] == "1+1" and info["prompt_id"] == "sum"
        for token in (*spelled("hi"), EOS):
            obs, reward, terminated, truncated, info = env.step(wrap(token))
            assert env.observation_space.contains(obs) and type(terminated) is bool
        assert terminated and not truncated and reward == info["scores"]["value"] == 3.0
        assert info["sample"]["text"] == "hi" and info["sample"]["truncated"] is False
        said = info["sample"]["tokens"].tolist()
        assert said[: info["sample"]["length"]] == [*spelled("hi"), EOS]
        assert len(said) == env.observation_space["tokens"].shape[0] and set(said[3:]) == {-1}
        assert env.render() == "1+1hi"

    def test_off_the_shelf_vectorisation(self):
        env = gym.vector.SyncVectorEnv([make_single, make_single])
        obs, _ = env.reset(seed=[1, 2])
        assert obs["tokens"].shape == (2, 32)
        obs, _, terminated, _, _ = env.step(np.array([EOS, 5]))
        assert terminated.tolist() == [True, False]

    def test_seeds_name_episodes(self):
        env = make_single()
        first = env.reset(seed=1)[1]["episode_seed"]
        assert env.reset()[1]["episode_seed"] != first == env.reset(seed=1)[1]["episode_seed"]


class TestAcquittal:
    @MODELS
    @pytest.mark.parametrize("backend, mode", MODES)
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"group_size": 2, "scored": True},
            {"group_size": 4, "same_noise": True, "max_new_tokens": 3},
            {"tool": reply_once, "max_turns": 2},
        ],
    )
    def test_every_form(self, model, backend, mode, options):
        check_vector_env(talk(model(), array_backend=backend, autoreset_mode=mode, **options), seed=3)

    @pytest.mark.parametrize("backend, mode", MODES)
    @pytest.mark.parametrize("letters", ["~", "a~", "~aab", "abcdefgh~i"])
    def test_texts_of_every_length(self, backend, mode, letters):
        """Each row ends at its own step, some at the first."""

        def act(obs):
            said = np.asarray(obs["length"] - obs["prompt_length"])
            rows = [letters[(row + step) % len(letters)] for row, step in enumerate(said)]
            tokens = np.array([EOS if letter == "~" else spelled(letter)[0] for letter in rows])
            return torch.from_numpy(tokens) if backend == "torch" else tokens

        for group_size in (1, 2):
            options = {"group_size": group_size, "tool": reply_once}
            check_vector_env(talk(array_backend=backend, autoreset_mode=mode, **options), act)

    @pytest.mark.parametrize("mode", ["next_step", "disabled"])
    def test_one_episode_of_one_token(self, mode):
        check_vector_env(talk(num_envs=1, max_new_tokens=1, autoreset_mode=mode))

    def test_wrapped(self, tmp_path):
        env = EpisodeStatistics(RecordMedia(talk(scored=True, array_backend="torch"), tmp_path))
        check_vector_env(env)


# The mutants. Each breaks one promise and keeps the others.


class Overwriter(TokenVectorEnv):
    """Changes what has been said."""

    def _observe(self):
        obs = super()._observe()
        obs["tokens"][:, 0] = obs["length"]
        return obs


class Deaf(TokenVectorEnv):
    """Says what it likes."""

    def _advance(self, actions, active):
        return super()._advance(np.where(np.asarray(actions) >= 4, actions // 52 * 52 + 7, actions), active)


class Boastful(TokenVectorEnv):
    """Calls the prompt an action."""

    def _observe(self):
        obs = super()._observe()
        return {**obs, "is_action": np.ones_like(obs["is_action"])}


class Modest(TokenVectorEnv):
    """Calls nothing an action."""

    def _observe(self):
        obs = super()._observe()
        return {**obs, "is_action": np.zeros_like(obs["is_action"])}


class Restless(TokenVectorEnv):
    """Takes waiting for the first letter."""

    def _advance(self, actions, active):
        actions = np.asarray(actions)
        return super()._advance(np.where(actions == -1, 4, actions), active)


class Wrapping(TokenVectorEnv):
    """Takes any number for a token."""

    def _advance(self, actions, active):
        return super()._advance(np.asarray(actions) % 52, active)


class Silent(TokenVectorEnv):
    """Keeps the text to itself."""

    def _finish(self, rows):
        return [replace(sample, text=None) for sample in super()._finish(rows)]


class Hasty(TokenVectorEnv):
    """Loses the last token."""

    def _finish(self, rows):
        return [replace(sample, tokens=sample.tokens[:-1]) for sample in super()._finish(rows)]


class Sincere(TokenVectorEnv):
    """Never admits that a text was cut."""

    def _finish(self, rows):
        return [replace(sample, truncated=False) for sample in super()._finish(rows)]


class Growing(TokenVectorEnv):
    """Counts what was said to the prompt."""

    def _observe(self):
        obs = super()._observe()
        return {**obs, "prompt_length": np.minimum(obs["length"], self.max_prompt_tokens)}


class Stuck(TokenVectorEnv):
    """Starts the same episodes again when it resets by itself."""

    def _info(self):
        return {**super()._info(), "episode_seed": self._reset_state.seed * 100 + np.arange(self.num_envs)}


MUTANTS = [
    (Overwriter, {}, "What has been said must not change within an episode"),
    (Deaf, {}, "must be the next token of the conversation"),
    (Boastful, {}, "must begin with its prompt alone"),
    (Modest, {}, "marked as an action"),
    (Restless, {"autoreset_mode": "disabled"}, "that waits must stay as it is"),
    (Wrapping, {}, "the vocabulary lacks must be refused"),
    (Silent, {}, "`Sample.text` must be"),
    (Hasty, {}, "`Sample.tokens` must be all tokens after the prompt"),
    (Sincere, {"max_new_tokens": 2}, "`Sample.truncated` must say"),
    (Growing, {}, "`prompt_length` must not change|lie in its space"),
    (Stuck, {}, "must start new episodes|must go on to new episodes"),
]


@pytest.mark.parametrize("mutant, options, law", MUTANTS, ids=[m.__name__ for m, *_ in MUTANTS])
def test_a_broken_world_is_convicted(mutant, options, law):
    options = {"prompts": QUESTIONS, "max_new_tokens": 12, "max_prompt_tokens": 20, **options}
    with pytest.raises(ContractError, match=law):
        check_vector_env(mutant(SpellingModel(), num_envs=4, **options), max_steps=50)


class TestTogether:
    """Rewards that are judged in one call."""

    def play(self, together, texts=("a~xx", "abc~", "~xxx", "ab~x"), scorer=length_score):
        env = RewardWrapper(talk(autoreset_mode="disabled"), scorer, together=together)
        env.reset(seed=0)
        letters = zip(*texts, strict=True)
        return [
            env.step(np.array([EOS if c == "~" else spelled(c)[0] for c in step])) for step in letters
        ], env

    def test_all_are_judged_at_the_last_end(self):
        calls = []

        def scorer(samples, prompts):
            calls.append((len(samples), [prompt.id for prompt in prompts]))
            return length_score(samples, prompts)

        results, env = self.play(True, scorer=scorer)
        assert [result[1].tolist() for result in results[:3]] == [[0.0] * 4] * 3
        assert results[3][1].tolist() == [2.0, 4.0, 1.0, 3.0] and len(calls) == 1
        assert calls[0] == (4, [prompt.id for prompt in results[3][4]["prompt"]])
        assert results[3][4]["scores"].value.tolist() == [2.0, 4.0, 1.0, 3.0] and env.scored == 4
        assert results[3][4]["_scores"].all() and all("scores" not in r[4] for r in results[:3])
        assert results[0][4]["samples"][2] is not None, "samples come at their own end"

    def test_by_default_each_is_paid_at_its_own_end(self):
        results, _ = self.play(False)
        assert [result[1].tolist() for result in results] == [
            [0.0, 0.0, 1.0, 0.0],
            [2.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 3.0],
            [0.0, 4.0, 0.0, 0.0],
        ]

    def test_a_reset_drops_what_was_not_paid(self):
        _, env = self.play(True, texts=("~", "a", "a", "a"))
        env.reset(options={"reset_mask": np.array([True, False, False, False])})
        assert env.step(np.array([5, EOS, EOS, EOS]))[1].tolist() == [0.0] * 4
        assert env.step(np.array([EOS] * 4))[1].tolist() == [2.0] * 4
        env.reset(seed=1)
        assert env.step(np.array([EOS] * 4))[1].tolist() == [1.0] * 4

    def test_it_needs_a_common_end(self):
        with pytest.raises(ConfigError, match=r"`together` must be False .*NEXT_STEP"):
            RewardWrapper(talk(), length_score, together=True)
