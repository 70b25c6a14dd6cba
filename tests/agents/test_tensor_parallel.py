"""Learners that share each matrix of a language model learn as one that has all of it."""

import pytest
import torch
from test_sharded import HALF, QWEN, WHOLE, assert_like, held
from torch.distributed.tensor import DTensor
from toy import toy_config
from two_learners import learn, together

from unirl_env.agents import GRPOConfig
from unirl_env.errors import ConfigError
from unirl_env.policies.parts import own_part

CASES = {
    "reference": (QWEN, {**WHOLE, "reference_kl": 0.1, "num_minibatches": 1}),
    "recomputed, average": (
        QWEN,
        {
            "policy": {"lora_rank": None, "gradient_checkpointing": True},
            **{"ema_decay": 0.5, "kl_in": "return", "reference_kl": 0.1},
        },
    ),
    "half": (HALF, WHOLE),
}


def config_of(case, sharers, **more):
    (env, options, settings), changes = CASES[case]
    learner = {"parallel": "sharded" if sharers else "replicated", "tensor_parallel": sharers or 1}
    settings = {**settings, **changes, "learner": learner, **more}
    return GRPOConfig().environment(env, env_config=options).training(**settings)


def everything(sharers, cases):
    """By case: numbers, state, and the bytes of weights, gradients and moments here, whole ones apart."""
    found = {}
    for case in cases:
        one, numbers = learn(config_of(case, sharers))
        found[case] = {
            "numbers": numbers,
            "state": one.learner.run_state(),
            "bytes": held(one.learner),
            "cut": cut(one.learner),
            "reports": one.learner.parallel.reports,
        }
    return found


def cut(learner):
    """The bytes here of matrices that learners share, and of all of them."""
    cut = [p for p in learner.policy.parameters() if isinstance(p, DTensor) and p.placements[1].is_shard()]
    return sum(own_part(p).nbytes for p in cut), sum(p.numel() * p.itemsize for p in cut)


@pytest.fixture(scope="module")
def alone():
    return everything(0, CASES)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_two_share_each_matrix_and_learn_what_one_learns(alone, groups):
    found = together(everything, 2 * groups, 2, list(CASES), patience=900)
    for case, mine in alone.items():
        theirs = [each[case] for each in found]
        assert [each["reports"] for each in theirs] == [True, False] * groups
        assert_like(mine, theirs[::2], loose=1000 if case == "half" else 1)
        for theirs_here in theirs:
            here, all_of_it = theirs_here["cut"]
            assert here == all_of_it // (2 * groups)
            assert theirs_here["numbers"][0]["norm"] == theirs[0]["numbers"][0]["norm"]
        print(case, mine["bytes"], [each["bytes"] for each in theirs], theirs[0]["cut"])
        print([each["numbers"] for each in (mine, *theirs)])
