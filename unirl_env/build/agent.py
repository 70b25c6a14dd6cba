"""From a run's settings to an agent: the one place that translates them into RLlib's dialect."""

from __future__ import annotations

import difflib
from dataclasses import asdict

from unirl_env.agents import Agent, AgentConfig, DRPOConfig, FlowDPPOConfig, GRPOConfig, GSPOConfig
from unirl_env.build.options import check_prompts, world_options
from unirl_env.config import RunConfig
from unirl_env.envs.prompts import PromptSource
from unirl_env.errors import ConfigError

__all__ = ["AGENTS", "agent_config", "build_agent", "check_agent", "check_prompts", "chosen"]

AGENTS = {"drpo": DRPOConfig, "flow_dppo": FlowDPPOConfig, "grpo": GRPOConfig, "gspo": GSPOConfig}
OPTIMIZER = (
    "lr",
    "warmup_iterations",
    "betas",
    "weight_decay",
    "adam_epsilon",
    "grad_clip",
    "num_epochs",
    "num_minibatches",
    "minibatch_size",
    "shuffle_batch_per_epoch",
    "micro_batch_size",
    "micro_batch_tokens",
    "horizon",
    "mask_truncated",
    "idle_episodes",
    "train_phases",
    "phase_rewards",
    "phase_weights",
    "advantage_scale",
    "advantage_parts",
    "advantage_clip",
    "max_log_ratio",
    "reference_kl",
    "kl_estimator",
    "anchor",
    "self_check",
    "self_check_tolerance",
    "self_check_gap_mean",
    "self_check_gap_max",
    "self_check_kl",
)
"""Fields of `AgentSettings` that every agent's `training()` takes under the same name."""


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
    if cfg.agent.name not in AGENTS:
        raise ConfigError(f"`agent.name` must be one of {', '.join(AGENTS)}, got {cfg.agent.name!r}.")
    _check_options(cfg)
    rollout, settings = cfg.rollout, asdict(cfg.agent)
    source = prompts or PromptSource.of(cfg.prompts.train, max_characters=cfg.prompts.max_characters)
    return (
        AGENTS[cfg.agent.name]()
        .environment(cfg.model.env, env_config={**world_options(cfg), "prompts": source})
        .env_runners(
            num_env_runners=rollout.num_env_runners,
            num_gpus_per_env_runner=rollout.num_gpus_per_env_runner,
        )
        .learners(num_learners=rollout.num_learners, num_gpus_per_learner=rollout.num_gpus_per_learner)
        .debugging(seed=cfg.seed)
        .training(
            prompts=source,
            num_prompts=rollout.num_prompts,
            group_size=rollout.group_size,
            same_noise=rollout.same_noise,
            rollout_batch_size=rollout.batch_size,
            engine=rollout.engine,
            engine_options=rollout.engine_options,
            steps=cfg.steps,
            policy=cfg.policy,
            **{name: settings[name] for name in OPTIMIZER},
            # GSPO weighs texts in its own way; what is null keeps the algorithm's.
            **({"aggregate": cfg.agent.aggregate} if cfg.agent.aggregate else {}),
            **cfg.agent.options,
        )
    )


def _check_options(cfg: RunConfig) -> None:
    """Refuse what is no knob of the algorithm, or is one of every agent's and set elsewhere."""
    kind = AGENTS[cfg.agent.name]
    knobs = sorted(vars(kind()).keys() - vars(AgentConfig()).keys())
    for name, value in cfg.agent.options.items():
        if name in knobs:
            continue
        if name in vars(cfg.agent):
            remedy = f"it is a setting of every agent; try `agent.{name}={value}`"
        else:
            near = difflib.get_close_matches(name, knobs, n=1)
            remedy = f"did you mean `agent.options.{near[0]}`?" if near else f"it has {', '.join(knobs)}"
        raise ConfigError(
            f"`agent.options.{name}` must be a knob of {cfg.agent.name}, and is none, got {value!r}; {remedy}"
        )


def chosen(cfg: RunConfig, config: AgentConfig) -> tuple[str, ...]:
    """What the settings left open and was chosen, in sentences."""
    if cfg.agent.anchor is not None or cfg.rollout.engine == "local":
        return ()
    whose = {"rollout": "the engine's, as recorded", "replay": "replayed by the learner"}[
        config.old_log_probs
    ]
    return (
        f"Old log-probabilities are {whose} (`agent.anchor` is null, `agent.name` {cfg.agent.name} and "
        f"`rollout.engine` {cfg.rollout.engine}).",
    )
