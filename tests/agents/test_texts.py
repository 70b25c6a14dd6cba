"""Agents on texts: one loop, four losses, the embedded Qwen3."""

import pytest
import torch

from unirl_env.agents import DRPOConfig, FlowDPPOConfig, GRPOConfig, GSPOConfig
from unirl_env.errors import ConfigError, SelfCheckError

AGENTS = {"grpo": GRPOConfig, "flow_dppo": FlowDPPOConfig, "drpo": DRPOConfig, "gspo": GSPOConfig}


def config_of(name="grpo", env_config=None, **settings):
    settings = {"num_prompts": 4, "group_size": 8, "lr": 2e-4, "policy": {"lora_rank": None}, **settings}
    return (
        AGENTS[name]()
        .environment("unirl/TinyQwen3-Math-v0", env_config=env_config or {})
        .training(**settings)
    )


def trained(config, iterations=2):
    agent = config.build_algo()
    try:
        rows = []
        for _ in range(iterations):
            agent.train()
            rows.append(agent.iteration_metrics)
        weights = agent.run_state()[0]
        return rows, {name: tensor for name, tensor in weights.items() if name.startswith("policy/")}
    finally:
        agent.stop()


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_trains_on_texts(cluster, name):
    rows, _ = trained(config_of(name, reference_kl=0.01))
    first, second = rows
    assert first["self_check/ratio"] <= 1e-5 and first["gap_max"] <= 1e-5
    assert second["gap_max"] <= 1e-5, "the gap is measured in every iteration"
    assert first["grad_norm"] > 0 and first["ratio_max_deviation"] > 0 and first["reference_kl"] >= 0
    assert 1 <= first["tokens"] <= first["tokens_max"] <= 8 and 0 <= first["truncated"] <= 1


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean", "horizon"])
def test_micro_batches_change_nothing(cluster, aggregate):
    settings = {"aggregate": aggregate, "horizon": 8 if aggregate == "horizon" else None}
    _, whole = trained(config_of(**settings), 1)
    _, parts = trained(config_of(**settings, micro_batch_tokens=64), 1)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=2e-5)


def test_weighing_texts_is_a_choice(cluster):
    _, tokens = trained(config_of(), 1)
    _, texts = trained(config_of(aggregate="sequence_mean"), 1)
    assert any(not torch.allclose(tokens[name], texts[name], atol=1e-6) for name in tokens)


def test_old_log_probs_may_be_replayed(cluster):
    rows, _ = trained(config_of(anchor="replay"), 1)
    assert rows[0]["self_check/ratio"] == 0.0 and 0 < rows[0]["gap_max"] <= 1e-5


def test_a_run_with_groups_that_teach_nothing_resumes_bit_for_bit(cluster):
    """The first update after a resume is checked, and trains what it would have trained unchecked."""
    config, agents = config_of(num_prompts=6, group_size=4, num_epochs=2), []
    try:
        agents = [config.build_algo(), config.copy(copy_frozen=False).build_algo()]
        whole, cut = agents
        whole.train()
        cut.load_run_state(*whole.run_state())
        for _ in range(2):
            whole.train()
            cut.train()
            assert whole.iteration_metrics["advantage_zero"] > 0
            assert whole.iteration_metrics.keys() == cut.iteration_metrics.keys()
        assert not cut.first_update.pending
        (mine, _), (theirs, _) = whole.run_state(), cut.run_state()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    finally:
        for agent in agents:
            agent.stop()


def test_truncated_texts_may_be_left_out(cluster):
    """Three tokens do not hold two digits and an end: what is cut off must then not train."""
    cut = {"max_new_tokens": 2}
    (kept,), _ = trained(config_of(env_config=cut), 1)
    (left_out,), _ = trained(config_of(env_config=cut, mask_truncated=True), 1)
    assert kept["truncated"] == left_out["truncated"] > 0.5
    assert left_out["trained_rows"] < kept["trained_rows"]


def test_a_group_that_is_all_truncated_trains_nothing(cluster):
    rows, _ = trained(config_of(env_config={"max_new_tokens": 1}, mask_truncated=True), 1)
    assert rows[0]["truncated"] == 1.0 and rows[0]["trained_rows"] == 0 and rows[0]["grad_norm"] == 0


def test_low_rank_adapters_are_enough(cluster):
    rows, weights = trained(config_of(policy={"lora_rank": 8}), 1)
    assert all("lora_" in name for name in weights) and rows[0]["grad_norm"] > 0


def test_all_weights_are_left_as_transformers_loads_them(cluster, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    agent = config_of().build_algo()
    try:
        agent.train()
        agent.export_weights(tmp_path)
        actor = agent.env_runner_group.local_env_runner.module.actor
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
        for name, tensor in actor.trainable_state().items():
            assert torch.equal(loaded[name], tensor)
        assert len(AutoTokenizer.from_pretrained(tmp_path)) == actor.model.vocab_size
    finally:
        agent.stop()


def test_evaluation_has_a_temperature_of_its_own(cluster):
    agent = config_of(policy={"lora_rank": None, "eval_temperature": 0.0}).build_algo()
    try:
        prompts = agent.source.take(0, 4, seed=0)
        batch = agent.rollout_eval(prompts, samples_per_prompt=2)
        assert [s.text for s in batch.samples[::2]] == [s.text for s in batch.samples[1::2]]
        assert agent.rollout_eval(prompts, base=True).samples[0].text == batch.samples[0].text
    finally:
        agent.stop()


def test_a_rollout_of_another_policy_is_noticed(cluster):
    agent = config_of().build_algo()
    try:
        runner = agent.env_runner_group.local_env_runner
        actor, collect = runner.module.actor, runner.collect

        def hotter(*args, **options):
            actor.head().temperature = 1.3
            batch = collect(*args, **options)
            actor.head().temperature = 1.0
            return batch

        runner.collect = hotter
        with pytest.raises(SelfCheckError, match="ratio 1"):
            agent.train()
    finally:
        agent.stop()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"aggregate": "mean"}, "aggregate"),
        ({"aggregate": "horizon"}, "horizon"),
        ({"horizon": 8}, "horizon"),
        ({"kl_estimator": "k4"}, "kl_estimator"),
        ({"kl_estimator": "k1"}, "kl_estimator"),
        ({"policy": {"temperature": 0}}, "temperature"),
        ({"policy": {"eval_temperature": -1}}, "eval_temperature"),
        ({"engine": "vlm"}, "vllm"),
        ({"token_clip_low": 0}, "token_clip_low"),
        ({"dual_clip": 0.5}, "dual_clip"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**settings).validate()


def test_an_agent_without_a_loss_for_latents_says_so():
    with pytest.raises(ConfigError, match="loss on latents"):
        GSPOConfig().environment("unirl/TinySD3-T2I-v0").validate()
    with pytest.raises(ConfigError, match="`engine` must be 'local'"):
        GRPOConfig().environment("unirl/TinySD3-T2I-v0").training(engine="vllm").validate()
