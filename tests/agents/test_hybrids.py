"""Agents on texts with pictures: both phases by one learner, in latents or in picture tokens."""

import math

import pytest
import torch
from janus_cases import write_tiny_janus

from unirl_env.agents import DRPOConfig, FlowDPPOConfig, GRPOConfig, GSPOConfig
from unirl_env.agents.batching import share_out
from unirl_env.errors import ConfigError, ContractError

AGENTS = {"grpo": GRPOConfig, "flow_dppo": FlowDPPOConfig, "drpo": DRPOConfig}
ONE, TWO, TOKENS = "unirl/TinyUnified-T2I-v0", "unirl/TinyEnhancerAndSD3-T2I-v0", "unirl/Janus-T2I-v0"


def writes_a_lot(samples, prompts):
    """Pays for everything that differs between samples, so that every group has something to learn."""
    from unirl_env.types import Scores

    said = [sample.tokens for sample in samples]
    lengths = torch.tensor([0.0 if tokens is None else float(len(tokens)) for tokens in said])
    drawn = [sample.image for sample in samples]
    light = torch.tensor([0.0 if image is None else float(image.mean()) for image in drawn])
    return Scores(lengths / 10 + light, {"lengths": lengths, "light": light})


@pytest.fixture(scope="module")
def janus(tmp_path_factory):
    path = write_tiny_janus(tmp_path_factory.mktemp("janus"))
    return {"pretrained": path, "max_prompt_tokens": 96, "prompts": "shapes_train"}


def config_of(name="grpo", env=ONE, env_config=None, **settings):
    settings = {
        "num_prompts": 2,
        "group_size": 6,
        "lr": 1e-4,
        "policy": {"lora_rank": None, "eta": 1.0},
        "self_check_tolerance": 1e-4,
        **settings,
    }
    chosen = {"scorer": writes_a_lot, **({} if env == TOKENS else {"num_steps": 4}), **(env_config or {})}
    return AGENTS[name]().environment(env, env_config=chosen).training(**settings)


def trained(config, iterations=1):
    agent = config.build_algo()
    try:
        rows = []
        for _ in range(iterations):
            agent.train()
            rows.append(agent.iteration_metrics)
        tensors = agent.run_state()[0]
        weights = {name: tensor for name, tensor in tensors.items() if name.startswith("policy/")}
        return rows, weights, agent.last_batch
    finally:
        agent.stop()


@pytest.mark.parametrize("env", [ONE, TWO])
@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_trains_both_phases(cluster, name, env):
    rows, _, batch = trained(config_of(name, env, reference_kl=0.01), 2)
    first, second = rows
    assert list(batch.phases) == ["text", "image"]
    assert [batch.phases[phase].kind for phase in batch.phases] == ["tokens", "latents"]
    for phase in ("text", "image"):
        assert first[f"{phase}/self_check/ratio"] <= 1e-4, "ratio one in each phase"
        assert first[f"{phase}/gap_max"] <= 1e-4 and second[f"{phase}/gap_max"] <= 1e-4
        assert math.isfinite(first[f"{phase}/loss"]) and first[f"{phase}/reference_kl"] >= 0
    assert first["grad_norm"] > 0 and first["loss"] == first["text/loss"] + first["image/loss"]


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_trains_picture_tokens(cluster, name, janus):
    options = {**janus, "max_new_tokens": 60, "model_options": {"eos_opens": True}}
    (row,), _, batch = trained(config_of(name, TOKENS, options))
    assert batch.phases["image"].kind == "tokens"
    assert row["text/self_check/ratio"] <= 1e-4 and row["image/self_check/ratio"] <= 1e-4
    assert row["grad_norm"] > 0


def test_pictures_of_tokens_without_a_text(cluster, janus):
    (row,), _, batch = trained(config_of("drpo", TOKENS, janus))
    assert list(batch.phases) == ["image"] and batch.phases["image"].mask.all()
    assert row["self_check/ratio"] <= 1e-4 and row["grad_norm"] > 0
    assert all(sample.image is not None for sample in batch.samples)


@pytest.mark.parametrize("phase", ["text", "image"])
def test_a_frozen_phase_moves_nothing_of_its_own(cluster, phase):
    """Two backbones share nothing: what is frozen is not even among the trained weights."""
    (row,), weights, batch = trained(config_of(env=TWO, train_phases=[phase]))
    assert weights and all(name.startswith(f"policy/{phase}.") for name in weights)
    assert row["grad_norm"] > 0 and "loss" in row and f"{phase}/loss" not in row
    assert ("image" in batch.phases) == (phase == "image"), "frozen pictures are drawn without noise"


@pytest.mark.parametrize(("phase", "still"), [("text", "picture.patch_out"), ("image", None)])
def test_of_one_backbone_the_weights_of_the_frozen_phase_stay(cluster, phase, still):
    untrained = config_of().build_algo()
    before = untrained.run_state()[0]
    untrained.stop()
    _, weights, _ = trained(config_of(train_phases=[phase]))
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights.items())
    if still is not None:
        assert not any(still in name for name in weights)
        assert any(still in name for name in before)


def test_each_phase_may_be_paid_on_its_own(cluster):
    """A picture that nobody is paid for has the gradient of none: training the text alone is the same."""
    settings = {"env_config": {"scorer": pays_texts_only}, "phase_rewards": {"image": "nothing"}}
    (row,), weights, _ = trained(config_of(**settings))
    assert row["grad_norm"] > 0 and row["image/loss"] == 0.0
    _, same, _ = trained(config_of(**settings, phase_weights={"image": 5.0}))
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_nat_of_text_weighs_s_d_over_l_times_a_nat_of_picture(cluster):
    """What a nat of either phase's joint log-probability moves the loss by, per unit of advantage."""
    agent = config_of("drpo").build_algo()
    try:
        agent.train()
        batch, learner = agent.last_batch, agent.learner_group._learner
        advantages = {phase: torch.ones(len(batch)) for phase in batch.phases}
        (shard,) = share_out(batch, advantages, num_minibatches=1, num_learners=0)
        moves = {}
        for name in batch.phases:
            rows = learner.rows(shard, name, torch.arange(len(batch)), shard.denominators[0][name])
            new = learner._context(name, rows.kind).score(rows.observation, rows.action)
            log_prob = new.log_prob.detach().requires_grad_()
            loss, _ = learner.loss(rows, new._replace(log_prob=log_prob), learner._context(name, rows.kind))
            elements = rows.action[0].numel()
            moves[name] = float(torch.autograd.grad(loss, log_prob)[0].abs().mean()) / elements
    finally:
        agent.stop()
    steps, elements = batch.phases["image"].mask.shape[1], batch.phases["image"].action[0, 0].numel()
    tokens = float(batch.phases["text"].mask.sum(1).float().mean())
    assert elements == 256
    assert moves["text"] / moves["image"] == pytest.approx(steps * elements / tokens, rel=1e-2)


def pays_texts_only(samples, prompts):
    from unirl_env.types import Scores

    value = torch.tensor([float(sum(sample.tokens.tolist())) for sample in samples])
    return Scores(value, {"nothing": torch.zeros(len(samples))})


def test_a_part_that_nobody_gives_is_an_error(cluster):
    agent = config_of(phase_rewards={"text": "beauty"}).build_algo()
    try:
        with pytest.raises(ContractError, match="beauty"):
            agent.training_step()
    finally:
        agent.stop()


def test_an_empty_text_is_denoising(cluster):
    rows, _, batch = trained(config_of(env_config={"max_new_tokens": 0}))
    assert list(batch.phases) == ["image"]
    assert len(batch.phases["image"].context["length"]) == 2, "a prompt's episodes share its context"
    assert rows[0]["self_check/ratio"] <= 1e-4


def test_an_empty_picture_is_writing(cluster):
    rows, _, batch = trained(config_of(env_config={"num_steps": 0}))
    assert list(batch.phases) == ["text"] and rows[0]["self_check/ratio"] <= 1e-4


def test_texts_that_never_come_to_a_picture_train_what_there_is(cluster):
    rows, _, batch = trained(config_of(env_config={"max_new_tokens": 1}))
    assert batch.truncated.all() and not batch.phases["image"].mask.any()
    assert rows[0]["no_picture"] == 1.0 and rows[0]["truncated"] == 1.0
    assert all(math.isfinite(value) for value in rows[0].values())


def test_micro_batches_change_nothing(cluster):
    _, whole, _ = trained(config_of("flow_dppo"))
    _, parts, _ = trained(config_of("flow_dppo", micro_batch_size=1))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=5e-5)


def test_evaluation_draws_without_noise_and_the_base_is_the_untrained_model(cluster):
    agent = config_of(lr=1e-2).build_algo()
    try:
        prompts = agent.source.take(0, 2, seed=0)
        before = agent.rollout_eval(prompts, samples_per_prompt=2)
        agent.train()
        base = agent.rollout_eval(prompts, samples_per_prompt=2, base=True)
        after = agent.rollout_eval(prompts, samples_per_prompt=2)
        assert "image" not in before.phases
        assert torch.equal(before.rewards, base.rewards)
        assert not torch.equal(before.rewards, after.rewards)
    finally:
        agent.stop()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_phases": ["sound"]}, "train_phases"),
        ({"train_phases": []}, "train_phases"),
        ({"phase_weights": {"text": 0.0}}, "phase_weights"),
        ({"phase_rewards": {"sound": "a"}}, "phase_rewards"),
        ({"engine": "vllm"}, "engine"),
        ({"engine_options": {"url": "x"}}, "engine_options"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        config_of(**settings).validate()


def test_both_phases_empty_is_refused():
    with pytest.raises(ConfigError, match="max_new_tokens"):
        config_of(env_config={"max_new_tokens": 0, "num_steps": 0}).validate()


def test_an_agent_without_a_loss_on_latents_says_so():
    config = GSPOConfig().environment(ONE).training(num_prompts=2, group_size=4)
    with pytest.raises(ConfigError, match="loss on latents"):
        config.validate()
    config.training(train_phases=["text"]).validate()
