"""The settings of the policy: how the trained network acts, and which of its steps are trained."""

from __future__ import annotations

from dataclasses import dataclass

from unirl_env.errors import ConfigError
from unirl_env.settings.fields import Settings, setting
from unirl_env.settings.world import DTYPES


@dataclass
class StepSettings(Settings):
    """Which denoising steps are stochastic, and thereby trained.

    The others are deterministic: their share of the gradient is not seen, and leaving the untrained model
    there costs no KL. Seen is, for T = 10, shift 3, `eta` 0.7 and data as wide as the noise: 0.90 of the true
    gradient by `all`, 0.27 by the fraction (0, 0.5), 0.45 by a window of four (0.18, 0.46 and 0.72 in its
    places); less of narrower data, settled in the last steps: 0.76, 0.15 and 0.36 of 0.6 of the width.
    """

    kind: str = setting("fraction", choices=("all", "none", "fraction", "random", "window"))
    """`all` (but the last, whose noise would stay in the picture), `fraction`, `random` or `window`; for
    losses that score no step `none`: the ODE is played, and what it ends with is trained on."""
    fraction: tuple[float, float] = setting((0.0, 0.5))
    """The range of the schedule to choose from."""
    count: int | None = setting(None, least=1)
    """How many steps `random` draws."""
    window: int = setting(4, least=1)
    """The width of the sliding window."""
    stride: int | None = setting(None, least=1)
    """How far the window moves; null leaves an overlap of one."""
    iterations_per_window: int = setting(25, least=1)
    """How long the window rests in one place."""
    tail: float = setting(1.0, above=0, most=1, hint="0.5")
    """The share of the steps behind the last one that explores which training takes, evenly among the levels
    of the schedule: nothing is trained there, and what `rollout.sampler` `mixed` takes is of second order.
    MixGRPO-Flash has about 0.4. Evaluation takes all."""

    def check(self, prefix: str = "") -> None:
        """Refuse ranges without a step, too."""
        super().check(prefix)
        low, high = self.fraction
        if not 0 <= low < high <= 1:
            raise ConfigError(
                f"`{prefix}fraction` must satisfy 0 <= low < high <= 1, got {low}, {high}; try [0.0, 0.5]."
            )
        if self.kind == "random" and self.count is None:
            raise ConfigError(
                f"`{prefix}count` must be a whole number of at least 1 with `{prefix}kind` random, got null: "
                f"no step would be trained; try {prefix}count=3."
            )
        if self.tail < 1 and self.kind in ("all", "none"):
            raise ConfigError(
                f"`{prefix}tail` must be 1 with `{prefix}kind` {self.kind}, got {self.tail:g}: there is no "
                f"tail behind steps that explore; try {prefix}kind=window, or fewer `num_steps`."
            )


@dataclass
class NoisingSettings(Settings):
    """How finished latents are noised anew, where `agent.estimator` is `elbo` or `regression`.

    Of each episode K latents `(1 - s) x_0 + s noise` are drawn, keyed by the run's seed, the episode and the
    iteration: they are the same for the new, the old and the untrained policy, and in all epochs. Of s, what
    the model does not know is left out: epsilon models end below 1 and begin above 0.
    """

    draws: int = setting(4, least=1)
    """K, noised latents of an episode."""
    sigmas: str = setting("uniform", choices=("uniform", "logit_normal"))
    """Where s is drawn from, one draw in each of K strata of equal probability."""
    low: float = setting(0.0, least=0, below=1)
    """The least s."""
    high: float = setting(1.0, above=0, most=1)
    """The largest s."""
    share: str = setting("episode", choices=("episode", "group"))
    """Whose draws are the same: each episode's own, or one set for a whole group."""
    weight: str | None = setting(None, choices=("unit", "x0", "adaptive", "ghuber", "elbo"))
    """What the squared error of the velocity weighs at s: `unit` 1, `x0` s^2 (the error of the picture),
    `adaptive` s^2 over the mean absolute error of the picture, `ghuber` the same in AWM's form, `elbo`
    (1 - s) / s, of the exact bound. Null is the algorithm's own. Beside a KL to the untrained model both need
    the weight of the bound: any other moves the optimum."""
    reduction: str = setting("mean", choices=("mean", "sum"))
    """Whether errors are means over the elements of a latent, or sums, which are nats under `elbo`."""

    def check(self, prefix: str = "") -> None:
        """Refuse an empty range, too."""
        super().check(prefix)
        if not self.low < self.high:
            raise ConfigError(
                f"`{prefix}low` must be less than `{prefix}high`, got {self.low:g} and {self.high:g}; try "
                f"{prefix}low=0 and {prefix}high=1."
            )


@dataclass
class PolicySettings(Settings):
    """How the trained network acts."""

    lora_rank: int | None = setting(16, least=1)
    """Rank of the adapters; null trains all weights."""
    lora_alpha: int = setting(32, least=1, why="adapters of scale 0 change nothing")
    """Scale of the adapters."""
    lora_targets: list[str] | None = setting(None)
    """Layers that adapters attach to; null takes the model family's own list."""
    guidance: float = setting(1.0)
    """Classifier-free guidance, the same in rollout and update; 1 is none."""
    guidance_at_once: bool = setting(True, may_change=True)
    """With guidance, evaluate the network with and without the prompt in one forward of twice the rows; false
    takes two, with half the memory where nothing is trained."""
    dynamics: str = setting("flow", choices=("flow", "dance", "cps", "ddim"))
    """The stochastic step: `flow`, `dance`, `cps`, or `ddim`, that of DDPO."""
    eta: float = setting(
        0.7, above=0, why="without noise no step has a log-probability to train on", hint="0.7"
    )
    """Its noise level; at most 1 for `cps` and `ddim`."""
    storage_dtype: str = setting("float32", choices=DTYPES)
    """What latents are rounded to before they are scored and stored."""
    temperature: float = setting(
        1.0, above=0, why="a greedy policy has no log-probability to train on", hint="1.0"
    )
    """What a language model's logits are divided by, in rollout and update."""
    top_p: float = setting(1.0, above=0, most=1)
    """Sample among the likeliest tokens of this mass; 1 keeps all."""
    top_k: int = setting(0, least=0)
    """Sample among this many likeliest tokens; 0 keeps all."""
    eval_temperature: float | None = setting(None, least=0)
    """The temperature of evaluation; 0 decodes greedily, null takes `temperature`."""
    eval_guidance: float | None = setting(None)
    """Classifier-free guidance of latents in evaluation; null takes `guidance`."""
    eval_size: list[int] | None = setting(None)
    """Height and width of evaluation's pictures in pixels; null takes those of training. Of denoisers that
    can draw several sizes."""
    eval_sampler: str = setting("ode", choices=("ode", "dpm2m"))
    """How latents are denoised in evaluation: by Euler's steps, or by DPM-Solver++(2M)."""
    eval_weights: str = setting("trained", choices=("trained", "ema"))
    """Which weights are evaluated: those that are trained, or their average (`agent.ema_decay`)."""
    gradient_checkpointing: bool = setting(False)
    """Recompute activations in the backward pass: less memory, more time."""
    replay_routing: bool = setting(False)
    """Of a mixture of experts: score each token by the experts that sampled it (R3); the metric `rerouted`
    says which share of them would not have been chosen. For texts by the engine `local`: other engines return
    no choices, and of latents none are recorded."""

    def check(self, prefix: str = "") -> None:
        """Refuse a policy that trains nothing, too."""
        super().check(prefix)
        if self.top_k == 1:
            raise ConfigError(
                f"`{prefix}top_k` must be 0 or at least 2, got 1: of a single token there is nothing to "
                "choose, so nothing would be learned; try 0, which keeps all tokens."
            )
        if self.lora_rank is None and self.lora_targets is not None:
            raise ConfigError(
                f"`{prefix}lora_targets` must be null where `{prefix}lora_rank` is, got {self.lora_targets}: "
                f"all weights are trained; try `{prefix}lora_rank=16`."
            )
        if self.eval_size is not None and (len(self.eval_size) != 2 or min(self.eval_size) < 1):
            raise ConfigError(
                f"`{prefix}eval_size` must be a height and a width in pixels, or null, got {self.eval_size}; "
                "try [1024, 1024]."
            )
        if self.lora_targets is not None and not self.lora_targets:
            raise ConfigError(
                f"`{prefix}lora_targets` must name a layer, or be null for the model family's own list, got "
                "[]: without adapters nothing is trained; try null."
            )
