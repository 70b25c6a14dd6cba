"""What episodes are asked for: one object from the agent to the player, shared out in whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from unirl_env.errors import ConfigError
from unirl_env.prompts.sources import sample_offsets
from unirl_env.types import Prompt

__all__ = ["EpisodeRequest", "RolloutRequest"]


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
        num_steps: Denoising steps; None takes the environment's own.
        temperature: Of tokens and actions; None takes the policy's own; 0 takes the likeliest, whose
            log-probs mean nothing to train on.
        keep_mean: Record the means of the latents' sampling distribution.
        keep_final: Record the finished latents; where no step explores, as what the last step did.
        keep_samples: Keep the finished samples in the batch.
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
    num_steps: int | None = None
    temperature: float | None = None
    keep_mean: bool = False
    keep_final: bool = False
    keep_samples: bool = True
    base: bool = False
    weights_version: int = 0
    occasion: str | None = None

    def share_out(self, shares: int) -> list[RolloutRequest]:
        """One request for each of so many runners (0 counts as 1), of contiguous whole groups.

        A prompt that occurs again gets further sample ids, and groups are numbered by their place: neither
        noise nor groups depend on how many runners there are.
        """
        offsets = self._offsets()
        shares = max(1, min(shares, len(self.prompts)))
        bounds = [len(self.prompts) * share // shares for share in range(shares + 1)]
        return [
            replace(
                self,
                prompts=list(self.prompts[start:stop]),
                sample_offset=offsets[start:stop],
                first_group=self.first_group + start,
            )
            for start, stop in pairwise(bounds)
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
