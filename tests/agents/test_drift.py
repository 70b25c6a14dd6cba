"""How far a policy is from the untrained model, against what is known exactly, for every estimator."""

import json
import math
from dataclasses import replace

import pytest
import torch
from one_learner import OneLearner
from toy import toy_config

from unirl_env import train
from unirl_env.agents import GRPOConfig
from unirl_env.agents.kinds import KINDS
from unirl_env.agents.loss import Context
from unirl_env.agents.reference import Drift
from unirl_env.agents.rows import latent_rows
from unirl_env.bench import exact
from unirl_env.run.record import checkpoint as checkpoints

QUIET = ["logging.progress=false", "logging.tensorboard=false", "logging.eval_drift=true", "name=run"]


def run(tmp_path, recipe, *words):
    """The rows of the evaluations of a run, its settings and its last network."""
    words = [*QUIET, f"logging.folder={tmp_path}", *words]
    assert train.main([f"--config-name={recipe}", *words]) == 0
    folder = tmp_path / "run"
    rows = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    last = checkpoints.listing(folder / "checkpoints")[-1]
    return rows, train.settings(recipe, words), last.path


@pytest.mark.ray
@pytest.mark.parametrize("agent", ["grpo", "nft"])
def test_on_the_line_it_is_the_kl_that_dynamic_programming_finds(cluster, tmp_path, agent):
    words = [
        f"agent={agent}",
        "iterations=4",
        "agent.lr=0.1",
        "logging.eval_samples=4096",
        "model.num_steps=6",
    ]
    rows, cfg, checkpoint = run(tmp_path, "diffusion/line", *words, "agent.num_minibatches=1")
    known = exact.line(cfg, exact.network_of(cfg, checkpoint))["kl"]
    assert known > 0.05, "or nothing could be told"
    drifts = [row.get("drift") for row in rows]
    assert drifts[0] is None, "nobody has left yet"
    assert drifts[-1]["kl"] == pytest.approx(known, rel=0.05)
    assert drifts[-1]["velocity_change"] > 0.01


@pytest.mark.ray
def test_of_words_it_is_the_kl_that_adding_them_all_up_finds(cluster, tmp_path):
    words = ["iterations=4", "logging.eval_prompts=4", "logging.eval_samples=2048", "rollout.group_size=16"]
    rows, cfg, checkpoint = run(tmp_path, "mdp/tabular_tokens", *words)
    known = exact.tokens(cfg, exact.network_of(cfg, checkpoint))["kl"]
    assert known > 0.05
    assert rows[-1]["drift"] == {"kl": pytest.approx(known, rel=0.1)}


@pytest.mark.ray
def test_it_measures_what_evaluation_plays(cluster, tmp_path):
    words = ["agent.ema_decay=0.9", "iterations=2", "agent.lr=0.1", "logging.eval_samples=64"]
    found = {}
    for weights in ("trained", "ema"):
        rows, *_ = run(tmp_path / weights, "diffusion/line", *words, f"policy.eval_weights={weights}")
        found[weights] = rows[-1]["drift"]["kl"]
    assert 0 < found["ema"] < 0.5 * found["trained"], "an average lags behind"


@pytest.mark.ray
@pytest.mark.parametrize("learners", [0, 1])
def test_untrained_it_is_nothing_and_where_scorers_fail_it_is_measured(cluster, learners):
    config = toy_config(GRPOConfig, policy={"lora_rank": None}).learners(num_learners=learners)
    agent = config.build_algo()
    try:
        prompts = agent.source.take(0, 3, seed=0)
        assert agent.drift(prompts, samples_per_prompt=2).row() == {
            "kl": pytest.approx(0.0, abs=1e-9),
            "velocity_norm": pytest.approx(1.0, abs=1e-6),
            "velocity_change": pytest.approx(0.0, abs=1e-6),
        }
        agent.train()
        moved = agent.drift(prompts, samples_per_prompt=2)
        assert moved.kl["image"] > 0
        collect = agent._collect

        def nothing_scored(request):
            batch = collect(request)
            return replace(batch, scores=replace(batch.scores, value=torch.full((len(batch),), math.nan)))

        agent._collect = nothing_scored
        assert agent.drift(prompts, samples_per_prompt=2) == moved
        agent._collect = collect
        assert agent.drift(prompts, samples_per_prompt=2) == moved, "its episodes are keyed"
    finally:
        agent.stop()


@pytest.mark.parametrize("dynamics", ["flow", "dance", "cps", "ddim"])
def test_velocities_of_means_are_those_of_the_network(dynamics):
    one = OneLearner(toy_config(GRPOConfig, policy={"dynamics": dynamics}))
    (shard,) = one.shards(one.play())
    rows = latent_rows(shard, "image", torch.arange(8), 1.0)
    context = Context(one.learner.policy, one.learner.config, phase="image", kind="latents")
    with torch.no_grad():
        new, want = context.score(rows.observation, rows.action), context.velocity(rows.observation)
    ours, theirs = KINDS["latents"].velocities(new, new, rows, one.config.policy)
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours, theirs)


def test_numbers_have_their_phases_names_where_there_are_several():
    drift = Drift({"text": 2.0, "image": 3.0}, {"image": 1.1}, {"image": 0.2})
    assert drift.row() == {
        "kl": 5.0,
        "text/kl": 2.0,
        "image/kl": 3.0,
        "image/velocity_norm": 1.1,
        "image/velocity_change": 0.2,
    }
