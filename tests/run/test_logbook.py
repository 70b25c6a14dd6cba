import json
import sys

import pytest
from door_fakes import small_config

from unirl_env.errors import MissingExtra
from unirl_env.run.record import logbook
from unirl_env.run.record.logbook import Logbook


def numbered(folder, start, stop, cfg=None, cut_at=0):
    book = Logbook(folder, cfg or small_config(folder), cut_at)
    for iteration in range(start, stop + 1):
        book.log({"iteration": iteration, "reward": iteration / 10})
    book.close()
    return book


def test_every_iteration_is_one_line_of_json(tmp_path):
    book = numbered(tmp_path, 1, 3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward"] for line in lines] == [0.1, 0.2, 0.3]
    assert book.rows()[2] == {"iteration": 3, "reward": 0.3}


def test_what_is_not_a_number_is_null(tmp_path):
    book = Logbook(tmp_path, small_config(tmp_path))
    book.log({"iteration": 1, "reward": float("nan"), "parts": {"a": [float("inf"), 1.0]}})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "iteration": 1,
        "reward": None,
        "parts": {"a": [None, 1.0]},
    }


def test_a_continued_run_cuts_what_follows_its_checkpoint(tmp_path):
    numbered(tmp_path, 1, 5)
    numbered(tmp_path, 4, 6, cut_at=3)
    assert [row["iteration"] for row in logbook.read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_line_that_was_never_finished_is_dropped(tmp_path):
    numbered(tmp_path, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 3, "rew')
    numbered(tmp_path, 3, 3, cut_at=2)
    rows = logbook.read_rows(tmp_path / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert rows[2]["reward"] == 0.3


def test_tensorboard_shows_the_continued_curve_only(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = small_config(tmp_path, logging__tensorboard=True)
    numbered(tmp_path, 1, 5, cfg)
    numbered(tmp_path, 4, 6, cfg, cut_at=3)
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [event.step for event in events.Scalars("reward")] == [1, 2, 3, 4, 5, 6]


def test_a_missing_wandb_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"unirl-env\[wandb\]"):
        Logbook(tmp_path, small_config(tmp_path, logging__wandb="project"))


def test_wandb_gets_the_numbers_and_a_continued_run_joins_again(tmp_path, monkeypatch):
    calls = []

    class Fake:
        @staticmethod
        def init(**options):
            calls.append(options)
            return Fake()

        def log(self, values, step):
            calls.append((values, step))

        def finish(self):
            calls.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Fake)
    cfg = small_config(tmp_path, logging__wandb="project")
    numbered(tmp_path, 1, 1, cfg)
    numbered(tmp_path, 2, 2, cfg, cut_at=1)
    assert calls[1:3] == [({"reward": 0.1}, 1), "finished"]
    assert calls[0]["id"] == calls[3]["id"]
    assert calls[0]["config"]["agent.lr"] == cfg.agent.lr


def test_tensorboard_shows_the_phases_of_a_quantity_together(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    book = Logbook(tmp_path, small_config(tmp_path, logging__tensorboard=True))
    for iteration in (1, 2):
        row = {"iteration": iteration, "text/kl": 0.1, "image/kl": 0.2, "text/tv": 0.3, "kl": 0.3}
        book.log(row | ({"text/gap": 0.0, "image/gap": 0.0} if iteration == 1 else {}))
    book.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert {"text/kl", "image/kl"} <= set(events.Tags()["scalars"])
    (found,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(found.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts == {"kl": ["text/kl$", "image/kl$"], "gap": ["text/gap$", "image/gap$"]}
