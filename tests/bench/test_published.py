"""The suite `full` on small checkpoints of the published classes: nothing of it is left out or stands in."""

import io
import json

import published_cases
import pytest
from rich.console import Console

from unirl_env.bench.bench_settings import BenchSettings
from unirl_env.bench.cells import cells
from unirl_env.bench.contestants import contestants
from unirl_env.bench.player import played
from unirl_env.bench.running import _write_plan, collected, prepared
from unirl_env.bench.suite import SUITES, load
from unirl_env.errors import ModelNotFound

PICTURES = {"prompts": 2, "samples": 4, "steps": 8, "guidance": 2.0}
TEXTS = {"prompts": 2, "samples": 4, "temperature": 1.0}


@pytest.mark.parametrize("agent", ["grpo", "flow_dppo", "drpo"])
def test_every_task_takes_every_agent(agent):
    from unirl_env.run.agent_setup import check_agent

    own = ["prompts.train=[a,b]", "prompts.heldout=[c]"]
    for cell in cells(SUITES, load("full"), contestants([agent]), [0], own):
        check_agent(cell.compose())


def test_weights_that_are_not_there_are_nobodys_failure(tmp_path):
    own = ["prompts.train=[a b,c d]", "prompts.heldout=[e f]", f"model.pretrained={tmp_path / 'nothing'}"]
    cell = cells(tmp_path, load("full").only(["sd3/pickscore"]), contestants(["grpo"]), [0], own)[0]
    with pytest.raises(ModelNotFound, match="nothing"):
        played(cell)
    assert cell.row() is None, "begun again once they are there"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_every_task_of_full_runs_on_small_checkpoints(tmp_path, cluster, quiet_models):
    pytest.importorskip("open_clip")
    pytest.importorskip("rapidocr_onnxruntime")
    pytest.importorskip("math_verify")
    suite = published_cases.write(tmp_path)
    settings = BenchSettings(suite=str(suite), agents=["grpo"], seeds=1, folder=str(tmp_path / "benches"))
    bench = prepared(settings)
    assert not bench.refused and list(bench.suite.tasks) == list(load("full").tasks)
    bench.place.mkdir(parents=True)
    every = cells(bench.place, bench.suite, bench.entries, [0])
    rows = {cell.task.name: played(cell) for cell in every}
    said = {cell.name: cell.log.read_text() for cell in every if rows[cell.task.name]["status"] != "done"}
    assert not said
    _write_plan(bench, bench.entries, [])
    page = collected(bench, list(rows.values()), Console(file=io.StringIO())).read_text()

    # Evaluated as the suite says, and told so.
    for name, row in rows.items():
        wanted = PICTURES if name.startswith("sd3") else {**TEXTS, "samples": 16 if "math" in name else 4}
        assert row["evaluation"] == wanted, name
        of = bench.suite.tasks[name].score
        assert len(row["prompts"][of]) == 2 and f"{of}/best@{wanted['samples']}" in row["metrics"]
        assert row["metrics"]["iterations"] == 2 and row["metrics"]["failed_scores"] == 0
    assert "4 samples each (avg@4), 8 denoising steps, guidance 2" in page
    assert "16 samples each (avg@16), temperature 1" in page
    kept = [json.loads(line) for line in (bench.place / "results.jsonl").read_text().splitlines()]
    assert [row["evaluation"] for row in kept] == [row["evaluation"] for row in rows.values()]

    # Rewards have the scale that the suite's references stand for.
    assert 0 < abs(rows["sd3/pickscore"]["score"]) <= 100 / 26, "PickScore / 26"
    assert rows["sd3/geneval"]["metrics"]["heldout/reward"] > 0, "the detector finds something"
    assert abs(rows["enhancer/clip"]["score"]) <= 1
