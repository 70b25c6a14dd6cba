"""Every algorithm in every mode, by the ordinary command on the embedded models."""

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
    "diffusion": ("diffusion/tiny_sd3", {""}),
    "ar": ("ar/tiny_qwen3", {""}),
    "pe": ("pe/tiny_prompt_enhancer", {""}),
    "unified_model": ("unified_model/tiny_unified", {"text", "image"}),
}
"""The recipe of each mode, and the phases that are trained, "" where it is the only one."""
SMALL = [
    f"iterations={ITERATIONS}",
    "agent.warmup_iterations=0",
    "rollout.num_prompts=2",
    "rollout.group_size=8",
    "logging.eval_prompts=2",
    "logging.eval_samples=1",
    "logging.checkpoint_every=1",
    "logging.tensorboard=false",
    "logging.progress=false",
    "name=cell",
]


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.mark.parametrize("agent", ["flow_dppo", "drpo", "grpo"])
def test_a_run_begins_at_ratio_one_and_moves_the_weights(mode, agent, tmp_path):
    one_cluster.start()
    recipe, phases = MODES[mode]
    command = [f"--config-name={recipe}", f"agent={agent}", f"logging.folder={tmp_path}", *SMALL]
    assert train.main(command) == 0
    folder = RunFolder(tmp_path / "cell")
    rows = read_rows(folder.path / "metrics.jsonl")
    assert len(rows) == ITERATIONS and all(row["reward"] is not None for row in rows)
    ratios, gaps = of_phases("self_check/ratio", rows[0]), of_phases("gap_max", rows[0])
    assert set(ratios) == set(gaps) == phases
    assert all(rows[0][name] <= 1e-4 for name in ratios.values()), "before the first step the ratio is one"
    assert all(row[name] <= 1e-4 for row in rows for name in gaps.values()), "nor does any rollout differ"
    assert all(row["grad_norm"] > 0 and row["skipped_steps"] == 0 for row in rows)
    first, last = (checkpoints.read(found.path)[0] for found in checkpoints.listing(folder.checkpoints)[-2:])
    assert _moved(first, last)
    evaluated = {(row["set"], row["iteration"]) for row in read_rows(folder.path / "evaluation.jsonl")}
    assert evaluated == {(name, i) for name in ("train", "heldout") for i in (0, ITERATIONS)}
    assert folder.report.exists()


def _moved(first, last):
    """Whether the policy's trained weights differ between two states of a run, and are finite."""
    names = [name for name in first if name.startswith("policy/")]
    assert names and first.keys() == last.keys()
    assert all(bool(torch.isfinite(last[name]).all()) for name in names)
    return any(not torch.equal(first[name], last[name]) for name in names)
