"""Learners that share the tokens of a latent learn as one that has all of them."""

from functools import partial
from importlib import import_module

import pytest
import torch
from families import FAMILIES
from test_processes import whole_and_shared
from test_sharded import QWEN, SD3, TINY, UNIFIED, WHOLE, assert_like, held
from toy import toy_config
from two_learners import learn, together

from unirl_env.agents import FlowDPPOConfig, GRPOConfig, NFTConfig
from unirl_env.agents.parallel.tokens import check_tokens
from unirl_env.errors import ConfigError

VIDEO = (
    "unirl/TinyVideo-T2V-v0",
    {"num_steps": 3, "rows_per_forward": None},
    {"steps": {"kind": "all"}, **TINY},
)
TOKENS = 48
"""Of a latent of the embedded Wan, which has 4 heads."""
CASES = {
    "reference, replay": (FlowDPPOConfig, {**WHOLE, "reference_kl": 0.1, "anchor": "replay"}),
    "adapters, guided, recomputed": (
        GRPOConfig,
        {"policy": {"lora_rank": 4, "guidance": 2.0, "gradient_checkpointing": True}},
    ),
    "forward process, average": (NFTConfig, {**WHOLE, "ema_decay": 0.5, "rollout_weights": "ema"}),
}
PLANNED = {
    "unirl/Wan-T2V-v0": {},
    "unirl/Wan-I2V-v0": {},
    "unirl/LTX-T2V-v0": {},
    "unirl/Flux1-T2I-v0": {},
    "unirl/Flux2Klein-T2I-v0": {},
    # Of 20 tokens in the place of 15, and with a text of 11 in a batch, which is filled up.
    "unirl/QwenImage-T2I-v0": {"height": 32, "prompts": ["a red circle at the top", "two blue squares"]},
}
"""Families whose networks have a plan, and what is asked of them beside what their cases say."""


def config_of(case, sharers, parallel="sharded", **more):
    kind, settings = CASES[case]
    env, options, usual = VIDEO
    learner = {"parallel": parallel if sharers else "replicated", "context_parallel": sharers or 1}
    if parallel == "hybrid":
        learner["shard_size"] = 2
    settings = {**usual, **settings, "learner": learner, **more}
    return kind().environment(env, env_config=options).training(**settings)


def family_of(id):
    return import_module(FAMILIES[id]).CASES[id]


def family_config(id, folder, sharers):
    learner = {"parallel": "sharded" if sharers else "replicated", "context_parallel": sharers or 1}
    options = {**family_of(id).arguments(folder), **PLANNED[id]}
    config = GRPOConfig().environment(id, env_config=options)
    return config.training(**{**TINY, "steps": {"kind": "all"}, "group_size": 2, **WHOLE, "learner": learner})


def everything(sharers, cases, parallel="sharded"):
    """By case: numbers, state, bytes of weights, gradients and moments, and tokens of a block here."""
    found = {}
    for case in cases:
        seen = []

        def watch(learner, done, seen=seen):
            block = learner.policy.actor.network.blocks[-1]
            block.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))

        one, numbers = learn(config_of(case, sharers, parallel), after=watch)
        learner = one.learner
        found[case] = {
            **{"numbers": numbers, "state": learner.run_state(), "bytes": held(learner)},
            **{"tokens": set(seen), "reports": learner.parallel.reports},
        }
    return found


def families(folders, sharers):
    """By id: numbers and state after a step."""
    found = {}
    for id, folder in folders.items():
        one, numbers = learn(family_config(id, folder, sharers), 1)
        found[id] = {"numbers": numbers, "state": one.learner.run_state()}
    return found


@pytest.fixture(scope="module")
def alone():
    return everything(0, CASES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("groups", "parallel", "some"), [(1, "sharded", 3), (2, "sharded", 1), (2, "hybrid", 2)]
)
def test_two_share_each_latent_and_learn_what_one_learns(alone, groups, parallel, some):
    cases = list(CASES)[:some]
    found = together(everything, 2 * groups, 2, cases, parallel, patience=900)
    for case in cases:
        mine, theirs = alone[case], [each[case] for each in found]
        assert [each["reports"] for each in theirs] == [True, False] * groups
        assert_like(mine, theirs[::2])
        assert mine["tokens"] == {TOKENS}
        copies = 2 if parallel == "hybrid" else 1
        for whole, *parts in zip(mine["bytes"], *(each["bytes"] for each in theirs), strict=True):
            assert sum(parts) == copies * whole
        for each in theirs:
            assert each["tokens"] == {TOKENS // 2}
            assert [step["norm"] for step in each["numbers"]] == [s["norm"] for s in theirs[0]["numbers"]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, quiet_models):
    folders = {id: tmp_path_factory.mktemp("family") for id in PLANNED}
    for id, folder in folders.items():
        family_of(id).build(folder)
    return {id: str(folder) for id, folder in folders.items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_families_whose_networks_have_a_plan_learn_what_one_learns(checkpoints):
    alone = families(checkpoints, 0)
    both = together(families, 2, checkpoints, 2, patience=900)
    for id, mine in alone.items():
        assert_like(mine, [both[0][id]])


@pytest.mark.parametrize(
    ("settings", "learners", "told"),
    [
        (
            {"learner": {"context_parallel": 2}},
            *(2, r"context_parallel` must be 1 with .* 'replicated', got 2; try .*=sharded"),
        ),
        (
            {"learner": {"parallel": "sharded", "context_parallel": 2, "tensor_parallel": 2}},
            *(4, r"tensor_parallel` must be 1 with .*context_parallel` 2, got 2"),
        ),
        ({}, 3, r"`learner\.context_parallel` must divide `num_learners`, got 2 and 3; try num_learners=4"),
        ({"num_minibatches": 8}, 4, r"`num_learners` / `learner\.context_parallel`"),
        (
            {"learner": {"parallel": "sharded", "context_parallel": 3}},
            *(3, r"a divisor of the 4 heads .* got 3 with Wan.*try learner\.context_parallel=2\."),
        ),
        ({"policy": {"eval_size": [24, 24]}}, 2, r"`policy\.eval_size` .* got 27 of \[24, 24\]"),
    ],
)
def test_what_cannot_be_shared_is_refused(settings, learners, told):
    with pytest.raises(ConfigError, match=told):
        config_of("reference, replay", 2, **settings).learners(num_learners=learners).validate()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"height": 24, "width": 24},
            r"a divisor of the 27 tokens .* got 2 with 24 x 24 .*height=32, or learner\.context_parallel=1\.",
        ),
        ({"attention": "_native_math"}, r"`attention` must be .* got '_native_math'; try one of .*native"),
    ],
)
def test_a_latent_and_an_attention_that_cannot_be_parted_are_refused(options, told):
    env, usual, settings = VIDEO
    config = GRPOConfig().environment(env, env_config={**usual, **options})
    learner = {"parallel": "sharded", "context_parallel": 2}
    config.training(**{**settings, **WHOLE, "learner": learner}).learners(num_learners=2)
    with pytest.raises(ConfigError, match=told):
        config.validate()


@pytest.mark.parametrize(
    ("world", "told"),
    [
        (SD3, r"must be 1 for a network without a plan .*`_cp_plan`\), got 2 with SD3Transformer2DModel"),
        (QWEN, r"must be 1 where more than latents is acted, got 2 with phase 'text'"),
        (UNIFIED, r"must be 1 where more than latents is acted, got 2 with phase 'text'"),
        (None, r"must be 1 for a model whose tokens are not known .* got 2 with PointDenoiser"),
    ],
)
def test_models_without_a_plan_are_refused(world, told):
    learner = {"parallel": "sharded", "context_parallel": 2}
    if world is None:
        config = toy_config(GRPOConfig, **WHOLE, learner=learner)
    else:
        env, options, settings = world
        config = GRPOConfig().environment(env, env_config=options)
        config.training(**{**settings, **WHOLE, "learner": learner})
    with pytest.raises(ConfigError, match=told):
        config.learners(num_learners=2).validate()


def test_texts_that_are_read_whole_must_be_parted_too(checkpoints):
    family = family_of("unirl/Flux1-T2I-v0")
    model = family.denoiser(checkpoints[family.id], max_sequence_length=23)
    told = r"a divisor of the 23 tokens of each text, .*max_sequence_length=22, or learner\.context_par.*=1\."
    with pytest.raises(ConfigError, match=told):
        check_tokens(model, 2)
    check_tokens(family.denoiser(checkpoints[family.id]), 2)


def test_episodes_are_dealt_among_groups():
    config = config_of("reference, replay", 2).learners(num_learners=4)
    assert config.num_shares == 2
    assert config_of("reference, replay", 2).learners(num_learners=1).num_shares == 1, "which has all of it"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("players", [0, 1])
def test_the_curve_of_an_agent_is_that_of_one_process(cluster, players):
    with whole_and_shared(partial(config_of, "adapters, guided, recomputed"), players, 1e-3) as agents:
        prompts = agents[1].source.take(0, 3, seed=0)
        theirs, mine = (a.rollout_eval(prompts, samples_per_prompt=2, base=True) for a in agents)
        torch.testing.assert_close(mine.rewards, theirs.rewards, rtol=1e-3, atol=1e-4)
