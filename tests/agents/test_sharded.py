"""Learners that hold parts of the weights learn as those that hold all of them do."""

import pytest
import torch
from toy import toy_config
from two_learners import learn, together

from unirl_env.agents import FlowDPPOConfig, GRPOConfig, NFTConfig
from unirl_env.policies.parts import own_part

WHOLE = {"policy": {"lora_rank": None}}
TINY = {"lr": 1e-3, "num_prompts": 2, "group_size": 4, "micro_batch_size": 3}
SD3 = ("unirl/TinySD3-T2I-v0", {"num_steps": 4, "rows_per_forward": None}, {"steps": {"kind": "all"}, **TINY})
QWEN = ("unirl/TinyQwen3-Math-v0", {"max_new_tokens": 6}, {"micro_batch_tokens": 40, **TINY})
UNIFIED = ("unirl/TinyUnified-T2I-v0", {"num_steps": 2, "max_new_tokens": 6, "rows_per_forward": None}, TINY)
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
}


def config_of(case, parallel):
    kind, world, settings = CASES[case]
    settings = {**settings, "learner": {"parallel": parallel}}
    if world is None:
        return toy_config(kind, **{"steps": {"kind": "all"}, "micro_batch_size": 3, **settings})
    env, options, more = world
    return kind().environment(env, env_config=options).training(**{**more, **settings})


def everything(parallel, cases):
    """By case: numbers, state, and the bytes of weights, gradients and moments here."""
    found = {}
    for case in cases:
        one, numbers = learn(config_of(case, parallel))
        found[case] = {"numbers": numbers, "state": one.learner.run_state(), "bytes": held(one.learner)}
    return found


def held(learner):
    parameters = list(learner.policy.parameters())
    optimizer = learner.get_optimizer()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return [sum(own_part(t).nbytes for t in tensors) for tensors in (parameters, gradients, moments)]


@pytest.fixture(scope="module")
def alone():
    return everything("replicated", CASES)


@pytest.fixture(scope="module")
def both():
    return together(everything, 2, "sharded", list(CASES))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_learners_with_half_of_it_each_learn_what_one_learns(alone, both, case):
    mine, theirs = alone[case], [each[case] for each in both]
    for step, parts in zip(
        mine["numbers"], zip(*(each["numbers"] for each in theirs), strict=True), strict=True
    ):
        assert parts[0]["reward"] == pytest.approx(step["reward"], abs=1e-5)
        assert sum(part["loss"] for part in parts) == pytest.approx(step["loss"], abs=1e-5)
        assert parts[0]["norm"] == pytest.approx(step["norm"], rel=2e-4)
    assert theirs[0]["state"].keys() == mine["state"].keys()
    for name, tensor in mine["state"].items():
        torch.testing.assert_close(theirs[0]["state"][name], tensor, rtol=1e-3, atol=2e-4)
    for whole, *halves in zip(mine["bytes"], *(each["bytes"] for each in theirs), strict=True):
        assert sum(halves) == whole and max(halves) <= 0.55 * whole + 4096
