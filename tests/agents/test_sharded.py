"""Learners that hold parts of the weights learn as those that hold all of them do."""

import pytest
import torch
from janus_cases import write_tiny_janus
from models.bagel_cases import build as build_bagel
from models.hunyuan_cases import write_tiny_checkpoint
from toy import toy_config
from two_learners import learn, together

from unirl_env.agents import FlowDPPOConfig, GRPOConfig, Loss, NFTConfig
from unirl_env.policies.parts import own_part
from unirl_env.types import Scores

WHOLE = {"policy": {"lora_rank": None}}
TINY = {"lr": 1e-3, "num_prompts": 2, "group_size": 4, "micro_batch_size": 3}
SD3 = ("unirl/TinySD3-T2I-v0", {"num_steps": 4, "rows_per_forward": None}, {"steps": {"kind": "all"}, **TINY})
QWEN = ("unirl/TinyQwen3-Math-v0", {"max_new_tokens": 6}, {"micro_batch_tokens": 40, **TINY})
HALF = (QWEN[0], {**QWEN[1], "dtype": "bfloat16"}, {**TINY, "anchor": "replay", "self_check": False})
WALK = ("mdp_cases:cases/Walk-v0", {}, {**TINY, "micro_batch_size": None})
UNIFIED = ("unirl/TinyUnified-T2I-v0", {"num_steps": 2, "max_new_tokens": 6, "rows_per_forward": None}, TINY)
EXPERTS = (
    "unirl/HunyuanImage3-T2I-v0",
    {
        **{"height": 32, "width": 32, "dtype": "float32", "num_steps": 2, "max_new_tokens": 6},
        **{"max_prompt_tokens": 64, "model_options": {"task": "recaption"}, "prompts": "shapes_train"},
    },
    {**TINY, "micro_batch_tokens": 100, "phase_scale": "nats"},
)
HALF_EXPERTS = (EXPERTS[0], {**EXPERTS[1], "dtype": "bfloat16"}, {**EXPERTS[2], "self_check": False})
BAGEL = (
    "unirl/Bagel-T2I-v0",
    {
        **{"height": 32, "width": 32, "dtype": "float32", "num_steps": 2, "max_new_tokens": 4},
        **{"max_prompt_tokens": 256, "prompts": "shapes_train"},
    },
    {**TINY, "group_size": 2, "phase_scale": "nats"},
)
JANUS = (
    "unirl/Janus-T2I-v0",
    {"max_prompt_tokens": 96, "prompts": "shapes_train"},
    {**TINY, "group_size": 2},
)


def light_and_letters(samples, prompts):
    """Pays for everything that differs between samples of untrained models."""
    said = [0.0 if s.tokens is None or not len(s.tokens) else float(s.tokens.float().mean()) for s in samples]
    drawn = [0.0 if s.image is None else float(s.image.mean()) for s in samples]
    return Scores(torch.tensor(said) / 300 + torch.tensor(drawn))


CUT = (UNIFIED[0], {**UNIFIED[1], "max_new_tokens": 4}, TINY)


def clinging(rows, new, context):
    """The policy gradient, and a pull to the weights that sampled."""
    with context.weights("old"):
        old = context.velocity(rows.observation)
    apart = (context.velocity(rows.observation) - old).square().flatten(1).mean(1)
    return rows.mean(apart - rows.advantages * (new.log_prob - rows.old_log_prob).exp()), {}


class ClingingConfig(GRPOConfig):
    losses = {"latents": Loss(clinging, copies={"old"})}


CASES = {
    "points": (GRPOConfig, None, WHOLE),
    "points, adapters": (GRPOConfig, None, {}),
    "points, reference, replay, epochs": (
        FlowDPPOConfig,
        None,
        {
            **WHOLE,
            "reference_kl": 0.1,
            "anchor": "replay",
            "num_epochs": 2,
            "shuffle_batch_per_epoch": "episode",
        },
    ),
    "points, copies": (NFTConfig, None, {**WHOLE, "ema_decay": 0.5, "rollout_weights": "ema"}),
    "sd3": (GRPOConfig, SD3, {**WHOLE, "reference_kl": 0.1}),
    "sd3, adapters": (GRPOConfig, SD3, {"policy": {"lora_rank": 4}}),
    "qwen3": (GRPOConfig, QWEN, WHOLE),
    "qwen3, adapters": (
        GRPOConfig,
        QWEN,
        {"policy": {"lora_rank": 4}, "kl_in": "return", "reference_kl": 0.1},
    ),
    "unified": (GRPOConfig, UNIFIED, {**WHOLE, "phase_scale": "nats"}),
    "unified, one learner without pictures": (GRPOConfig, CUT, WHOLE),
    "walks of many lengths": (GRPOConfig, WALK, WHOLE),
    "points, old": (ClingingConfig, None, WHOLE),
    "qwen3, recomputed": (GRPOConfig, QWEN, {"policy": {"lora_rank": None, "gradient_checkpointing": True}}),
    "qwen3, half": (GRPOConfig, HALF, WHOLE),
    "qwen3, half, adapters": (GRPOConfig, HALF, {"policy": {"lora_rank": 4}}),
    "experts, reference, recomputed": (
        GRPOConfig,
        EXPERTS,
        {"policy": {"lora_rank": None, "gradient_checkpointing": True}, "reference_kl": 0.1},
    ),
    "experts, adapters": (GRPOConfig, EXPERTS, {"policy": {"lora_rank": 4}}),
    "experts, routes": (
        GRPOConfig,
        EXPERTS,
        {
            "policy": {"lora_rank": None, "replay_routing": True, "gradient_checkpointing": True},
            **{"train_phases": ["text"], "phase_scale": "mean"},
            "num_minibatches": 2,
        },
    ),
    # After a step, rounding chooses other experts: there is one for each rollout.
    "experts, half": (GRPOConfig, HALF_EXPERTS, {**WHOLE, "anchor": "replay", "num_minibatches": 1}),
    "experts, half, adapters, reference": (
        GRPOConfig,
        HALF_EXPERTS,
        {"policy": {"lora_rank": 4, "gradient_checkpointing": True}, "reference_kl": 0.1, "anchor": "replay"},
    ),
    "bagel": (GRPOConfig, BAGEL, WHOLE),
    "janus": (GRPOConfig, JANUS, WHOLE),
}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, quiet_models):
    """By the id of a model that is not shipped, a folder of random weights.

    Of sixteen experts one or two are chosen, so that a learner's few tokens leave some to the other alone.
    """
    folder = tmp_path_factory.mktemp("models")
    experts = write_tiny_checkpoint(
        folder / "experts",
        config_changes={"num_experts": 16, "moe_topk": [1, 2]},
        generation_changes={"sequence_template": "instruct", "bot_task": "recaption"},
        often=("</recaption>",),
    )
    bagel, janus = build_bagel(folder / "bagel"), write_tiny_janus(folder / "janus")
    return {EXPERTS[0]: str(experts), BAGEL[0]: bagel, JANUS[0]: janus}


def config_of(case, parallel, untrained=()):
    kind, world, settings = CASES[case]
    settings = {**settings, "learner": {"parallel": parallel}}
    if parallel == "hybrid":
        settings["learner"]["shard_size"] = 2
    if world is None:
        return toy_config(kind, **{"steps": {"kind": "all"}, "micro_batch_size": 3, **settings})
    env, options, more = world
    if env in untrained:
        options = {**options, "pretrained": untrained[env], "scorer": light_and_letters}
    return kind().environment(env, env_config=options).training(**{**more, **settings})


def everything(parallel, cases, untrained):
    """By case: numbers, state, and the bytes of weights, gradients and moments here."""
    found = {}
    for case in cases:
        iterations = 3 if "experts" in case else 2
        one, numbers = learn(config_of(case, parallel, untrained), iterations)
        found[case] = {"numbers": numbers, "state": one.learner.run_state(), "bytes": held(one.learner)}
    return found


def held(learner):
    parameters = list(learner.policy.parameters())
    optimizer = learner.get_optimizer()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return [sum(own_part(t).nbytes for t in tensors) for tensors in (parameters, gradients, moments)]


@pytest.fixture(scope="module")
def alone(untrained):
    return everything("replicated", CASES, untrained)


@pytest.fixture(scope="module")
def both(untrained):
    return together(everything, 2, "sharded", list(CASES), untrained, patience=1200)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_learners_with_half_of_it_each_learn_what_one_learns(alone, both, case):
    mine, theirs = alone[case], [each[case] for each in both]
    half = "half" in case
    assert_like(mine, theirs, loose=1000 if half else 1)
    for whole, *halves in zip(mine["bytes"], *(each["bytes"] for each in theirs), strict=True):
        assert max(halves) <= 0.55 * sum(halves) + 4096
        assert half or sum(halves) == whole, "of half precision, masters are kept where weights are"


@pytest.mark.slow
def test_within_groups_of_two_four_learners_learn_what_one_learns(alone):
    four = together(everything, 4, "hybrid", ["points", "points, adapters"], {})
    for case in ("points", "points, adapters"):
        assert_like(alone[case], [each[case] for each in four])
        parts = [each[case]["bytes"][0] for each in four]
        assert sum(parts) == 2 * alone[case]["bytes"][0]


def assert_like(mine, theirs, loose=1):
    steps = list(zip(mine["numbers"], zip(*(each["numbers"] for each in theirs), strict=True), strict=True))
    for step, parts in steps if loose == 1 else steps[:1]:
        assert parts[0]["reward"] == pytest.approx(step["reward"], abs=1e-5)
        losses = [part["loss"] for part in parts]
        size = max(1.0, *map(abs, losses))  # of a unified model's, 35, which cancel
        assert sum(losses) == pytest.approx(step["loss"], abs=1e-5 * loose * size)
        assert parts[0]["norm"] == pytest.approx(step["norm"], rel=min(2e-4 * loose, 0.02))
    assert theirs[0]["state"].keys() == mine["state"].keys()
    if loose > 1:
        return
    for name, tensor in mine["state"].items():
        # Adam goes by the sign of a gradient, and that of one that is 0 but for rounding is chance.
        apart = (theirs[0]["state"][name] - tensor).abs()
        far = apart > 2e-4 + 1e-3 * tensor.abs()
        assert far.double().mean() <= 1e-3 and float(apart.max()) <= 0.01, name
