"""A run's first iterations again."""

import io
import json
import math

import pytest
from rich.console import Console

from unirl_env import train
from unirl_env.bench import baselines
from unirl_env.bench.rows import settings_key
from unirl_env.bench.verify import Again, compared, outside_band, verify
from unirl_env.errors import ConfigError
from unirl_env.run.compose.yaml import read_yaml
from unirl_env.train import settings


def row(iteration, **values):
    return {"iteration": iteration, **values}


def test_the_largest_difference_is_named_and_clocks_do_not_count():
    before = [row(1, reward=0.5, kl=1e-9, seconds=3.0), row(2, reward=0.5, **{"seconds/rollout": 1.0})]
    after = [row(1, reward=0.5, kl=2e-9, seconds=9.0), row(2, reward=0.6, **{"seconds/rollout": 2.0})]
    apart, where = compared(before, after)
    assert apart == pytest.approx(0.1 / 0.6) and where == "reward of iteration 2"
    assert compared(before, before) == (0.0, "")
    assert compared([row(1, reward=0.5)], [row(1, reward=None)])[0] == math.inf
    assert compared([row(1, reward=0.5)], [row(1, other=0.5)]) == (0.0, "")


def test_a_run_is_unsound_by_another_number_or_by_leaving_the_band():
    assert Again(3, 0.0, "", (), 0, 0).sound
    assert not Again(3, 0.01, "reward of iteration 1", (), 0, 0).sound
    assert Again(3, 0.0, "", (4,), 10, 5).sound, "one in twenty leaves it"
    assert not Again(3, 0.0, "", (4, 6, 7), 10, 5).sound


def test_the_band_is_of_stored_runs_of_the_same_settings(monkeypatch):
    cfg = settings("diffusion/gaussian_mixture")
    stored = [
        {"settings_key": key, "curve": {"iteration": [0, 2], "reward": [None, reward]}}
        for key, reward in [(settings_key(cfg), r) for r in (0.9, 1.0, 1.1, 1.0)] + [("other", 9.0)]
    ]
    monkeypatch.setattr("unirl_env.bench.verify.every_stored", lambda: stored)
    low, high = baselines.one_more([0.9, 1.0, 1.1, 1.0], 0.95)
    for reward, outside in ((1.0, ()), (low - 0.01, (2,)), (high + 0.01, (2,))):
        assert outside_band(cfg, [row(1, reward=0.0), row(2, reward=reward)]) == (outside, 1, 4)


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_is_done_again_to_the_last_bit_and_a_changed_record_is_found_out(tmp_path):
    words = ["iterations=3", "rollout.group_size=32", "logging.eval_samples=4", f"logging.folder={tmp_path}"]
    words += ["logging.progress=false", "logging.tensorboard=false", "name=it"]
    assert train.main(["--config-name=diffusion/gaussian_mixture", *words]) == 0
    folder, console = tmp_path / "it", Console(file=io.StringIO(), width=120)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    found = verify(folder, 2, console)
    assert (found.iterations, found.difference, found.sound) == (2, 0.0, True)
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == files, "the run stays as it was"
    assert read_yaml(folder / "config.yaml").iterations == 3
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[1]["reward"] += 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    found = verify(folder, 3, console)
    assert not found.sound and found.where == "reward of iteration 2"
    with pytest.raises(ConfigError, match="--iterations"):
        verify(folder, 0, console)
