"""HunyuanImage 3 in the hybrid environment: the contract, and episodes scored as they were played."""

import gymnasium as gym
import pytest
import torch
from hunyuan_cases import write_tiny_checkpoint

import unirl_env  # noqa: F401
from unirl_env.envs import check_vector_env
from unirl_env.episode import EpisodeBatch
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.policies.packing import pack_continuations
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout

PROMPTS = ("a red circle", "two blue squares on the left")


@pytest.fixture(scope="module")
def make(tmp_path_factory, quiet_models):
    """`make(num_envs, ...)`: the registered environment with a tiny checkpoint."""
    changes = {"sequence_template": "instruct", "bot_task": "recaption"}
    folder = tmp_path_factory.mktemp("models")
    directory = write_tiny_checkpoint(folder / "chat", generation_changes=changes)
    small = {"height": 32, "width": 32, "dtype": "float32", "max_new_tokens": 6, "max_prompt_tokens": 64}
    scored = {"scorer": {"name": "pictured", "scorer": "shapes"}, "prompts": "shapes_train"}

    def made(num_envs, num_steps=3, **options):
        return gym.make_vec(
            "unirl/HunyuanImage3-T2I-v0",
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            pretrained=str(directory),
            num_steps=num_steps or 3,
            **{**small, "model_options": {"task": "auto"}, **scored, **options},
        )

    return made


def test_the_registered_environment_keeps_the_contract(make):
    env = make(4)
    check_vector_env(env)
    env.close()


def test_what_was_played_is_scored_alike(make):
    """Ratio one in both phases, with guidance, adapters that matter, and texts of several lengths."""
    settings = {"with_negative": True, "array_backend": "torch"}

    def playing(num_envs, num_steps=None):
        return make(num_envs, num_steps, autoreset_mode="disabled", **settings)

    model = make(1).unwrapped.unified_model
    actor = Actor(model, lora=LoRAConfig(rank=2), guidance=2.0, eta=0.7, top_k=0)
    generator = torch.Generator().manual_seed(0)
    for name, weight in actor.network.named_parameters():
        if "lora_" in name:
            weight.data = 0.05 * torch.randn(weight.shape, generator=generator)
        if name == "lm_head.weight":
            weight.data[list(model.opens)] *= 4  # so that some texts end with a picture
    rollout = Rollout(playing, actor)
    batch = rollout.collect(RolloutRequest(list(PROMPTS), seed=1, group_size=6))
    assert isinstance(batch, EpisodeBatch) and set(batch.phases) == {"text", "image"}
    pictured = torch.tensor([sample.image is not None for sample in batch.samples])
    assert 0 < int(pictured.sum()) < len(batch), "some texts must come to a picture, and some not"
    assert torch.equal(batch.phases["image"].mask.any(1), pictured)

    every = torch.arange(len(batch))
    text = batch.phases["text"]
    packed = pack_continuations(text, every)
    scored = actor.score(packed.observation, packed.action, phase="text").log_prob
    said = text.log_prob[packed.episode, packed.step]
    torch.testing.assert_close(scored, said, atol=1e-5, rtol=0)

    image, drawn = batch.phases["image"], pictured.nonzero().flatten()
    observation, action = image.rows(drawn, shared=True)
    scored = actor.score(observation, action, phase="image").log_prob.view(len(drawn), -1)
    torch.testing.assert_close(scored, image.log_prob[drawn], atol=1e-5, rtol=0)
    (scored.mean() * 1e3).backward()
    grads = [weight.grad.abs().max() for weight in actor.network.parameters() if weight.requires_grad]
    assert len(grads) == 16 and min(grads) > 0
    rollout.close()


def test_without_a_text_it_is_the_denoising_environment(make):
    """The same latents and pictures as by the image view alone."""
    from unirl_env.envs.denoising import DenoiseVectorEnv

    both = make(3, max_new_tokens=0, array_backend="torch").unwrapped
    alone = DenoiseVectorEnv(
        both.unified_model.image, num_envs=3, num_steps=3, array_backend="torch", prompts=both.prompts
    )
    (one, _), (other, _) = both.reset(seed=4), alone.reset(seed=4)
    assert torch.equal(one["latent"], other["latent"])
    for row in range(3):
        length = int(one["length"][row])
        assert torch.equal(one["tokens"][row, :length], other["tokens"][row, : int(other["length"][row])])
