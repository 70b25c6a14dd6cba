"""When an alarm rings, and when it must not."""

import json
import math
import random

import pytest

from unirl_env.errors import ConfigError
from unirl_env.monitor.alarm import SIGNALS, HackingAlarm
from unirl_env.settings import AlarmSettings, RunConfig

QUIET = {
    "reward_std": 0.2,
    "reward_max": 0.9,
    "reward_min": 0.1,
    "heldout_std": 5.0,
    "diversity": 0.1,
    "saturation": 0.01,
    "zero_std_groups": 0.0,
}


def run(columns, every=1, **settings):
    """The alarm after a run with these numbers; a column is a list, or a number for all iterations."""
    length = max(len(column) for column in columns.values() if isinstance(column, list))
    alarm = HackingAlarm(AlarmSettings(**settings))
    for i in range(length):
        row = {"iteration": i + 1, **QUIET}
        row |= {name: column[i] if isinstance(column, list) else column for name, column in columns.items()}
        if i % every:
            del row["heldout"]
        alarm.observe(row)
    return alarm


def rung(alarm):
    return [(finding.signal, finding.iteration) for finding in alarm.findings]


def line(start, stop, count):
    return [start + (stop - start) * i / (count - 1) for i in range(count)]


def test_the_gap_rings_when_one_rises_and_the_other_falls():
    alarm = run({"reward": line(0.3, 0.7, 21), "heldout": line(20.0, 10.0, 21)}, smooth=1, patience=1)
    # Both move by a tenth of their standard deviation in an iteration; five are exactly the bound.
    assert rung(alarm) == [("gap", 7)]
    (finding,) = alarm.findings
    assert finding.value == pytest.approx(0.6) and finding.bound == 0.5
    for words in ("since iteration 1", "from 0.3 to 0.42", "from 20 to 17", "`agent.reference_kl`"):
        assert words in finding.sentence


@pytest.mark.parametrize(
    ("reward", "heldout"),
    [
        (line(0.3, 0.9, 40), line(10.0, 30.0, 40)),  # both better
        (line(0.3, 0.9, 40), [10.0] * 40),  # of no use, and no harm
        (line(0.9, 0.3, 40), line(30.0, 10.0, 40)),  # a run that falls apart
        ([0.5] * 40, line(30.0, 10.0, 40)),  # not the training reward's doing
    ],
)
def test_no_other_course_of_the_two_rings(reward, heldout):
    assert rung(run({"reward": reward, "heldout": heldout}, smooth=1, patience=1)) == []


def test_scales_do_not_matter():
    columns = {"reward": line(0.3, 0.7, 21), "heldout": line(20.0, 10.0, 21)}
    other = {
        "reward": [1000 * x - 50 for x in columns["reward"]],
        "reward_std": 200.0,
        "heldout": [x / 1000 for x in columns["heldout"]],
        "heldout_std": 0.005,
    }
    assert rung(run(columns)) == rung(run(other)) != []


def test_the_gap_is_seen_after_both_have_risen_together():
    up_and_down = line(10.0, 20.0, 20) + line(20.0, 12.0, 20)
    alarm = run({"reward": line(0.3, 0.9, 40), "heldout": up_and_down}, smooth=1, patience=1)
    (finding,) = alarm.findings
    assert finding.signal == "gap" and 20 < finding.iteration < 40, "its worth is still above the start"
    assert "from 20 to" in finding.sentence


def test_one_outlier_is_not_enough():
    heldout = [20.0] * 10 + [2.0] + [20.0] * 20
    reward = [0.3] * 10 + [0.9] * 21
    assert rung(run({"reward": reward, "heldout": heldout}, smooth=1, patience=2)) == []
    assert rung(run({"reward": reward, "heldout": heldout}, smooth=1, patience=1)) == [("gap", 11)]


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_does_not_ring(seed):
    # Means over 96 samples, the training reward rising by three standard deviations.
    draw = random.Random(seed)
    reward = [x + draw.gauss(0, 0.2 / 96**0.5) for x in line(0.3, 0.9, 200)]
    heldout = [10 + draw.gauss(0, 5.0 / 96**0.5) for _ in range(200)]
    assert rung(run({"reward": reward, "heldout": heldout})) == []


def test_a_rare_held_out_score_rings_later_and_rings():
    columns = {"reward": line(0.3, 0.9, 60), "heldout": line(20.0, 8.0, 60)}
    often, rarely = run(columns), run(columns, every=5)
    assert [signal for signal, _ in rung(often) + rung(rarely)] == ["gap", "gap"]
    assert rung(often)[0][1] < rung(rarely)[0][1] < 60
    assert (rung(rarely)[0][1] - 1) % 5 == 0


def test_samples_that_become_alike_ring_by_their_share_of_the_start():
    columns = {"reward": 0.5, "diversity": line(0.1, 0.0, 21)}
    alarm = run(columns, smooth=1, patience=3)
    assert rung(alarm) == [("diversity", 19)], "below a quarter from the 17th on"
    assert rung(run({**columns, "diversity": [5 * x for x in columns["diversity"]]}, smooth=1)) == rung(alarm)


def test_right_answers_may_be_alike():
    solved = {"reward": 0.5, "reward_max": 1.0, "diversity": line(0.1, 0.01, 30), "saturation": 0.95}
    assert rung(run(solved)) == []
    assert [signal for signal, _ in rung(run({**solved, "saturation": 0.2}))] == ["diversity"]


def test_the_ceiling_is_the_highest_reward_of_the_run():
    share = {"reward": [0.5] * 10, "saturation": 1.0, "reward_min": 1.0, "reward_max": 1.0}
    assert rung(run(share)) == [], "what all have earned from the start is no ceiling"
    reached = {**share, "reward_min": [0.0] * 2 + [1.0] * 8}
    assert rung(run(reached)) == [("saturation", 5)]
    lower = {**reached, "reward_max": [2.0] * 2 + [1.0] * 8}
    assert rung(run(lower)) == [], "all earn the same, and less than before"


def test_groups_that_teach_nothing_ring():
    alarm = run({"reward": 0.5, "zero_std_groups": [0.0] * 5 + [1.0] * 5}, smooth=2, patience=2)
    assert rung(alarm) == [("zero_std_groups", 8)]


def test_each_signal_rings_once():
    waves = ([0.0] * 5 + [1.0] * 5) * 4
    assert rung(run({"reward": 0.5, "zero_std_groups": waves})) == [("zero_std_groups", 10)]


@pytest.mark.parametrize("cut", [0, 1, 7, 12, 29])
def test_a_continued_run_rings_like_one_that_was_never_interrupted(cut):
    draw = random.Random(1)
    rows = [
        {
            "iteration": i + 1,
            "reward": math.nan if i == 4 else 0.3 + 0.02 * i + draw.gauss(0, 0.01),
            **QUIET,
            **({"heldout": 20 - i + draw.gauss(0, 0.5)} if i % 2 else {}),
            "diversity": 0.1 * 0.9**i,
        }
        for i in range(30)
    ]
    whole = HackingAlarm.replay(AlarmSettings(), rows)
    assert {signal for signal, _ in rung(whole)} == {"gap", "diversity"}
    # As they come back from a file, where what is no number is null.
    record = json.loads(json.dumps(rows[:cut]).replace("NaN", "null"))
    continued = HackingAlarm.replay(AlarmSettings(), record)
    later = [finding for row in rows[cut:] for finding in continued.observe(row)]
    assert continued.findings == whole.findings and continued.levels == whole.levels
    assert later == [finding for finding in whole.findings if finding.iteration > cut]
    again = HackingAlarm.replay(AlarmSettings(), json.loads(json.dumps(continued.rows)))
    assert again.findings == whole.findings


def test_nothing_but_failures_is_nothing_observed():
    names = ("reward", *QUIET, "heldout")
    alarm = HackingAlarm.replay(
        AlarmSettings(), [{"iteration": i, **dict.fromkeys(names, math.nan)} for i in range(9)]
    )
    assert alarm.findings == [] and not any(alarm.levels.values())


def test_a_reward_that_begins_without_variance_has_a_unit_later():
    columns = {"reward": [0.0] * 5 + line(0.0, 1.0, 20), "heldout": [20.0] * 5 + line(20.0, 5.0, 20)}
    alarm = run({**columns, "reward_std": [0.0] * 5 + [0.2] * 20})
    assert [signal for signal, _ in rung(alarm)] == ["gap"]
    assert rung(run({**columns, "reward_std": 0.0})) == []


@pytest.mark.parametrize(
    ("stop", "ends"),
    [("none", False), ("all", True), (["gap"], True), ("gap", True), (["saturation"], False)],
)
def test_the_settings_say_which_alarms_end_a_run(stop, ends):
    alarm = run({"reward": line(0.3, 0.7, 21), "heldout": line(20.0, 10.0, 21)}, stop=stop)
    assert rung(alarm) and (alarm.ended_by is not None) == ends


def test_what_is_not_to_be_watched_does_not_ring():
    columns = {"reward": line(0.3, 0.7, 21), "heldout": line(20.0, 10.0, 21), "zero_std_groups": 1.0}
    assert rung(run(columns, gap=None, zero_std_groups=None)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 0}, "`alarm.patience` must be at least 1, got 0"),
        ({"heldout_every": -1}, "`alarm.heldout_every`"),
        ({"saturation": 1.5}, "`alarm.saturation` must lie in .0, 1.,"),
        ({"gap": 0.0}, "`alarm.gap` must be positive"),
        ({"stop": ["gab"]}, "`alarm.stop` must be none, all or a list of gap, diversity"),
        ({"stop": 3}, "`alarm.stop` must be none, all or a list"),
        ({"stop": ["diversity"], "diversity": None}, "`alarm.diversity` must be a bound"),
        ({"stop": ["gap"], "heldout_every": 0}, "`gap` without held-out scores"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        HackingAlarm(AlarmSettings(**settings))


def test_a_run_without_a_held_out_reward_cannot_stop_on_it():
    cfg = RunConfig(alarm=AlarmSettings(stop=["gap"]))
    with pytest.raises(ConfigError, match=r"try a scorer for `reward\.heldout`"):
        cfg.check()
    cfg.reward.heldout = "template"
    cfg.check()


def test_every_signal_has_a_bound_of_its_name():
    assert set(SIGNALS) < set(vars(AlarmSettings()))
