"""BAGEL in its environments: the contract, thoughts and pictures scored as they were played, and edits."""

import gymnasium as gym
import pytest
import torch
from bagel_cases import SMALL, build, picture

import unirl_env  # noqa: F401
from unirl_env.envs import check_vector_env
from unirl_env.envs.denoising import DenoiseVectorEnv
from unirl_env.errors import PromptError
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.policies.packing import pack_continuations
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt

CAPTION = {"caption": "a red circle left of a blue square"}
EDITS = [Prompt("paint it red", str(i), images=(picture(i),), metadata=CAPTION) for i in range(3)]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """`make(id, num_envs, ...)`: a registered environment with a tiny checkpoint."""
    directory = build(tmp_path_factory.mktemp("models") / "bagel")
    small = {**SMALL, "dtype": "float32", "scorer": {"name": "pictured", "scorer": "shapes"}}
    of = {
        "T2I": {"prompts": "shapes_train", "max_new_tokens": 6, "max_prompt_tokens": 256},
        "Edit": {"prompts": EDITS, "max_prompt_tokens": 448},
    }

    def made(task, num_envs, num_steps=3, **options):
        return gym.make_vec(
            f"unirl/Bagel-{task}-v0",
            num_envs=num_envs,
            info_objects=True,
            vectorization_mode="vector_entry_point",
            pretrained=directory,
            num_steps=num_steps or 3,
            **{**small, **of[task], **options},
        )

    return made


@pytest.mark.parametrize("task", ["T2I", "Edit"])
def test_the_registered_environments_keep_the_contract(make, task):
    env = make(task, 3)
    check_vector_env(env)
    env.close()


@pytest.mark.parametrize("task", ["T2I", "Edit"])
def test_what_was_played_is_scored_alike(make, task):
    """Ratio one in both phases, with guidance, adapters that matter, and thoughts of several lengths."""
    options = {} if task == "T2I" else {"thinking": True, "max_new_tokens": 6, "max_prompt_tokens": 640}

    def playing(num_envs, num_steps=None):
        settings = {"with_negative": True, "array_backend": "torch", "autoreset_mode": "disabled"}
        return make(task, num_envs, num_steps, **settings, **options)

    env = make(task, 1, **options).unwrapped
    model, prompts = env.unified_model, [env.prompts[i] for i in range(2)]
    actor = Actor(model, lora=LoRAConfig(rank=2), guidance=2.0, eta=0.7)
    generator = torch.Generator().manual_seed(0)
    for weight in actor.trainable_state().values():
        weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    # So that some thoughts come to an end.
    actor.network.language_model.lm_head.weight.data[list(model.opens)] *= 4
    rollout = Rollout(playing, actor)
    batch = rollout.collect(RolloutRequest(prompts, seed=1, group_size=6))
    pictured = torch.tensor([sample.image is not None for sample in batch.samples])
    assert 0 < int(pictured.sum()) < len(batch), "some thoughts must come to a picture, and some not"

    text = batch.phases["text"]
    packed = pack_continuations(text, torch.arange(len(batch)))
    scored = actor.score(packed.observation, packed.action, phase="text").log_prob
    torch.testing.assert_close(scored, text.log_prob[packed.episode, packed.step], atol=1e-5, rtol=0)

    image, drawn = batch.phases["image"], pictured.nonzero().flatten()
    observation, action = image.rows(drawn, shared=True)
    scored = actor.score(observation, action, phase="image").log_prob.view(len(drawn), -1)
    torch.testing.assert_close(scored, image.log_prob[drawn], atol=1e-5, rtol=0)
    (scored.mean() * 1e3).backward()
    adapted = {n: w.grad for n, w in actor.network.named_parameters() if w.requires_grad}
    unread = {name.split(".lora_")[0] for name, grad in adapted.items() if not grad.any()}
    # Of its last layer, a text leaves keys and values.
    ends = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert unread == {f"language_model.model.layers.1.{end}" for end in ends}
    rollout.close()


@pytest.mark.parametrize("task", ["T2I", "Edit"])
def test_without_a_thought_it_is_the_denoising_environment(make, task):
    both = make(task, 3, max_new_tokens=0, array_backend="torch").unwrapped
    model = both.unified_model
    shared = {"num_envs": 3, "num_steps": 3, "array_backend": "torch", "prompts": both.prompts}
    shared |= {"info_objects": True}
    alone = DenoiseVectorEnv(model.image, **shared)
    network, states = model.network(), []
    for env in (both, alone):
        obs, _ = env.reset(seed=4)
        with torch.no_grad():
            reading = model.image.read(network, {name: obs[name] for name in model.context_keys})
            for _ in range(3):
                flow = model.image.velocity(network, obs["latent"], obs["sigma"], reading)
                step = (obs["sigma_next"] - obs["sigma"])[:, None, None, None]
                latent = obs["latent"] + step * flow
                action = {"latent": latent} if env is both else latent
                if env is both and "token" in env.single_action_space.spaces:
                    action["token"] = torch.zeros(3, dtype=torch.int64)
                obs, _, ended, _, info = env.step(action)
        assert bool(torch.as_tensor(ended).all())
        states.append((latent, torch.stack([sample.image for sample in info["samples"]])))
    assert torch.equal(states[0][0], states[1][0]) and torch.equal(states[0][1], states[1][1])


def test_edits_need_a_picture(make):
    with pytest.raises(PromptError, match="picture"):
        make("Edit", 1, prompts=["paint it red"])
    with pytest.raises(PromptError, match="picture"):
        make("T2I", 1, prompts=EDITS).reset(seed=0)
