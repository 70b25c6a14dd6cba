"""What episodes are asked for, the batch of them on its way, and what plays one phase of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from unirl_env.envs.contract import env_attr
from unirl_env.episode import Phase
from unirl_env.errors import ConfigError, ContractError
from unirl_env.prompts.sources import sample_offsets
from unirl_env.rewards.scoring import PendingScores
from unirl_env.types import FAULTS, Prompt, Sample, Scores


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to come.

    Attributes:
        prompt: What it answers.
        sample: Which of the prompt's samples it is; keys its noise.
        group: The number of its group.
    """

    prompt: Prompt
    sample: int
    group: int


@dataclass(frozen=True)
class RolloutRequest:
    """P x G episodes to come: `group_size` of each prompt, in the order of the prompts.

    What a phase has no use for is ignored there: texts have no denoising steps, latents no temperature.

    Attributes:
        prompts: P prompts.
        seed: Key of all draws and all noise.
        group_size: G.
        sample_offset: `[P]`, the sample id of each group's first episode; None counts occurrences.
        first_group: The number of the first group.
        same_noise: Let the episodes of a group begin alike.
        stochastic_steps: The denoising steps that explore and are recorded; None takes the environment's own,
            an empty sequence plays the deterministic ODE and records nothing but what `keep_final` asks for.
        second_order: Take the steps that do not explore by DPM-Solver++(2M) in place of Euler's method.
        num_steps: Denoising steps; None takes the environment's own.
        size: Height and width of pictures in pixels; None takes the environment's own.
        levels: Which levels of that schedule are visited; None visits all.
        guidance: Of latents; None takes the policy's own.
        temperature: Of tokens and actions; None takes the policy's own; 0 takes the likeliest, whose
            log-probs mean nothing to train on.
        keep_mean: Record the means of the latents' sampling distribution.
        keep_steps: Record the steps that explore; without, latents have one row, which ends in the finished
            one.
        keep_final: Record the finished latents; where no step is recorded, as what the last step did.
        keep_samples: Keep the finished samples in the batch.
        put_away: Leave large tensors with whoever plays, as `rollouts.kept` has it.
        weights: Which weights play: `"trained"`, or `"ema"`, their average.
        base: Play with the untrained model.
        weights_version: Recorded in the batch; what a runner or an engine must hold, once it has a version.
        occasion: `"training"` or `"evaluation"`, which RLlib's callbacks are told; None where nobody is.
    """

    prompts: Sequence[Prompt]
    seed: int
    group_size: int = 1
    sample_offset: Sequence[int] | None = None
    first_group: int = 0
    same_noise: bool = False
    stochastic_steps: Sequence[int] | None = None
    second_order: bool = False
    num_steps: int | None = None
    size: tuple[int, int] | None = None
    levels: Sequence[int] | None = None
    guidance: float | None = None
    temperature: float | None = None
    keep_steps: bool = True
    keep_mean: bool = False
    keep_final: bool = False
    keep_samples: bool = True
    put_away: bool = False
    weights: str = "trained"
    base: bool = False
    weights_version: int = 0
    occasion: str | None = None

    @property
    def steps_taken(self) -> int | None:
        """Denoising steps of an episode; None for the environment's own number."""
        return self.num_steps if self.levels is None else len(self.levels) - 1

    def share_out(self, shares: int) -> list[RolloutRequest]:
        """One request for each of so many runners (0 counts as 1), of contiguous whole groups.

        A prompt that occurs again gets further sample ids, and groups are numbered by their place: neither
        noise nor groups depend on how many runners there are.
        """
        shares = max(1, min(shares, len(self.prompts)))
        bounds = [len(self.prompts) * share // shares for share in range(shares + 1)]
        return self._cut(pairwise(bounds))

    def deal_alike(self, shares: int) -> list[RolloutRequest]:
        """As `share_out`, with equally many groups in each of exactly so many requests.

        Where there are too few, the last requests begin earlier, and some groups are played more than once:
        each the same, since noise is keyed.
        """
        size = -(-len(self.prompts) // shares)
        starts = [min(share * size, len(self.prompts) - size) for share in range(shares)]
        return self._cut((start, start + size) for start in starts)

    def _cut(self, bounds: Iterable[tuple[int, int]]) -> list[RolloutRequest]:
        offsets = self._offsets()
        return [
            replace(
                self,
                prompts=list(self.prompts[start:stop]),
                sample_offset=offsets[start:stop],
                first_group=self.first_group + start,
            )
            for start, stop in bounds
        ]

    def episodes(self) -> list[EpisodeRequest]:
        """The episodes one by one, so that a batch need not end where a group does.

        Raises:
            ConfigError: If there is nothing to play, or `sample_offset` does not fit the prompts.
        """
        if not self.prompts or self.group_size < 1:
            raise ConfigError(
                "`prompts` and `group_size` must ask for an episode at least, got "
                f"{len(self.prompts)} prompts and group_size={self.group_size}."
            )
        offsets = self._offsets()
        if len(offsets) != len(self.prompts):
            raise ConfigError(
                f"`sample_offset` must hold one number per prompt, {len(self.prompts)}, got {len(offsets)}."
            )
        return [
            EpisodeRequest(prompt, int(offset) + i, self.first_group + number)
            for number, (prompt, offset) in enumerate(zip(self.prompts, offsets, strict=True))
            for i in range(self.group_size)
        ]

    def _offsets(self) -> list[int]:
        if self.sample_offset is None:
            return sample_offsets(self.prompts, self.group_size)
        return list(self.sample_offset)


class Driver(ABC):
    """Acts in one phase of each episode, until none is in it any more.

    Attributes:
        truncates: Whether a length limit may end episodes here.
    """

    truncates: ClassVar[bool] = True

    @abstractmethod
    def play(self, live: LiveEpisodes, request: RolloutRequest) -> Phase | None:
        """Step `live` through the phase.

        Args:
            live: The episodes; those that have ended, or never come to the phase, are left as they are.
            request: What is asked for: what is to be recorded, and at which temperature.

        Returns:
            What was done, of all B episodes; None if nothing was recorded.
        """

    def check(self, request: RolloutRequest) -> None:  # noqa: B027  # most play whatever they are asked
        """Refuse a request that cannot be played, before anything is.

        Raises:
            UniRLError: Saying why.
        """

    def load_weights(self, version: int) -> None:  # noqa: B027  # most play with the actor itself
        """Take over the policy's present weights under the name `version`."""

    def close(self) -> None:  # noqa: B027  # most have nothing to give back
        """Give back what is held."""


class LiveEpisodes:
    """B episodes of an environment, from their reset to their ends.

    Of an environment nothing is read but

    - of every one `playing`, `finished`, and `scores` and `judged` of its `RewardWrapper`;
    - where latents are denoised `num_steps` and `stochastic_steps`;
    - where texts are written `max_new_tokens`, `encodings` and `language_model`;
    - of a hybrid one `unified_model` in the place of `language_model`.

    `DenoiseVectorEnv`, `TokenVectorEnv` and `HybridVectorEnv` say what each of them is.

    Args:
        env: Of B episodes, with autoreset DISABLED.
        batch: What is to be played.
        request: What it is a part of.

    Attributes:
        obs: The last observation.
        prompts: The B prompts.
        seeds: `[B]` int64 on the CPU, the key of each episode's draws.
        done: `[B]` bool on the CPU, which have ended.
        truncated: `[B]` bool on the CPU, which of them a length limit ended.
    """

    def __init__(self, env: gym.vector.VectorEnv, batch: Sequence[EpisodeRequest], request: RolloutRequest):
        options: dict[str, Any] = {
            "prompts": [episode.prompt for episode in batch],
            "sample_offset": [episode.sample for episode in batch],
            "group_size": 1,
            "same_noise": request.same_noise,
        }
        if request.stochastic_steps is not None:
            options["stochastic_steps"] = request.stochastic_steps
        self._env, count = env, len(batch)
        self.obs, info = env.reset(seed=request.seed, options=options)
        self.prompts = tuple(self.get_attr("playing"))
        self.seeds = torch.as_tensor(info["episode_seed"]).cpu()
        self.done, self.truncated = torch.zeros((2, count), dtype=torch.bool)
        self._samples: list[Sample | None] = [None] * count
        self._value = torch.full((count,), torch.nan)
        self._valid, self._judged = torch.zeros((2, count), dtype=torch.bool)
        self._parts: dict[str, Tensor] = {}
        self._faults: dict[str, None] = {}
        self._pending: list[tuple[PendingScores, Tensor]] = []

    def __len__(self) -> int:
        return len(self.prompts)

    def get_attr(self, name: str, *default: Any) -> Any:
        """What the environment says of itself, whatever wrappers are around it.

        Raises:
            ContractError: If nobody says it, and there is no default.
        """
        return env_attr(self._env, name, *default)

    def step(self, action: Any) -> None:
        """Step the environment, and note which episodes that has ended, with their samples and scores."""
        self.obs, _, ended, cut, _ = self._env.step(action)
        finished = self.get_attr("finished")
        if not finished:
            # Flags are left where they are: reading them would wait for an accelerator in every step.
            return
        ended, cut = torch.as_tensor(ended).cpu(), torch.as_tensor(cut).cpu()
        self.truncated = self.truncated | (cut & ~self.done)
        self.done = self.done | ended | cut
        for row, sample in finished.items():
            self._samples[row] = sample
        scores = self.get_attr("scores", None)
        if scores is None:
            return
        now = torch.from_numpy(self.get_attr("judged"))
        self._judged |= now
        if isinstance(scores, PendingScores):
            self._pending.append((scores, now))
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
                f"{int((~self._judged).sum())} of {len(self)}; wrap the environment in `RewardWrapper`."
            )
        return PendingScores(self._settled) if self._pending else self._settled()

    def samples(self) -> tuple[Sample | None, ...]:
        """Every episode's finished sample."""
        return tuple(self._samples)

    def _settled(self) -> Scores:
        for pending, now in self._pending:
            self._note(pending.result(), now)
        self._pending = []
        return Scores(self._value, self._parts, self._valid, tuple(self._faults)[-FAULTS:])

    def _note(self, scores: Scores, now: Tensor) -> None:
        self._faults |= dict.fromkeys(scores.faults)
        self._value[now], self._valid[now] = scores.value[now], scores.valid[now]
        for name, part in scores.parts.items():
            own = self._parts.setdefault(name, torch.full_like(self._value, torch.nan))
            own[now] = part[now]
