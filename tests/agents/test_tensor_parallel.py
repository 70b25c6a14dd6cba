"""Learners that share each matrix of a language model learn as one that has all of it."""

import shutil
from functools import partial

import pytest
import torch
from test_processes import whole_and_shared
from test_sharded import HALF, QWEN, SD3, TINY, UNIFIED, WHOLE, assert_like, held
from test_stored import assert_same, store
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3MoeConfig
from two_learners import learn, together

from unirl_env.agents import GRPOConfig
from unirl_env.agents.parallel import matrices
from unirl_env.agents.parallel.matrices import plan_of
from unirl_env.agents.parallel.stored import read
from unirl_env.errors import ConfigError
from unirl_env.models.tiny import TinyPromptEnhancer, TinyQwen3, TinyQwenVL, tiny_path
from unirl_env.policies.parts import own_part

OTHER = (QWEN[0], QWEN[1], {**TINY, "micro_batch_size": None})
"""Of another family, with biases, and an output that is not the words'."""
CASES = {
    "reference": (QWEN, {**WHOLE, "reference_kl": 0.1, "num_minibatches": 1}),
    "recomputed, average, charged": (
        QWEN,
        {
            "policy": {"lora_rank": None, "gradient_checkpointing": True},
            **{"ema_decay": 0.5, "kl_in": "return", "reference_kl": 0.1, "stop_kl": 100.0},
        },
    ),
    "half": (HALF, WHOLE),
    "biases": (OTHER, WHOLE),
}


def config_of(case, sharers, other=None, **more):
    (env, options, settings), changes = CASES[case]
    if case == "biases":
        options = {**options, "pretrained": other}
    learner = {"parallel": "sharded" if sharers else "replicated", "tensor_parallel": sharers or 1}
    settings = {**settings, **changes, "learner": learner, **more}
    return GRPOConfig().environment(env, env_config=options).training(**settings)


def small(config_class, **settings):
    """A network of random weights that reads the words of the embedded Qwen3."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = config_class(vocab_size=268, intermediate_size=96, **sizes, **settings)
    network = AutoModelForCausalLM.from_config(config).float()
    for name, weight in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    return network


@pytest.fixture(scope="module")
def other(tmp_path_factory, quiet_models):
    folder = tmp_path_factory.mktemp("qwen2")
    shutil.copytree(tiny_path("qwen3"), folder, dirs_exist_ok=True)
    ends = {"eos_token_id": 258, "bos_token_id": 256, "pad_token_id": 256}
    small(Qwen2Config, tie_word_embeddings=False, **ends).save_pretrained(folder)
    return str(folder)


def everything(sharers, cases, other):
    """By case: numbers, state, and the bytes here of weights, gradients and moments, and of what is cut."""
    found = {}
    for case in cases:
        one, numbers = learn(config_of(case, sharers, other))
        learner = one.learner
        found[case] = {
            **{"numbers": numbers, "state": learner.run_state(), "bytes": held(learner), "cut": cut(learner)},
            "reports": learner.parallel.reports,
        }
    return found


def cut(learner):
    """The bytes here of matrices that learners share, of all these matrices, and of all weights."""
    weights = [p for p in learner.policy.parameters() if isinstance(p, DTensor)]
    cut = [p for p in weights if p.placements[1].is_shard()]
    return [
        sum(own_part(p).nbytes for p in cut),
        *(sum(p.numel() * p.itemsize for p in each) for each in (cut, weights)),
    ]


@pytest.fixture(scope="module")
def alone(other):
    return everything(0, CASES, other)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("groups", [1, 2])
def test_two_share_each_matrix_and_learn_what_one_learns(alone, other, groups):
    found = together(everything, 2 * groups, 2, list(CASES), other, patience=900)
    for case, mine in alone.items():
        theirs = [each[case] for each in found]
        assert [each["reports"] for each in theirs] == [True, False] * groups
        assert_like(mine, theirs[::2], loose=1000 if case == "half" else 1)
        for each in theirs:
            assert [step["norm"] for step in each["numbers"]] == [s["norm"] for s in theirs[0]["numbers"]]
            here, shared, everywhere = each["cut"]
            assert here == shared / (2 * groups)
            # Words and norms, which the plan does not cut, are whole within a group.
            wanted = (shared / 2 + everywhere - shared) / groups
            sizes = [size / wanted for size in each["bytes"]]
            assert sizes == pytest.approx([1, 1, 2], rel=0.01), "of weights, gradients, moments"


def parts(folder, start, iterations, whose=None):
    state = None if whose is None else folder / whose / str(start)
    name = whose or "written"
    config = config_of("recomputed, average, charged", 2)
    one, numbers = learn(config, iterations, start=start, state=state, after=partial(store, folder / name))
    return numbers, one.learner.run_state()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_states_in_parts_are_those_of_one_process_and_go_on_bit_for_bit(tmp_path):
    (numbers, state), *_ = together(parts, 4, tmp_path, 0, 2, patience=900)
    assert_same(read(tmp_path / "written" / "2", {}), state)
    (again, resumed), *_ = together(parts, 4, tmp_path, 1, 1, "written", patience=900)
    assert again == numbers[1:]
    assert_same(resumed, state)
    one, _ = learn(config_of("recomputed, average, charged", 0), 0, state=tmp_path / "written" / "2")
    assert_same(one.learner.run_state(), state)


def forgetful():
    plan = matrices.plan_of
    matrices.plan_of = lambda network, learners: {
        name: style for name, style in plan(network, learners).items() if style != matrices.SUMMED
    }
    learn(config_of("reference", 2), 1)


@pytest.mark.slow
def test_a_plan_that_forgets_a_sum_is_noticed_at_the_first_step():
    with pytest.raises(AssertionError, match=r"must find the same gradient.*of shape"):
        together(forgetful, 2)


@pytest.mark.parametrize(
    ("settings", "learners", "told"),
    [
        ({"learner": {"tensor_parallel": 2}}, 2, r"parallel` 'replicated', got 2; try .*=sharded"),
        (
            {"learner": {"parallel": "hybrid", "shard_size": 2, "tensor_parallel": 2}},
            *(4, r"`(learner\.)?tensor_parallel` must be 1 with .* 'hybrid'"),
        ),
        ({}, 3, r"`learner\.tensor_parallel` must divide `num_learners`, got 2 and 3; try num_learners=4"),
        ({"policy": {"lora_rank": 4}}, 2, r"must be 1 with `policy\.lora_rank` 4.*policy\.lora_rank=null"),
        ({"num_minibatches": 8}, 4, r"`num_learners` / `learner\.tensor_parallel`"),
    ],
)
def test_what_cannot_be_shared_is_refused(settings, learners, told):
    with pytest.raises(ConfigError, match=told):
        config = config_of("reference", 2, **settings)
        config.learners(num_learners=learners).validate()


@pytest.mark.parametrize("world", [SD3, UNIFIED])
def test_only_texts_share_matrices(world):
    env, options, settings = world
    learner = {"parallel": "sharded", "tensor_parallel": 2}
    config = GRPOConfig().environment(env, env_config=options)
    config.training(**{**settings, **WHOLE, "learner": learner}).learners(num_learners=2)
    with pytest.raises(ConfigError, match=r"must be 1 where more than texts is acted.*'(latents|image)"):
        config.validate()


def test_episodes_are_dealt_among_groups():
    config = config_of("reference", 2).learners(num_learners=4)
    assert config.num_shares == 2
    assert config_of("reference", 2).learners(num_learners=1).num_shares == 1, "which has all of it"
    config.training(minibatch_size=2)
    assert config.minibatches == 2


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (TinyQwenVL, r"`tp_plan`\), got Qwen3VLForConditionalGeneration"),
        (TinyPromptEnhancer, r"divides its num_attention_heads, got 3"),
    ],
)
def test_a_network_whose_matrices_cannot_be_cut_is_refused(model, told, quiet_models):
    with pytest.raises(ConfigError, match=told):
        plan_of(model().network(), 2)


def test_experts_are_refused_and_words_that_are_the_output_stay_whole(quiet_models):
    experts = small(Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    with pytest.raises(ConfigError, match=r"where no .* is cut .*try learner\.tensor_parallel=1"):
        plan_of(experts, 2)
    assert "lm_head" not in plan_of(TinyQwen3().network(), 2)
    assert "lm_head" in plan_of(small(Qwen2Config, tie_word_embeddings=False), 2)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("players", [0, 1])
def test_the_curve_of_an_agent_is_that_of_one_process(cluster, players, tmp_path):
    with whole_and_shared(partial(config_of, "reference", kl_in="return"), players, 5e-3) as (whole, shared):
        prompts = shared.source.take(0, 3, seed=0)
        mine, theirs = (a.rollout_eval(prompts, samples_per_prompt=2, base=True) for a in (shared, whole))
        assert torch.equal(mine.phases["text"].action, theirs.phases["text"].action)
        shared.export_weights(tmp_path)
        exported = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
        for name, tensor in shared.run_state()[0].items():
            if name.startswith("policy/"):
                assert torch.equal(exported[name.removeprefix("policy/")], tensor)
