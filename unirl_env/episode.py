"""Finished episodes as tensors: what the runners hand to the learners.

An `EpisodeBatch` holds B episodes. Each of its phases holds S trained transitions of every episode
(denoising steps for `image`, tokens for `text`), as rows that a policy can score again.

What a whole group shares is kept once: `context` has one row for each distinct prompt.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from unirl_env.arguments.indices import places_or_mask
from unirl_env.errors import ShapeError
from unirl_env.types import Prompt, Sample, Scores

__all__ = ["EpisodeBatch", "Kept", "Phase", "cat_padded", "distinct"]

Part = TypeVar("Part")


@dataclass(frozen=True)
class Phase:
    """S transitions of each of B episodes.

    Attributes:
        observation: Per-transition inputs of the policy, each `[B, S, ...]`
            (image: `latent`, `sigma`, `sigma_next`).
        action: `[B, S, ...]`, what was done (image: the next latent, in its storage dtype).
        log_prob: `[B, S]` float32, log-probability of the action when it was sampled.
        mask: `[B, S]` bool, which transitions are trained on.
        context: Inputs that do not change within an episode, each `[P, ...]`, one row per distinct prompt.
        context_row: `[B]` int64, the row of `context` that belongs to each episode.
        mean: `[B, S, ...]` float32, mean of the sampling distribution, where a loss needs it.
        final: `[B, ...]`, the finished latent in its storage dtype, where a loss needs it.
        ragged: Whether episodes have numbers of steps of their own, and S is the longest: places beyond an
            episode's end hold the action -1, the log-probability 0 and the mask False. In `text`, actions
            are all tokens after the prompt; those that the world wrote are masked.
        kind: How learners treat it, a name in `agents.kinds.KINDS`; `"latents"` or `"tokens"` by default.
    """

    observation: Mapping[str, Tensor]
    action: Tensor
    log_prob: Tensor
    mask: Tensor
    context: Mapping[str, Tensor] = field(default_factory=dict)
    context_row: Tensor | None = None
    mean: Tensor | None = None
    ragged: bool = False
    final: Tensor | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        kind = self.kind or ("latents" if self.action.is_floating_point() else "tokens")
        object.__setattr__(self, "kind", kind)
        lead = tuple(self.log_prob.shape)
        if len(lead) != 2:
            raise ShapeError(f"`log_prob` must be [B, S], got shape {list(lead)}.")
        named = {"mask": self.mask, "action": self.action, **self.observation}
        if self.mean is not None:
            named["mean"] = self.mean
        for name, tensor in named.items():
            if tuple(tensor.shape[:2]) != lead:
                raise ShapeError(f"`{name}` must begin with {list(lead)}, got shape {list(tensor.shape)}.")
        if self.final is not None and len(self.final) != lead[0]:
            raise ShapeError(f"`final` must hold {lead[0]} episodes, got {len(self.final)}.")
        if self.context and (self.context_row is None or tuple(self.context_row.shape) != lead[:1]):
            raise ShapeError(f"`context_row` must be [{lead[0]}] when a context is given; got another shape.")

    def __len__(self) -> int:
        return self.log_prob.shape[0]

    @property
    def drawn(self) -> bool:
        """Whether any action was drawn: those of the deterministic ODE have no log-probability."""
        return "stochastic" not in self.observation or bool(self.observation["stochastic"].any())

    @property
    def elements(self) -> int:
        """D, of one action: latent elements, or 1 where it is a token."""
        return self.action.shape[2:].numel()

    def select(self, index: Tensor) -> Phase:
        """The phase of the episodes at `index` `[b]`, or of those where a bool `index` `[B]` is true.

        Context rows nobody uses any more are dropped. A ragged phase keeps its width, so that shapes do not
        depend on who was selected.

        Raises:
            ShapeError: If `index` is neither.
        """
        index = places_or_mask("index", index, len(self))
        context, row = self.context, self.context_row
        if row is not None:
            used, row = torch.unique(row[index], return_inverse=True)
            context = {name: tensor[used] for name, tensor in context.items()}
        return replace(
            self,
            observation={name: tensor[index] for name, tensor in self.observation.items()},
            action=self.action[index],
            log_prob=self.log_prob[index],
            mask=self.mask[index],
            context=context,
            context_row=row,
            mean=None if self.mean is None else self.mean[index],
            final=None if self.final is None else self.final[index],
        )

    def light(self) -> Phase:
        """The phase with numbers of episodes, steps and prompts alone; larger tensors have shapes alone."""

        def without(tensor: Tensor | None) -> Any:
            return tensor if tensor is None or tensor.ndim <= 2 else tensor.to("meta")

        return replace(
            self,
            observation={name: without(tensor) for name, tensor in self.observation.items()},
            action=without(self.action),
            context={
                n: tensor if tensor.ndim == 1 else tensor.to("meta") for n, tensor in self.context.items()
            },
            mean=without(self.mean),
            final=None if self.final is None else self.final.to("meta"),
        )

    def to(self, device: torch.device | str) -> Phase:
        """The same phase on `device`."""

        def moved(value: object) -> object:
            if isinstance(value, Mapping):
                return {name: tensor.to(device) for name, tensor in value.items()}
            return value.to(device) if isinstance(value, Tensor) else value

        fields: dict[str, Any] = {name: moved(value) for name, value in vars(self).items()}
        return replace(self, **fields)

    def rows(self, index: Tensor, *, shared: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """Observations (context included) and actions of the episodes at `index`, as b*S separate rows.

        Args:
            index: `[b]` int64.
            shared: Give each context once, and `context_row` `[b*S]`, which of them each row has.
        """
        if index.dtype != torch.int64:  # a tensor of bytes would be taken for a mask
            index = places_or_mask("index", index, len(self)).to(index.device)
        steps = self.log_prob.shape[1]
        inputs = {name: tensor[index].flatten(0, 1) for name, tensor in self.observation.items()}
        if self.context_row is not None:
            row = self.context_row[index].repeat_interleave(steps)
            if shared:
                row, inputs["context_row"] = torch.unique(row, return_inverse=True)
            inputs.update({name: tensor[row] for name, tensor in self.context.items()})
        return inputs, self.action[index].flatten(0, 1)

    @classmethod
    def cat(cls, phases: Sequence[Phase]) -> Phase:
        """Join along the episodes.

        All phases must have the same number of steps, unless they are ragged: these are padded at their ends.
        Contexts of unequal sizes are padded, too (with 0).
        """
        steps = {phase.log_prob.shape[1] for phase in phases}
        ragged = phases[0].ragged
        if any(phase.ragged != ragged for phase in phases):
            raise ShapeError("Phases to join must be all ragged or none, got both.")
        if len(kinds := {phase.kind for phase in phases}) != 1:
            raise ShapeError(f"Phases to join must be of one kind, got {sorted(kinds)}.")
        if len(steps) != 1 and not ragged:
            raise ShapeError(f"Phases to join must have one number of steps, got {sorted(steps)}.")
        inputs = {tuple(sorted([*phase.observation, *phase.context])) for phase in phases}
        if len(inputs) != 1:
            raise ShapeError(f"Phases to join must have the same inputs, got {sorted(inputs)}.")
        first, offset, rows = phases[0], 0, []
        for phase in phases:
            if phase.context_row is not None:
                rows.append(phase.context_row + offset)
                offset += next(iter(phase.context.values())).shape[0] if phase.context else 0
        means, finals = _all([phase.mean for phase in phases]), _all([phase.final for phase in phases])
        join = cat_padded if ragged else _cat
        return cls(
            observation={k: join([p.observation[k] for p in phases]) for k in first.observation},
            action=join([p.action for p in phases], -1),
            log_prob=join([p.log_prob for p in phases]),
            mask=join([p.mask for p in phases]),
            context={k: cat_padded([p.context[k] for p in phases]) for k in first.context},
            context_row=torch.cat(rows) if rows else None,
            mean=None if means is None else join(means),
            final=None if finals is None else _cat(finals),
            ragged=ragged,
            kind=first.kind,
        )


@dataclass(frozen=True)
class Kept:
    """Where the tensors of B episodes lie which are elsewhere than in their batch.

    Attributes:
        sources: References to what holds them, as `rollouts.kept` puts it there.
        source: `[B]` int64, which of these has an episode.
        place: `[B]` int64, the episode's place in it.
    """

    sources: tuple[Any, ...]
    source: Tensor
    place: Tensor

    def select(self, index: Tensor) -> Kept:
        """Those of the episodes at `index` `[b]`, or where a bool `index` `[B]` is true."""
        return replace(self, source=self.source[index], place=self.place[index])

    @classmethod
    def cat(cls, parts: Sequence[Kept]) -> Kept:
        """Join along the episodes."""
        shifts = torch.tensor([0, *(len(part.sources) for part in parts)]).cumsum(0).tolist()
        return cls(
            tuple(source for part in parts for source in part.sources),
            torch.cat([part.source + shift for part, shift in zip(parts, shifts, strict=False)]),
            torch.cat([part.place for part in parts]),
        )


@dataclass(frozen=True)
class EpisodeBatch:
    """B finished episodes, their rewards, and which group each belongs to.

    Attributes:
        phases: By name, `image` or `text`.
        scores: The judgement on every episode.
        group: `[B]` int64; episodes of one group answer the same prompt.
        prompts: The B prompts.
        episode_seed: `[B]` int64, the key of each episode's noise.
        weights_version: The version of the policy that acted.
        samples: The B finished samples, when they were kept.
        truncated: `[B]` bool, which episodes a length limit ended; None where there is no such limit.
        kept: Where large tensors are, if those of `phases` have shapes alone (torch's device "meta").
    """

    phases: Mapping[str, Phase]
    scores: Scores
    group: Tensor
    prompts: tuple[Prompt, ...]
    episode_seed: Tensor
    weights_version: int = 0
    samples: tuple[Sample, ...] | None = None
    truncated: Tensor | None = None
    kept: Kept | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        sizes = {"group": len(self.group), "prompts": len(self.prompts)}
        sizes["episode_seed"] = len(self.episode_seed)
        if self.truncated is not None:
            sizes["truncated"] = len(self.truncated)
        sizes.update({f"phases[{name!r}]": len(phase) for name, phase in self.phases.items()})
        for name, size in sizes.items():
            if size != count:
                raise ShapeError(f"`{name}` must hold {count} episodes like `scores`, got {size}.")

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def rewards(self) -> Tensor:
        """`[B]` float32; NaN where the score is invalid."""
        return self.scores.value

    def select(self, index: Tensor) -> EpisodeBatch:
        """The episodes at `index` `[b]`, in that order; or those where a bool `index` `[B]` is true.

        Raises:
            ShapeError: If `index` is neither.
        """
        index = places_or_mask("index", index, len(self))
        keep = index.tolist()
        scores = Scores(
            value=self.scores.value[index],
            parts={name: part[index] for name, part in self.scores.parts.items()},
            valid=self.scores.valid[index],
            faults=self.scores.faults,
        )
        return replace(
            self,
            phases={name: phase.select(index) for name, phase in self.phases.items()},
            scores=scores,
            group=self.group[index],
            prompts=tuple(self.prompts[i] for i in keep),
            episode_seed=self.episode_seed[index],
            samples=None if self.samples is None else tuple(self.samples[i] for i in keep),
            truncated=None if self.truncated is None else self.truncated[index],
            kept=None if self.kept is None else self.kept.select(index),
        )

    def to(self, device: torch.device | str) -> EpisodeBatch:
        """The same batch with its phases on `device`."""
        return replace(self, phases={name: phase.to(device) for name, phase in self.phases.items()})

    def lengths(self, kinds: Mapping[str, str], num_steps: int) -> list[int]:
        """Steps of the environment in each of B episodes: those on latents, and the tokens of the policy.

        Args:
            kinds: The phases that episodes have, and the kind of each; steps without noise are not recorded.
            num_steps: Denoising steps.
        """
        steps = [0] * len(self)
        for name, kind in kinds.items():
            if kind == "latents":
                steps = [count + num_steps for count in steps]
            elif name in self.phases:
                counts = self.phases[name].mask.sum(1).tolist()
                steps = [count + more for count, more in zip(steps, counts, strict=True)]
        return steps

    @classmethod
    def cat(cls, batches: Sequence[EpisodeBatch]) -> EpisodeBatch:
        """Join the batches of several runners; group numbers must already be distinct.

        Raises:
            ShapeError: If there is nothing to join, policies of several versions acted, or phases differ.
        """
        if not batches:
            raise ShapeError("`batches` must hold at least one EpisodeBatch, got none.")
        versions = {batch.weights_version for batch in batches}
        if len(versions) != 1:
            raise ShapeError(f"Batches to join must come from one policy version, got {sorted(versions)}.")
        kinds = {tuple(batch.phases) for batch in batches}
        if len(kinds) != 1:
            raise ShapeError(f"Batches to join must have the same phases, got {sorted(kinds)}.")
        first = batches[0]
        samples = _all([batch.samples for batch in batches])
        truncated = _all([batch.truncated for batch in batches])
        kept = _all([batch.kept for batch in batches])
        return cls(
            phases={name: Phase.cat([batch.phases[name] for batch in batches]) for name in first.phases},
            scores=Scores.cat(batch.scores for batch in batches),
            group=torch.cat([batch.group for batch in batches]),
            prompts=tuple(prompt for batch in batches for prompt in batch.prompts),
            episode_seed=torch.cat([batch.episode_seed for batch in batches]),
            weights_version=first.weights_version,
            samples=None if samples is None else tuple(sample for each in samples for sample in each),
            truncated=None if truncated is None else torch.cat(truncated),
            kept=None if kept is None else Kept.cat(kept),
        )


def distinct(keys: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """The first of B episodes with each key `[P]`, and for each episode which of them it shares `[B]`."""
    first: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    place = {key: p for p, key in enumerate(first)}
    return torch.tensor([*first.values()]), torch.tensor([place[key] for key in keys])


def _all(parts: Sequence[Part | None]) -> list[Part] | None:
    """The parts, unless one of them is missing."""
    found = [part for part in parts if part is not None]
    return found if len(found) == len(parts) else None


def _cat(tensors: Sequence[Tensor], fill: float = 0) -> Tensor:
    return torch.cat(list(tensors))


def cat_padded(tensors: Sequence[Tensor], fill: float = 0) -> Tensor:
    """Join tensors `[n, ...]` that may differ in later sizes; they are filled up at their ends."""
    ranks = {tensor.ndim for tensor in tensors}
    if len(ranks) != 1:
        raise ShapeError(f"Tensors to join must have one number of dimensions, got {sorted(ranks)}.")
    size = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    out = tensors[0].new_full((sum(len(tensor) for tensor in tensors), *size), fill)
    start = 0
    for tensor in tensors:
        stop = start + len(tensor)
        out[(slice(start, stop), *(slice(width) for width in tensor.shape[1:]))] = tensor
        start = stop
    return out
