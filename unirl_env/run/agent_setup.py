"""From a run's settings to an agent: the one place that translates them into RLlib's dialect."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, get_type_hints

from unirl_env.agents import Agent, AgentConfig
from unirl_env.agents.attributes import FLAT, NESTED, check_knobs, knob_kinds, knob_names, rebuilt, take_over
from unirl_env.agents.by_name import default_config
from unirl_env.agents.correction import rounds_apart
from unirl_env.errors import ConfigError
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards import for_mode
from unirl_env.rewards.spec import build_scorer
from unirl_env.run.memory import memory_note
from unirl_env.run.record import provenance
from unirl_env.run.record.samples import FPS
from unirl_env.run.world_setup import (
    Prompts,
    check_prompts,
    check_targets,
    frame_rate,
    mode_of_run,
    model_arguments,
    model_sources,
    world_generator,
    world_model,
    world_options,
)
from unirl_env.settings import RunConfig
from unirl_env.settings.run_config import pinned


@dataclass(frozen=True)
class Parts:
    """What a run is made of, besides its settings; `notes` are said at its start, clips have `fps`."""

    agent: Any
    heldout: Any = None
    sources: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    fps: float = FPS


def build_parts(cfg: RunConfig, prompts: Prompts | None = None, train: PromptSource | None = None) -> Parts:
    """The agent and the held-out scorer that the settings describe.

    Args:
        cfg: The settings.
        prompts: Those of the run, all of which the model is to read first.
        train: Those of `prompts.train`, where they are read already.
    """
    heldout = cfg.reward.heldout
    if heldout is not None:
        heldout = build_scorer(for_mode(heldout, mode_of_run(cfg), "reward.heldout", model_arguments(cfg)))
    # Before anything large is loaded: a branch that has moved ends a continued run.
    sources = model_sources(cfg)
    known = {name: provenance.model_fingerprint(*each) for name, each in sources.items()}
    check_targets(cfg, sources["model"][0] if "model" in sources else None)
    if prompts is not None:
        check_prompts(cfg, chain(prompts.train, prompts.heldout or ()))
    source = train if prompts is None else prompts.train
    model = world_model(cfg)
    notes = memory_note(cfg, model, agent_config(cfg, source))
    agent = build_agent(cfg, source)
    fps = frame_rate(world_generator(cfg) or model) or FPS
    return Parts(agent, heldout, known, (*chosen(cfg, agent.config), *notes), fps)


def build_agent(cfg: RunConfig, prompts: PromptSource | None = None) -> Agent:
    """Build the agent, its runners and its learners; it starts Ray unless that runs.

    Args:
        cfg: The settings.
        prompts: Those of `prompts.train`, where they are read already.

    Raises:
        ConfigError: If the settings cannot work.
        ClusterError: If Ray does not start, or has no room for them.
    """
    config = agent_config(cfg, prompts)
    config.validate()
    return config.build_algo()


def check_agent(cfg: RunConfig, prompts: PromptSource | None = None) -> None:
    """Refuse an agent and options that cannot work; nothing is loaded and no process is started.

    Args:
        cfg: The settings.
        prompts: Those of `prompts.train`, where they are read already.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    agent_config(cfg, prompts).validate()


def agent_config(cfg: RunConfig, prompts: PromptSource | None = None) -> AgentConfig:
    """The settings as an `AgentConfig`.

    Args:
        cfg: The settings.
        prompts: Those of `prompts.train`, where they are read already.

    Raises:
        ConfigError: If the agent or one of its options is unknown.
    """
    cfg.check()
    config = default_config(cfg.agent.name)
    _check_options(cfg, type(config))
    source = prompts or PromptSource.of(cfg.prompts.train, max_characters=cfg.prompts.max_characters)
    config = config.environment(
        cfg.model.env, env_config={**world_options(cfg), "prompts": source}
    ).debugging(seed=cfg.seed)
    for group in (pinned(cfg).agent, cfg.rollout):
        take_over(config, group)
    groups = {name: getattr(cfg, name) for name in NESTED}
    return config.training(prompts=source, **groups, **cfg.agent.options)


def own_settings(name: str) -> dict[str, Any]:
    """What an algorithm sets otherwise than the settings of a run do by default, by the names of a run.

    Raises:
        ConfigError: If there is no such algorithm.
    """
    config, found = default_config(name), {}
    for section, kind in get_type_hints(RunConfig).items():
        group = getattr(config, section) if section in NESTED else None
        group = rebuilt(kind, config) if kind in FLAT else group
        for field in () if group is None else fields(kind):
            own, usual = (getattr(each, field.name) for each in (group, kind()))
            if own != usual:
                found[f"{section}.{field.name}"] = own
    return found


def _check_options(cfg: RunConfig, kind: type[AgentConfig]) -> None:
    """Refuse what is no knob of the algorithm or cannot work, and what is every agent's and set elsewhere."""
    knobs = knob_names(kind)
    for name, value in cfg.agent.options.items():
        if name in knobs:
            continue
        if name in vars(cfg.agent):
            remedy = f"it is a setting of every agent; try `agent.{name}={value}`"
        else:
            near = difflib.get_close_matches(name, knobs, n=1)
            known = ", ".join(knobs) or "none of its own"
            remedy = f"did you mean `agent.options.{near[0]}`?" if near else f"it has {known}."
        raise ConfigError(
            f"`agent.options.{name}` must be a knob of {cfg.agent.name}, and is none, got {value!r}; {remedy}"
        )
    config = kind().training(**cfg.agent.options)
    for group in knob_kinds(kind):
        check_knobs(rebuilt(group, config), "agent.options.")


def chosen(cfg: RunConfig, config: AgentConfig) -> tuple[str, ...]:
    """What the settings left open and was chosen, in sentences."""
    if not rounds_apart(config):
        return ()
    notes: tuple[str, ...] = ()
    if cfg.agent.correction is None and config.correcting != "none":
        notes = (
            f"Advantages have importance weights of at most {config.correction_bound:g} for who sampled "
            "(`agent.correction` is null, and old log-probabilities are replayed).",
        )
    if cfg.agent.anchor is not None:
        return notes
    whose = {"rollout": "the rollout's, as recorded", "replay": "replayed by the learner"}[
        config.old_log_probs
    ]
    return (
        f"Old log-probabilities are {whose} (`agent.anchor` is null, `agent.name` {cfg.agent.name}, "
        f"`rollout.engine` {cfg.rollout.engine} and `model.dtype` {cfg.model.dtype}).",
        *notes,
    )
