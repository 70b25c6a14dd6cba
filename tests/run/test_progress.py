import io

from rich.console import Console

from unirl_env.run.progress import RunProgress, clock, sparkline

ROW = {
    "iteration": 3,
    "reward": 0.25,
    "kl": 2e-4,
    "masked_fraction": 0.125,
    "episodes_per_second": 40.4,
    "seconds": 2.0,
}


def lines(rows, terminal=False, **options):
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=terminal, color_system=None)
    with RunProgress(console, "run", 10, **options) as progress:
        for row in rows:
            progress.advance(row)
    return stream.getvalue()


def test_without_a_terminal_every_iteration_is_a_line():
    text = lines([ROW])
    assert text == "[ 3/10]  reward 0.250  KL 2.0e-04  masked 12%  40 samples/s  0:14 left\n"


def test_a_terminal_shows_the_same_numbers():
    text = lines([ROW], terminal=True)
    for part in ("reward 0.250", "KL 2.0e-04", "masked 12%", "40 samples/s", "0:14 left", "3/10"):
        assert part in text


def test_silence_on_request():
    assert lines([ROW], enabled=False) == ""


def test_other_agents_other_numbers():
    text = lines([{"iteration": 1, "reward": 0.5, "approx_kl": 1e-3, "clip_fraction": 0.5, "seconds": 1.0}])
    assert "KL 1.0e-03  masked 50%" in text


def test_two_phases_are_told_apart():
    phases = {"text/approx_kl": 1e-3, "image/kl": 2e-4, "image/approx_kl": 9.0, "text/kl": 1e-2}
    text = lines([{"iteration": 1, "reward": 0.5, **phases, "text/masked_fraction": 0.25, "no_picture": 0.5}])
    assert "KL text 1.0e-02, image 2.0e-04  masked text 25%  50% without picture" in text
    assert "picture" not in lines([{"iteration": 1, "reward": 0.5, "no_picture": 0.0}])


def test_failures_are_told():
    text = lines([{"iteration": 1, "reward": float("nan"), "reward/failed": 7.0, "seconds": 1.0}])
    assert "all failed" in text
    assert "7 failed scores" in text


def test_the_time_left_follows_the_last_iterations():
    rows = [{"iteration": i, "reward": 0.0, "seconds": 100.0 if i == 1 else 1.0} for i in range(1, 13)]
    assert "0:08 left" in lines([*rows[:1], *({**row, "iteration": 2} for row in rows[1:])])


def test_clock():
    assert [clock(s) for s in (0, 61, 3600)] == ["0:00", "1:01", "1:00:00"]


def test_sparkline():
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([1.0]) == ""


def test_an_alarm_is_a_line_of_its_own_even_in_silence():
    stream = io.StringIO()
    console = Console(file=stream, width=60, color_system=None)
    with RunProgress(console, "run", 10, enabled=False) as progress:
        progress.warn("gap", "the reward has risen by [2.0]; try `agent.lr=1e-5`.")
    assert stream.getvalue() == "Alarm (gap): the reward has risen by [2.0]; try `agent.lr=1e-5`.\n"
