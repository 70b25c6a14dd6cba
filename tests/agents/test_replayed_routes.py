"""Agents that replay choices of experts, by their settings."""

import pytest
from models.hunyuan_cases import write_tiny_checkpoint
from models.language_cases import FINE_EXPERTS, write
from one_learner import OneLearner
from talk import token_numbers

from unirl_env.agents import GRPOConfig
from unirl_env.errors import ConfigError

SETTINGS = {"num_prompts": 2, "group_size": 4, "num_minibatches": 2, "lr": 0.02, "anchor": "replay"}
WHOLE = {"lora_rank": None, "replay_routing": True}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, quiet_models):
    folder = tmp_path_factory.mktemp("models")
    chats = {"sequence_template": "instruct", "bot_task": "recaption"}
    hunyuan = write_tiny_checkpoint(folder / "hunyuan", generation_changes=chats)
    return {"text": write(folder / "qwen", "Qwen3Moe", FINE_EXPERTS), "hunyuan": str(hunyuan)}


def config_of(checkpoints, name="text", *, policy=WHOLE, env_config=(), **settings):
    env, options = "unirl/Qwen3-Math-v0", {"prompts": ["a red circle", "two"], "max_prompt_tokens": 128}
    if name == "hunyuan":
        env = "unirl/HunyuanImage3-T2I-v0"
        options |= {"height": 32, "width": 32, "num_steps": 2, "model_options": {"task": "recaption"}}
    options |= {
        "pretrained": checkpoints[name],
        "dtype": "float32",
        "max_new_tokens": 6,
        "scorer": token_numbers,
    }
    config = GRPOConfig().environment(env, env_config={**options, **dict(env_config)})
    return config.training(**{**SETTINGS, "policy": policy, **settings})


@pytest.mark.parametrize("name", ["text", "hunyuan"])
def test_two_iterations(checkpoints, name):
    """In the first step nothing would have been chosen otherwise; behind it something is."""
    settings = {"train_phases": ["text"]} if name == "hunyuan" else {}
    one = OneLearner(config_of(checkpoints, name, micro_batch_size=2, **settings))
    for iteration in range(2):
        report = one.update(one.shards(one.play(iteration), iteration=iteration)[0])
        first, second = report.phases["text"].metrics
        rows = report.phases["text"].rows
        assert first["rerouted"] == 0 and 0 < second["rerouted"] < rows[1]
        assert report.phases["text"].gap["max"] <= 1e-4


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_with_players_of_its_own(cluster, checkpoints):
    """Choices travel from players to learners; the curve is that of one process."""
    curves = []
    for runners in (0, 2):
        agent = config_of(checkpoints).env_runners(num_env_runners=runners).build_algo()
        try:
            rows = []
            for _ in range(2):
                agent.train()
                rows.append(agent.iteration_metrics)
        finally:
            agent.stop()
        curves.append([row[name] for row in rows for name in ("reward", "loss", "rerouted")])
    assert curves[0] == pytest.approx(curves[1], abs=1e-5) and curves[0][-1] > 0


def test_without_it_nothing_is_recorded(checkpoints):
    phase = OneLearner(config_of(checkpoints, policy={"lora_rank": None})).play().phases["text"]
    assert not phase.observation and "prompt_routes" not in phase.context


class TestRefusals:
    def test_an_engine_that_returns_no_choices(self, checkpoints):
        config = config_of(checkpoints, engine="vllm")
        with pytest.raises(ConfigError, match=r"`policy.replay_routing`.*'vllm'.*rollout.engine=local"):
            config.validate()

    def test_pictures(self, checkpoints):
        with pytest.raises(ConfigError, match=r"phase 'image'.*agent.train_phases=\[text\]"):
            config_of(checkpoints, "hunyuan").validate()

    def test_a_network_without_routers(self):
        config = GRPOConfig().environment("unirl/TinyQwen3-Math-v0").training(policy=WHOLE, num_prompts=1)
        with pytest.raises(ConfigError, match="no routers"):
            OneLearner(config)
