"""The policy in plain torch: one code path that samples and scores, on the real network and on any rank."""

import copy

import pytest
import torch
from torch import nn
from worlds import PlainDenoiser, maker

import unirl_env.functional as F
from unirl_env.errors import CheckpointError, ConfigError, ContractError
from unirl_env.models.tiny import TinyQwen3, TinySD3Denoiser, TinyUnified
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.policies.heads import LatentHead
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt

TEXTS = ["a red circle at the top left", "two blue squares", "a green triangle"]


def observation(denoiser, rows=6, *, negative=False, dtype=torch.float32, sigma=0.8):
    """An observation of `rows` episodes in the middle of the schedule."""
    generator = torch.Generator().manual_seed(0)
    prompts = [Prompt(TEXTS[i % 3], negative="a ring") for i in range(rows)]
    obs = {
        "latent": torch.randn(rows, *denoiser.latent_shape, generator=generator).to(dtype),
        "sigma": torch.full((rows,), sigma),
        "sigma_next": torch.full((rows,), sigma - 0.15),
        "stochastic": torch.ones(rows, dtype=torch.bool),
        **denoiser.encode(prompts),
    }
    if negative:
        obs |= {f"negative_{k}": v for k, v in denoiser.encode(prompts, negative=True).items()}
    return obs


def noise_for(obs, seed=1):
    return torch.randn(obs["latent"].shape, generator=torch.Generator().manual_seed(seed))


def stir(actor, scale=0.1, seed=5):
    """Move the trained weights away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in actor.trainable_state().values():
            tensor.add_(scale * torch.randn(tensor.shape, generator=generator))
    return actor


@pytest.fixture(scope="module")
def stirred(tiny):
    torch.manual_seed(0)
    return stir(Actor(tiny, lora=LoRAConfig(rank=4)))


@pytest.fixture(autouse=True)
def _seeded():
    """Fresh adapters draw from the global generator."""
    torch.manual_seed(0)


class TestRatioOne:
    @pytest.mark.parametrize("dynamics", ["flow", "dance", "cps", "ddim"])
    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    def test_scoring_what_was_sampled(self, tiny, stirred, dynamics, guidance):
        actor = copy.copy(stirred)
        actor.heads = {"image": LatentHead(tiny, dynamics=dynamics, guidance=guidance)}
        obs = observation(tiny, negative=guidance != 1.0)
        with torch.no_grad():
            sampled = actor.act(obs, noise_for(obs))
        scored = actor.score(obs, sampled.latent)
        assert (sampled.log_prob - scored.log_prob).abs().max() <= 1e-6
        assert torch.equal(scored.latent, sampled.latent) and (scored.std > 0).all()
        assert (scored.mean - sampled.mean).abs().max() <= 1e-5
        assert sampled.log_prob.shape == sampled.std.shape == (6,)

    def test_other_weights_score_differently(self, tiny, stirred):
        """Else the test above would hold of a constant."""
        obs = observation(tiny)
        sampled = stirred.act(obs, noise_for(obs))
        with stirred.reference():
            other = stirred.score(obs, sampled.latent)
        assert (sampled.log_prob - other.log_prob).abs().min() > 1e-4

    def test_any_micro_batch_scores_alike(self, tiny, stirred):
        obs = observation(tiny)
        sampled = stirred.act(obs, noise_for(obs)).latent
        whole = stirred.score(obs, sampled).log_prob
        for rows in ([0], [4, 1], [5, 3, 2, 1]):
            part = stirred.score({k: v[rows] for k, v in obs.items()}, sampled[rows])
            assert (part.log_prob - whole[rows]).abs().max() <= 1e-6

    @pytest.mark.parametrize("network", ["float32", "bfloat16"])
    def test_it_is_exact_when_latents_are_stored_in_half_precision(self, tiny_dir, network):
        denoiser = TinySD3Denoiser(tiny_dir, dtype=network)
        actor = stir(Actor(denoiser, lora=LoRAConfig(rank=4), storage_dtype="bfloat16"))
        obs = observation(denoiser, dtype=torch.bfloat16)
        with torch.no_grad():
            sampled = actor.act(obs, noise_for(obs))
            scored = actor.score(obs, sampled.latent)
        assert sampled.latent.dtype == torch.bfloat16
        assert torch.equal(sampled.log_prob, scored.log_prob) and torch.equal(sampled.mean, scored.mean)
        whole = {**obs, "latent": obs["latent"].float()}
        with torch.no_grad():
            rounded = actor.act(whole, noise_for(obs))
            assert rounded.latent.dtype == torch.bfloat16, "whatever the observation comes in"
            assert torch.equal(rounded.log_prob, actor.score(whole, rounded.latent).log_prob)
        latent, sigmas = obs["latent"].float(), (obs["sigma"], obs["sigma_next"])
        exact = F.sde_step(actor.velocity(obs), latent, *sigmas, noise=noise_for(obs))
        assert not torch.equal(exact.log_prob, sampled.log_prob), "rounding must show"

    @pytest.mark.parametrize("network", ["float32", "bfloat16"])
    def test_with_rows_per_forward_it_is_exact_in_any_micro_batch(self, tiny_dir, network):
        denoiser = TinySD3Denoiser(tiny_dir, dtype=network, rows_per_forward=4)
        actor = stir(Actor(denoiser, lora=LoRAConfig(rank=4), storage_dtype=network))
        obs = observation(denoiser, rows=9, dtype=actor.head().storage_dtype)
        with torch.no_grad():
            sampled = actor.act(obs, noise_for(obs))
            for rows in ([8], [2, 0], [7, 6, 5, 4, 3]):
                part = actor.score({k: v[rows] for k, v in obs.items()}, sampled.latent[rows])
                assert torch.equal(part.log_prob, sampled.log_prob[rows])
                assert torch.equal(part.mean, sampled.mean[rows])

    def test_a_deterministic_row_is_the_euler_step(self, tiny, stirred):
        obs = observation(tiny)
        obs["stochastic"][::2] = False
        step = stirred.act(obs, noise_for(obs))
        euler = obs["latent"] - stirred.velocity(obs) * 0.15
        assert torch.allclose(step.latent[::2], euler[::2], atol=1e-6)
        assert not step.log_prob[::2].any() and not step.std[::2].any()
        assert (step.latent[1::2] - euler[1::2]).abs().max() > 0.1


class TestAdapters:
    def test_fresh_adapters_change_nothing(self, tiny):
        plain, adapted = Actor(tiny), Actor(tiny, lora=LoRAConfig())
        obs = observation(tiny)
        with torch.no_grad():
            assert torch.equal(plain.velocity(obs), adapted.velocity(obs))

    def test_gradients_reach_the_adapters_and_nothing_else(self, tiny, stirred):
        obs = observation(tiny)
        stirred.zero_grad(set_to_none=True)
        stirred.score(obs, noise_for(obs)).log_prob.sum().backward()
        for name, parameter in stirred.named_parameters():
            assert (parameter.grad is not None) == ("lora_" in name) == parameter.requires_grad, name
        reached = {
            name for name, p in stirred.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
        }
        assert len(reached) > 0.9 * len(stirred.trainable_state())
        stirred.zero_grad(set_to_none=True)

    def test_the_state_is_small_and_float32_even_under_half_precision(self, tiny_dir):
        actor = Actor(TinySD3Denoiser(tiny_dir, dtype="bfloat16"), lora=LoRAConfig(rank=2))
        state = actor.trainable_state()
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
        assert all("lora_" in name for name in state)
        frozen = [p for name, p in actor.named_parameters() if name.removeprefix("network.") not in state]
        assert {p.dtype for p in frozen} == {torch.bfloat16} and not any(p.requires_grad for p in frozen)
        assert sum(t.numel() for t in state.values()) < 0.1 * sum(p.numel() for p in frozen)

    def test_targets_can_be_chosen_and_must_exist(self, tiny):
        few = Actor(tiny, lora=LoRAConfig(targets=("attn.to_q",))).trainable_state()
        assert few and all(".attn.to_q." in name for name in few)
        with pytest.raises(ConfigError, match=r"`lora_targets` must name layers.*no_such_layer"):
            Actor(tiny, lora=LoRAConfig(targets=("no_such_layer",)))

    def test_a_model_without_layers_for_them_says_so(self):
        denoiser = PlainDenoiser()
        denoiser.lora_targets = ()
        with pytest.raises(ConfigError, match="lora_rank: null"):
            Actor(denoiser, lora=LoRAConfig())

    def test_only_adapters_can_be_exported(self, tiny, tmp_path):
        with pytest.raises(ConfigError, match="trains all weights"):
            Actor(tiny).save_adapters(tmp_path)
        with pytest.raises(NotImplementedError, match="PlainDenoiser has no published form"):
            Actor(PlainDenoiser(), lora=LoRAConfig()).save_adapters(tmp_path)


class TestReference:
    def untrained_and(self, tiny, **options):
        obs = observation(tiny)
        actor = Actor(tiny, **options)
        with torch.no_grad():
            before = actor.velocity(obs)
            stir(actor, scale=0.05)
            after = actor.velocity(obs)
        assert (before - after).abs().max() > 1e-3
        return actor, obs, before, after

    @pytest.mark.parametrize("options", [{"lora": LoRAConfig(rank=4)}, {"keep_reference": True}])
    def test_it_is_the_untrained_model_inside_and_the_trained_one_outside(self, tiny, options):
        actor, obs, before, after = self.untrained_and(tiny, **options)
        with torch.no_grad():
            with actor.reference():
                assert torch.equal(actor.velocity(obs), before)
            assert torch.equal(actor.velocity(obs), after)

    @pytest.mark.parametrize("options", [{"lora": LoRAConfig(rank=4)}, {"keep_reference": True}])
    def test_training_goes_on_around_it(self, tiny, options):
        """A loss with a KL to the reference visits it between the forward and the backward pass."""
        actor, obs, *_ = self.untrained_and(tiny, **options)
        loss = actor.score(obs, noise_for(obs)).log_prob.sum()
        with actor.reference():
            inside = actor.score(obs, noise_for(obs))
            assert not inside.log_prob.requires_grad
        loss.backward()
        trained = [p for p in actor.parameters() if p.requires_grad]
        assert len(trained) == len(actor.trainable_state()) > 0
        assert sum(p.grad is not None for p in trained) > 0.9 * len(trained)

    @pytest.mark.parametrize("options", [{"lora": LoRAConfig(rank=4)}, {"keep_reference": True}])
    def test_an_error_inside_leads_out_of_it(self, tiny, options):
        actor, obs, _, after = self.untrained_and(tiny, **options)
        with pytest.raises(RuntimeError, match="inside"), actor.reference():
            raise RuntimeError("inside")
        with torch.no_grad():
            assert torch.equal(actor.velocity(obs), after)

    def test_it_must_have_been_kept(self, tiny):
        with pytest.raises(ContractError, match="keep_reference=True"), Actor(tiny).reference():
            pass

    def test_the_copy_is_neither_trained_nor_saved_but_moves_along(self):
        actor = Actor(PlainDenoiser(), keep_reference=True)
        plain = Actor(PlainDenoiser())
        assert actor.state_dict().keys() == plain.state_dict().keys()
        assert len(list(actor.parameters())) == len(list(plain.parameters()))
        actor.to(torch.float64)
        with actor.reference():
            assert {p.dtype for p in actor.network.parameters()} == {torch.float64}


class TestMerged:
    """Sampling with adapters inside the weights; learning with them beside."""

    def test_it_says_the_same_to_rounding_and_leaves_the_very_weights(self, tiny):
        actor = stir(Actor(tiny, lora=LoRAConfig(rank=4)))
        before = {name: (p, p.detach().clone()) for name, p in actor.network.named_parameters()}
        obs = observation(tiny)
        with torch.no_grad():
            beside = actor.act(obs, noise_for(obs))
            with actor.merged():
                inside = actor.act(obs, noise_for(obs))
                assert not actor.trainable_state()
            after = actor.act(obs, noise_for(obs))
        assert not torch.equal(inside.latent, beside.latent), "nothing was merged"
        assert (inside.latent - beside.latent).abs().max() <= 1e-5
        assert (inside.log_prob - beside.log_prob).abs().max() <= 1e-6
        assert torch.equal(after.latent, beside.latent)
        for name, parameter in actor.network.named_parameters():
            own, bits = before[name]
            assert parameter is own and torch.equal(parameter, bits), name
            assert parameter.requires_grad == ("lora_" in name)

    def test_an_error_inside_leads_out_of_it(self, tiny):
        actor = stir(Actor(tiny, lora=LoRAConfig(rank=4)))
        state = {name: p.clone() for name, p in actor.network.state_dict().items()}
        with pytest.raises(ZeroDivisionError), actor.merged():
            _ = 1 / 0
        assert all(torch.equal(p, state[name]) for name, p in actor.network.state_dict().items())
        assert actor.trainable_state()

    def test_inside_another_one_nothing_is_merged_twice(self, tiny):
        actor, obs = stir(Actor(tiny, lora=LoRAConfig(rank=4))), observation(tiny)
        with torch.no_grad(), actor.merged():
            once = actor.act(obs, noise_for(obs))
            with actor.merged():
                twice = actor.act(obs, noise_for(obs))
        assert torch.equal(once.latent, twice.latent)

    def test_the_untrained_weights_cannot_be_asked_for_inside(self, tiny):
        actor = Actor(tiny, lora=LoRAConfig(rank=4))
        with actor.merged(), pytest.raises(ContractError, match="outside of `merged`"), actor.reference():
            pass

    def test_a_weight_that_is_tied_to_another_layer_changes_in_the_adapted_one_only(self):
        model = TinyQwen3()
        actor = stir(Actor(model, lora=LoRAConfig(rank=4, targets=("lm_head",))))
        embeddings = actor.network.get_input_embeddings().weight
        with actor.merged():
            assert actor.network.get_input_embeddings().weight is embeddings
            inside = model.head(actor.network)
            assert not torch.equal(inside, embeddings)
        assert actor.network.get_output_embeddings().get_base_layer().weight is embeddings

    @pytest.mark.parametrize(
        ("options", "asked", "merges"),
        [
            ({}, None, True),
            ({"dtype": "bfloat16"}, None, False),
            ({"rows_per_forward": 4}, None, False),
            ({}, False, False),
            ({"rows_per_forward": 4}, True, True),
        ],
    )
    def test_when(self, options, asked, merges):
        actor = Actor(TinySD3Denoiser(**options), lora=LoRAConfig(rank=4), merge_adapters=asked)
        with actor.acting():
            assert bool(actor.trainable_state()) is not merges
        assert actor.trainable_state()

    def test_the_untrained_model_is_played_without(self, tiny):
        actor, obs = stir(Actor(tiny, lora=LoRAConfig(rank=4))), observation(tiny)
        with torch.no_grad():
            with actor.acting(base=True):
                base = actor.act(obs, noise_for(obs))
            with actor.reference():
                assert torch.equal(actor.act(obs, noise_for(obs)).latent, base.latent)

    def test_what_was_frozen_stays_frozen(self):
        model = TinyUnified()
        actor = Actor(model, lora=LoRAConfig(rank=4), train_phases=["image"])
        frozen = {name for name, p in actor.network.named_parameters() if not p.requires_grad}
        for inside in (actor.reference, actor.merged):
            with inside():
                pass
            assert {name for name, p in actor.network.named_parameters() if not p.requires_grad} == frozen


class TestGuidance:
    def test_it_is_the_extrapolation_of_two_velocities(self, tiny, stirred):
        obs = observation(tiny, negative=True)
        guided = copy.copy(stirred)
        guided.heads = {"image": LatentHead(tiny, guidance=3.0)}
        with torch.no_grad():
            positive = stirred.velocity(obs)
            negative = stirred.velocity(
                {**obs, **{k[9:]: v for k, v in obs.items() if k.startswith("negative_")}}
            )
            expected = negative + 3.0 * (positive - negative)
            assert (guided.velocity(obs) - expected).abs().max() < 5e-5
        assert (positive - negative).abs().max() > 1e-2

    def test_one_forward_serves_both(self):
        denoiser, calls = PlainDenoiser(), []
        actor = Actor(denoiser, guidance=2.0)
        actor.network.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
        with torch.no_grad():
            actor.velocity(observation(denoiser, negative=True))
        assert calls == [12]

    def test_it_needs_negative_prompts(self, tiny):
        with pytest.raises(ContractError, match="with_negative=True"):
            Actor(tiny, guidance=4.0).velocity(observation(tiny))

    def test_without_it_negative_prompts_are_left_alone(self, tiny):
        actor = Actor(tiny)
        with torch.no_grad():
            assert torch.equal(
                actor.velocity(observation(tiny, negative=True)), actor.velocity(observation(tiny))
            )


class TestState:
    def test_it_goes_over_to_another_actor(self, tiny):
        one, other = stir(Actor(tiny, lora=LoRAConfig(rank=4))), Actor(tiny, lora=LoRAConfig(rank=4))
        other.load_trainable_state({name: t.clone() for name, t in one.trainable_state().items()})
        obs = observation(tiny)
        with torch.no_grad():
            assert torch.equal(one.velocity(obs), other.velocity(obs))

    def test_a_part_may_be_loaded(self, tiny):
        actor = Actor(tiny, lora=LoRAConfig(rank=4))
        name, tensor = next(iter(actor.trainable_state().items()))
        rest = {k: v.clone() for k, v in actor.trainable_state().items() if k != name}
        actor.load_trainable_state({name: torch.ones_like(tensor)})
        assert (actor.trainable_state()[name] == 1).all()
        assert all(torch.equal(actor.trainable_state()[k], v) for k, v in rest.items())

    def test_another_dtype_is_converted(self):
        actor = Actor(PlainDenoiser())
        actor.load_trainable_state({"outer.bias": torch.full((48,), 0.5, dtype=torch.bfloat16)})
        assert actor.network.outer.bias.dtype == torch.float32 and (actor.network.outer.bias == 0.5).all()

    @pytest.mark.parametrize(
        "wrong, words",
        [
            (
                {"no.such.weight": torch.zeros(1)},
                r"`no\.such\.weight` must fit this policy \(no such weight\)",
            ),
            (
                {"outer.bias": torch.zeros(3)},
                r"`outer\.bias` must fit this policy \(\[48\]\), got shape \[3\]",
            ),
        ],
    )
    def test_what_does_not_fit_is_named_and_nothing_is_loaded(self, wrong, words):
        actor = Actor(PlainDenoiser())
        before = {name: t.clone() for name, t in actor.trainable_state().items()}
        with pytest.raises(CheckpointError, match=words):
            actor.load_trainable_state({"inner.bias": torch.ones(16), **wrong})
        assert all(torch.equal(before[name], t) for name, t in actor.trainable_state().items())

    def test_the_state_refers_to_the_weights(self):
        actor = Actor(PlainDenoiser())
        actor.trainable_state()["outer.bias"].fill_(2)
        assert (actor.network.outer.bias == 2).all() and actor.network.outer.bias.requires_grad


class TestSettings:
    @pytest.mark.parametrize("value", ["float31", "int64", 16])
    def test_the_storage_dtype_is_a_floating_one(self, value):
        with pytest.raises(ConfigError, match="`storage_dtype`"):
            Actor(PlainDenoiser(), storage_dtype=value)

    @pytest.mark.parametrize(
        "options", [{"dynamics": "brownian"}, {"eta": -1.0}, {"dynamics": "cps", "eta": 1.5}]
    )
    def test_an_impossible_kernel_is_refused_before_the_first_step(self, options):
        with pytest.raises(ConfigError, match=f"`{'eta' if 'eta' in options else 'dynamics'}`"):
            Actor(PlainDenoiser(), **options)

    def test_activations_can_be_recomputed(self, tiny):
        obs = observation(tiny)
        grads = []
        for checkpointing in (False, True):
            torch.manual_seed(0)
            actor = stir(Actor(tiny, lora=LoRAConfig(rank=4), gradient_checkpointing=checkpointing))
            if checkpointing:
                assert actor.network.is_gradient_checkpointing
            actor.score(obs, noise_for(obs)).log_prob.sum().backward()
            grads.append([p.grad for p in actor.parameters() if p.requires_grad and p.grad is not None])
        assert len(grads[0]) == len(grads[1]) > 0
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*grads, strict=True))
        assert max(grad.abs().max() for grad in grads[0]) > 0.1
        with pytest.raises(ConfigError, match="cannot checkpoint"):
            Actor(PlainDenoiser(), gradient_checkpointing=True)

    def test_the_network_acts_in_evaluation_mode(self, tiny):
        assert not any(
            module.training for module in Actor(tiny).network.modules() if isinstance(module, nn.Module)
        )


class TestRanks:
    @pytest.mark.parametrize(
        "shape", [(2,), (5, 6), (3, 4, 4), (2, 3, 4, 5)], ids=["point", "packed", "image", "video"]
    )
    def test_latents_of_any_rank_through_world_policy_and_rollout(self, shape):
        denoiser = PlainDenoiser(shape)
        actor = stir(Actor(denoiser, lora=LoRAConfig(rank=2), storage_dtype="bfloat16"), scale=0.1)
        rollout = Rollout(maker(denoiser, num_steps=4), actor)
        batch = rollout.collect(
            RolloutRequest([Prompt("a cat"), Prompt("a dog")], seed=0, group_size=3, keep_mean=True)
        )
        phase = batch.phases["image"]
        assert phase.action.shape == phase.mean.shape == (6, 3, *shape)
        assert (
            phase.action.dtype == torch.bfloat16 and phase.mean.dtype == phase.log_prob.dtype == torch.float32
        )
        obs, actions = phase.rows(torch.arange(6))
        with torch.no_grad():
            again = actor.score(obs, actions)
        assert (again.log_prob.view(6, 3) - phase.log_prob).abs().max() <= 1e-6
        kl = F.gaussian_kl(again.mean.view_as(phase.mean), phase.mean, again.std.view(6, 3))
        assert kl.abs().max() <= 1e-9


@pytest.mark.parametrize("storage_dtype", ["float32", "bfloat16"])
def test_guidance_in_two_forwards_is_that_in_one(tiny_dir, storage_dtype):
    denoiser, prompts = TinySD3Denoiser(tiny_dir), [Prompt("a red circle"), Prompt("two blue squares")]
    generator = torch.Generator().manual_seed(0)
    obs = {"latent": torch.randn(2, *denoiser.latent_shape, generator=generator)}
    obs |= {"sigma": torch.tensor([0.9, 0.5]), "sigma_next": torch.tensor([0.7, 0.2])}
    obs |= denoiser.encode(prompts)
    obs |= {f"negative_{k}": v for k, v in denoiser.encode(prompts, negative=True).items()}
    rows, steps = [], []
    for at_once in (True, False):
        actor = Actor(denoiser, guidance=3.0, guidance_at_once=at_once, storage_dtype=storage_dtype)
        actor.network.register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
        with torch.no_grad():
            steps.append(actor.act(obs, torch.ones_like(obs["latent"])))
    assert rows == [4, 2, 2]
    assert (steps[0].mean - steps[1].mean).abs().max() < 1e-5
