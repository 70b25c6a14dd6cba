"""Ray for an agent: started where it does not run, asked for room and for the agent's processes."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from unirl_env.arguments.values import require_number
from unirl_env.errors import ClusterError, ConfigError

logger = logging.getLogger(__name__)

STARTS = 3
"""How often it is tried: on a busy machine its own limit of half a minute is soon over."""
FULL_SECONDS = 60.0
"""How long a full cluster is waited for where `cluster_wait` says nothing: what ends gives its room back
within seconds, what trains does not within minutes."""
TOLD_AFTER = 2.0
"""Seconds of waiting after which a person is told why nothing happens."""
QUIET: Mapping[str, Any] = {
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": logging.ERROR,
}

Bundle = dict[str, float]


def make_room(config: Any) -> None:
    """See to it that every process that `config` asks for can start, and start Ray if it does not run.

    Ray lets a process that fits nowhere wait for ever, without a word. RLlib needs Ray even where everything
    lives in the driver: it keeps its configuration in Ray's object store.

    Args:
        config: An `AgentConfig`; `cluster_wait` are the seconds that it may take until there is room.

    Raises:
        ConfigError: If `cluster_wait` is no number of seconds.
        ClusterError: If Ray does not start, has too few processors or GPUs, or has none free in time.
    """
    if config.cluster_wait is not None:
        require_number("cluster_wait", config.cluster_wait, 0)
    runners, learners = wanted_bundles(config)
    start_ray(math.ceil(sum(bundle.get("CPU", 0) for bundle in (*runners, *learners))))
    group = ray.util.get_current_placement_group()
    if group is not None:
        _check_trial(group.bundle_specs, runners, learners)
    elif any(runners + learners):
        _reserve([bundle for bundle in runners + learners if bundle], config)


def wanted_bundles(config: Any) -> tuple[list[Bundle], list[Bundle]]:
    """What each runner, those of RLlib's evaluation at the end, and each learner ask of Ray; no zeros."""
    cpus = config.num_cpus_per_learner
    if cpus == "auto":
        cpus = 0 if config.num_gpus_per_learner else 1
    runner = {
        "CPU": config.num_cpus_per_env_runner,
        "GPU": config.num_gpus_per_env_runner,
        **(config.custom_resources_per_env_runner or {}),
    }
    learner = {
        "CPU": cpus,
        "GPU": max(0, config.num_gpus_per_learner),
        **(config.custom_resources_per_learner or {}),
    }
    beside = config.evaluation_num_env_runners if config.evaluation_interval else 0
    return (
        [_positive(runner) for _ in range(config.num_env_runners + beside)],
        [_positive(learner) for _ in range(config.num_learners)],
    )


def start_ray(processors: int = 0) -> None:
    """Start Ray on this machine, or join the cluster that the environment names, unless that is done already.

    Args:
        processors: How many logical ones the processes of a run count.

    Raises:
        ClusterError: If it does not start.
    """
    if ray.is_initialized():
        return
    for left in reversed(range(STARTS)):
        try:
            try:
                # Ray counts a core for each process and starts no more than there are; they may share cores.
                ray.init(num_cpus=max(os.cpu_count() or 1, processors + 1), **QUIET)
            except ValueError:
                ray.init(**QUIET)  # A cluster that runs already has counted its own.
            return
        except Exception as error:
            ray.shutdown()
            if left:
                logger.warning("Ray did not start (%s); trying again.", _first_line(error))
                continue
            raise ClusterError(
                f"Ray must start, or be reached where RAY_ADDRESS says, got {_first_line(error)}; try again "
                "when the machine is less busy, with room in memory and in the folder for temporary files "
                "(RAY_TMPDIR=... names another), or start it apart by `ray start --head`."
            ) from error


def processes(agent: Any) -> dict[str, int]:
    """The ids of the runners and learners that are processes of their own on this machine, by their names.

    Args:
        agent: An `Agent`; of anything else, none are known.
    """
    runners, learners = getattr(agent, "env_runner_group", None), getattr(agent, "learner_group", None)
    found: list[tuple[str, str, int]] = []
    if runners is not None and runners.num_remote_env_runners():
        found += runners.foreach_env_runner(
            lambda runner: (f"Runner {runner.worker_index}", *_here()), local_env_runner=False
        )
    if learners is not None and learners.is_remote:
        places = [result.get() for result in learners.foreach_learner(lambda learner: _here()) if result.ok]
        found += [(f"Learner {number}", *here) for number, here in enumerate(places)]
    return {name: pid for name, host, pid in found if host == socket.gethostname()}


def place_on_devices(config: Any) -> None:
    """Let the environment's `device` say where the driver's own parts live.

    Remote processes get their devices from Ray, which must be told how many.

    Args:
        config: An `AgentConfig`.

    Raises:
        ConfigError: If remote processes reserve no GPUs.
    """
    device = str(config.env_config.get("device", "cpu"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not device.startswith("cuda"):
        return
    for processes, gpus in (
        ("num_learners", "num_gpus_per_learner"),
        ("num_env_runners", "num_gpus_per_env_runner"),
    ):
        if getattr(config, gpus) > 0:
            continue
        if getattr(config, processes) > 0:
            raise ConfigError(
                f"`{gpus}` must be positive with `{processes}` = {getattr(config, processes)} and device "
                f"{device!r}, got {getattr(config, gpus)}; try {gpus}=1 (or a share of a GPU), or "
                "device='cpu'."
            )
        setattr(config, gpus, 1)
    if ":" in device:
        config.local_gpu_idx = int(device.partition(":")[2])


def _reserve(bundles: list[Bundle], config: Any) -> None:
    """Wait until all of them fit at the same time; what is reserved for that is given back."""
    wanted, total = _sum(bundles), ray.cluster_resources()
    lacks = _lacking(wanted, total)
    wait = config.cluster_wait
    if lacks and wait is None:
        raise ClusterError(_too_small(config, wanted, total, lacks))
    wait = FULL_SECONDS if wait is None else wait
    # A group of Ray's own: it knows of nodes, of fractions and of races, and asks an autoscaler for more.
    group = placement_group(bundles)
    try:
        if group.wait(min(TOLD_AFTER, wait)):
            return
        free = ray.available_resources()
        logger.warning(
            "Waiting up to %.0f s for Ray to have room: %s are wanted by %s, %s are free.",
            wait,
            _list(wanted),
            _processes(config),
            _list(wanted, free),
        )
        if group.wait(max(0.0, wait - TOLD_AFTER)):
            return
    finally:
        remove_placement_group(group)
    if lacks := _lacking(wanted, ray.cluster_resources()):
        raise ClusterError(_too_small(config, wanted, ray.cluster_resources(), lacks))
    raise ClusterError(
        f"Ray must have room for {_processes(config)} within {wait:g} s, got {_list(wanted, free)} free "
        f"where {_list(wanted)} are wanted; try to end what holds the others (`ray status`), "
        f"fewer processes, or a longer `cluster_wait`."
    )


def _check_trial(specs: Iterable[Mapping[str, float]], runners: list[Bundle], learners: list[Bundle]) -> None:
    """A trial of Tune has its own room: a bundle for itself, then one for each runner, then learners."""
    free = [dict(spec) for spec in specs]
    placed = all(_take(free[i : i + 1], bundle) for i, bundle in enumerate(runners, start=1))
    if placed and all(_take(free, bundle) for bundle in learners):
        return
    raise ClusterError(
        f"The resources of a trial must hold {len(runners)} runners and {len(learners)} learners, got "
        f"{[dict(spec) for spec in specs]}; try the agent without `tune.with_resources`, which asks for the "
        f"right ones by itself."
    )


def _take(places: list[Bundle], bundle: Bundle) -> bool:
    for place in places:
        if not _lacking(bundle, place):
            place.update({name: place.get(name, 0) - value for name, value in bundle.items()})
            return True
    return not bundle


def _too_small(config: Any, wanted: Bundle, total: Mapping[str, float], lacks: Iterable[str]) -> str:
    words = [f"`{name}` = {getattr(config, name)}" for name in _sizes(config)]
    remedies = []
    if "CPU" in lacks:
        remedies.append(
            f"`ray.init(num_cpus={math.ceil(wanted['CPU']) + 1})`, whose processors are only counted and may "
            "be more than the machine has"
        )
    if "GPU" in lacks:
        remedies.append("shares of a GPU (`num_gpus_per_learner=0.5`)")
    return (
        f"{' and '.join(words)} must fit the cluster of Ray, got one of {_list(wanted, total)} in all where "
        f"{_list(wanted)} are wanted; try {', '.join([*remedies, 'fewer processes'])}, or `cluster_wait=600` "
        "where nodes are still to come."
    )


def _sizes(config: Any) -> list[str]:
    return [name for name in ("num_env_runners", "num_learners") if getattr(config, name)]


def _processes(config: Any) -> str:
    words = {"num_env_runners": "runners", "num_learners": "learners"}
    return " and ".join(f"{getattr(config, name)} {words[name]}" for name in _sizes(config))


def _list(wanted: Mapping[str, float], there: Mapping[str, float] | None = None) -> str:
    found = wanted if there is None else {name: there.get(name, 0) for name in wanted}
    return ", ".join(f"{value:g} {name}" for name, value in found.items())


def _lacking(wanted: Mapping[str, float], there: Mapping[str, float]) -> list[str]:
    # Shares of GPUs are sums of floats.
    return [name for name, value in wanted.items() if value > there.get(name, 0) + 1e-6]


def _sum(bundles: Iterable[Bundle]) -> Bundle:
    total: Counter[str] = Counter()
    for bundle in bundles:
        total.update(bundle)
    return dict(total)


def _positive(bundle: Mapping[str, float]) -> Bundle:
    return {name: value for name, value in bundle.items() if value > 0}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _here() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()
