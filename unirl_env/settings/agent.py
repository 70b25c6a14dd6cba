"""The settings of an algorithm: its optimizer, how rewards become gradients, and where rollouts run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unirl_env.errors import ConfigError
from unirl_env.settings.fields import Settings, setting

NUM_MINIBATCHES = 2
"""The default, which gives way to `minibatch_size`."""

ARGUMENTS = {
    "params": None,
    "lr": "lr",
    "betas": "betas",
    "weight_decay": "weight_decay",
    "eps": "adam_epsilon",
}
"""What an optimizer is given by name, and the settings that say it."""


@dataclass
class AgentSettings(Settings):
    """The algorithm and its optimizer."""

    name: str = setting("flow_dppo", python=False)
    """`pg`, `grpo`, `flow_dppo` or `drpo`; for texts `gspo`, too; for latents `nft`, `awm`, `elbo_pg`,
    `grpo_guard` and `temp_flow`, too; or the path of your own, `package.module:ReinforceConfig`."""
    options: dict[str, Any] = setting({}, python=False)
    """The algorithm's own knobs (clip_low_nats, kl_threshold_nats, epsilon, ...)."""
    estimator: str | None = setting(None, choices=("trajectory", "elbo", "regression"), inherits=True)
    """How the probability of latents is scored in the update. `trajectory`: the transitions that were played.
    `elbo`: the finished latent, noised anew as `noising` says, by its evidence bound. `regression`: at the
    same noised latents, for losses of velocities alone. Null is the algorithm's own."""
    ema_decay: float | None = setting(None, least=0, below=1, hint="0.9")
    """Keep a moving average of the trained weights, and this much of it in each iteration; null keeps none.
    With u optimizer steps taken, the decay is min(ema_decay, ema_rise * max(0, u - ema_delay))."""
    ema_rise: float | None = setting(None, above=0, hint="0.001")
    """How fast the decay rises from 0 with each optimizer step; null has it constant."""
    ema_delay: int = setting(0, least=0)
    """Optimizer steps before it rises; up to there the average is the trained weights."""
    lr: float = setting(3e-4, above=0)
    """Learning rate of the optimizer, after the warm-up."""
    warmup_iterations: int = setting(0, least=0)
    """Iterations over which the learning rate rises to `lr`."""
    lr_schedule: str = setting("constant", choices=("constant", "linear", "cosine"))
    """What the learning rate does after the warm-up: it stays, or falls to `lr_final` along a line or half a
    cosine. All optimizer steps of an iteration have one learning rate."""
    lr_final: float = setting(0.0, least=0, most=1)
    """The share of `lr` at which a schedule ends, after its last iteration (which still learns a little where
    this is 0). Iterations beyond it go on with that share, and with 0 are refused."""
    lr_iterations: int | None = setting(None, least=1)
    """Iterations of a schedule, the warm-up included. Null takes the `iterations` of the run, which then may
    not change where the run is continued; an agent without a run must be given them."""
    phase_lrs: dict[str, float] = setting({})
    """For a phase, a factor on the learning rate of the weights that it alone reads; 1 without. Weights that
    several phases read take 1: no factor on a learning rate could tell their gradients apart
    (`phase_weights` does). Where there is one phase, all weights are its own."""
    optimizer: str | None = setting(None)
    """The path of a class of optimizers, `torch.optim:SGD` or `package.module:Mine`; null is AdamW. It is
    made of the weights with `lr`, and with `betas`, `weight_decay` and `adam_epsilon` (as `eps`) if its
    arguments have these names. What it remembers of a weight must be tensors or numbers, to be saved."""
    optimizer_options: dict[str, Any] = setting({})
    """Further arguments of the optimizer (`{momentum: 0.9}`; of AdamW `{amsgrad: true}`)."""
    betas: tuple[float, float] = setting((0.9, 0.999))
    """AdamW's moments."""
    weight_decay: float = setting(0.0, least=0)
    """Decay of the weights, by AdamW or by another optimizer that knows it."""
    adam_epsilon: float = setting(1e-8, above=0, hint="1e-8")
    """What AdamW adds to the root of the second moment, in units of a gradient after clipping. Weights whose
    gradients are smaller move less than `lr`; those of latents are small, because their loss is a mean over
    elements."""
    grad_clip: float | None = setting(1.0, above=0, hint="1.0")
    """The most that the norm of the whole gradient may be; null does not clip."""
    num_epochs: int = setting(1, least=1)
    """Passes over the episodes of a rollout."""
    num_minibatches: int = setting(NUM_MINIBATCHES, least=1)
    """Optimizer steps per epoch, on disjoint parts of the episodes, whatever the number of learners."""
    minibatch_size: int | None = setting(None, least=1)
    """In place of the number: episodes that each learner takes in a step, which grows with the learners."""
    shuffle_batch_per_epoch: Any = setting(False, choices=(False, True, "group", "episode"))
    """Deal the episodes out anew in every epoch: by whole `group`s, by `episode`, or true, which is by groups
    where minibatches hold whole ones. Changes with the seed, the iteration and the epoch only."""
    micro_batch_size: int | str | None = setting("auto", least=1, word="auto", may_change=True)
    """Episodes per forward and backward; null takes the whole minibatch. `auto` does so, too, except of
    latents on a CPU, of which it takes no more than its caches hold. Changes memory and time, not results."""
    micro_batch_steps: int | None = setting(None, least=1, may_change=True)
    """Denoising steps of an episode per forward and backward, where those of a single one do not fit, as of
    long clips; null takes all. Changes memory and time, not results."""
    micro_batch_tokens: int | None = setting(None, least=1, may_change=True)
    """Packed tokens per forward and backward of a language model. Changes memory, not results."""
    aggregate: str | None = setting(None, choices=("token_mean", "sequence_mean", "horizon"), inherits=True)
    """How tokens of texts of unequal length are weighed: `token_mean` (each token alike), `sequence_mean`
    (each text alike), `horizon` (sums over `horizon`, as Dr. GRPO). Null is the algorithm's own:
    `sequence_mean` for `gspo`, whose texts have one ratio each, and `token_mean` for the others."""
    horizon: int | None = setting(None, least=1)
    """What sums over a text's tokens are divided by under `horizon`."""
    mask_truncated: bool = setting(False)
    """Leave texts out of the loss that the length limit ended."""
    idle_episodes: str = setting("count", choices=("count", "leave_out"))
    """Episodes of advantage 0 (in groups of equal rewards): `count` in what sums are divided by, so that a
    minibatch with few others takes a small step; `leave_out` divides by the others only, and takes them out
    of the KL to the untrained model, too, as if they had not been drawn."""
    train_phases: list[str] | None = setting(None)
    """Which phases of a text with a picture are trained, of `text` and `image`; null trains both."""
    phase_rewards: dict[str, str] = setting({})
    """For a phase, the part of the reward that it is paid instead of the whole."""
    phase_weights: dict[str, float] = setting({})
    """For a phase, the weight of its loss; 1 without. The units of phases differ: a loss on tokens is a mean
    over tokens of nats, one on latents a mean over steps of nats per element. With S stochastic steps, D
    elements of a latent and L trained tokens of the mean text, a nat of text weighs S D / L times a nat of
    picture (under `aggregate: horizon` S D / horizon): 223 times on the embedded unified model, some
    thousands at the size of SD3. `phase_scale: nats` makes them equal, and this weighs them on top of it.
    AdamW divides much of it out where no weight serves both phases."""
    phase_scale: str = setting("mean", choices=("mean", "nats"))
    """The unit in which losses of several phases are added: the `mean` over rows that each is, or `nats`,
    where each weighs per nat of its own actions. Tokens then keep their loss, and that of latents (with its
    KL) is multiplied by S D / L, counted anew in each optimizer step: a step of the picture counts as one
    more token would, with the nats of all its elements. Gradients of the picture grow by as much, and
    `grad_clip` cuts both phases together: look at `<phase>/grad_norm`."""
    phase_grad_norms: bool = setting(True, may_change=True)
    """Where several phases are trained, log what each adds to the gradient, as `<phase>/grad_norm`: the norm
    over all learners, before clipping. It takes the memory of one more gradient for each phase but the first,
    and as much more to exchange between learners; nothing to speak of with adapters."""
    advantage_scale: str = setting("group", choices=("group", "batch", "none", "leave_one_out"))
    """What centred rewards are divided by: the std of the `group`, of the `batch`, or `none`; `leave_one_out`
    centres on the others of the group, and does not divide."""
    advantage_parts: dict[str, float] = setting({})
    """Parts of the reward that are normalised within their groups one by one and then added (GDPO), with
    their weights; empty takes the reward itself."""
    advantage_clip: float | None = setting(None, above=0)
    """Bound on the size of an advantage, in units of what `advantage_scale` divides by: of the group's std
    under `group`, where none of G episodes exceeds sqrt(G - 1) (a bound of 5 does nothing up to G = 26), of
    the batch's under `batch` and `advantage_parts`, of the reward itself under `none` and `leave_one_out`."""
    step_weights: str | None = setting(None, choices=("none", "noise", "inverse_length"), inherits=True)
    """How much the steps of latents count beside each other: `none` alike; `noise` by the std of their noise
    over its mean on the trained steps (TempFlow-GRPO), so that those near the data, which decide little, do
    not push hardest; `inverse_length` by 1 / (sigma - sigma_next), likewise (GRPO-Guard). Tokens are left
    alone. Null is the algorithm's own."""
    max_log_ratio: float = setting(20.0, above=0, most=40)
    """Where the log-ratio of new and old policy is cut, in nats per token (of latents: per element, so that
    20 is D times 20 nats of an action). Entries beyond it have no gradient. It guards against overflow; the
    algorithm's own knobs are the trust region."""
    stop_kl: float | None = setting(None, above=0, hint="0.05")
    """The mean KL, in nats of a whole action (of a token, or of all elements of a latent's step), between
    the policy that sampled and the present one, beyond which the rest of an iteration's optimizer steps are
    not taken. It is measured before every step but the first, on that step's own minibatch, all learners
    together; with several phases, the first one beyond it stops all. On tokens it is the mean of r - 1 - ln
    r; on latents it is exact where the loss has means recorded, and else follows from the mean square of the
    log-ratio. Unlike masks of a trust region it holds AdamW's momentum, too. Logged as `stop_kl` (the last
    one measured) and `stopped_steps`."""
    reference_kl: float = setting(0.0, least=0)
    """Weight of the KL to the untrained model, per nat of it: of a token, or of a latent's step (a mean over
    elements, as the loss it is added to). `kl_in` says whether the KL that later steps will pay counts."""
    reference_distance: str = setting("kl", choices=("kl", "velocity"))
    """What `reference_kl` weighs on latents that were played: the exact `kl` of each step, or the mean square
    of the difference of `velocity` there (UniGRPO), which weighs noisy steps more."""
    kl_in: str = setting("loss", choices=("loss", "return"))
    """Where that KL is charged. `loss` adds that of each visited state, in units of advantages; that a step
    changes the KL which later ones will pay is left out. `return` charges each step with it, too, and in
    units of the reward: the objective is `E[r] - reference_kl * KL`, in nats of whole episodes, whatever
    `advantage_scale` divides by. It costs a forward pass of the untrained model before each update, and one
    more where the sampler's means were not recorded."""
    kl_estimator: str = setting("k2", choices=("k2", "k3"))
    """How that KL pulls on tokens: `k2` as itself, `k3` as the reversed KL. On latents it is exact."""
    entropy_bonus: float = setting(0.0, least=0)
    """Weight of the mean entropy, in nats of a token or an action, that is taken off the loss: of the
    distribution that samples, after temperature, `top_k` and `top_p` (which tokens these keep is taken as
    given), at every trained token, those of advantage 0 included. Latents have none to reward: the schedule
    fixes their standard deviation, and so their entropy."""
    reference_kl_every: int = setting(0, least=0, may_change=True)
    """Iterations from one measurement of that KL to the next where its weight is 0: a forward pass more of
    the rows that are trained. 0 measures none, and where no step explores there is none to measure."""
    anchor: str | None = setting(None, choices=("rollout", "replay"), inherits=True)
    """Old log-probs and means: as the `rollout` recorded them, or by `replay` under the same weights. Null is
    the rollout's for the engine `local`, and replay for other engines and for texts in half precision, where
    rounding would pass for a change of the policy; for `flow_dppo` always the rollout's, because DPPO is
    defined by the policy that sampled."""
    correction: str | None = setting(None, choices=("none", "truncate", "mask"), inherits=True)
    """Importance weights on advantages, of the learner's policy before the update over the one that sampled:
    `truncate` at most `correction_bound`; `mask` 0 where they leave [1 / bound, bound] (IcePop); or `none`.
    They need old log-probs by `replay`. Null truncates where an engine other than `local` samples and they
    are replayed, and is none elsewhere."""
    correction_level: str | None = setting(None, choices=("step", "episode"), inherits=True)
    """What has a weight of its own: each `step` (a token, or a step of latents, of which it is the ratio of
    whole actions), or each `episode` (a whole text; the product over its steps). Null is the algorithm's own:
    `episode` for `gspo`, `step` for the others."""
    correction_bound: float = setting(2.0, above=1)
    """Where these weights end."""
    self_check: bool = setting(True)
    """Stop unless the first update finds what the rollout recorded."""
    self_check_tolerance: float | None = setting(1e-4, above=0)
    """Largest |ratio - 1| against the anchor that the first update may show; null for no bound, as below."""
    self_check_gap_mean: float | None = setting(0.25, above=0)
    """Mean distance in nats, over tokens or denoising steps, between recorded and learner's log-probs that it
    may show: ten times what bfloat16 costs between vLLM and transformers, and far below a wrong policy's."""
    self_check_gap_max: float | None = setting(5.0, above=0)
    """The same of a single token or step: rare tokens may differ much, none by a factor of 150."""
    self_check_kl: float | None = setting(0.25, above=0)
    """Largest KL in nats, over all elements of a latent, between the learner's step and the recorded one."""

    def check(self, prefix: str = "") -> None:
        """Refuse what trains nothing or contradicts itself, too."""
        if self.kl_estimator == "k1":
            raise ConfigError(
                f"`{prefix}kl_estimator` must be k2 or k3, got 'k1': the mean of its gradient is 0, so that "
                "it would not pull at all; try k2."
            )
        if isinstance(self.optimizer, Mapping):
            raise ConfigError(
                f"`{prefix}optimizer` must be the path of a class, or null, got {self.optimizer!r}; try "
                f"`torch.optim:AdamW`, with its arguments in `{prefix}optimizer_options`."
            )
        super().check(prefix)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(
                f"`{prefix}betas` must be two numbers in [0, 1), got {list(self.betas)}; try [0.9,0.999]."
            )
        if (self.aggregate == "horizon") != (self.horizon is not None):
            raise ConfigError(
                f"`{prefix}horizon` must be given with `{prefix}aggregate=horizon` and no other, got "
                f"{self.horizon} with {self.aggregate}; try the limit of new tokens."
            )
        self._check_optimizer(prefix)
        self._check_phases(prefix)
        self._check_parts(prefix)
        self._check_return(prefix)

    def _check_optimizer(self, prefix: str) -> None:
        if self.lr_final and self.lr_schedule == "constant":
            raise ConfigError(
                f"`{prefix}lr_final` must be 0 where the learning rate stays (`{prefix}lr_schedule` "
                f"'constant'), got {self.lr_final:g}; try `{prefix}lr_schedule=cosine`."
            )
        length, warmup = self.lr_iterations, self.warmup_iterations
        if length is not None and self.lr_schedule != "constant" and warmup >= length:
            raise ConfigError(
                f"`{prefix}warmup_iterations` must be less than the {length} iterations of the schedule "
                f"(`{prefix}lr_iterations`, or those of the run), got {warmup}; try {length // 10}."
            )
        for phase, factor in self.phase_lrs.items():
            if not factor > 0:
                raise ConfigError(
                    f"`{prefix}phase_lrs` must be positive, got {factor} for {phase!r}; try "
                    f"`{prefix}train_phases` to leave a phase out."
                )
        given = [name for name in self.optimizer_options if name in ARGUMENTS]
        if given:
            remedy = ARGUMENTS[given[0]]
            raise ConfigError(
                f"`{prefix}optimizer_options` must not name {given[0]!r}, which "
                + (f"is a setting of its own; try `{prefix}{remedy}`." if remedy else "the agent gives.")
            )

    def _check_phases(self, prefix: str) -> None:
        phases = self.train_phases
        if phases is not None and (not phases or len(set(phases)) < len(phases)):
            raise ConfigError(
                f"`{prefix}train_phases` must name phases once each, or be null for all, got {list(phases)}"
                f"{'' if phases else ': nothing would be trained'}; try null."
            )
        for phase, weight in self.phase_weights.items():
            if not weight > 0:
                raise ConfigError(
                    f"`{prefix}phase_weights` must be positive, got {weight} for {phase!r}; try "
                    f"`{prefix}train_phases` to leave a phase out."
                )

    def _check_parts(self, prefix: str) -> None:
        for name, weight in self.advantage_parts.items():
            if weight == 0:
                raise ConfigError(
                    f"`{prefix}advantage_parts` must be finite weights other than 0, got {weight!r} for "
                    f"{name!r}; try leaving it out."
                )
        if self.advantage_parts and self.advantage_scale != "group":
            raise ConfigError(
                f"`{prefix}advantage_scale` must stay group with `{prefix}advantage_parts`, which normalises "
                f"each part within its group, got {self.advantage_scale!r}; try group."
            )

    def _check_return(self, prefix: str) -> None:
        if self.kl_in != "return":
            return
        if self.reference_distance != "kl":
            raise ConfigError(
                f"`{prefix}reference_distance` must be kl with `{prefix}kl_in=return`, got "
                f"{self.reference_distance!r}: what later steps pay is a KL; try kl."
            )
        if self.advantage_parts:
            raise ConfigError(
                f"`{prefix}kl_in` must be loss with `{prefix}advantage_parts`, got 'return': parts that are "
                f"normalised one by one have no unit in which a nat could be paid; try loss, or rewards that "
                "are added up."
            )
        if self.kl_estimator != "k2":
            raise ConfigError(
                f"`{prefix}kl_estimator` must be k2 with `{prefix}kl_in=return`, got {self.kl_estimator!r}: "
                "the KL that later tokens pay and the one that pulls here must be the same; try k2."
            )


@dataclass
class RolloutSettings(Settings):
    """How many episodes an iteration has, and who produces them."""

    engine: str = setting("local")
    """Who draws samples: `local` is in-process torch; texts may come from `vllm`, `vllm_server`, `sglang`."""
    engine_options: dict[str, Any] = setting({})
    """Arguments of the engine (url, max_model_len, ...)."""
    num_prompts: int = setting(8, least=1)
    """P, distinct prompts per iteration."""
    group_size: int = setting(
        12,
        least=2,
        why="an episode alone in its group has advantage zero, so nothing would be learned",
        hint="8",
    )
    """G, episodes per prompt."""
    sampler: str | None = setting(None, choices=("sde", "ode", "dpm2m", "mixed"), inherits=True)
    """How latents are played. `sde`: the steps that `steps` names explore, Euler's elsewhere. `ode`: no step
    explores, all are Euler's. `dpm2m`: none explores, DPM-Solver++(2M), of second order at the same cost.
    `mixed`: those of `steps` explore, DPM-Solver++(2M) elsewhere. Null is `sde` where an update scores
    transitions (`agent.estimator` trajectory), and `ode` where it looks at finished latents."""
    weights: str = setting("trained", choices=("trained", "ema"), python="rollout_weights")
    """Which weights play: those that are trained, or their average (`agent.ema_decay`)."""
    same_noise: bool = setting(False)
    """Start every episode of a group from one initial noise."""
    batch_size: int | None = setting(None, least=1, python="rollout_batch_size", may_change=True)
    """Episodes that one runner steps together; null takes its whole share. Bounds memory."""
    keep_samples: bool = setting(True, may_change=True)
    """Keep an iteration's finished samples until the next: what the diversity of groups and the held-out
    reward of training samples are taken from. Without, less memory."""
    log_prob_noise: float = setting(0.0, least=0)
    """Standard deviation of keyed noise on recorded log-probs, to try without another engine or precision
    what theirs do to an algorithm: nats of a token or an action; of latents, per element as these are."""
    merge_adapters: bool | None = setting(None, may_change=True)
    """Sample with adapters merged into a copy of the weights that they adapt: faster, and in the last bits
    another sum than the learner's, whose weights are the very same. Null merges in float32, unless the model
    has `rows_per_forward`, which promises a ratio of exactly one. In bfloat16 merged weights are rounded."""
    num_env_runners: int = setting(0, least=0, may_change=True)
    """Rollout processes; 0 rolls out in the driver."""
    num_learners: int = setting(0, least=0, may_change=True)
    """Learner processes; 0 learns in the driver."""
    num_gpus_per_env_runner: float = setting(0, least=0, may_change=True)
    """GPUs that each rollout process reserves."""
    num_gpus_per_learner: float = setting(0, least=0, may_change=True)
    """GPUs that each learner process reserves."""
    cluster_wait: float | None = setting(None, least=0, may_change=True)
    """Seconds to wait until Ray's cluster has room for these processes; null waits a minute where it is full,
    and not at all where it is too small."""
    timeout_s: float | None = setting(3600.0, above=0, hint="3600", python=False, may_change=True)
    """Seconds that an iteration, an evaluation or a save may take; then it counts as hung, and the run ends
    with what is finished saved. Null waits for ever. A stopped process (SIGSTOP) is found after a minute."""
