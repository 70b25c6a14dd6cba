"""What every mode shares, on the denoising environment of the plain model."""

import pickle

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from worlds import PROMPTS, PlainDenoiser, world

import unirl_env.functional as F
from unirl_env.envs import PromptSource
from unirl_env.errors import ConfigError, ContractError, PromptError, ShapeError
from unirl_env.types import Prompt


def ids(info):
    return [prompt.id for prompt in info["prompt"]]


def seeds(info):
    return info["episode_seed"].tolist()


def finish(env, obs):
    """Play on to the end; the last step's results."""
    while True:
        result = env.step(obs["latent"] * 0.9)
        obs = result[0]
        if bool(torch.as_tensor(result[2]).all()):
            return result


class TestGroups:
    def test_a_group_shares_a_prompt_and_numbers_follow_the_place(self):
        _, info = world(num_envs=6, group_size=3).reset(seed=0)
        assert info["group"].tolist() == [0, 0, 0, 1, 1, 1]
        assert ids(info)[:3] == [ids(info)[0]] * 3 and ids(info)[3:] == [ids(info)[3]] * 3
        assert ids(info)[0] != ids(info)[3] and len(set(seeds(info))) == 6

    def test_seeds_are_those_of_seed_prompt_and_sample(self):
        _, info = world(num_envs=4, group_size=2).reset(seed=5)
        assert seeds(info) == [F.episode_seed(5, prompt, i % 2) for i, prompt in enumerate(ids(info))]

    def test_the_latents_are_the_keyed_noise(self):
        obs, info = world().reset(seed=5)
        assert np.array_equal(obs["latent"], F.keyed_noise(seeds(info), -1, (3, 4, 4)).numpy())

    def test_same_noise_is_one_start_per_group_and_other_steps(self):
        env = world(num_envs=4, group_size=2)
        obs, info = env.reset(seed=0, options={"same_noise": True})
        latent = obs["latent"]
        assert np.array_equal(latent[0], latent[1]) and np.array_equal(latent[2], latent[3])
        assert not np.array_equal(latent[0], latent[2]) and len(set(seeds(info))) == 4
        again, _ = env.reset(seed=0)
        assert not np.array_equal(again["latent"][0], again["latent"][1])

    def test_sample_offset_shares_out_a_group(self):
        whole = world(num_envs=6, group_size=6)
        share = world(num_envs=2, group_size=2)
        obs, info = whole.reset(seed=1, options={"prompts": ["a cat"]})
        for first in (0, 2, 4):
            part, part_info = share.reset(seed=1, options={"prompts": ["a cat"], "sample_offset": [first]})
            assert seeds(part_info) == seeds(info)[first : first + 2]
            assert np.array_equal(part["latent"], obs["latent"][first : first + 2])

    def test_a_prompt_that_occurs_again_gets_further_samples(self):
        _, info = world(num_envs=4, group_size=2).reset(seed=1, options={"prompts": ["a cat", "a cat"]})
        assert seeds(info) == [F.episode_seed(1, "a cat", i) for i in range(4)]

    @pytest.mark.parametrize("size", [3, 0, -1, 5])
    def test_a_group_size_that_does_not_divide_is_refused(self, size):
        with pytest.raises(ConfigError, match="multiple of `group_size`"):
            world(num_envs=4, group_size=size)
        env = world(num_envs=4)
        with pytest.raises(ConfigError, match="multiple of `group_size`"):
            env.reset(options={"group_size": size})
        assert env.reset(seed=0)[1]["group"].tolist() == [0, 1, 2, 3]


class TestPrompts:
    def test_resets_walk_through_the_source_in_its_order(self):
        env = world(num_envs=2)
        order = [prompt.id for prompt in PromptSource.of(PROMPTS).take(0, 6, seed=9)]
        taken = ids(env.reset(seed=9)[1]) + ids(env.reset()[1]) + ids(env.reset()[1])
        assert taken == order

    def test_a_seed_begins_the_order_anew(self):
        env = world(num_envs=2)
        first = ids(env.reset(seed=9)[1])
        env.reset()
        assert ids(env.reset(seed=9)[1]) == first

    def test_given_prompts_do_not_use_up_the_source(self):
        env = world(num_envs=2)
        env.reset(seed=9)
        given = [Prompt("a boat", id="b", metadata={"size": 3}), "a bird"]
        _, info = env.reset(options={"prompts": given})
        assert ids(info) == ["b", "a bird"] and info["prompt"][0].metadata == {"size": 3}
        order = [prompt.id for prompt in PromptSource.of(PROMPTS).take(0, 4, seed=9)]
        assert ids(env.reset()[1]) == order[2:]

    @pytest.mark.parametrize("prompts", [[], ["one"], ["one"] * 3])
    def test_the_number_of_prompts_is_that_of_the_groups(self, prompts):
        with pytest.raises(ConfigError, match=f"one prompt per group, 2, got {len(prompts)}"):
            world(num_envs=4, group_size=2).reset(options={"prompts": prompts})

    def test_a_prompt_of_ten_thousand_characters_is_refused_at_both_doors(self):
        with pytest.raises(PromptError, match=r"at most 4000 characters, got 10000"):
            world(prompts=["x" * 10_000])
        env = world(num_envs=1)
        with pytest.raises(PromptError, match=r"at most 4000 characters, got 10000"):
            env.reset(options={"prompts": ["x" * 10_000]})

    def test_longer_prompts_are_taken_when_asked_for(self):
        env = world(num_envs=1, prompts=["x" * 10_000], max_characters=10_000)
        assert len(env.reset(seed=0)[1]["prompt"][0].text) == 10_000
        env.reset(options={"prompts": ["y" * 10_000]})

    @pytest.mark.parametrize("prompts", [[], "no_such_file.txt", 7])
    def test_unusable_sources_are_prompt_errors(self, prompts):
        with pytest.raises(PromptError):
            world(prompts=prompts)

    def test_an_unreadable_file_is_named(self, tmp_path):
        path = tmp_path / "prompts.txt"
        path.write_bytes(b"a cat\n\xff\xfe\n")
        with pytest.raises(PromptError, match=r"UTF-8.*prompts\.txt"):
            world(prompts=path)


class TestOptions:
    def test_unknown_ones_are_refused_by_name(self):
        with pytest.raises(ConfigError, match=r"\['prompt'\]; known are group_size, same_noise, stochastic"):
            world().reset(options={"prompt": "a cat"})

    def test_none_is_as_good_as_nothing(self):
        env = world()
        plain = env.reset(seed=3)[0]["latent"]
        options = dict.fromkeys(["prompts", "group_size", "same_noise", "sample_offset", "reset_mask"])
        assert np.array_equal(plain, env.reset(seed=3, options=options)[0]["latent"])

    def test_they_last_until_the_next_reset(self):
        env = world(num_envs=4)
        env.reset(seed=0, options={"group_size": 4, "same_noise": True, "stochastic_steps": [1]})
        assert env.group_size == 4 and env.stochastic_steps == (1,)
        obs, info = env.reset(seed=0)
        assert env.group_size == 1 and env.stochastic_steps == (0, 1)
        assert info["group"].tolist() == [0, 1, 2, 3]
        assert not np.array_equal(obs["latent"][0], obs["latent"][1])

    def test_autoresets_keep_them(self):
        env = world(num_envs=4)
        obs, _ = env.reset(seed=0, options={"group_size": 2, "same_noise": True, "stochastic_steps": [1]})
        obs = finish(env, obs)[0]
        obs, *_, info = env.step(obs["latent"])
        assert info["group"].tolist() == [0, 0, 1, 1] and env.stochastic_steps == (1,)
        assert np.array_equal(obs["latent"][0], obs["latent"][1])

    @pytest.mark.parametrize(
        "options",
        [
            {"group_size": 3},
            {"group_size": 2, "prompts": ["a cat"]},
            {"group_size": 2, "prompts": ["a cat", ""]},
            {"group_size": 2, "sample_offset": [0]},
            {"group_size": 2, "sample_offset": [0, -1]},
            {"group_size": 2, "stochastic_steps": [3]},
            {"reset_mask": [True, False]},
            {"unheard_of": 1},
        ],
    )
    def test_a_refused_reset_changes_nothing(self, options):
        env = world(num_envs=4)
        obs, _ = env.reset(seed=0)
        env.step(obs["latent"] * 0.5)
        before = env.snapshot()
        with pytest.raises((ConfigError, PromptError)):
            env.reset(options=options)
        after = env.snapshot()
        assert after.groups is before.groups and after.reset_state is before.reset_state
        assert after.model_state["latent"] is before.model_state["latent"]
        assert env.group_size == 1 and not env.step(obs["latent"])[2].any()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("num_envs", 4.0),
            ("num_envs", True),
            ("num_envs", "4"),
            ("group_size", 2.0),
            ("group_size", True),
            ("same_noise", "no"),
            ("same_noise", 0),
            ("num_steps", 7.5),
            ("num_steps", 8.0),
            ("num_steps", "8"),
            ("num_steps", True),
            ("with_negative", "false"),
            ("context_cache", 2.5),
            ("max_characters", 10.5),
            ("stochastic_steps", [0.0]),
            ("stochastic_steps", [True, False]),
            ("stochastic_steps", "01"),
            ("stochastic_steps", np.array([True, False, False])),
        ],
    )
    def test_arguments_of_another_kind_are_refused(self, name, value):
        with pytest.raises(ConfigError, match=f"`{name}` must"):
            world(**{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("group_size", 2.0),
            ("same_noise", "no"),
            ("sample_offset", [0.5, 1, 2, 3]),
            ("sample_offset", [True] * 4),
            ("stochastic_steps", torch.tensor([1.0])),
            ("reset_mask", np.ones(4, np.uint8)),
            ("reset_mask", torch.ones(4)),
            ("reset_mask", np.ma.masked_array([True] * 4, mask=[0, 0, 0, 1])),
        ],
    )
    def test_options_of_another_kind_are_refused_and_change_nothing(self, name, value):
        env = world(num_envs=4)
        obs, _ = env.reset(seed=0)
        with pytest.raises(ConfigError, match=f"`{name}` must"):
            env.reset(seed=1, options={name: value})
        assert np.array_equal(env.fork(range(4))[0]["latent"], obs["latent"])

    def test_integers_of_numpy_and_torch_are_taken(self):
        sizes = {"num_envs": np.int64(4), "group_size": np.uint8(2), "num_steps": torch.tensor(3)}
        env = world(**sizes, same_noise=np.True_)
        options = {"sample_offset": np.array([0, 3], np.uint8), "stochastic_steps": {1, 0}}
        obs, info = env.reset(seed=np.uint32(5), options=options)
        assert obs["latent"].shape[0] == 4 and env.stochastic_steps == (0, 1) and type(env.num_envs) is int
        assert seeds(info)[2:] == [F.episode_seed(5, ids(info)[2], 3 + i) for i in range(2)]

    @pytest.mark.parametrize("seed", [[1, 2, 3, 4], 0.5, "seven", True, 3.0])
    def test_a_seed_is_one_integer(self, seed):
        with pytest.raises(ConfigError, match="one integer"):
            world().reset(seed=seed)

    @pytest.mark.parametrize(
        "argument, value",
        [
            ("array_backend", "jax"),
            ("autoreset_mode", "same_step"),
            ("autoreset_mode", AutoresetMode.SAME_STEP),
            ("render_mode", "human"),
            ("num_envs", 0),
        ],
    )
    def test_arguments_out_of_range_are_named(self, argument, value):
        with pytest.raises(ConfigError, match=f"`{argument}`"):
            world(**{argument: value})


class TestSeeds:
    def test_the_course_of_a_seed_is_repeatable(self):
        env, other = world(), world()
        runs = [[seeds(e.reset(seed=4)[1]), seeds(e.reset()[1]), seeds(e.reset()[1])] for e in (env, other)]
        assert runs[0] == runs[1]
        assert len({seed for part in runs[0] for seed in part}) == 12

    def test_the_courses_of_neighbouring_seeds_do_not_meet(self):
        env = world(prompts=["a cat"])
        runs = [seeds(env.reset(seed=4)[1]) + seeds(env.reset()[1]), seeds(env.reset(seed=5)[1])]
        assert not set(runs[0]) & set(runs[1])

    def test_autoresets_follow_the_same_course_as_resets(self):
        by_hand, by_itself = world(), world()
        by_hand.reset(seed=4)
        expected = seeds(by_hand.reset()[1])
        obs = finish(by_itself, by_itself.reset(seed=4)[0])[0]
        assert seeds(by_itself.step(obs["latent"])[-1]) == expected

    def test_unseeded_environments_differ(self):
        assert not set(seeds(world().reset()[1])) & set(seeds(world().reset()[1]))

    def test_the_global_generators_are_neither_read_nor_moved(self):
        torch.manual_seed(0)
        np.random.seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        env = world()
        finish(env, env.reset(seed=0)[0])
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])


class TestAutoreset:
    def test_order_is_guarded(self):
        env = world(autoreset_mode="disabled")
        for early in (lambda: env.step(env.action_space.sample()), env.snapshot, lambda: env.fork([0] * 4)):
            with pytest.raises(ResetNeeded):
                early()
        finish(env, env.reset(seed=0)[0])
        with pytest.raises(ResetNeeded, match="finished batch"):
            env.step(env.action_space.sample())
        env.reset(seed=0)
        env.step(env.action_space.sample())

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_next_step_resets_at_the_step_after_the_end(self, backend):
        env = world(num_envs=2, array_backend=backend)
        obs, info = env.reset(seed=0)
        ends = []
        for k in range(8):
            obs, reward, terminated, truncated, info = env.step(obs["latent"] * 0.5)
            ends.append(bool(terminated.all()))
            assert bool(terminated.any()) == ends[-1] and not truncated.any() and not reward.any()
            assert ("samples" in info) == ends[-1]
            if k in (3, 7):
                assert obs["step"].tolist() == [0, 0] and float(obs["sigma"][0]) == 1.0
        assert ends == [False, False, True, False] * 2

    def test_the_two_flags_of_a_resetting_step_are_not_one_array(self):
        env = world()
        obs = finish(env, env.reset(seed=0)[0])[0]
        _, _, terminated, truncated, _ = env.step(obs["latent"])
        terminated[:] = True
        assert not truncated.any()

    def test_a_masked_reset_lets_the_others_go_on(self):
        env = world(num_envs=4, group_size=2, autoreset_mode="disabled")
        obs, first = env.reset(seed=0)
        obs, *_ = env.step(obs["latent"] * 0.5)
        kept = obs["latent"][:2].copy()
        obs, info = env.reset(options={"reset_mask": np.array([False, False, True, True])})
        assert obs["step"].tolist() == [1, 1, 0, 0] and np.array_equal(obs["latent"][:2], kept)
        assert seeds(info)[:2] == seeds(first)[:2] and not set(seeds(info)[2:]) & set(seeds(first))
        assert info["group"].tolist() == [0, 0, 1, 1]
        obs, *_ = env.step(obs["latent"])
        obs, _, terminated, _, info = env.step(obs["latent"])
        assert terminated.tolist() == [True, True, False, False]
        assert [s is not None for s in info["samples"]] == info["_samples"].tolist() == terminated.tolist()
        done = obs["latent"][:2].copy()
        obs, _, terminated, _, info = env.step(obs["latent"] * 0.1)
        assert terminated.all() and info["_samples"].tolist() == [False, False, True, True]
        assert np.array_equal(obs["latent"][:2], done), "a finished episode does not move"

    def test_groups_that_end_apart_restart_apart(self):
        env = world(num_envs=4, group_size=2)
        obs, first = env.reset(seed=0)
        obs, *_ = env.step(obs["latent"])
        obs, _ = env.reset(options={"reset_mask": np.array([False, False, True, True])})
        for expected in ([2, 2, 1, 1], [3, 3, 2, 2], [0, 0, 3, 3], [1, 1, 0, 0], [2, 2, 1, 1]):
            obs, _, terminated, _, info = env.step(obs["latent"])
            assert obs["step"].tolist() == expected
            assert terminated.tolist() == [step == 3 for step in expected]
        assert len(set(seeds(info))) == 4 and not set(seeds(info)) & set(seeds(first))

    @pytest.mark.parametrize(
        "mask, word",
        [
            ([True, False, False, False], "whole groups"),
            ([False] * 4, "with 0"),
            ([1, 1, 0, 0], "bool"),
            ([True, True], "bool"),
        ],
    )
    def test_masks_that_do_not_fit_are_refused(self, mask, word):
        env = world(num_envs=4, group_size=2)
        env.reset(seed=0)
        with pytest.raises(ConfigError, match=word):
            env.reset(options={"reset_mask": np.array(mask)})

    def test_a_mask_cannot_come_first_nor_change_the_groups(self):
        env, mask = world(num_envs=4, group_size=2), np.array([True, True, False, False])
        with pytest.raises(ResetNeeded):
            env.reset(options={"reset_mask": mask})
        env.reset(seed=0)
        with pytest.raises(ConfigError, match="must stay 2"):
            env.reset(options={"reset_mask": mask, "group_size": 1})

    def test_a_mask_may_be_a_tensor(self):
        env = world(array_backend="torch")
        env.reset(seed=0)
        obs, _ = env.reset(options={"reset_mask": torch.tensor([True, False, False, True])})
        assert obs["step"].tolist() == [0, 0, 0, 0]


class TestSnapshots:
    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_restore_goes_back_as_often_as_one_likes(self, backend):
        env = world(array_backend=backend)
        obs, _ = env.reset(seed=0)
        obs, *_ = env.step(obs["latent"] * 0.5)
        snapshot = env.snapshot()
        ends = []
        for _ in range(2):
            back, info = env.restore(snapshot)
            assert back["step"].tolist() == [1] * 4 and seeds(info) == seeds(env.restore(snapshot)[1])
            assert np.array_equal(np.asarray(back["latent"]), np.asarray(obs["latent"]))
            ends.append(finish(env, back))
        assert all(
            torch.equal(a.image, b.image) for a, b in zip(*(e[-1]["samples"] for e in ends), strict=True)
        )

    def test_restore_brings_back_what_comes_after_the_end(self):
        env = world(num_envs=4)
        obs, _ = env.reset(seed=0, options={"group_size": 2})
        snapshot = env.snapshot()
        futures = []
        for _ in range(2):
            obs = finish(env, env.restore(snapshot)[0])[0]
            *_, info = env.step(obs["latent"])
            futures.append((seeds(info), ids(info), info["group"].tolist()))
            env.reset(seed=99, options={"group_size": 4})
        assert futures[0] == futures[1] and futures[0][2] == [0, 0, 1, 1]

    def test_a_snapshot_of_a_finished_batch_is_finished(self):
        env = world(autoreset_mode="disabled")
        finish(env, env.reset(seed=0)[0])
        snapshot = env.snapshot()
        env.reset(seed=1)
        env.restore(snapshot)
        with pytest.raises(ResetNeeded):
            env.step(env.action_space.sample())

    def test_it_fits_another_environment_of_the_same_kind_only(self):
        env = world(num_envs=2)
        obs, _ = env.reset(seed=0)
        snapshot = env.snapshot()
        twin = world(num_envs=2)
        assert np.array_equal(twin.restore(snapshot)[0]["latent"], obs["latent"])
        with pytest.raises(ContractError, match="must hold 3 episodes, got 2"):
            world(num_envs=3).restore(snapshot)
        with pytest.raises(ContractError, match="must hold 5 steps"):
            world(num_envs=2, num_steps=5).restore(snapshot)

    def test_it_tells_a_foreign_environment_what_is_other(self):
        class Other(PlainDenoiser):
            pass

        class Shifted(PlainDenoiser):
            def sigmas(self, num_steps):
                return F.flow_sigmas(num_steps, shift=5.0)

        here = world(num_envs=2)
        before = here.reset(seed=0)[0]["latent"]
        foreign = {
            "Other": world(Other(), num_envs=2),
            "noise schedule": world(Shifted(), num_envs=2),
            "observation `latent` float32": world(PlainDenoiser((3, 4, 8)), num_envs=2),
            "observation `negative_pooled` none": world(num_envs=2, with_negative=True),
        }
        for named, other in foreign.items():
            other.reset(seed=0)
            with pytest.raises(ContractError, match=f"`snapshot` must hold .*{named}"):
                here.restore(other.snapshot())
            with pytest.raises(ContractError, match="restore it in an environment like its own"):
                other.restore(here.snapshot())
        assert np.array_equal(here.fork([0, 1])[0]["latent"], before)
        for nothing in (None, {}, here, here.snapshot().model_state):
            with pytest.raises(ContractError, match=r"must be what `env.snapshot\(\)` returned"):
                here.restore(nothing)

    def test_it_says_in_plain_values_what_made_it(self):
        env = world(num_envs=2)
        env.reset(seed=0)
        snapshot = env.snapshot()
        made_by = pickle.loads(pickle.dumps(snapshot.made_by))
        assert made_by == snapshot.made_by and made_by["steps"] == 3
        assert made_by["class"].endswith("DenoiseVectorEnv") and made_by["denoiser"].endswith("PlainDenoiser")
        again = world(num_envs=2, array_backend="torch", autoreset_mode="disabled", prompts=["another"])
        again.restore(pickle.loads(pickle.dumps(snapshot)))

    def test_fork_branches_in_the_middle_of_an_episode(self):
        env = world(num_envs=4, array_backend="torch")
        obs, info = env.reset(seed=0)
        obs, *_ = env.step(obs["latent"] * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1))
        copies, forked = env.fork([2, 2, 0, 2])
        assert torch.equal(copies["latent"], obs["latent"][[2, 2, 0, 2]])
        assert ids(forked) == [ids(info)[i] for i in (2, 2, 0, 2)]
        assert [seeds(forked)[i] for i in (0, 2)] == [seeds(info)[i] for i in (2, 0)]
        assert len(set(seeds(forked))) == 4 and copies["step"].tolist() == [1] * 4
        assert all(torch.equal(copies[k], obs[k][[2, 2, 0, 2]]) for k in obs)

    def test_a_second_fork_makes_no_twins(self):
        env = world(num_envs=4)
        env.reset(seed=0)
        env.fork([0, 0, 2, 3])
        _, info = env.fork([0, 0, 1, 3])
        assert len(set(seeds(info))) == 4

    def test_the_same_fork_of_the_same_state_is_the_same(self):
        env = world(num_envs=2)
        env.reset(seed=0)
        snapshot = env.snapshot()
        first = seeds(env.fork([1, 1])[1])
        env.restore(snapshot)
        assert seeds(env.fork([1, 1])[1]) == first

    def test_groups_stay_apart_when_a_forked_batch_is_partly_reset(self):
        env = world(num_envs=4)
        env.reset(seed=0)
        env.fork([1, 1, 1, 1])
        _, info = env.reset(options={"reset_mask": np.array([False, True, False, False])})
        by_group = {}
        for group, prompt in zip(info["group"].tolist(), ids(info), strict=True):
            by_group.setdefault(group, set()).add(prompt)
        assert len(by_group) == 2 and all(len(prompts) == 1 for prompts in by_group.values())

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_heirs_may_be_named_by_every_integer_type(self, backend):
        def forked(indices):
            env = world(num_envs=4, array_backend=backend)
            obs, _ = env.reset(seed=0)
            env.step(obs["latent"] * 2)
            obs, info = env.fork(indices)
            return np.asarray(obs["latent"]), seeds(info)

        places = [1, 1, 0, 3]
        expected = forked(places)
        integers = ("uint8", "int8", "uint16", "int32", "uint64", "int64")
        kinds = [np.array(places, name) for name in integers]
        kinds += [torch.tensor(places, dtype=getattr(torch, name)) for name in integers]
        for indices in (*kinds, tuple(places), [np.uint8(place) for place in places]):
            latent, keys = forked(indices)
            assert np.array_equal(latent, expected[0]) and keys == expected[1]

    @pytest.mark.parametrize(
        "indices",
        [
            [True, False, True, False],
            np.array([True, False, True, False]),
            torch.tensor([True, False, True, False]),
            torch.zeros(4),
            np.ma.masked_array([0, 1, 2, 3], mask=[0, 0, 0, 1]),
            np.zeros((4, 1), np.uint8),
            {0, 1, 2, 3},
            "0123",
            2,
            [],
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_refused_fork_changes_nothing(self, indices):
        env = world(num_envs=4)
        obs, info = env.reset(seed=0)
        with pytest.raises(ShapeError, match=r"`indices` must be 4 whole numbers in \[0, 4\)"):
            env.fork(indices)
        after, told = env.fork(range(4))
        assert np.array_equal(after["latent"], obs["latent"]) and seeds(told) == seeds(info)

    @pytest.mark.parametrize("indices", [[0, 1], [0, 0, 0, 4], [-1, 0, 0, 0], [0.5] * 4])
    def test_fork_needs_one_episode_for_each(self, indices):
        env = world(num_envs=4)
        env.reset(seed=0)
        with pytest.raises(ShapeError, match="`indices`"):
            env.fork(indices)
