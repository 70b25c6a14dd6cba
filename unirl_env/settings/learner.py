"""How learners divide what they train."""

from __future__ import annotations

from dataclasses import dataclass

from unirl_env.errors import ConfigError
from unirl_env.settings.fields import Settings, setting

SHARING = ("tensor_parallel", "context_parallel")
"""The settings by which several learners read the same episodes."""


@dataclass
class LearnerSettings(Settings):
    """How the policy lies on the learners; `rollout.num_learners` says how many there are."""

    parallel: str = setting("replicated", choices=("replicated", "sharded", "hybrid"), may_change=True)
    """`replicated`: each holds all of it, and they exchange gradients once in an optimizer step. `sharded`:
    each holds a part of every weight, gradient and moment, and blocks are gathered when they compute (FSDP2):
    for models that do not fit one device. `hybrid`: divided within groups of `shard_size` learners, such as
    those of a node, and the same in all groups. One learner alone holds all of it under any."""
    shard_size: int | None = setting(None, least=2, hint="8", may_change=True)
    """With `hybrid`, among how many learners weights are divided."""
    tensor_parallel: int = setting(1, least=1, hint="2", may_change=True)
    """With `sharded`, how many learners share each matrix of a language model (tensor parallelism, by
    transformers' plan): they read the same episodes, each with its columns, rows and heads, and FSDP2 divides
    what each has among `num_learners / tensor_parallel` groups of them, which should each be on one node."""
    context_parallel: int = setting(1, least=1, hint="2", may_change=True)
    """With `sharded` or `hybrid`, how many learners share the tokens of one latent (context parallelism, by
    diffusers' plan; Ulysses): they read the same episodes, each with its part of the tokens, and within
    attention with all tokens of its part of the heads. Such groups should each be on one node."""
    prefetch: int = setting(1, least=0, may_change=True)
    """Where weights are divided, how many blocks ahead are gathered while one computes; each takes the memory
    of a whole block."""
    checkpoint: str = setting("auto", choices=("auto", "whole", "divided"), may_change=True)
    """How a state is saved. `whole`: it passes through the first learner and the driver, which writes one
    file. `divided`: each learner copies its part to the CPU and writes it while training goes on;
    `logging.folder` must be on a disk that all machines share. `auto`: divided where learners hold parts and
    over 250 million weights are trained (1 GB in float32), else whole. Either form is read by any number of
    learners, under any `parallel`."""

    @property
    def sharers(self) -> int:
        """How many learners read the same episodes."""
        return self.tensor_parallel * self.context_parallel

    @property
    def sharing(self) -> str:
        """The setting that says so, as it is called on the command line; empty where none do."""
        return next((f"learner.{name}" for name in SHARING if getattr(self, name) > 1), "")

    def check(self, prefix: str = "") -> None:
        """Refuse a size of groups where there are none, groups without a size, and shared whole copies."""
        super().check(prefix)
        if (self.parallel == "hybrid") != (self.shard_size is not None):
            raise ConfigError(
                f"`{prefix}shard_size` must be given with `{prefix}parallel=hybrid` and no other, got "
                f"{self.shard_size} with {self.parallel!r}; try the number of learners on a node."
            )
        if self.tensor_parallel > 1 and self.parallel != "sharded":
            raise ConfigError(
                f"`{prefix}tensor_parallel` must be 1 with `{prefix}parallel` {self.parallel!r}, got "
                f"{self.tensor_parallel}; try {prefix}parallel=sharded."
            )
        if self.context_parallel > 1 and self.parallel == "replicated":
            raise ConfigError(
                f"`{prefix}context_parallel` must be 1 with `{prefix}parallel` 'replicated', got "
                f"{self.context_parallel}; try {prefix}parallel=sharded."
            )
        if self.context_parallel > 1 and self.tensor_parallel > 1:
            raise ConfigError(
                f"`{prefix}tensor_parallel` must be 1 with `{prefix}context_parallel` "
                f"{self.context_parallel}, got {self.tensor_parallel}: the one is for texts alone, the other "
                f"for latents; try {prefix}tensor_parallel=1."
            )
