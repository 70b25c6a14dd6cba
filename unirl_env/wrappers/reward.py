"""The reward: finished samples meet a scorer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from unirl_env.arguments.copies import Carried
from unirl_env.arguments.values import is_number, truth
from unirl_env.envs.contract import env_attr
from unirl_env.envs.info import of_scores
from unirl_env.errors import ConfigError, ScorerError
from unirl_env.prompts.sources import PromptSource
from unirl_env.rewards.asks import require_judgeable
from unirl_env.rewards.compose import Background
from unirl_env.rewards.scoring import PendingScores, checked_scorer, place_scores, score_safely, scorer_name
from unirl_env.types import Prompt, Sample, Scorer, Scores
from unirl_env.wrappers.base import Wrapper


class Unasked(str):
    """A text that nobody chose."""


UNASKED = cast(Literal["raise"], Unasked("raise"))
"""What an invalid score pays where nobody said it: an error, except to whoever reads `scores`."""


class RewardWrapper(Wrapper):
    """Score the samples of finished episodes and add the scores to their rewards.

    The judgement goes to `scores`, a `Scores` of length B, with the mask `judged` `[B]`: other episodes are
    NaN and invalid there, and keep their reward. `info["scores"]` has it as plain data: `valid`, and where
    they are there `value` and `parts`; with `info_objects` it is `scores` itself, `info["_scores"]` `judged`.

    With a scorer in the `Background`, the step does not wait: `scores` is a `PendingScores`, of which a plain
    `info` says nothing, and the reward at an episode's end is NaN, as it is not known yet. A rollout asks for
    the scores when it has played everything. What goes wrong meanwhile is raised by `result()`, and for those
    who do not ask by the first step or reset after it is known.

    Args:
        env: A generative vector environment.
        scorer: What judges the samples; see `unirl_env.rewards`.
        on_invalid: The reward of a finished episode whose score is invalid: `"raise"`, an error with the
            cause, because few learners can take NaN; `"nan"`, for those that leave it out of its group; or a
            number, where `scores.valid` still tells. This library's own rollouts read `scores`, where a
            failed one is data: they take what was left at the default for `"nan"`.
        together: Judge all episodes of a batch in one call of the scorer, at the step at which the last one
            ends, and pay all of them then; for scorers that want batches, in autoreset mode DISABLED. By
            default each episode is paid at its own end, which wrappers outside this one expect that look at
            rewards there (`EpisodeStatistics`, `RecordMedia`). What was not judged by then is dropped by a
            reset, and not known to a snapshot.

    Attributes:
        scores: The judgement of the last step; None where it judged nothing.
        judged: `[B]` bool, the episodes that it is about.
        scored: How many samples have been judged so far.
        unscored: How many of them came out invalid.

    Raises:
        ConfigError: If `scorer` cannot be called, `on_invalid` is none of the above, or `together` or a
            scorer in the background meets an environment that resets by itself.
        PromptError: If a prompt of the environment lacks what the scorer asks for; see `rewards.asks`.
    """

    def __init__(
        self,
        env: VectorEnv,
        scorer: Scorer,
        on_invalid: Literal["raise", "nan"] | float = UNASKED,
        *,
        together: bool = False,
    ):
        super().__init__(env)
        together = truth("together", together)
        later = {"together": together, "overlap": isinstance(scorer, Background)}
        for option in (name for name, wanted in later.items() if wanted):
            if env.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
                raise ConfigError(
                    f"`{option}` must be False unless the environment's autoreset mode is DISABLED, got "
                    f"{env.metadata.get('autoreset_mode')}: a batch that resets by itself has no common end."
                )
        if on_invalid not in ("nan", "raise") and not is_number(on_invalid):
            raise ConfigError(f"`on_invalid` must be 'nan', 'raise' or a finite number, got {on_invalid!r}.")
        self.scorer = checked_scorer(scorer)
        self.on_invalid: str | float = on_invalid
        prompts = env_attr(env, "prompts")
        if isinstance(prompts, PromptSource):
            require_judgeable(self.scorer, prompts, strict=self.on_invalid == "raise")
        self.together = together
        self.scored = 0
        self.unscored = 0
        self.scores: Scores | PendingScores | None = None
        self._nobody = np.zeros(env.num_envs, dtype=bool)
        self.judged = self._nobody
        self._unpaid: dict[int, Sample] = {}
        self._begun: list[PendingScores] = []

    def __getstate__(self) -> dict[str, Any]:
        # What the last step said was said; a judgement on its way cannot travel.
        return {**self.__dict__, "scorer": Carried("scorer", self.scorer), "scores": None, "_begun": []}

    def invalid_is_data(self) -> None:
        """Leave invalid scores NaN, unless this wrapper was told what they pay."""
        self.on_invalid = "nan" if isinstance(self.on_invalid, Unasked) else self.on_invalid

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment.

        Raises:
            ScorerError: If a judgement in the background has failed, as `step`.
        """
        self._hear()
        obs, info = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        self._unpaid = {} if mask is None else {i: s for i, s in self._unpaid.items() if not mask[i]}
        self._said(None, self._nobody)
        return obs, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment; `[B]` rewards come in the environment's own array type.

        Raises:
            ContractError: If the scorer breaks its contract.
            ScorerError: If a score is invalid and `on_invalid` is `"raise"`.
        """
        self._hear()
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        self._said(None, self._nobody)
        samples: dict[int, Sample] = env_attr(self.env, "finished")
        if samples and self.together:
            samples = self._unpaid = {**self._unpaid, **samples}
            if not bool((terminated | truncated).all()):
                return obs, rewards, terminated, truncated, info
            self._unpaid = {}
        if samples:
            finished = torch.zeros(self.num_envs, dtype=torch.bool)
            finished[sorted(samples)] = True
            prompts = env_attr(self.env, "playing")
            if isinstance(self.scorer, Background):
                scores: Any = self.scorer.begin(self._score, samples, prompts, finished)
                self._begun.append(scores)
                rewards = _added(rewards, Scores.failed(self.num_envs), finished, "nan")
            else:
                scores = self._score(samples, prompts, finished)
                rewards = _added(rewards, scores, finished, self.on_invalid)
            self._said(scores, finished.numpy())
            info = {**info, **of_scores(self.env, scores, self.judged)}
        return obs, rewards, terminated, truncated, info

    def _hear(self) -> None:
        """Raise what went wrong in the background, once it is known."""
        known = [pending for pending in self._begun if pending.done()]
        if known:
            self._begun = [pending for pending in self._begun if pending not in known]
            for pending in known:
                pending.result()

    def _said(self, scores: Scores | PendingScores | None, judged: np.ndarray) -> None:
        self.scores, self.judged = scores, judged

    def _score(self, samples: Mapping[int, Sample], prompts: Sequence[Prompt], finished: Tensor) -> Scores:
        rows = sorted(samples)
        scores = score_safely(
            self.scorer,
            [samples[row] for row in rows],
            [prompts[row] for row in rows],
            on_error="raise" if self.on_invalid == "raise" else "invalid",
        )
        invalid = int((~scores.valid).sum())
        if invalid and self.on_invalid == "raise":
            causes = "".join(f" ({cause})" for cause in scores.faults[-1:])
            raise ScorerError(
                f"Scorer `{scorer_name(self.scorer)}` must give finite scores, got {invalid} invalid ones "
                f"among {len(scores)}{causes}; try on_invalid='nan' to leave them out of their groups, or a "
                "number that they pay."
            )
        self.scored += len(scores)
        self.unscored += invalid
        return place_scores(scores, finished)


def leave_invalid(env: VectorEnv) -> None:
    """Let the rewards inside `env` leave invalid scores NaN, where nobody said what they pay.

    For whoever reads `scores` and not rewards, as this library's own rollouts do.
    """
    inner: Any = env
    while inner is not None:
        if isinstance(inner, RewardWrapper):
            inner.invalid_is_data()
        inner = getattr(inner, "env", None)


def _added(rewards: Any, scores: Scores, finished: Tensor, on_invalid: str | float) -> Any:
    """`rewards` `[B]` plus the scores of finished episodes, in the array type of `rewards`."""
    fill = math.nan if isinstance(on_invalid, str) else float(on_invalid)
    value = torch.where(scores.valid, scores.value, fill)
    value = torch.where(finished, value, 0.0)
    if isinstance(rewards, Tensor):
        return rewards + value.to(rewards)
    rewards = np.asarray(rewards)
    dtype = rewards.dtype if np.issubdtype(rewards.dtype, np.floating) else np.float32
    return rewards.astype(dtype) + value.numpy().astype(dtype)
