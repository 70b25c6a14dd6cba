"""Running statistics of finished episodes."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from unirl_env.arguments.indices import as_numpy
from unirl_env.arguments.values import whole
from unirl_env.envs.contract import env_attr
from unirl_env.types import Scores
from unirl_env.wrappers.base import EpisodeRows, RowChange, Wrapper


class EpisodeStatistics(Wrapper):
    """Add `info["episode"]` where episodes end, and keep statistics of the last ones.

    As Gymnasium's `RecordEpisodeStatistics`, `info["episode"]` holds `r` (return), `l` (steps) and `t`
    (seconds), each `[B]`, with the mask `info["_episode"]`; a return that is NaN is left out by the mask
    `_r`. Unlike it, this one takes tensors, knows episodes
    that wait for the rest of their batch, and leaves invalid scores out of the mean instead of letting one
    NaN spoil it. Put it outside the `RewardWrapper`.

    Args:
        env: A generative vector environment.
        window: How many of the last episodes the statistics are over.

    Attributes:
        episodes: How many episodes have ended.
        invalid: How many of them ended with an invalid score or a return that is not finite.
        steps: How many steps they and the unfinished ones took.

    Raises:
        ConfigError: If `window` is less than 1.
    """

    def __init__(self, env: VectorEnv, window: int = 100):
        super().__init__(env)
        window = whole("window", window, 1)
        self.episodes = self.invalid = self.steps = 0
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=window)
        self._rows = EpisodeRows(env.num_envs)
        self._return = np.zeros(env.num_envs)
        self._length = np.zeros(env.num_envs, dtype=np.int64)
        self._start = np.zeros(env.num_envs)
        self._first_reset: float | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; the episodes that begin start from zero."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._begin(self._rows.reset(info, options))
        return obs, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment and count."""
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        change = self._rows.step(info, terminated, truncated)
        self._begin(change.began)
        self._return += np.where(change.stepped, as_numpy(rewards), 0.0)
        self._length += change.stepped
        self.steps += int(change.stepped.sum())
        if change.ended.any():
            info = {**info, **self._end(change)}
        return obs, rewards, terminated, truncated, info

    def __getstate__(self) -> dict[str, Any]:
        # The clock of another process begins elsewhere: what travels is how long ago.
        now = time.perf_counter()
        first = None if self._first_reset is None else now - self._first_reset
        return {**self.__dict__, "_start": now - self._start, "_first_reset": first}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        now = time.perf_counter()
        self._start = now - self._start
        self._first_reset = None if self._first_reset is None else now - self._first_reset

    def summary(self) -> dict[str, float]:
        """Statistics for a log.

        Over the window: `return_mean`, `return_std` (valid episodes only), `length_mean`, `seconds_mean`.
        Since the first reset: `episodes`, `invalid_fraction`, `episodes_per_second`, `steps_per_second`. What
        has no episode yet is NaN.
        """
        elapsed = np.nan if self._first_reset is None else max(time.perf_counter() - self._first_reset, 1e-9)
        returns, lengths, seconds = np.array(self._recent, dtype=float).reshape(-1, 3).T
        valid = returns[np.isfinite(returns)]
        return {
            "return_mean": float(valid.mean()) if valid.size else np.nan,
            "return_std": float(valid.std()) if valid.size else np.nan,
            "length_mean": float(lengths.mean()) if lengths.size else np.nan,
            "seconds_mean": float(seconds.mean()) if seconds.size else np.nan,
            "episodes": float(self.episodes),
            "invalid_fraction": self.invalid / self.episodes if self.episodes else np.nan,
            "episodes_per_second": self.episodes / elapsed,
            "steps_per_second": self.steps / elapsed,
        }

    def _begin(self, began: np.ndarray) -> None:
        now = time.perf_counter()
        if self._first_reset is None:
            self._first_reset = now
        self._return[began], self._length[began], self._start[began] = 0.0, 0, now

    def _end(self, change: RowChange) -> dict[str, Any]:
        ended, seconds = change.ended, time.perf_counter() - self._start
        invalid = ended & ~np.isfinite(self._return)
        scores = env_attr(self.env, "scores", None)
        if isinstance(scores, Scores):
            invalid |= ended & env_attr(self.env, "judged") & ~as_numpy(scores.valid)
        self.episodes += int(ended.sum())
        self.invalid += int(invalid.sum())
        for row in np.flatnonzero(ended):
            value = np.nan if invalid[row] else self._return[row]
            self._recent.append((float(value), int(self._length[row]), float(seconds[row])))
        known = ended & ~np.isnan(self._return)
        episode = {
            "r": np.where(known, self._return, 0.0),
            "_r": known,
            "l": np.where(ended, self._length, 0),
            "_l": ended.copy(),
            "t": np.where(ended, seconds, 0.0),
            "_t": ended.copy(),
        }
        return {"episode": episode, "_episode": ended.copy()}
