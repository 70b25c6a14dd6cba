"""Every algorithm in every mode that it is made for, by the ordinary command on the embedded models."""

import cluster as one_cluster
import pytest
import torch

from unirl_env import train
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.run.record.folder import RunFolder
from unirl_env.run.record.logbook import of_phases, read_rows

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ITERATIONS = 2
MODES = {
    "mixture": ("diffusion/gaussian_mixture", {""}, ()),
    "diffusion": ("diffusion/tiny_sd3", {""}, ()),
    "ar": ("ar/tiny_qwen3", {""}, ()),
    "pe": ("pe/tiny_prompt_enhancer", {""}, ()),
    "unified_model": ("unified_model/tiny_unified", {"text", "image"}, ()),
    "unified pictures": ("unified_model/tiny_unified", {""}, ("agent.train_phases=[image]",)),
    "composed pictures": ("unified_model/tiny_writer_and_painter", {""}, ("agent.train_phases=[image]",)),
}
"""The recipe of each mode, the phases that are trained, "" where it is the only one, and further settings."""
STEPS = {name: [f"agent={name}"] for name in ("pg", "grpo", "temp_flow", "grpo_guard", "flow_dppo", "drpo")}
FORWARD = {
    "nft": ["agent=nft"],
    "nft_average": ["agent=nft", "agent.ema_decay=0.5", "rollout.weights=ema", "rollout.sampler=dpm2m"],
    "awm": ["agent=awm"],
    "elbo_pg": ["agent=elbo_pg"],
    "elbo_grpo": ["agent=grpo", "agent.estimator=elbo"],
}
AGENTS = {
    **STEPS,
    **FORWARD,
    "mixed_grpo": ["agent=grpo", "rollout.sampler=mixed", "steps.kind=window", "steps.window=2"],
    "gspo": ["agent=gspo"],
}
PICTURES = ("mixture", "diffusion", "unified pictures", "composed pictures")
CELLS = [
    *((mode, agent) for mode in PICTURES for agent in (*STEPS, *FORWARD, "mixed_grpo")),
    *((mode, agent) for mode in ("ar", "pe", "unified_model") for agent in STEPS),
    *((mode, "gspo") for mode in ("ar", "pe")),
    ("unified_model", "elbo_pg"),
    ("unified_model", "elbo_grpo"),
]
"""What must run; the rest is refused: see `test_flow_agents` and `test_config`."""
SMALL = [
    f"iterations={ITERATIONS}",
    "agent.warmup_iterations=0",
    "rollout.num_prompts=2",
    "rollout.group_size=8",
    "logging.eval_prompts=2",
    "logging.eval_samples=1",
    "logging.eval_drift=true",
    "logging.checkpoint_every=1",
    "logging.tensorboard=false",
    "logging.progress=false",
    "name=cell",
]


@pytest.mark.parametrize(("mode", "agent"), CELLS)
def test_a_run_begins_at_ratio_one_and_moves_the_weights(mode, agent, tmp_path):
    one_cluster.start()
    recipe, phases, more = MODES[mode]
    words = [*AGENTS[agent], *more, *SMALL]
    if mode == "mixture":  # it has one prompt
        words += ["rollout.num_prompts=1", "rollout.group_size=16", "logging.eval_prompts=1"]
    assert train.main([f"--config-name={recipe}", f"logging.folder={tmp_path}", *words]) == 0
    folder = RunFolder(tmp_path / "cell")
    rows = read_rows(folder.path / "metrics.jsonl")
    assert len(rows) == ITERATIONS and all(row["reward"] is not None for row in rows)
    played = phases if agent not in FORWARD else phases - {"", "image"}
    ratios, gaps = of_phases("self_check/ratio", rows[0]), of_phases("gap_max", rows[0])
    assert set(ratios) == set(gaps) == played
    assert all(rows[0][name] <= 1e-4 for name in ratios.values()), "before the first step the ratio is one"
    assert all(row[name] <= 1e-4 for row in rows for name in gaps.values()), "nor does any rollout differ"
    assert all(row["grad_norm"] > 0 and row["skipped_steps"] == 0 for row in rows)
    first, last = (checkpoints.read(found.path)[0] for found in checkpoints.listing(folder.checkpoints)[-2:])
    assert _moved(first, last)
    evaluations = read_rows(folder.path / "evaluation.jsonl")
    evaluated = {(row["set"], row["iteration"]) for row in evaluations}
    assert {iteration for _, iteration in evaluated} == {0, ITERATIONS}
    assert evaluations[-1]["drift"]["kl"] != 0.0
    assert folder.report.exists()


def _moved(first, last):
    """Whether the policy's trained weights differ between two states of a run, and are finite."""
    names = [name for name in first if name.startswith("policy/")]
    assert names and first.keys() == last.keys()
    assert all(bool(torch.isfinite(last[name]).all()) for name in names)
    return any(not torch.equal(first[name], last[name]) for name in names)
