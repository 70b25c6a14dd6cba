"""Rollouts in this process, and the law of the house: an episode is the same in any company."""

import gymnasium as gym
import pytest
import torch
from worlds import PlainDenoiser, brightness, maker, world

import unirl_env.functional as F
from unirl_env.episode import EpisodeBatch
from unirl_env.errors import ConfigError, ContractError, PromptError
from unirl_env.models.tiny import TinySD3Denoiser
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt, Scores

CAT, DOG = Prompt("a cat"), Prompt("a dog")
SHAPES = [Prompt("a red circle at the top left"), Prompt("two blue squares")]


def player(denoiser=None, *, batch_size=None, storage_dtype="float32", lora=None, **options):
    denoiser = denoiser or PlainDenoiser()
    torch.manual_seed(0)
    actor = Actor(denoiser, lora=lora, storage_dtype=storage_dtype)
    return Rollout(maker(denoiser, **{"num_steps": 4, **options}), actor, batch_size=batch_size)


def assert_same(one, other):
    """Every number of two batches, bit for bit."""
    assert one.prompts == other.prompts and torch.equal(one.group, other.group)
    assert torch.equal(one.episode_seed, other.episode_seed) and torch.equal(one.rewards, other.rewards)
    for a, b in zip(one.samples, other.samples, strict=True):
        assert torch.equal(a.image, b.image)
    for name, phase in one.phases.items():
        twin = other.phases[name]
        everyone = torch.arange(len(one))
        rows, actions = phase.rows(everyone)
        twin_rows, twin_actions = twin.rows(everyone)
        assert torch.equal(actions, twin_actions) and rows.keys() == twin_rows.keys()
        assert all(torch.equal(rows[key], twin_rows[key]) for key in rows)
        assert torch.equal(phase.log_prob, twin.log_prob) and torch.equal(phase.mask, twin.mask)
        assert (phase.mean is None) == (twin.mean is None)
        assert phase.mean is None or torch.equal(phase.mean, twin.mean)


class TestTheRecord:
    def test_it_is_the_walk_by_hand(self):
        """Everything in the batch, against a loop that steps the environment itself."""
        rollout = player()
        batch = rollout.collect(
            RolloutRequest([CAT, DOG], seed=3, group_size=2, keep_mean=True, weights_version=5)
        )
        env = world(
            rollout.drivers["image"].actor.model, num_envs=4, num_steps=4, scored=True, array_backend="torch"
        )
        options = {"prompts": [CAT, DOG], "group_size": 2}
        obs, info = env.reset(seed=3, options=options)
        phase = batch.phases["image"]
        for k in range(4):
            noise = F.keyed_noise(info["episode_seed"], k, (3, 4, 4)) if k < 3 else None
            with torch.no_grad():
                step = rollout.drivers["image"].actor.act(obs, noise)
            if k < 3:
                for name in ("latent", "sigma", "sigma_next"):
                    assert torch.equal(phase.observation[name][:, k], obs[name])
                assert torch.equal(phase.action[:, k], step.latent)
                assert torch.equal(phase.log_prob[:, k], step.log_prob)
                assert torch.equal(phase.mean[:, k], step.mean)
            obs, reward, *_, info = env.step(step.latent)
        assert torch.equal(batch.rewards, reward) and batch.weights_version == 5
        assert torch.equal(batch.episode_seed, torch.from_numpy(info["episode_seed"]))
        assert batch.group.tolist() == [0, 0, 1, 1] and batch.prompts == (CAT, CAT, DOG, DOG)
        assert all(torch.equal(a.image, b.image) for a, b in zip(batch.samples, info["samples"], strict=True))
        assert phase.mask.all() and phase.log_prob.shape == (4, 3)

    def test_finished_latents_are_what_the_last_step_came_to(self):
        rollout = player()
        asked = {"seed": 3, "group_size": 2, "keep_mean": True}
        with_it = rollout.collect(RolloutRequest([CAT, DOG], keep_final=True, **asked))
        assert_same(with_it, rollout.collect(RolloutRequest([CAT, DOG], **asked)))
        drawn, phase = (
            rollout.drivers["image"].actor.model.decode(with_it.phases["image"].final),
            with_it.phases["image"],
        )
        assert all(torch.equal(a.image, b.image) for a, b in zip(drawn, with_it.samples, strict=True))
        assert "stochastic" not in phase.observation and phase.final.shape == (4, 3, 4, 4)

    def test_where_nothing_explores_the_last_step_is_kept_with_the_finished_latent(self):
        rollout = player()
        asked = {"seed": 3, "group_size": 2, "stochastic_steps": ()}
        bare = rollout.collect(RolloutRequest([CAT, DOG], **asked))
        batch = rollout.collect(RolloutRequest([CAT, DOG], keep_final=True, keep_mean=True, **asked))
        assert not bare.phases and torch.equal(bare.rewards, batch.rewards)
        phase = batch.phases["image"]
        assert phase.log_prob.shape == (4, 1) and not phase.drawn and phase.mask.all()
        assert torch.equal(phase.final, phase.action[:, 0]) and torch.equal(phase.final, phase.mean[:, 0])
        step = rollout.drivers["image"].actor.score(*phase.rows(torch.arange(4)))
        assert (step.std == 0).all() and (step.log_prob == 0).all()
        torch.testing.assert_close(step.mean, phase.final)

    def test_context_is_kept_once_per_prompt(self):
        rollout = player()
        batch = rollout.collect(RolloutRequest([CAT, DOG, CAT], seed=0, group_size=4))
        phase = batch.phases["image"]
        assert phase.context["pooled"].shape[0] == 2
        assert phase.context_row.tolist() == [0] * 4 + [1] * 4 + [0] * 4
        expected = rollout.drivers["image"].actor.model.encode(list(batch.prompts))["pooled"]
        assert torch.equal(phase.context["pooled"][phase.context_row], expected)

    def test_only_the_steps_that_explore_are_recorded(self):
        rollout = player()
        batch = rollout.collect(RolloutRequest([CAT], seed=0, stochastic_steps=[0, 2]))
        phase = batch.phases["image"]
        sigmas = rollout.drivers["image"].actor.model.sigmas(4)
        assert torch.equal(phase.observation["sigma"], sigmas[[0, 2]][None])
        assert torch.equal(phase.observation["sigma_next"], sigmas[[1, 3]][None])

    def test_the_ode_records_nothing_and_draws_nothing(self, monkeypatch):
        rollout = player()
        expected = rollout.collect(RolloutRequest([CAT], seed=0, stochastic_steps=()))
        assert expected.phases == {} and expected.rewards.isfinite().all()
        drawn = []
        noise = F.keyed_noise
        monkeypatch.setattr(
            F, "keyed_noise", lambda s, step, *a, **k: drawn.append(step) or noise(s, step, *a, **k)
        )
        assert_same(rollout.collect(RolloutRequest([CAT], seed=0, stochastic_steps=())), expected)
        assert drawn == [-1], "the initial noise alone"

    def test_none_means_the_environments_own_steps_whatever_was_asked_before(self):
        rollout = player(stochastic_steps=[1])
        first = rollout.collect(RolloutRequest([CAT], seed=0))
        rollout.collect(RolloutRequest([CAT], seed=0, stochastic_steps=[]))
        rollout.collect(RolloutRequest([CAT], seed=0, stochastic_steps=[0, 1, 2]))
        again = rollout.collect(RolloutRequest([CAT], seed=0))
        assert_same(first, again)
        assert again.phases["image"].log_prob.shape == (1, 1)

    def test_other_numbers_of_steps(self):
        rollout = player()
        assert rollout.collect(RolloutRequest([CAT], seed=0, num_steps=7)).phases["image"].log_prob.shape == (
            1,
            6,
        )
        assert rollout.collect(RolloutRequest([CAT], seed=0)).phases["image"].log_prob.shape == (1, 3)

    def test_latents_are_stored_as_the_policy_saw_them(self):
        rollout = player(storage_dtype="bfloat16")
        batch = rollout.collect(RolloutRequest([CAT], seed=0, group_size=3))
        phase = batch.phases["image"]
        assert phase.action.dtype == phase.observation["latent"].dtype == torch.bfloat16
        assert torch.equal(phase.observation["latent"][:, 1:], phase.action[:, :-1])
        assert phase.log_prob.dtype == torch.float32

    def test_samples_and_means_are_kept_when_asked_for(self):
        rollout = player()
        bare = rollout.collect(RolloutRequest([CAT], seed=0, keep_samples=False))
        assert bare.samples is None and bare.phases["image"].mean is None
        full = rollout.collect(RolloutRequest([CAT], seed=0, keep_mean=True))
        assert full.samples is not None and full.phases["image"].mean.dtype == torch.float32

    def test_same_noise_is_one_start_for_all_samples_of_a_prompt(self):
        batch = player(batch_size=2).collect(
            RolloutRequest([CAT, DOG], seed=0, group_size=3, same_noise=True)
        )
        start = batch.phases["image"].observation["latent"][:, 0]
        assert torch.equal(start[0], start[1]) and torch.equal(start[0], start[2])
        assert not torch.equal(start[0], start[3])
        assert not torch.equal(batch.samples[0].image, batch.samples[1].image), "they explore apart"

    def test_the_base_model_plays_when_asked_to(self):
        rollout = player(lora=LoRAConfig(rank=2))
        fresh = rollout.collect(RolloutRequest([CAT], seed=0))
        for tensor in rollout.drivers["image"].actor.trainable_state().values():
            tensor.add_(0.5)
        assert not torch.equal(rollout.collect(RolloutRequest([CAT], seed=0)).rewards, fresh.rewards)
        assert_same(rollout.collect(RolloutRequest([CAT], seed=0, base=True)), fresh)

    def test_a_prompt_that_occurs_again_gets_further_samples(self):
        rollout = player()
        batch = rollout.collect(RolloutRequest([CAT, DOG, CAT], seed=0, group_size=2))
        assert len(set(batch.episode_seed.tolist())) == 6 and batch.group.tolist() == [0, 0, 1, 1, 2, 2]
        assert batch.episode_seed[4] == F.episode_seed(0, "a cat", 2)

    def test_no_gradient_is_recorded(self):
        batch = player().collect(RolloutRequest([CAT], seed=0, keep_mean=True))
        phase = batch.phases["image"]
        assert not any(t.requires_grad for t in (phase.action, phase.log_prob, phase.mean))

    def test_failed_scores_are_kept_as_such(self):
        def half(samples, prompts):
            return Scores(torch.tensor([float("nan"), 1.0]), {"part": torch.tensor([2.0, 3.0])})

        denoiser = PlainDenoiser()

        def make_env(num_envs, num_steps=None):
            env = world(denoiser, num_envs=num_envs, scored=True, array_backend="torch")
            env.scorer = half
            return env

        batch = Rollout(make_env, Actor(denoiser)).collect(RolloutRequest([CAT], seed=0, group_size=2))
        assert batch.scores.valid.tolist() == [False, True] and batch.rewards.isnan().tolist() == [
            True,
            False,
        ]
        assert batch.scores.parts["part"].tolist() == [2.0, 3.0]


class TestRefusals:
    @pytest.mark.parametrize(
        "arguments, word",
        [
            ({"prompts": []}, "`prompts`"),
            ({"group_size": 0}, "group_size=0"),
            ({"sample_offset": [0, 1]}, "`sample_offset`"),
            ({"sample_offset": [-1]}, "`sample_offset`"),
            ({"stochastic_steps": [4]}, "`stochastic_steps`"),
            ({"num_steps": 0}, "`num_steps`"),
        ],
    )
    def test_impossible_requests_are_named(self, arguments, word):
        with pytest.raises(ConfigError, match=word):
            player().collect(RolloutRequest(**{"prompts": [CAT], "seed": 0, **arguments}))

    def test_a_prompt_of_ten_thousand_characters(self):
        with pytest.raises(PromptError, match="at most 4000 characters, got 10000"):
            player().collect(RolloutRequest([Prompt("x" * 10_000)], seed=0))

    def test_a_batch_size_is_positive(self):
        with pytest.raises(ConfigError, match="`batch_size`"):
            player(batch_size=0)

    def test_an_environment_without_scores(self):
        denoiser = PlainDenoiser()
        rollout = Rollout(
            lambda num_envs, num_steps=None: world(denoiser, num_envs=num_envs, array_backend="torch"),
            Actor(denoiser),
        )
        with pytest.raises(ContractError, match="RewardWrapper"):
            rollout.collect(RolloutRequest([CAT], seed=0))

    def test_after_an_error_the_next_rollout_is_whole(self):
        rollout = player(batch_size=2)
        expected = rollout.collect(RolloutRequest([CAT], seed=0, group_size=4))
        with pytest.raises(PromptError):
            rollout.collect(RolloutRequest([CAT, Prompt("x" * 10_000)], seed=0, group_size=2))
        assert_same(rollout.collect(RolloutRequest([CAT], seed=0, group_size=4)), expected)

    def test_environments_are_made_once_per_size_and_closed(self):
        made, closed = [], []
        denoiser = PlainDenoiser()

        def make_env(num_envs, num_steps=None):
            env = maker(denoiser)(num_envs, num_steps)
            made.append(num_envs)
            env.env.close_extras = lambda **kwargs: closed.append(num_envs)
            return env

        rollout = Rollout(make_env, Actor(denoiser), batch_size=4)
        for _ in range(2):
            rollout.collect(RolloutRequest([CAT], seed=0, group_size=6))
        assert made == [4, 2]
        rollout.close()
        assert closed == [4, 2]


@pytest.fixture(scope="module")
def law(tiny_dir):
    """64 episodes of the real architecture with trained-like adapters, and the rollout that played them."""
    denoiser = TinySD3Denoiser(tiny_dir, rows_per_forward=16)
    torch.manual_seed(0)
    actor = Actor(denoiser, lora=LoRAConfig(rank=4))
    for tensor in actor.trainable_state().values():
        tensor.add_(0.1 * torch.randn(tensor.shape))

    def play(batch_size=None):
        def make_env(num_envs, num_steps=None):
            return gym.make_vec(
                "unirl/TinySD3-T2I-v0",
                num_envs=num_envs,
                num_steps=3,
                denoiser=denoiser,
                scorer=brightness,
                array_backend="torch",
                autoreset_mode="disabled",
            )

        return Rollout(make_env, actor, batch_size=batch_size)

    rollout = play()
    return play, rollout, rollout.collect(RolloutRequest(SHAPES, seed=9, group_size=32, keep_mean=True))


class TestTheLaw:
    """With `rows_per_forward` an episode is bitwise the same whatever it is batched with.

    Matrix libraries sum in another order for another number of rows; without the option, latents of the tiny
    model differ by about 1e-6 between batches of fewer than 16 rows and larger ones.
    """

    @pytest.mark.parametrize("episode", [0, 31, 32, 50])
    def test_alone_and_among_64(self, law, episode):
        _, rollout, whole = law
        alone = rollout.collect(
            RolloutRequest(
                [whole.prompts[episode]],
                seed=9,
                sample_offset=[episode % 32],
                first_group=episode // 32,
                keep_mean=True,
            )
        )
        assert_same(alone, whole.select(torch.tensor([episode])))

    @pytest.mark.parametrize("size", [7, 24, 63])
    def test_in_lots_of_any_size(self, law, size):
        play, _, whole = law
        assert_same(play(size).collect(RolloutRequest(SHAPES, seed=9, group_size=32, keep_mean=True)), whole)

    def test_shared_out_over_two_workers(self, law):
        """By groups, and by samples within the groups."""
        _, rollout, whole = law
        common = {"seed": 9, "keep_mean": True}
        by_group = [
            rollout.collect(RolloutRequest([prompt], group_size=32, first_group=i, **common))
            for i, prompt in enumerate(SHAPES)
        ]
        assert_same(EpisodeBatch.cat(by_group), whole)
        first, second = (
            rollout.collect(RolloutRequest(SHAPES, group_size=size, sample_offset=[start] * 2, **common))
            for start, size in ((0, 13), (13, 19))
        )
        order = [*range(0, 13), *range(26, 45), *range(13, 26), *range(45, 64)]
        assert_same(EpisodeBatch.cat([first, second]).select(torch.tensor(order)), whole)

    def test_in_any_order(self, law):
        _, rollout, whole = law
        turned = rollout.collect(
            RolloutRequest(SHAPES[::-1], seed=9, group_size=32, sample_offset=[0, 0], keep_mean=True)
        )
        again = turned.select(torch.tensor([*range(32, 64), *range(32)]))
        object.__setattr__(again, "group", whole.group)
        assert_same(again, whole)

    def test_again_and_with_another_seed(self, law):
        _, rollout, whole = law
        assert_same(rollout.collect(RolloutRequest(SHAPES, seed=9, group_size=32, keep_mean=True)), whole)
        other = rollout.collect(RolloutRequest(SHAPES, seed=10, group_size=32))
        assert not set(other.episode_seed.tolist()) & set(whole.episode_seed.tolist())
        assert not torch.equal(other.rewards, whole.rewards)

    def test_without_the_option_only_the_last_bits_differ(self, law, tiny_dir):
        _, rollout, whole = law
        actor = rollout.drivers["image"].actor
        head = actor.head()
        denoiser, head.model = head.model, TinySD3Denoiser(tiny_dir)
        try:
            few = rollout.collect(RolloutRequest(SHAPES, seed=9, group_size=1, sample_offset=[5, 5]))
        finally:
            head.model = denoiser
        expected = whole.select(torch.tensor([5, 37]))
        deviation = (few.phases["image"].action - expected.phases["image"].action).abs().max()
        assert deviation < 1e-4
