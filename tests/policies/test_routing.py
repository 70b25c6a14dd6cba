"""Router replay: the experts that sampled a text score it, and gradients reach the routers through them."""

import gymnasium as gym
import pytest
import torch
from models.hunyuan_cases import write_tiny_checkpoint
from models.language_cases import ALONE, FINE_EXPERTS, PACKED, write

import unirl_env  # noqa: F401  # registers the ids
from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.hunyuan_image3 import HunyuanImage3
from unirl_env.models.shared.routers import Router
from unirl_env.models.tiny import TinyQwen3
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.policies.packing import pack_continuations
from unirl_env.policies.routing import Routing
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.drivers.tokens import TextDriver
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt, Scores

PROMPTS = [Prompt("a red circle"), Prompt("two")]
EVERY = torch.arange(8)


@pytest.fixture(scope="module")
def models(tmp_path_factory, quiet_models):
    """Of two and of two and three experts of four in a layer."""
    folder = tmp_path_factory.mktemp("models")
    chats = {"sequence_template": "instruct", "bot_task": "recaption"}
    hunyuan = write_tiny_checkpoint(folder / "hunyuan", generation_changes=chats)
    return {
        "qwen3_moe": CausalLM(write(folder / "qwen3_moe", "Qwen3Moe", FINE_EXPERTS)),
        "hunyuan": HunyuanImage3(hunyuan).text,
    }


def length(samples, prompts):
    return Scores(torch.tensor([float(len(sample.tokens)) for sample in samples]))


def player(actor, engine, *, batch_size=None, **options):
    options = {"scorer": length, "prompts": PROMPTS, "max_new_tokens": 9, "max_prompt_tokens": 128, **options}

    def make_env(num_envs):
        return gym.make_vec(
            "unirl/Qwen3-Math-v0",
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            language_model=actor.model,
            array_backend="torch",
            autoreset_mode="disabled",
            **options,
        )

    return Rollout(make_env, {"text": TextDriver(engine, actor)}, batch_size=batch_size)


def played(actor, *, batch_size=None, **options):
    """Two groups of four texts."""

    rollout = player(actor, LocalEngine(actor), batch_size=batch_size, **options)
    return rollout.collect(RolloutRequest(PROMPTS, seed=2, group_size=4))


def scored(actor, phase, index=EVERY, branching=False):
    """The step of all trained tokens, which share of their experts differs, and how far log-probs do."""
    packed = pack_continuations(phase, index, branching=branching)
    step = actor.score(packed.observation, packed.action)
    far = (step.log_prob - phase.log_prob[packed.episode, packed.step]).abs().max()
    return step, actor.routing.rerouted, float(far.detach())


@torch.no_grad()
def disturb(actor, size=0.5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for weight in actor.trainable_state().values():
        weight += size * weight.std() * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("name", ["qwen3_moe", "hunyuan"])
class TestReplay:
    def test_the_same_weights_choose_the_same(self, models, name):
        actor, plain = Actor(models[name], replay_routing=True), Actor(models[name])
        phase = played(actor).phases["text"]
        routes, own = phase.observation["routes"], played(plain).phases["text"]
        assert routes.dtype == torch.uint8 and routes.shape[:3] == (*phase.action.shape, 2)
        assert torch.equal(phase.action, own.action) and torch.equal(phase.log_prob, own.log_prob)
        step, rerouted, far = scored(actor, phase)
        assert float(rerouted.abs().max()) == 0 and far <= 1e-5
        bare = pack_continuations(own, EVERY)
        assert torch.equal(plain.score(bare.observation, bare.action).log_prob, step.log_prob)

    def test_other_weights_choose_what_was_recorded(self, models, name):
        actor = Actor(models[name], replay_routing=True)
        phase = played(actor).phases["text"]
        disturb(actor)
        seen = []
        for router in actor.model.routers(actor.network):
            router.module.register_forward_hook(lambda module, given, output: seen.append(output[-1]))
        _, rerouted, _ = scored(actor, phase)
        assert 0 < float(rerouted.mean()) < 1
        routes = pack_continuations(phase, EVERY).observation["routes"].long()
        assert [chosen.shape[1] for chosen in seen] == {"qwen3_moe": [2, 2], "hunyuan": [2, 3]}[name]
        for layer, chosen in enumerate(seen):
            assert torch.equal(chosen, routes[:, layer, : chosen.shape[1]]), "every token was read"

    def test_prompts_may_be_shared_and_episodes_dealt(self, models, name):
        actor = Actor(models[name], replay_routing=True)
        batch = played(actor, batch_size=3)
        disturb(actor)
        phase, index = batch.phases["text"], torch.tensor([6, 1, 3])
        whole, share, _ = scored(actor, phase)
        parts = [batch.select(each).phases["text"] for each in (index, EVERY[:1])]
        joined = type(phase).cat(parts)
        packed = pack_continuations(phase, EVERY)
        for number, episode in enumerate([6, 1, 3, 0]):
            step, differs, _ = scored(actor, joined, torch.tensor([number]))
            torch.testing.assert_close(step.log_prob, whole.log_prob[packed.episode == episode])
            torch.testing.assert_close(differs, share[packed.episode == episode])
        if actor.branches():
            step, differs, _ = scored(actor, phase, branching=True)
            torch.testing.assert_close(step.log_prob, whole.log_prob)
            torch.testing.assert_close(differs, share)

    def test_the_gradient_is_that_of_the_recorded_experts(self, models, name):
        actor = Actor(models[name], replay_routing=True)
        packed = pack_continuations(played(actor).phases["text"], EVERY)
        disturb(actor)
        (router, *_) = actor.model.routers(actor.network)
        (weight,) = router.module.parameters()

        def total():
            return actor.score(packed.observation, packed.action).log_prob.double().sum()

        total().backward()
        assert float(weight.grad.abs().max()) > 0
        way = weight.grad / weight.grad.norm()
        step, values = 1e-2, []
        with torch.no_grad():
            for factor in (2 * step, -2 * step, step, -step):
                weight += factor * way
                values.append(float(total()))
                weight -= factor * way
        found = (8 * (values[2] - values[3]) - (values[0] - values[1])) / (12 * step)
        assert found == pytest.approx(float(weight.grad.norm()), rel=5e-3)

    def test_recomputing_chooses_again_what_was_recorded(self, models, name):
        gradients = []
        for recompute in (False, True):
            actor = Actor(models[name], replay_routing=True, gradient_checkpointing=recompute)
            phase = played(actor).phases["text"]
            disturb(actor)
            step, rerouted, _ = scored(actor, phase)
            with actor.routing.replaying(torch.zeros(1, 2, 2, dtype=torch.uint8)):  # another pass meanwhile
                step.log_prob.sum().backward()
            assert float(rerouted.mean()) > 0
            gradients.append([w.grad for w in actor.network.parameters() if w.grad is not None])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    def test_adapters_and_their_reference(self, models, name):
        actor = Actor(models[name], replay_routing=True, lora=LoRAConfig(2, targets=TARGETS[name]))
        phase = played(actor).phases["text"]
        with torch.no_grad():
            for number, weight in enumerate(actor.trainable_state().values()):
                weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        _, rerouted, _ = scored(actor, phase)
        assert float(rerouted.mean()) > 0
        with actor.reference():
            _, rerouted, far = scored(actor, phase)
        assert float(rerouted.abs().max()) == 0 and far <= 1e-5


TARGETS = {"qwen3_moe": ("q_proj", "v_proj"), "hunyuan": None}


def test_a_kept_copy_replays_too(models):
    actor = Actor(models["qwen3_moe"], replay_routing=True, keep_reference=True)
    phase = played(actor).phases["text"]
    disturb(actor)
    with actor.reference():
        _, rerouted, far = scored(actor, phase)
    assert float(rerouted.abs().max()) == 0 and far <= 1e-5


def test_what_a_tool_says_is_read_by_the_routers_own_choice(models):
    """Of each token the experts that read it first are kept, over the turns of a conversation."""
    actor = Actor(models["qwen3_moe"], replay_routing=True)
    batch = played(actor, tool=lambda text, prompt: "so", max_turns=3, max_new_tokens=60)
    phase = batch.phases["text"]
    assert bool(((phase.action >= 0) & ~phase.mask).any())
    _, rerouted, far = scored(actor, phase)
    assert float(rerouted.abs().max()) == 0 and far <= 4e-5
    routes = pack_continuations(phase, EVERY).observation["routes"]
    assert float((routes == 255).double().mean()) < 0.2, "only what nobody wrote behind is unknown"


class TestRefusals:
    def test_without_routers(self):
        with pytest.raises(ConfigError, match=r"replay_routing.*no routers.*Qwen3ForCausalLM"):
            Actor(TinyQwen3(), replay_routing=True)

    def test_where_texts_stand_alone(self, tmp_path):
        model = CausalLM(write(tmp_path, "GptOss", ALONE["GptOss"]))
        with pytest.raises(ConfigError, match="replay_routing"):
            Actor(model, replay_routing=True)

    def test_episodes_without_choices(self, models):
        actor = Actor(models["qwen3_moe"], replay_routing=True)
        phase = played(Actor(models["qwen3_moe"])).phases["text"]
        with pytest.raises(ContractError, match=r"`routes`.*played with it"):
            scored(actor, phase)

    def test_answers_without_choices(self, models):
        actor = Actor(models["qwen3_moe"], replay_routing=True)
        rollout = player(actor, LocalEngine(Actor(models["qwen3_moe"])))
        with pytest.raises(ContractError, match="must return the `routes`"):
            rollout.collect(RolloutRequest(PROMPTS, seed=2))

    def test_weights_that_are_no_probabilities(self):
        module = torch.nn.Identity()
        routing = Routing()
        routing.watch([Router(module, lambda output, chosen: output[0].gather(-1, chosen))], module)
        output = (torch.rand(3, 4), torch.full((3, 2), 7.0), torch.zeros(3, 2, dtype=torch.int64))
        with routing.recording(), pytest.raises(ConfigError, match=r"probabilities.*Identity"):
            module(output)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe"])
def test_families_are_understood(tmp_path, family):
    actor = Actor(CausalLM(write(tmp_path, family, PACKED[family])), replay_routing=True)
    phase = played(actor).phases["text"]
    _, rerouted, far = scored(actor, phase)
    assert float(rerouted.abs().max()) == 0 and far <= 1e-5
