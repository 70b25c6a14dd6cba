"""From a run's settings to an agent: the one place that translates them into RLlib's dialect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import gymnasium as gym

from unirl_env.agents import Agent, AgentConfig, DRPOConfig, FlowDPPOConfig, GRPOConfig, GSPOConfig
from unirl_env.build.world import make_model, pick_device
from unirl_env.config import RunConfig
from unirl_env.envs.encodings import encode_prompts, input_limits
from unirl_env.envs.prompts import PromptSource
from unirl_env.envs.tokens import MAX_PROMPT_TOKENS
from unirl_env.errors import ConfigError
from unirl_env.models import UnifiedModel
from unirl_env.models.options import model_choice
from unirl_env.rewards import for_mode
from unirl_env.rewards.secrets import resolved
from unirl_env.types import Prompt

__all__ = ["AGENTS", "agent_config", "build_agent", "check_prompts", "chosen", "model_sources"]

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


def build_agent(cfg: RunConfig) -> Agent:
    """Build the agent, its runners and its learners; it starts Ray unless that runs.

    Raises:
        ConfigError: If the settings cannot work.
        ClusterError: If Ray does not start, or has no room for them.
    """
    config = agent_config(cfg)
    config.validate()
    return config.build_algo()


def agent_config(cfg: RunConfig) -> AgentConfig:
    """The settings as an `AgentConfig`.

    Raises:
        ConfigError: If the agent or one of its options is unknown.
    """
    cfg.check()
    if cfg.agent.name not in AGENTS:
        raise ConfigError(f"`agent.name` must be one of {', '.join(AGENTS)}, got {cfg.agent.name!r}.")
    rollout, settings = cfg.rollout, asdict(cfg.agent)
    source = PromptSource.of(cfg.prompts.train, max_characters=cfg.prompts.max_characters)
    return (
        AGENTS[cfg.agent.name]()
        .environment(cfg.model.env, env_config=world_options(cfg))
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


def check_prompts(cfg: RunConfig, prompts: Iterable[Prompt]) -> None:
    """Let a language model read every prompt once: one that does not fit would stop the run hours later.

    Raises:
        PromptError: Naming the prompt and the limit.
    """
    arguments = {**gym.spec(cfg.model.env).kwargs, **world_options(cfg)}
    choice = model_choice(arguments)
    if choice.family == "denoiser":
        return
    model, most = make_model(choice), arguments.get("max_prompt_tokens", MAX_PROMPT_TOKENS)
    model = model.text if isinstance(model, UnifiedModel) else model
    limits = input_limits(model, most)
    for prompt in prompts:
        # One at a time: the pictures of all of them may not fit into memory.
        encode_prompts(model, [prompt], most, limits)


def model_sources(cfg: RunConfig) -> dict[str, tuple[str, str | None]]:
    """Every model that a run loads weights of, as `(hub id or directory, revision)`.

    Returns:
        The environment's own as `model`, and what it consists of or draws with by the names of the settings;
        models in closed form have none.
    """
    arguments = {**gym.spec(cfg.model.env).kwargs, **world_options(cfg)}
    choice = model_choice(arguments)
    described = {"model": choice}
    for name in ("writer", "painter"):
        if isinstance(part := choice.options.get(name), Mapping):
            described[f"model.{name}"] = model_choice(part)
    if isinstance(generator := arguments.get("generator"), Mapping):
        described["model.generator"] = model_choice(generator)
    found = {}
    for name, each in described.items():
        pretrained = getattr(make_model(each), "pretrained", None)
        if pretrained is not None:
            found[name] = (str(pretrained), each.options.get("revision"))
    return found


def world_options(cfg: RunConfig) -> dict[str, Any]:
    """Keyword arguments of the environment; what is null keeps the id's own default."""
    model = cfg.model
    chosen = {
        "pretrained": model.pretrained,
        "revision": model.revision,
        "num_steps": model.num_steps,
        "height": model.height,
        "width": model.width,
        "dtype": model.dtype,
        "device": pick_device(model.device),
        "offload": model.offload or None,
        "rows_per_forward": model.rows_per_forward,
        "max_new_tokens": model.max_new_tokens,
        "max_prompt_tokens": model.max_prompt_tokens,
        "prompts": cfg.prompts.train,
        "max_characters": cfg.prompts.max_characters,
        "scorer": for_mode(cfg.reward.train, cfg.mode),
        "overlap": cfg.reward.overlap or None,
        "on_invalid": "raise" if cfg.reward.on_error == "raise" else "nan",
    }
    return {name: value for name, value in chosen.items() if value is not None} | resolved(
        model.options, "model.options"
    )
