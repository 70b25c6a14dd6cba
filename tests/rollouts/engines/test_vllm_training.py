"""A run whose answers come from a real vLLM: synced every iteration, and as close as float32 allows."""

import cluster as one_cluster
import pytest
from policies import greedy

from unirl_env.agents import GRPOConfig
from unirl_env.rollouts.engines import Request

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` installs it")


@pytest.mark.parametrize(
    ("env_id", "rank", "lr"),
    [("unirl/TinyQwen3-Math-v0", None, 2e-4), ("unirl/TinyQwenVL-VQA-v0", 8, 2e-3)],
)
def test_an_agent_trains_with_answers_from_vllm(env_id, rank, lr):
    one_cluster.start()
    agent = (
        GRPOConfig()
        .environment(env_id)
        .training(
            num_prompts=4,
            group_size=8,
            lr=lr,
            policy={"lora_rank": rank},
            engine="vllm",
            engine_options={"cache_bytes": 64 << 20},
        )
        .build_algo()
    )
    try:
        for _ in range(3):
            agent.train()
            assert 0 < agent.iteration_metrics["gap_max"] < 1e-4
        assert agent.iteration_metrics["weights_version"] == 3
        rollout = agent.env_runner_group.local_env_runner._player()
        assert rollout.drivers["text"].engine.weights_version == 3
        prompts = agent.source.take(0, 4, seed=0)
        encoded = [rollout.drivers["text"].actor.model.encode(prompt) for prompt in prompts]
        asked = [
            Request(tuple(each.tokens.tolist()), prompt, inputs=each.inputs, max_new_tokens=6)
            for each, prompt in zip(encoded, prompts, strict=True)
        ]
        said = [answer.tokens for answer in rollout.drivers["text"].engine.generate(asked, temperature=0)]
        assert said == greedy(rollout.drivers["text"].actor, asked), "vLLM has the weights of the last update"
        untrained = agent.rollout_eval(prompts, base=True)
        assert len(untrained) == 4 and untrained.scores.valid.all()
    finally:
        agent.stop()
