import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from worlds import PROMPTS, PlainDenoiser, world

import unirl_env.functional as F
from unirl_env.errors import ConfigError, ContractError, ScorerError, ShapeError
from unirl_env.types import Prompt, Sample, Scores
from unirl_env.wrappers.reward import RewardWrapper


def play(env, seed=0, options=None, act=lambda obs: obs["latent"] * 0.9):
    """All observations of an episode, and the last step's results."""
    obs, _ = env.reset(seed=seed, options=options)
    seen = [obs]
    while True:
        result = env.step(act(obs))
        obs = result[0]
        seen.append(obs)
        if bool(torch.as_tensor(result[2]).all()):
            return seen, result


class TestEpisodes:
    def test_the_action_is_the_next_latent_and_the_noise_level_falls(self):
        env = world(num_steps=3)
        actions = iter(np.random.default_rng(0).standard_normal((3, 4, 3, 4, 4), dtype=np.float32))
        given = []
        seen, result = play(env, act=lambda obs: given.append(next(actions)) or given[-1])
        sigmas = F.flow_sigmas(3).numpy()
        for k, obs in enumerate(seen):
            assert obs["step"].tolist() == [k] * 4
            assert np.allclose(obs["sigma"], sigmas[k]) and np.allclose(
                obs["sigma_next"], sigmas[min(k + 1, 3)]
            )
            if k:
                assert np.array_equal(obs["latent"], given[k - 1])
        assert result[2].all() and not result[3].any() and not result[1].any()
        samples = result[4]["samples"]
        assert all(
            torch.equal(s.image, torch.sigmoid(torch.from_numpy(given[2][i]))) for i, s in enumerate(samples)
        )

    def test_all_but_the_last_step_explore_by_default(self):
        seen, _ = play(world(num_steps=3))
        assert [obs["stochastic"].tolist() for obs in seen] == [[1] * 4, [1] * 4, [0] * 4, [0] * 4]

    @pytest.mark.parametrize("steps", [[], [0], [2, 0], (1, 1)])
    def test_stochastic_steps_are_announced(self, steps):
        chosen = world(stochastic_steps=steps)
        asked = world()
        for env, options in ((chosen, None), (asked, {"stochastic_steps": steps})):
            seen, _ = play(env, options=options)
            assert [bool(obs["stochastic"][0]) for obs in seen[:3]] == [k in steps for k in range(3)]
            assert env.stochastic_steps == tuple(sorted(set(steps)))
        seen, _ = play(asked)
        assert [bool(obs["stochastic"][0]) for obs in seen[:3]] == [True, True, False], "asked for once"

    @pytest.mark.parametrize("steps", [[3], [-1]])
    def test_stochastic_steps_out_of_range_are_refused(self, steps):
        with pytest.raises(ConfigError, match=r"must lie in \[0, 3\)"):
            world(stochastic_steps=steps)

    def test_an_episode_has_a_step_at_least(self):
        with pytest.raises(ConfigError, match="num_steps"):
            world(num_steps=0)

    @pytest.mark.parametrize("shape", [(2,), (5, 6), (3, 4, 4), (2, 3, 4, 5)])
    def test_latents_of_any_rank(self, shape):
        env = world(PlainDenoiser(shape))
        seen, result = play(env)
        assert seen[0]["latent"].shape == (4, *shape) and len(result[4]["samples"]) == 4

    def test_an_episode_given_its_actions_is_bitwise_the_same_alone(self):
        whole = world(num_envs=8, group_size=8, array_backend="torch")
        actions = torch.randn(3, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        obs, info = whole.reset(seed=2, options={"prompts": ["a cat"]})
        trace = [obs] + [whole.step(action)[0] for action in actions]
        for i in (0, 3, 7):
            alone = world(num_envs=1, array_backend="torch")
            obs, own = alone.reset(seed=2, options={"prompts": ["a cat"], "sample_offset": [i]})
            assert own["episode_seed"][0] == info["episode_seed"][i]
            for k, expected in enumerate(trace):
                assert all(torch.equal(obs[name][0], expected[name][i]) for name in expected)
                if k < 3:
                    obs, *_ = alone.step(actions[k, i : i + 1])


def test_a_step_of_64_latents_of_512_pixels_costs_less_than_four_milliseconds():
    """Processor time over whole episodes, decoding aside; the best of five. It is one reading of them."""
    env = world(PlainDenoiser((16, 64, 64)), num_envs=64, num_steps=10, array_backend="torch")
    actions = [torch.randn(64, 16, 64, 64) for _ in range(2)]
    spent = []
    for seed in range(5):
        env.reset(seed=seed)
        begin = time.process_time()
        for k in range(10):
            env.step(actions[k % 2])
        spent.append((time.process_time() - begin) / 10)
    assert min(spent) <= 4e-3


class TestBackends:
    def test_arrays_and_tensors_hold_the_same_numbers(self):
        numpy, torch_ = (play(world(array_backend=backend), seed=3) for backend in ("numpy", "torch"))
        for arrays, tensors in zip(numpy[0], torch_[0], strict=True):
            assert arrays.keys() == tensors.keys()
            for name, value in arrays.items():
                assert isinstance(value, np.ndarray) and isinstance(tensors[name], torch.Tensor)
                assert np.array_equal(value, tensors[name].numpy())
        assert all(
            torch.equal(a.image, b.image)
            for a, b in zip(numpy[1][4]["samples"], torch_[1][4]["samples"], strict=True)
        )
        assert torch_[0][0]["stochastic"].dtype == torch.bool and torch_[1][2].dtype == torch.bool
        assert isinstance(torch_[1][1], torch.Tensor) and isinstance(numpy[1][1], np.ndarray)

    def test_observations_lie_in_their_space(self):
        env = world(with_negative=True)
        for obs in play(env)[0]:
            assert env.observation_space.contains(obs)

    def test_arrays_belong_to_the_caller(self):
        env = world()
        obs, _ = env.reset(seed=0)
        action = obs["latent"] * 0.5
        clean = {k: v.copy() for k, v in env.step(action)[0].items()}
        env.reset(seed=0)
        action = obs["latent"] * 0.5
        obs, *_ = env.step(action)
        for array in (action, *obs.values()):
            array[...] = 7
        kept, _ = env.restore(env.snapshot())
        assert all(np.array_equal(kept[k], clean[k]) for k in clean)

    def test_tensors_are_not_copied(self):
        env = world(array_backend="torch")
        env.reset(seed=0)
        action = torch.zeros(4, 3, 4, 4)
        assert env.step(action)[0]["latent"].data_ptr() == action.data_ptr()

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_float64_becomes_float32_and_half_precision_stays(self, backend):
        env = world(array_backend=backend)
        env.reset(seed=0)
        obs, *_ = env.step(np.full((4, 3, 4, 4), 1 / 3))
        assert str(obs["latent"].dtype).endswith("float32")
        obs, *_ = env.step(torch.full((4, 3, 4, 4), 1 / 3, dtype=torch.bfloat16))
        kept = torch.bfloat16 if backend == "torch" else np.float32
        assert obs["latent"].dtype == kept

    def test_no_gradient_enters_the_world(self):
        env = world(array_backend="torch")
        env.reset(seed=0)
        assert not env.step(torch.zeros(4, 3, 4, 4, requires_grad=True))[0]["latent"].requires_grad


class TestActions:
    @pytest.mark.parametrize("shape", [(4, 3, 4), (3, 3, 4, 4), (3, 4, 4), (4, 3, 4, 5)])
    def test_another_shape_is_refused(self, shape):
        env = world()
        obs, _ = env.reset(seed=0)
        with pytest.raises(ShapeError, match=r"next latents \[4, 3, 4, 4\], got"):
            env.step(np.zeros(shape, np.float32))
        assert env.step(obs["latent"])[0]["step"].tolist() == [1] * 4, "the refused step did not count"

    @pytest.mark.parametrize("dtype", [np.int64, bool])
    def test_another_kind_of_number_is_refused(self, dtype):
        env = world()
        env.reset(seed=0)
        with pytest.raises(ShapeError, match="floating point"):
            env.step(np.zeros((4, 3, 4, 4), dtype))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_latent_that_is_not_finite_is_named_with_its_episode(self, bad):
        env = world(num_steps=1)
        obs, _ = env.reset(seed=0)
        obs["latent"][2, 1, 0, 3] = bad
        with pytest.raises(ContractError, match=r"in episodes \[2\]; the policy has diverged"):
            env.step(obs["latent"])

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    @pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
    def test_it_is_refused_at_every_step_and_changes_nothing(self, backend, bad):
        env = world(num_steps=3, array_backend=backend)
        obs, _ = env.reset(seed=0)
        obs, *_ = env.step(obs["latent"])
        wrong = torch.as_tensor(obs["latent"]).clone()
        wrong[1, 0, 0, 0] = wrong[3, 2, 1, 0] = bad
        with pytest.raises(ContractError, match=r"in episodes \[1, 3\]"):
            env.step(wrong if backend == "torch" else wrong.numpy())
        after, *_ = env.step(obs["latent"])
        assert after["step"].tolist() == [2] * 4
        assert np.array_equal(np.asarray(after["latent"]), np.asarray(obs["latent"]))

    def test_infinity_after_rounding_and_opposite_infinities_are_seen(self):
        env = world()
        obs, _ = env.reset(seed=0)
        beyond, opposite = obs["latent"].astype(np.float64), obs["latent"].copy()
        beyond[0, 0, 0, 0] = 1e300  # finite, but not in the float32 of a latent
        opposite[2, 0, 0, :2] = np.inf, -np.inf
        for actions, row in ((beyond, 0), (opposite, 2)):
            with pytest.raises(ContractError, match=rf"in episodes \[{row}\]"):
                env.step(actions)

    def test_finite_latents_whose_sum_is_not_are_taken(self):
        env = world()
        env.reset(seed=0)
        huge = np.full((4, 3, 4, 4), 3e38, np.float32)
        assert np.array_equal(env.step(huge)[0]["latent"], huge)

    @pytest.mark.parametrize(
        "actions",
        [
            np.ma.masked_array(np.zeros((4, 3, 4, 4), np.float32), mask=True),
            np.zeros((4, 3, 4, 4), object),
            [[0.0], [0.0, 1.0]],
            "latents",
            torch.zeros(4, 3, 4, 4, dtype=torch.complex64),
        ],
    )
    def test_what_is_no_array_of_numbers_is_refused(self, actions):
        env = world()
        env.reset(seed=0)
        with pytest.raises(ShapeError, match="`actions` must be"):
            env.step(actions)


class TestContext:
    def test_each_distinct_prompt_is_encoded_once(self):
        denoiser = PlainDenoiser()
        env = world(denoiser, num_envs=8, group_size=2)
        for seed in range(3):
            env.reset(seed=seed)
        assert denoiser.encoded == dict.fromkeys(PROMPTS, 1)

    def test_one_negative_prompt_for_all_is_encoded_once(self):
        denoiser = PlainDenoiser()
        prompts = [Prompt(text, negative="blurry") for text in PROMPTS]
        env = world(denoiser, num_envs=4, prompts=prompts, with_negative=True)
        obs, _ = env.reset(seed=0)
        assert denoiser.encoded == {**dict.fromkeys(PROMPTS, 1), "blurry": 1}
        negative = denoiser.encode([Prompt("", negative="blurry")], negative=True)
        for name, tensor in negative.items():
            assert np.array_equal(obs[f"negative_{name}"], tensor.expand(4, *tensor.shape[1:]).numpy())

    def test_a_text_and_the_same_text_as_negative_are_kept_apart(self):
        class Signed(PlainDenoiser):
            def encode(self, prompts, *, negative=False):
                context = super().encode(prompts, negative=negative)
                return {name: -tensor if negative else tensor for name, tensor in context.items()}

        prompts = [Prompt("a cat", id="1", negative="a dog"), Prompt("a dog", id="2", negative="a cat")]
        obs, info = world(Signed(), num_envs=2, prompts=prompts, with_negative=True).reset(seed=0)
        assert np.array_equal(obs["pooled"], -obs["negative_pooled"][::-1])
        assert [p.id for p in info["prompt"]] in (["1", "2"], ["2", "1"])

    def test_each_episode_sees_its_own_prompt(self):
        denoiser = PlainDenoiser()
        obs, info = world(denoiser, num_envs=4, group_size=2).reset(seed=1)
        for i, prompt in enumerate(info["prompt"]):
            for name, tensor in denoiser.encode([prompt]).items():
                assert np.array_equal(obs[name][i], tensor[0].numpy())
        assert "negative_pooled" not in obs

    def test_the_cache_is_bounded_and_forgets_the_oldest(self):
        denoiser = PlainDenoiser()
        env = world(denoiser, num_envs=1, context_cache=2)
        for text in ("a", "b", "c", "c", "b", "a"):
            env.reset(options={"prompts": [text]})
        assert len(env.contexts) == 2
        assert [denoiser.encoded[text] for text in "abc"] == [2, 1, 1]
        for text in ("b", "c", "b", "a", "b"):
            env.reset(options={"prompts": [text]})
        assert denoiser.encoded["b"] == 1, "what was just used is kept"

    def test_a_batch_larger_than_the_cache_still_works(self):
        denoiser = PlainDenoiser()
        env = world(denoiser, num_envs=4, context_cache=0)
        obs, _ = env.reset(seed=0)
        assert obs["pooled"].shape == (4, 2) and denoiser.encoded == dict.fromkeys(PROMPTS, 1)

    def test_a_masked_reset_changes_the_context_of_its_rows_only(self):
        env = world(num_envs=4)
        obs, _ = env.reset(seed=0, options={"prompts": ["aa", "bbb", "cccc", "ddddd"]})
        mask = np.array([False, True, False, False])
        new, _ = env.reset(options={"prompts": ["eeeeee"], "reset_mask": mask})
        assert (new["pooled"] != obs["pooled"]).any(axis=1).tolist() == mask.tolist()

    def test_context_can_be_learned_from(self):
        """Encoded under inference mode, the context must still be fit for a backward pass."""
        with torch.inference_mode():
            env = world(array_backend="torch")
            env.reset(seed=0)
        obs, _ = env.reset(seed=0)
        weight = torch.ones(2, requires_grad=True)
        (obs["pooled"] * weight).sum().backward()
        assert weight.grad is not None


class TestRender:
    def test_it_shows_what_each_episode_is_heading_for(self):
        """A step of the ODE points at x_0 = x - sigma v, wherever it was taken from."""
        env = world(num_steps=4, render_mode="rgb_array", array_backend="torch")
        obs, _ = env.reset(seed=0)
        assert np.array_equal(env.render()[1], picture(torch.sigmoid(obs["latent"][1])))
        velocity = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        for _ in range(4):
            before = obs
            step = (obs["sigma"] - obs["sigma_next"]).view(-1, 1, 1, 1)
            obs, *_ = env.step(obs["latent"] - step * velocity)
            target = before["latent"] - before["sigma"].view(-1, 1, 1, 1) * velocity
            for i, frame in enumerate(env.render()):
                assert frame.dtype == np.uint8 and frame.shape == (4, 4, 3)
                assert np.abs(frame.astype(int) - picture(torch.sigmoid(target[i]))).max() <= 1

    def test_a_masked_reset_leaves_the_others_prediction(self):
        env = world(num_envs=2, render_mode="rgb_array", autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        env.step(obs["latent"] * 0.1)
        before = env.render()
        obs, _ = env.reset(options={"reset_mask": np.array([False, True])})
        after = env.render()
        assert np.array_equal(before[0], after[0]) and not np.array_equal(before[1], after[1])
        assert np.array_equal(after[1], picture(torch.sigmoid(torch.from_numpy(obs["latent"][1]))))

    def test_half_precision_is_shown_too(self):
        env = world(render_mode="rgb_array")
        env.reset(seed=0)
        env.step(torch.zeros(4, 3, 4, 4, dtype=torch.bfloat16))
        assert len(env.render()) == 4

    def test_without_a_mode_or_an_episode_there_is_nothing(self):
        assert world(render_mode="rgb_array").render() is None
        env = world()
        env.reset(seed=0)
        assert env.render() is None

    def test_what_has_no_picture_says_so(self):
        env = world(PlainDenoiser((5, 6)), render_mode="rgb_array")
        env.reset(seed=0)
        with pytest.raises(ContractError, match="no picture"):
            env.render()


def picture(image):
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


class TestScorersThatFail:
    """Through the whole stack: counted and left out, or a clear error; never a silent number."""

    def stack(self, scorer, **options):
        return RewardWrapper(world(autoreset_mode="disabled"), scorer, **options)

    def test_one_that_raises_is_an_invalid_batch(self):
        def broken(samples, prompts):
            raise RuntimeError("out of memory")

        env = self.stack(broken, on_invalid="nan")
        _, (_, reward, terminated, _, info) = play(env)
        assert terminated.all() and np.isnan(reward).all() and not info["scores"].valid.any()
        assert (env.scored, env.unscored) == (4, 4)
        assert all(isinstance(sample, Sample) for sample in info["samples"]), "the pictures are not lost"
        with pytest.raises(ScorerError, match=r"broken.*out of memory"):
            play(self.stack(broken))

    def test_one_that_returns_nan_is_invalid_there(self):
        def half(samples, prompts):
            return Scores(torch.tensor([1.0, float("nan"), 2.0, float("inf")]))

        env = self.stack(half, on_invalid="nan")
        _, (_, reward, *_, info) = play(env)
        assert np.isnan(reward).tolist() == [False, True, False, True]
        assert info["scores"].valid.tolist() == [True, False, True, False] and env.unscored == 2
        _, (_, reward, *_) = play(self.stack(half, on_invalid=-1.0))
        assert reward.tolist() == [1, -1, 2, -1]

    def test_the_wrong_length_breaks_the_contract(self):
        with pytest.raises(ContractError, match="4"):
            play(self.stack(lambda samples, prompts: Scores(torch.zeros(3))))


class TestMaking:
    def test_a_spec_goes_through_json_and_back(self):
        env = gym.make_vec("unirl/GaussianMixture-v0", num_envs=4, num_steps=3, group_size=2)
        spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
        again = gym.make_vec(spec, num_envs=4)
        assert again.unwrapped.num_steps == 3 and again.unwrapped.group_size == 2
        assert np.array_equal(env.reset(seed=1)[0]["latent"], again.reset(seed=1)[0]["latent"])

    def test_the_batched_world_is_native(self):
        env = gym.make_vec("unirl/GaussianMixture-v0", num_envs=4, vectorization_mode="vector_entry_point")
        assert isinstance(env.unwrapped, gym.vector.VectorEnv) and env.unwrapped.num_envs == 4
        assert env.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP

    def test_unknown_arguments_are_named(self):
        with pytest.raises(ConfigError, match=r"\['num_step'\]; it has .*'num_steps'"):
            gym.make_vec("unirl/GaussianMixture-v0", num_envs=2, num_step=3)

    def test_impossible_model_options_are_named(self):
        with pytest.raises(ConfigError, match="height"):
            gym.make_vec("unirl/GaussianMixture-v0", num_envs=2, height=8)
