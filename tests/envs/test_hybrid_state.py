"""Hybrid environments in use: standing still, snapshots, copies, restarts, pictures on the way, wrappers."""

import json

import numpy as np
import pytest
import torch
from hybrid_worlds import (
    Discrete,
    OneBackbone,
    Sighted,
    TwoBackbones,
    hybrid,
    letters,
    looking,
    play,
    samples_of,
    step,
)
from talk import plain, say, talk
from worlds import world

from unirl_env.envs import HybridVectorEnv
from unirl_env.errors import ConfigError, ContractError
from unirl_env.worlds import make_env, make_vector_env
from unirl_env.wrappers import EpisodeStatistics, RecordMedia

MODELS = pytest.mark.parametrize("model", [TwoBackbones, OneBackbone, Discrete])
BACKENDS = pytest.mark.parametrize("backend", ["numpy", "torch"])


def copied(obs):
    return {name: plain(value) for name, value in obs.items()}


def alike(one, other, rows=slice(None)):
    return all(np.array_equal(one[name][rows], other[name][rows]) for name in one)


class TestStandingStill:
    @BACKENDS
    def test_texts_are_played_first_and_then_all_pictures(self, backend):
        texts = ("^", "abc^", "ab~", "abcdefg")
        mixed = hybrid(array_backend=backend, autoreset_mode="disabled")
        expected = samples_of(play(mixed, *texts, seed=3), 4)
        env = hybrid(array_backend=backend, autoreset_mode="disabled")
        obs, _ = env.reset(seed=3)
        noise, results = plain(obs["latent"]), []
        kind = torch.from_numpy if backend == "torch" else np.asarray
        for k in range(6):
            said = letters([text[k] if k < len(text) else "." for text in texts])
            results.append(env.step({"token": kind(said)}))
        obs = results[-1][0]
        assert plain(obs["phase"]).tolist() == [1, 1, 0, 0] and np.array_equal(plain(obs["latent"]), noise)
        while not (results[-1][2] | results[-1][3]).all():
            results.append(env.step({"latent": results[-1][0]["latent"] * 0.5}))
        for one, other in zip(samples_of(results, 4), expected, strict=True):
            assert (one.text, one.truncated) == (other.text, other.truncated)
            assert (one.image is None) == (other.image is None)
            assert one.image is None or torch.equal(one.image, other.image)

    def test_one_episode_waits_while_others_write_and_draw(self):
        env = hybrid(num_envs=3, autoreset_mode="disabled")
        before, _ = env.reset(seed=0)
        obs, *_ = step(env, before, "_^a")
        obs, *_ = step(env, obs, "_.b")
        assert alike(copied(obs), copied(before), 0) and obs["step"].tolist() == [0, 1, 0]

    def test_a_refused_part_leaves_the_other_phase_alone(self):
        env = hybrid(num_envs=2, autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        obs = copied(step(env, obs, "^a")[0])
        for actions in (
            {"token": letters("ab"), "latent": obs["latent"][:, :1]},
            {"token": letters("ab") + 1000, "latent": obs["latent"] * 0},
        ):
            with pytest.raises((ValueError, ContractError)):
                env.step(actions)
            assert alike(copied(env.restore(env.snapshot())[0]), obs)

    def test_a_failing_encoder_leaves_the_text_unsaid(self):
        model = TwoBackbones()
        env = hybrid(model, num_envs=2, autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        read = model.context

        def broken(prompt, text):
            raise MemoryError

        model.context = broken
        with pytest.raises(MemoryError):
            step(env, obs, "^a")
        model.context = read
        after, *_ = step(env, obs, "^a")
        assert after["length"].tolist() == (obs["length"] + [2, 1]).tolist()


class TestSnapshots:
    @MODELS
    @BACKENDS
    @pytest.mark.parametrize("when", [1, 2, 4, 5])
    def test_they_come_back_in_either_phase(self, model, backend, when):
        texts = ("^", "abc^", "ab^", "ab~")
        env = hybrid(model(), array_backend=backend, autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        for k in range(when):
            obs, *_ = step(env, obs, [text[k] if k < len(text) else "." for text in texts])
        before, snapshot, runs = copied(obs), env.snapshot(), []
        for _ in range(2):
            obs, _ = env.restore(snapshot)
            assert alike(copied(obs), before)
            trace = []
            for k in range(when, 9):
                obs, *rest = step(env, obs, [text[k] if k < len(text) else "." for text in texts])
                trace.append((copied(obs), rest[1].tolist()))
                if (rest[1] | rest[2]).all():
                    break
            runs.append(trace)
        assert all(alike(a[0], b[0]) and a[1] == b[1] for a, b in zip(*runs, strict=True))

    @MODELS
    def test_heirs_go_on_from_either_phase(self, model):
        env = hybrid(model(), num_envs=4, autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        obs = step(env, obs, "^abc")[0]
        before = copied(step(env, obs, ".bcd")[0])
        obs, info = env.fork([0, 0, 1, 1])
        assert alike(copied(obs), {name: value[[0, 0, 1, 1]] for name, value in before.items()})
        assert obs["phase"].tolist() == [1, 1, 0, 0] and len(set(info["episode_seed"].tolist())) == 4
        after, *_ = step(env, obs, "..x^")
        assert after["phase"].tolist() == [1, 1, 0, 1]

    def test_those_of_another_kind_are_refused_and_change_nothing(self):
        env = hybrid(num_envs=2, autoreset_mode="disabled")
        before = copied(env.reset(seed=0)[0])
        others = [
            hybrid(Discrete(), num_envs=2),
            hybrid(num_envs=2, num_steps=0),
            hybrid(num_envs=2, num_steps=4),
            hybrid(num_envs=2, max_new_tokens=5),
            world(num_envs=2),
            talk(num_envs=2),
        ]
        for other in others:
            other.reset(seed=0)
            with pytest.raises(ContractError, match="`snapshot` must hold"):
                env.restore(other.snapshot())
            assert alike(copied(env.restore(env.snapshot())[0]), before)
            with pytest.raises(ContractError, match="`snapshot` must hold"):
                other.restore(env.snapshot())


def test_an_episode_of_pictures_goes_on_in_no_environment_of_edits():
    """Its prompts bring none that could be edited, and later ones of the other would."""
    envs = [hybrid(Sighted(), num_envs=2, prompts=looking(), edits=edits) for edits in (False, True)]
    for env in envs:
        env.reset(seed=0)
    for env, other, here in ((*envs, False), (*envs[::-1], True)):
        with pytest.raises(ContractError, match=rf"must hold edits {here} \(got edits {not here}\)"):
            env.restore(other.snapshot())


@MODELS
def test_mirrors_on_another_device_follow(model):
    """The CPU stands in for the device."""
    env, mirrored = (hybrid(model(), array_backend="torch", autoreset_mode="disabled") for _ in range(2))
    mirrored._writing.mirror = mirrored._drawing.mirror = torch.device("cpu")
    texts = ("^", "abc^", "ab~", "abcdefg")
    results = play(mirrored, *texts)
    for one, other in zip(play(env, *texts), results, strict=True):
        assert alike(copied(one[0]), copied(other[0]))
    shown = results[-1][0]["tokens"].data_ptr()
    assert shown != mirrored._writing.written.tokens.ctypes.data, "the mirror is what is seen"


class TestRestarts:
    def test_uneven_episodes_restart_on_their_own(self):
        env = hybrid(num_envs=3, max_new_tokens=4)
        obs, before = env.reset(seed=0)
        phases, seeds = [], [before["episode_seed"].tolist()]
        for said in ("^~a", "..b", "..^", "a^.", ".b."):
            obs, *_, info = step(env, obs, said)
            phases.append(obs["phase"].tolist())
            seeds.append(info["episode_seed"].tolist())
        assert phases == [[1, 0, 0], [1, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 1]]
        assert [seeds[k][1] != seeds[k + 1][1] for k in range(5)] == [False, True, False, False, False]
        assert seeds[5][0] != seeds[4][0] and obs["step"].tolist() == [0, 1, 2]
        assert not obs["pooled"][0].any() and obs["pooled"][1].any()

    def test_a_masked_reset_starts_some_groups_anew(self):
        env = hybrid(num_envs=4, group_size=2, autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        before = copied(step(env, obs, "^^^^")[0])
        obs, _ = env.reset(options={"reset_mask": np.array([False, False, True, True])})
        assert obs["phase"].tolist() == [1, 1, 0, 0] and alike(copied(obs), before, slice(2))
        assert not obs["pooled"][2:].any() and (obs["latent"][2:] != before["latent"][2:]).any()


class TestShowing:
    def test_texts_while_they_are_written(self):
        env = hybrid(num_envs=2, render_mode="ansi", autoreset_mode="disabled")
        assert env.render() is None
        obs, _ = env.reset(options={"prompts": ["a", "b"]})
        step(env, obs, "x^")
        assert env.render() == ("ax", "b")

    def test_pictures_on_their_way(self):
        env = hybrid(num_envs=2, render_mode="rgb_array", autoreset_mode="disabled")
        first, _ = env.reset(seed=0)
        noise = env.render()
        assert noise[0].shape == (4, 4, 3) and noise[0].dtype == np.uint8
        obs, *_ = step(env, first, "^a")
        assert all(np.array_equal(a, b) for a, b in zip(env.render(), noise, strict=True))
        step(env, obs, ".b")
        after = env.render()
        assert not np.array_equal(after[0], noise[0]) and np.array_equal(after[1], noise[1])

    def test_pictures_of_tokens(self):
        env = hybrid(Discrete(), num_envs=1, max_new_tokens=0, render_mode="rgb_array")
        env.reset(seed=0)
        assert not env.render()[0].any()
        env.step({"image_token": np.array([env.unified_model.image.first_id + 4])})
        assert env.render()[0][:, :, 0].tolist() == [[255, 0], [0, 0]]

    @pytest.mark.parametrize("format", ["png", "strip"])
    def test_recordings_hold_picture_and_text(self, tmp_path, format):
        env = hybrid(num_envs=3, scored=True, render_mode="rgb_array", autoreset_mode="disabled")
        env = EpisodeStatistics(RecordMedia(env, tmp_path, format=format))
        results = play(env, "ab^", "c~", "^", options={"prompts": ["1", "2", "3"]})
        pages = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
        assert [page["text"] for page in pages] == ["ab", "c", ""]
        assert [page["file"] is None for page in pages] == [False, True, False]
        assert len(list(tmp_path.glob("*.png"))) == 2 and results[-1][4]["episode"]["l"].tolist() == [6, 0, 0]
        assert env.summary()["episodes"] == 3


class TestMaking:
    def test_by_the_name_of_a_model(self):
        options = {"prompts": ["a red circle"], "max_new_tokens": 4, "max_prompt_tokens": 48, "num_steps": 2}
        env = make_vector_env(2, unified_model="tiny_unified", group_size=2, **options)
        obs, _ = env.reset(seed=0)
        assert isinstance(env, HybridVectorEnv) and obs["latent"].shape[0] == 2
        single = make_env(unified_model=TwoBackbones(), prompts=["a"], max_prompt_tokens=20, max_new_tokens=4)
        assert set(single.action_space) == {"token", "latent"}

    def test_agents_of_one_flat_action_are_told(self):
        options = {"unified_model": TwoBackbones(), "prompts": ["a"], "max_prompt_tokens": 20}
        for make in (make_vector_env, make_env):
            with pytest.raises(ConfigError, match=r"got the phases .* of a hybrid environment"):
                make(flat=True, max_new_tokens=4, **options)

    def test_a_generator_is_for_texts_alone(self):
        with pytest.raises(ConfigError, match="`generator` must be None for a `unified_model`"):
            make_vector_env(
                2,
                unified_model=TwoBackbones(),
                prompts=["a"],
                max_prompt_tokens=20,
                max_new_tokens=4,
                generator={"denoiser": "tiny_sd3"},
            )


def test_token_environments_spell_as_before():
    """The helper of this file and that of the token environment mean the same letters."""
    env = talk(num_envs=1, autoreset_mode="disabled")
    env.reset(seed=0)
    assert say(env, "~")[0][2].tolist() == [True] and letters("~").tolist() == [1]
