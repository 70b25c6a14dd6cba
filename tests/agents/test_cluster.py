"""Ray is started for as many processes as are asked for, and no agent waits for it without a word."""

import threading

import pytest
import ray
from toy import toy_config

from unirl_env.agents import GRPOConfig, cluster
from unirl_env.agents.cluster import make_room, start_ray, wanted_bundles
from unirl_env.errors import ClusterError, ConfigError

pytestmark = pytest.mark.ray


def config(runners=0, learners=0, **settings):
    made = toy_config(GRPOConfig, num_prompts=8, group_size=8)
    made.env_runners(num_env_runners=runners).learners(num_learners=learners)
    for name, value in settings.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def not_started(monkeypatch):
    """A Ray that does not run; what `ray.init` is asked for lands in the list."""
    asked = []
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: asked.append("shutdown"))
    monkeypatch.setattr(cluster.ray, "init", lambda **options: asked.append(options))
    return asked


def test_what_processes_ask_for():
    runners, learners = wanted_bundles(config(2, 1, num_gpus_per_learner=0.5))
    assert runners == [{"CPU": 1}, {"CPU": 1}] and learners == [{"GPU": 0.5}]
    shared = config(1, num_cpus_per_env_runner=0, custom_resources_per_env_runner={"fast": 2})
    assert wanted_bundles(shared) == ([{"fast": 2}], [])
    judged = config(1, evaluation_interval=2, evaluation_num_env_runners=2)
    assert len(wanted_bundles(judged)[0]) == 3, "RLlib starts runners of its own to evaluate"


def test_ray_is_started_with_a_processor_for_each_process(not_started, monkeypatch):
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 2)
    start_ray(4)
    start_ray()
    assert [options["num_cpus"] for options in not_started] == [5, 2]


def test_a_cluster_that_runs_already_counts_its_own(not_started, monkeypatch):
    def init(**options):
        not_started.append(options)
        if "num_cpus" in options:
            raise ValueError("When connecting to an existing cluster, num_cpus must not be provided.")

    monkeypatch.setattr(cluster.ray, "init", init)
    start_ray(4)
    assert "num_cpus" not in not_started[-1]


@pytest.mark.parametrize("error", [RuntimeError("the node timed out."), ConnectionError(), TimeoutError("x")])
def test_a_ray_that_does_not_start_is_started_again_and_then_an_error(not_started, monkeypatch, error):
    def init(**options):
        not_started.append(options)
        raise error

    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(ClusterError, match=r"Ray must start, .*got .*; try again .*ray start --head"):
        start_ray()
    assert len([options for options in not_started if options != "shutdown"]) == cluster.STARTS
    assert not_started[-1] == "shutdown", "half a Ray would be taken for one that runs"


def test_processes_that_a_cluster_cannot_hold_are_refused_at_once(cluster):
    with pytest.raises(ClusterError, match=r"_runners` = 8 and `num_learners` = 4 must fit .* 12 CPU"):
        config(8, 4).build_algo()
    with pytest.raises(ClusterError, match=r"0 GPU in all where 1 CPU, 1 GPU are wanted"):
        make_room(config(1, num_gpus_per_env_runner=1))
    with pytest.raises(ConfigError, match="`cluster_wait` must be"):
        make_room(config(1, cluster_wait="long"))


def test_a_full_cluster_is_waited_for_and_not_for_ever(cluster, monkeypatch, caplog):
    monkeypatch.setattr("unirl_env.agents.cluster.TOLD_AFTER", 0.2)
    # As much as there is, however many processors other tests still hold.
    holds = ray.util.placement_group([{"CPU": ray.available_resources()["CPU"]}])
    assert holds.wait(30)
    with pytest.raises(ClusterError, match=r"room for 2 learners within 0.5 s, got 0 CPU free"):
        make_room(config(learners=2, cluster_wait=0.5))
    assert "Waiting up to 0 s" in caplog.text or "Waiting up to 1 s" in caplog.text
    threading.Timer(0.5, ray.util.remove_placement_group, [holds]).start()
    make_room(config(1))
    assert "1 runners" in caplog.text
    make_room(config(1, 1))  # and what was reserved to see that has been given back


def test_a_trial_with_other_resources_than_it_needs_is_refused(monkeypatch, cluster):
    class Group:
        bundle_specs = [{"CPU": 1}, {"CPU": 1}, {"CPU": 1}]

    monkeypatch.setattr("unirl_env.agents.cluster.ray.util.get_current_placement_group", Group)
    make_room(config(1, 1))
    make_room(config(2, num_cpus_per_learner=0))
    for runners, learners in ((1, 3), (3, 0)):
        with pytest.raises(ClusterError, match=rf"must hold {runners} runners and {learners} learners, got"):
            make_room(config(runners, learners))
