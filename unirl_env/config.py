"""The settings of a run, as data: defaults, a reason under each field, and checks that cost nothing.

YAML recipes mirror these names one to one. `RunConfig.check()` refuses what cannot work before any
model is loaded. Nothing here imports more than the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unirl_env.config_check import NUM_MINIBATCHES, check_run
from unirl_env.config_watch import AlarmSettings, LoggingSettings

__all__ = [
    "AgentSettings",
    "AlarmSettings",
    "LoggingSettings",
    "ModelSettings",
    "PolicySettings",
    "PromptSettings",
    "RewardSettings",
    "RolloutSettings",
    "RunConfig",
    "StepSettings",
]


@dataclass
class ModelSettings:
    """Which environment, and the model inside it."""

    env: str = "unirl/TinySD3-T2I-v0"
    """The registered id of the environment."""
    pretrained: str | None = None
    """A hub id or a directory; null takes the id's own default."""
    revision: str | None = None
    """A branch, tag or commit of the hub repository."""
    num_steps: int | None = None
    """T, denoising steps of a training episode; null takes the id's own default."""
    eval_num_steps: int | None = None
    """Denoising steps in evaluation; null takes `num_steps`."""
    height: int | None = None
    """Picture height in pixels; null takes the model's own size."""
    width: int | None = None
    """Picture width in pixels; null takes the model's own size."""
    dtype: str = "float32"
    """Weights and activations; the mathematics of the steps is float32 throughout."""
    device: str = "auto"
    """`auto` is the GPU where there is one."""
    offload: bool = False
    """Keep the frozen parts on the CPU between uses."""
    rows_per_forward: int | None = None
    """Fixes the network's batch size, so that an image episode is bitwise the same in any batch."""
    max_new_tokens: int | None = None
    """Where a text is cut off; null takes the id's own default."""
    max_prompt_tokens: int | None = None
    """The longest prompt in tokens; null takes the id's own default."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment or its model (system, thinking, tool, max_pixels, ...)."""


@dataclass
class PromptSettings:
    """Where the prompts come from."""

    train: Any = "shapes_train"
    """A shipped set, a .txt or .jsonl file, a dataset directory, or a list of texts."""
    heldout: Any = "shapes_heldout"
    """Prompts that training never sees; evaluation reports them apart. Null for none."""
    max_characters: int = 4000
    """A longer prompt is refused: it is more often a broken file than a wish."""


@dataclass
class RewardSettings:
    """What is trained on, and what only watches."""

    train: Any = "shapes"
    """A scorer's name, a dotted path, or {name: ..., option: ...}."""
    heldout: Any = None
    """A second scorer, measured in evaluation and never trained on."""
    on_error: str = "invalid"
    """`invalid` counts a scorer's failure and goes on, `raise` stops the run."""
    max_failed_iterations: int = 3
    """Iterations in a row without any valid score, after which the run is saved and stops: nothing is learnt
    in them. A service that is started anew is back sooner; a scorer that never works never is."""
    overlap: bool = False
    """Score one lot of episodes while the next is played (`rollout.batch_size` says how many make a lot);
    the results are the same."""


@dataclass
class StepSettings:
    """Which denoising steps are stochastic, and thereby trained.

    The others are deterministic: their share of the gradient is not seen, and leaving the untrained model
    there costs no KL. Seen is, for T = 10, shift 3, `eta` 0.7 and data as wide as the noise: 0.90 of the true
    gradient by `all`, 0.27 by the fraction (0, 0.5), 0.45 by a window of four (0.18, 0.46 and 0.72 in its
    places); less of narrower data, settled in the last steps: 0.76, 0.15 and 0.36 of 0.6 of the width.
    """

    kind: str = "fraction"
    """`all` (but the last, whose noise would stay in the picture), `fraction`, `random` or `window`."""
    fraction: tuple[float, float] = (0.0, 0.5)
    """The range of the schedule to choose from."""
    count: int | None = None
    """How many steps `random` draws."""
    window: int = 4
    """The width of the sliding window."""
    stride: int | None = None
    """How far the window moves; null leaves an overlap of one."""
    iterations_per_window: int = 25
    """How long the window rests in one place."""


@dataclass
class PolicySettings:
    """How the trained network acts."""

    lora_rank: int | None = 16
    """Rank of the adapters; null trains all weights."""
    lora_alpha: int = 32
    """Scale of the adapters."""
    lora_targets: list[str] | None = None
    """Layers that adapters attach to; null takes the model family's own list."""
    guidance: float = 1.0
    """Classifier-free guidance, the same in rollout and update; 1 is none."""
    dynamics: str = "flow"
    """The stochastic step: `flow`, `dance` or `cps`."""
    eta: float = 0.7
    """Its noise level."""
    storage_dtype: str = "float32"
    """What latents are rounded to before they are scored and stored."""
    temperature: float = 1.0
    """What a language model's logits are divided by, in rollout and update."""
    top_p: float = 1.0
    """Sample among the likeliest tokens of this mass; 1 keeps all."""
    top_k: int = 0
    """Sample among this many likeliest tokens; 0 keeps all."""
    eval_temperature: float | None = None
    """The temperature of evaluation; 0 decodes greedily, null takes `temperature`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


@dataclass
class AgentSettings:
    """The algorithm and its optimizer."""

    name: str = "flow_dppo"
    """`grpo`, `flow_dppo` or `drpo`; for texts `gspo`, too."""
    options: dict[str, Any] = field(default_factory=dict)
    """The algorithm's own knobs (clip_low_nats, kl_threshold_nats, epsilon, ...)."""
    lr: float = 3e-4
    """Learning rate of AdamW."""
    warmup_iterations: int = 0
    """Iterations over which the learning rate rises to `lr`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    adam_epsilon: float = 1e-8
    """What AdamW adds to the root of the second moment, in units of a gradient after clipping. Weights whose
    gradients are smaller move less than `lr`; those of latents are small, because their loss is a mean over
    elements."""
    grad_clip: float | None = 1.0
    """The most that the norm of the whole gradient may be; null does not clip."""
    num_epochs: int = 1
    """Passes over the episodes of a rollout."""
    num_minibatches: int = NUM_MINIBATCHES
    """Optimizer steps per epoch, on disjoint parts of the episodes, whatever the number of learners."""
    minibatch_size: int | None = None
    """In place of the number: episodes that each learner takes in a step, which grows with the learners."""
    shuffle_batch_per_epoch: Any = False
    """Deal the episodes out anew in every epoch: by whole `group`s, by `episode`, or true, which is by groups
    where minibatches hold whole ones. Changes with the seed, the iteration and the epoch only."""
    micro_batch_size: int | None = None
    """Episodes per forward and backward; null takes the whole minibatch. Changes memory, not results."""
    micro_batch_tokens: int | None = None
    """Packed tokens per forward and backward of a language model. Changes memory, not results."""
    aggregate: str | None = None
    """How tokens of unequal texts are weighed: `token_mean`, `sequence_mean`, `horizon` (Dr. GRPO)."""
    horizon: int | None = None
    """What sums over a text's tokens are divided by under `horizon`."""
    mask_truncated: bool = False
    """Leave texts out of the loss that the length limit ended."""
    idle_episodes: str = "count"
    """Episodes of advantage 0 (in groups of equal rewards): `count` in what sums are divided by, so that a
    minibatch with few others takes a small step; `leave_out` divides by the others only, and takes them out
    of the KL to the untrained model, too, as if they had not been drawn."""
    train_phases: list[str] | None = None
    """Which phases of a text with a picture are trained, of `text` and `image`; null trains both."""
    phase_rewards: dict[str, str] = field(default_factory=dict)
    """For a phase, the part of the reward that it is paid instead of the whole."""
    phase_weights: dict[str, float] = field(default_factory=dict)
    """For a phase, the weight of its loss; 1 without. The units of phases differ: a loss on tokens is a mean
    over tokens of nats, one on latents a mean over steps of nats per element. With S stochastic steps, D
    elements of a latent and L trained tokens of the mean text, a nat of text weighs S D / L times a nat of
    picture (under `aggregate: horizon` S D / horizon): 223 times on the embedded unified model, some
    thousands at the size of SD3. `{image: S D / L}` makes them equal. AdamW divides much of it out where no
    weight serves both phases."""
    advantage_scale: str = "group"
    """What centred rewards are divided by: the std of the `group`, of the `batch`, or `none`; `leave_one_out`
    centres on the others of the group, and does not divide."""
    advantage_parts: dict[str, float] = field(default_factory=dict)
    """Parts of the reward that are normalised within their groups one by one and then added (GDPO), with
    their weights; empty takes the reward itself."""
    advantage_clip: float | None = None
    """Bound on the size of an advantage, in units of what `advantage_scale` divides by: of the group's std
    under `group`, where none of G episodes exceeds sqrt(G - 1) (a bound of 5 does nothing up to G = 26), of
    the batch's under `batch` and `advantage_parts`, of the reward itself under `none` and `leave_one_out`."""
    max_log_ratio: float = 20.0
    """Where the log-ratio of new and old policy is cut, in nats per token (of latents: per element, so that
    20 is D times 20 nats of an action). Entries beyond it have no gradient. It guards against overflow; the
    algorithm's own knobs are the trust region."""
    reference_kl: float = 0.0
    """Weight of the KL to the untrained model, per nat of it: of a token, or of a latent's step (a mean over
    elements, as the loss it is added to). The gradient takes the visited states as given: that a step changes
    the KL which later steps will pay is left out."""
    kl_estimator: str = "k2"
    """How that KL pulls on tokens: `k2` as itself, `k3` as the reversed KL. On latents it is exact."""
    anchor: str | None = None
    """Old log-probs and means: as the `rollout` recorded them, or by `replay` under the same weights. Null is
    the rollout's for the engine `local`, and replay for others, whose rounding would pass for a change of the
    policy; for `flow_dppo` always the rollout's, because DPPO is defined by the policy that sampled."""
    self_check: bool = True
    """Stop unless the first update finds what the rollout recorded."""
    self_check_tolerance: float | None = 1e-4
    """Largest |ratio - 1| against the anchor that the first update may show; null for no bound, as below."""
    self_check_gap_mean: float | None = 0.25
    """Mean distance in nats, over tokens or denoising steps, between recorded and learner's log-probs that it
    may show: ten times what bfloat16 costs between vLLM and transformers, and far below a wrong policy's."""
    self_check_gap_max: float | None = 5.0
    """The same of a single token or step: rare tokens may differ much, none by a factor of 150."""
    self_check_kl: float | None = 0.25
    """Largest KL in nats, over all elements of a latent, between the learner's step and the recorded one."""


@dataclass
class RolloutSettings:
    """How many episodes an iteration has, and who produces them."""

    engine: str = "local"
    """Who draws samples: `local` is in-process torch; texts may come from `vllm`, `vllm_server`, `sglang`."""
    engine_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the engine (url, max_model_len, ...)."""
    num_prompts: int = 8
    """P, distinct prompts per iteration."""
    group_size: int = 12
    """G, episodes per prompt."""
    same_noise: bool = False
    """Start every episode of a group from one initial noise."""
    batch_size: int | None = None
    """Episodes that one runner steps together; null takes its whole share. Bounds memory."""
    num_env_runners: int = 0
    """Rollout processes; 0 rolls out in the driver."""
    num_learners: int = 0
    """Learner processes; 0 learns in the driver."""
    num_gpus_per_env_runner: float = 0
    """GPUs that each rollout process reserves."""
    num_gpus_per_learner: float = 0
    """GPUs that each learner process reserves."""
    timeout_s: float | None = 3600.0
    """Seconds that an iteration, an evaluation or a save may take; then it counts as hung, and the run ends
    with what is finished saved. Null waits for ever. A stopped process (SIGSTOP) is found after a minute."""


@dataclass
class RunConfig:
    """One training run."""

    name: str = "run"
    """Names the folder of the run."""
    mode: str = "diffusion"
    """What kind of environment `model.env` is: `diffusion`, `ar`, `pe`, `unified_model`, `mdp`, or the name
    of a mode of your own."""
    seed: int = 0
    """Every random number of the run follows from it."""
    iterations: int = 100
    """Rollouts, each followed by an update."""
    resume: str | None = None
    """`auto`, or the folder of a run or a checkpoint to continue."""
    model: ModelSettings = field(default_factory=ModelSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    steps: StepSettings = field(default_factory=StepSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    alarm: AlarmSettings = field(default_factory=AlarmSettings)

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded.

        Raises:
            ConfigError: Naming the field, its value and the remedy.
        """
        check_run(self)
