"""The settings of rollouts and of the processes that they run in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unirl_env.settings.fields import Settings, setting

__all__ = ["RolloutSettings"]


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
    same_noise: bool = setting(False)
    """Start every episode of a group from one initial noise."""
    batch_size: int | None = setting(None, least=1, python="rollout_batch_size", may_change=True)
    """Episodes that one runner steps together; null takes its whole share. Bounds memory."""
    keep_samples: bool = setting(True, may_change=True)
    """Keep an iteration's finished samples until the next: what the diversity of groups and the held-out
    reward of training samples are taken from. Without, less memory."""
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
