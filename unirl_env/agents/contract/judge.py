"""The judge of agents: every check on every kind of phase, and a certificate of what they found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress

from unirl_env.agents.catalogue import path_of
from unirl_env.agents.cluster import start_ray
from unirl_env.agents.config import AgentConfig
from unirl_env.agents.contract import (
    best,
    first_update,
    gradients,
    invariances,
    left_out,
    memory,
    pull,
    trust,
)
from unirl_env.agents.contract.certificate import FAILED, Certificate, Check
from unirl_env.agents.contract.ground import Ground
from unirl_env.agents.contract.worlds import WORLDS
from unirl_env.errors import ConfigError

CHECKS: tuple[tuple[str, Callable[[Ground], Check]], ...] = (
    ("ratio one", first_update.ratio_one),
    ("thresholds", first_update.thresholds),
    ("gradient", gradients.policy_gradient),
    ("weights of texts", gradients.weights_of_texts),
    ("constant rewards", left_out.constant_rewards),
    ("invalid scores", left_out.invalid_scores),
    ("idle rows", left_out.idle_rows),
    ("masks", left_out.masks),
    ("repeatable", invariances.repeatable),
    ("micro-batches", invariances.micro_batches),
    ("minibatches", invariances.minibatches),
    ("step", invariances.step),
    ("learners", invariances.learners),
    ("order", invariances.order),
    ("old policy", memory.old_policy),
    ("trust region", trust.trust_region),
    ("pull", pull.pull),
    ("optimum", best.optimum),
    ("optimum, no KL", best.optimum_without_kl),
)
"""By name, in the order of a certificate."""


def check_agent(
    config: Any,
    kinds: Sequence[str] | None = None,
    *,
    seed: int = 0,
    quick: bool = False,
    progress: bool | None = None,
) -> Certificate:
    """Hold an agent against what every agent promises, in worlds whose numbers are known exactly.

    The agent is built as for a run, in this process, on points on a line and on words of a few letters; what
    belongs to a run (learning rates, sizes of batches, the environment) is set for these worlds, what is the
    algorithm's own stays. Ray is started, as agents need it, and stays so.

    Args:
        config: An `AgentConfig`, its class, a name of `AGENTS`, or the path of one's own.
        kinds: Of phases, of `latents` and `tokens`; None for all on which the agent has losses.
        seed: Of everything that is drawn.
        quick: Take fewer batches, and train nothing: seconds instead of up to a minute for each kind.
        progress: Whether a bar is shown; None where there is a terminal.

    Returns:
        The certificate. A wrong agent raises nothing: what is raised within a check is its figure.

    Raises:
        ConfigError: If `config` names no agent, or `kinds` nothing that can be judged.
    """
    config = _config_of(config)
    chosen = _kinds(config, kinds)
    began, checks = time.perf_counter(), []
    start_ray()
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    with Progress(console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("check_agent", total=len(CHECKS) * len(chosen))
        for kind in chosen:
            ground = Ground(config, kind, seed=seed, quick=quick)
            try:
                for name, check in CHECKS:
                    bar.update(task, description=f"{kind}: {name}")
                    checks.append(_tried(name, check, ground))
                    bar.advance(task)
            finally:
                ground.close()
    if not chosen:
        checks.append(_without_losses(config))
    return Certificate(path_of(type(config)), tuple(checks), time.perf_counter() - began)


def _tried(name: str, check: Callable[[Ground], Check], ground: Ground) -> Check:
    try:
        return check(ground)
    except Exception as error:  # whatever a wrong agent does is what was found of it
        lines = str(error).strip().splitlines() or [""]
        said = f"{type(error).__name__}: {lines[0]}"
        return Check(name, ground.kind, FAILED, words=f"It broke off. {said}", error=said)


def _config_of(config: Any) -> AgentConfig:
    from unirl_env.agents.by_name import default_config

    if isinstance(config, AgentConfig):
        return config
    if isinstance(config, type) and issubclass(config, AgentConfig):
        return config()
    return default_config(config, "config")


def _kinds(config: AgentConfig, kinds: Sequence[str] | None) -> list[str]:
    given = [kinds] if isinstance(kinds, str) else kinds
    for kind in given or ():
        if kind not in WORLDS:
            raise ConfigError(f"`kinds` must be some of {', '.join(map(repr, WORLDS))}, got {kind!r}.")
        if kind not in config.losses:
            raise ConfigError(
                f"`kinds` must name kinds of phases on which the agent has a loss, got {kind!r}; it has "
                f"losses on {', '.join(map(repr, config.losses)) or 'nothing'}."
            )
    return [kind for kind in WORLDS if kind in (given if given is not None else config.losses)]


def _without_losses(config: AgentConfig) -> Check:
    return Check(
        "losses",
        "-",
        FAILED,
        float(len(config.losses)),
        "latents, tokens",
        "There is no loss on latents or tokens, where agents are judged; try losses={'latents': Loss(...)}.",
    )
