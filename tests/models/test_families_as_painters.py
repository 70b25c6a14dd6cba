"""Every family as the frozen generator of prompt enhancement, and as the painter of a hybrid that learns."""

from importlib import import_module

import families
import gymnasium as gym
import pytest

from unirl_env.agents import GRPOConfig
from unirl_env.envs import check_vector_env

EDITS = "unirl/QwenImage-Edit-v0"
FAMILIES = [name for name in families.FAMILIES if name != EDITS and "2V-" not in name]
"""Whoever edits needs a picture, which no writer brings, and clips are no pictures."""
REWARD = {"name": "pictured", "scorer": "saturation"}
WISHES = {"prompts": ["a red circle", "a blue square"], "scorer": REWARD}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    case = import_module(families.FAMILIES[request.param]).CASES[request.param]
    folder = tmp_path_factory.mktemp("painter")
    case.build(folder)
    sizes = {"height": case.height, "width": case.width}
    return case, {"denoiser": case.name, "pretrained": str(folder), **sizes}


@pytest.mark.slow
def test_it_draws_what_is_enhanced(family):
    case, painter = family
    generator = {**painter, "num_steps": 2, "guidance": case.guidances[-1], "rows": 4}
    generator |= {"model_options": dict(case.options)}
    env = gym.make_vec(
        "unirl/TinyPromptEnhancer-T2I-v0",
        num_envs=2,
        vectorization_mode="vector_entry_point",
        generator=generator,
        **WISHES,
    )
    check_vector_env(env)
    env.close()


@pytest.mark.slow
def test_it_paints_and_learns_to(family, cluster, tmp_path):
    case, painter = family
    world = {
        "model_options": {
            "writer": {"language_model": "tiny_enhancer"},
            "painter": {**painter, **case.options},
        },
        "num_steps": 3,
        **WISHES,
    }
    policy = {"lora_rank": 2, "guidance": case.guidances[-1]}
    agent = (
        GRPOConfig()
        .environment("unirl/TinyEnhancerAndSD3-T2I-v0", env_config=world)
        .training(num_prompts=2, group_size=4, num_minibatches=1, policy=policy)
        .build_algo()
    )
    agent.train()
    for phase in ("text", "image"):
        assert agent.iteration_metrics[f"{phase}/self_check/ratio"] < 1e-4
        assert agent.iteration_metrics[f"{phase}/grad_norm"] > 0
    agent.get_module().actor.save_adapters(str(tmp_path))
    assert len(list((tmp_path / "image").glob("*.safetensors"))) == 1
    agent.stop()
