"""Scores and samples of episodes that end at different steps, gathered as they come."""

from __future__ import annotations

import torch
from gymnasium.vector import VectorEnv

from unirl_env.envs.contract import env_attr
from unirl_env.errors import ContractError
from unirl_env.rewards.background import PendingScores
from unirl_env.types import FAULTS, Sample, Scores

__all__ = ["Verdicts"]


class Verdicts:
    """What an environment says about each of `count` episodes, over the steps of one play."""

    def __init__(self, count: int):
        self._value = torch.full((count,), torch.nan)
        self._valid = torch.zeros(count, dtype=torch.bool)
        self._judged = torch.zeros(count, dtype=torch.bool)
        self._parts: dict[str, torch.Tensor] = {}
        self._faults: dict[str, None] = {}
        self._samples: list[Sample | None] = [None] * count
        self._later: list[tuple[PendingScores, torch.Tensor]] = []

    def take(self, env: VectorEnv) -> None:
        """Note the episodes that the last step of `env` has finished: their samples and their scores."""
        for i, sample in env_attr(env, "finished").items():
            self._samples[i] = sample
        scores = env_attr(env, "scores", None)
        if scores is None:
            return
        now = torch.from_numpy(env_attr(env, "judged"))
        self._judged |= now
        if isinstance(scores, PendingScores):
            self._later.append((scores, now))
        else:
            self._note(scores, now)

    def scores(self) -> Scores | PendingScores:
        """The judgement on every episode; pending if one of them is.

        Raises:
            ContractError: If an episode was never judged.
        """
        if not self._judged.all():
            raise ContractError(
                "The environment must have scored every episode by its end, got no scores for "
                f"{int((~self._judged).sum())} of {len(self._judged)}; wrap the environment in "
                "`RewardWrapper`."
            )
        return PendingScores(self._settled) if self._later else self._settled()

    def samples(self) -> tuple[Sample, ...]:
        """Every episode's finished sample."""
        return tuple(self._samples)

    def _settled(self) -> Scores:
        for pending, now in self._later:
            self._note(pending.result(), now)
        self._later = []
        return Scores(self._value, self._parts, self._valid, tuple(self._faults)[-FAULTS:])

    def _note(self, scores: Scores, now: torch.Tensor) -> None:
        self._faults |= dict.fromkeys(scores.faults)
        self._value[now], self._valid[now] = scores.value[now], scores.valid[now]
        for name, part in scores.parts.items():
            own = self._parts.setdefault(name, torch.full_like(self._value, torch.nan))
            own[now] = part[now]
