"""The settings of a whole run, and what its groups must satisfy together, before anything is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.settings.agent import NUM_MINIBATCHES, AgentSettings, RolloutSettings
from unirl_env.settings.fields import Settings, setting
from unirl_env.settings.learner import LearnerSettings
from unirl_env.settings.policy import NoisingSettings, PolicySettings, StepSettings
from unirl_env.settings.watch import AlarmSettings, LoggingSettings
from unirl_env.settings.world import ModelSettings, PromptSettings, RewardSettings


@dataclass
class RunConfig(Settings):
    """One training run."""

    name: str = setting("run", may_change=True)
    """Names the folder of the run."""
    mode: str = setting("diffusion")
    """What kind of environment `model.env` is: `diffusion`, `ar`, `pe`, `unified_model`, `mdp`, or the name
    of a mode of your own."""
    seed: int = setting(0, least=0)
    """Every random number of the run follows from it."""
    iterations: int = setting(100, least=1, may_change=True)
    """Rollouts, each followed by an update."""
    resume: str | None = setting(None, may_change=True)
    """`auto`, or the folder of a run or a checkpoint to continue."""
    model: ModelSettings = field(default_factory=ModelSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    steps: StepSettings = field(default_factory=StepSettings)
    noising: NoisingSettings = field(default_factory=NoisingSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    alarm: AlarmSettings = field(default_factory=AlarmSettings)

    def check(self, prefix: str = "") -> None:
        """Refuse what cannot work, before anything is loaded: each group by itself, then all together.

        Raises:
            ConfigError: Naming the field, its value and the remedy.
        """
        super().check(prefix)
        for each in dataclasses.fields(self):
            if isinstance(group := getattr(self, each.name), Settings):
                group.check(f"{each.name}.")
        check_run(self)


def check_run(cfg: RunConfig) -> None:
    """Refuse groups of a run that are sound by themselves and cannot work together.

    Raises:
        ConfigError: Naming the field, its value and the remedy.
    """
    if cfg.model.num_steps == 0 and cfg.model.max_new_tokens == 0:
        raise ConfigError(
            "`model.num_steps` must be at least 1 where `model.max_new_tokens` is 0, got 0: there is nothing "
            "to play; try 10."
        )
    _check_alarm(cfg)
    check_division(cfg.learner, cfg.rollout, "rollout.")
    check_shares(cfg.agent, cfg.rollout, "agent.", "rollout.", cfg.learner)
    check_anchor(cfg.agent, cfg.rollout, "agent.", "rollout.")
    check_weights(cfg.agent, cfg.rollout, cfg.policy, "agent.", "rollout.")
    _check_schedule(cfg)
    _check_overlap(cfg)


def pinned(cfg: RunConfig) -> RunConfig:
    """The same run, in which `agent.lr_iterations` says what it follows from `iterations`, if it does.

    Whoever changes `iterations`, or asks whether two runs are alike, looks at this one.
    """
    if cfg.agent.lr_schedule == "constant" or cfg.agent.lr_iterations is not None:
        return cfg
    return replace(cfg, agent=replace(cfg.agent, lr_iterations=cfg.iterations))


def check_shares(
    agent: AgentSettings,
    rollout: RolloutSettings,
    ours: str = "",
    theirs: str = "",
    learner: LearnerSettings | None = None,
) -> None:
    """Refuse runners, epochs and minibatches that do not divide an iteration's episodes as they are meant to.

    Args:
        agent: How often and in which parts the episodes are learnt from.
        rollout: How many there are, and the processes.
        ours: What the names of the agent's settings begin with in an error.
        theirs: What those of the rollout begin with.
        learner: Whether learners read the same episodes; None if each has its own.

    Raises:
        ConfigError: Naming the setting, its value and the remedy.
    """
    num_prompts, group_size, runners = rollout.num_prompts, rollout.group_size, rollout.num_env_runners
    if runners and num_prompts % runners:
        raise ConfigError(
            f"`{theirs}num_prompts` must be divisible by `{theirs}num_env_runners` ({runners}), got "
            f"{num_prompts}: each runner takes whole groups; try "
            f"{theirs}num_prompts={_next_multiple(num_prompts, runners)}."
        )
    sharers, sharing = (1, "") if learner is None else (learner.sharers, learner.sharing)
    episodes, learners = num_prompts * group_size, max(1, rollout.num_learners // sharers)
    groups = f" / `{sharing}`" if sharing else ""
    minibatch_size, num_minibatches = agent.minibatch_size, agent.num_minibatches
    name, shares = "num_minibatches", num_minibatches * learners
    if minibatch_size is not None:
        name, shares = "minibatch_size", minibatch_size * learners
    if episodes % shares:
        raise ConfigError(
            f"`{theirs}num_prompts` x `{theirs}group_size` must be divisible by `{ours}{name}` x "
            f"`{theirs}num_learners`{groups}, got {num_prompts} x {group_size} = {episodes} and {shares}; "
            f"try {theirs}group_size={_next_multiple(group_size, shares)}."
        )
    if minibatch_size is not None and num_minibatches not in (NUM_MINIBATCHES, episodes // shares):
        raise ConfigError(
            f"`{ours}num_minibatches` must be {episodes // shares} or stay unset with "
            f"`{ours}minibatch_size` = {minibatch_size}, got {num_minibatches}; try one of the two."
        )
    size = shares if minibatch_size is not None else episodes // num_minibatches
    if agent.shuffle_batch_per_epoch == "group" and size % group_size:
        whole = max(n for n in range(1, num_prompts + 1) if n * size <= episodes and num_prompts % n == 0)
        raise ConfigError(
            f"`{ours}shuffle_batch_per_epoch` must be 'episode' or False where minibatches cut a group, got "
            f"'group' with minibatches of {size} episodes and groups of {group_size}; try "
            f"{ours}num_minibatches={whole}, of whole groups."
        )


def check_division(learner: LearnerSettings, rollout: Any, theirs: str = "") -> None:
    """Refuse groups that do not divide the learners; arguments as in `check_shares`."""
    size, learners = learner.shard_size, rollout.num_learners
    if size is not None and learners > 1 and learners % size:
        raise ConfigError(
            f"`learner.shard_size` must divide `{theirs}num_learners`, got {size} and {learners}; try "
            f"{theirs}num_learners={_next_multiple(learners, size)}."
        )
    sharers = learner.sharers
    if learners > 1 and learners % sharers:
        raise ConfigError(
            f"`{learner.sharing}` must divide `{theirs}num_learners`, got {sharers} and {learners}; "
            f"try {theirs}num_learners={_next_multiple(learners, sharers)}."
        )


def check_anchor(agent: AgentSettings, rollout: RolloutSettings, ours: str = "", theirs: str = "") -> None:
    """Refuse noise on log-probs that the self-check would take for a fault; arguments as in `check_shares`.

    Raises:
        ConfigError: Naming the settings, their values and the remedy.
    """
    if rollout.log_prob_noise and agent.self_check and agent.self_check_tolerance is not None:
        raise ConfigError(
            f"`{ours}self_check_tolerance` must be null with `{theirs}log_prob_noise` "
            f"{rollout.log_prob_noise:g}, got {agent.self_check_tolerance:g}: the first update would find "
            f"that ratios are not one; try `{ours}self_check_tolerance=null`."
        )


def check_weights(
    agent: AgentSettings, rollout: RolloutSettings, policy: PolicySettings, ours: str = "", theirs: str = ""
) -> None:
    """Refuse an average of the weights that nobody keeps, or that an engine would have to hold beside them.

    Arguments as in `check_shares`.

    Raises:
        ConfigError: Naming the settings, their values and the remedy.
    """
    for name, value in (
        (rollout.named("weights", theirs), rollout.weights),
        ("policy.eval_weights", policy.eval_weights),
    ):
        if value == "ema" and agent.ema_decay is None:
            raise ConfigError(
                f"`{name}` must be 'trained' where no average is kept, got 'ema'; try `{ours}ema_decay=0.9`."
            )
    if rollout.engine != "local" and policy.eval_weights != rollout.weights:
        raise ConfigError(
            f"`policy.eval_weights` must be {rollout.weights!r} like `{rollout.named('weights', theirs)}` "
            f"with the engine {rollout.engine!r}, which holds one set of weights, got "
            f"{policy.eval_weights!r}; try the same for both, or `engine=local`."
        )
    if agent.ema_rise is not None and agent.ema_decay is None:
        raise ConfigError(
            f"`{ours}ema_rise` must be null where `{ours}ema_decay` is, got {agent.ema_rise:g}: there is no "
            f"average; try `{ours}ema_decay=0.9`."
        )


def _check_alarm(cfg: RunConfig) -> None:
    alarm = cfg.alarm
    if "gap" in alarm.stops and alarm.stop not in ("all", ["all"]) and cfg.reward.heldout is None:
        raise ConfigError(
            "`alarm.stop` must name what is watched, got `gap` without held-out scores; try a scorer for "
            "`reward.heldout`, and `alarm.heldout_every=5`."
        )
    if cfg.rollout.keep_samples:
        return
    watched = {
        "alarm.diversity": (alarm.diversity is not None, "null"),
        "alarm.heldout_every": (cfg.reward.heldout is not None and alarm.heldout_every > 0, "0"),
    }
    for name, (wanted, nothing) in watched.items():
        if wanted:
            raise ConfigError(
                f"`rollout.keep_samples` must be true where `{name}` is watched, got false: it is "
                f"taken from the samples; try `{name}={nothing}`, or to keep them."
            )


def _check_schedule(cfg: RunConfig) -> None:
    agent = pinned(cfg).agent
    if agent.lr_schedule == "constant":
        return
    agent.check("agent.")  # of the warm-up, against the run's own length
    assert agent.lr_iterations is not None
    if cfg.iterations > agent.lr_iterations and not agent.lr_final:
        raise ConfigError(
            f"`iterations` must be at most `agent.lr_iterations` where `agent.lr_final` is 0, got "
            f"{cfg.iterations} and {agent.lr_iterations}: beyond it nothing would be learned; try "
            "agent.lr_final=0.1."
        )


def _check_overlap(cfg: RunConfig) -> None:
    rollout = cfg.rollout
    share = rollout.num_prompts * rollout.group_size // max(1, rollout.num_env_runners)
    if cfg.reward.overlap and (rollout.batch_size is None or rollout.batch_size >= share):
        raise ConfigError(
            f"`rollout.batch_size` must be less than the {share} episodes of a runner's share with "
            f"`reward.overlap`, got {rollout.batch_size}: a single lot has no next one to be played while it "
            f"is judged; try rollout.batch_size={max(1, share // 8)}."
        )


def _next_multiple(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor
