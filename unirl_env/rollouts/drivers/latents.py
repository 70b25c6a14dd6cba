"""Denoising: the steps of all pictures together, in an environment of its own or behind a text."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.envs.encodings import prompt_key
from unirl_env.episode import Phase, distinct
from unirl_env.functional import SDEStep
from unirl_env.models.denoiser import NEGATIVE
from unirl_env.policies.actor import Actor
from unirl_env.policies.heads import ANNOUNCED, SecondOrder
from unirl_env.rollouts.driver import Driver, LiveEpisodes, RolloutRequest

NOISE_AT_ONCE = 1 << 18
"""Elements: making little noise costs as much as making more."""
SEEN = ("latent", "sigma", "sigma_next")
"""What is recorded of a step's observation, beside its context."""


class LatentDriver(Driver):
    """Denoises the pictures of all episodes that have come to theirs.

    Args:
        actor: The policy.
        phase: Which of its heads denoises; None where there is one.
    """

    truncates = False

    def __init__(self, actor: Actor, phase: str | None = None):
        self.actor, self.head, self.phase = actor, actor.latent_head(phase), phase

    def play(self, live: LiveEpisodes, request: RolloutRequest) -> Phase | None:
        """Take all denoising steps.

        Returns:
            The steps that `_kept_steps` names, masked where an episode has no picture; None without any.
        """
        num_steps = live.get_attr("num_steps")
        if not num_steps:
            return None
        explored = set(live.get_attr("stochastic_steps"))
        kept = _kept_steps(explored if request.keep_steps else (), num_steps, request.keep_final)
        context, row = _contexts(live)
        device, total = row.device, len(live)
        rows = (~live.done).nonzero().flatten().to(device)
        everyone = len(rows) == total
        # Where processes hold parts of the network, one without a picture passes through it with the first.
        drawn = rows if len(rows) or not self.actor.divided else torch.zeros_like(row[:1])
        shape, keys = live.obs["latent"].shape[1:], live.seeds[rows.cpu()].tolist()
        stored = _Steps(total, kept, shape, self.head.storage_dtype, request.keep_mean, device)
        latent: Tensor | None = None
        # Pictures of another size are the environment's own model of that size, with the same network.
        denoiser = None if request.size is None else live.get_attr("denoiser")
        how = self.head.guided(request.guidance, denoiser)
        with self.actor.acting(base=request.base), how:
            if len(drawn):
                # Only what is drawn is read: texts that ended without a picture are not in it.
                used, place = row[drawn].unique(return_inverse=True)
                shared = {name: each[used] for name, each in context.items()}
                reading = self.actor.read({**shared, "context_row": place}, phase=self.phase)
            noise = _KeyedSteps(keys, explored if keys else (), shape, device)
            solver = SecondOrder() if request.second_order else None
            for k in range(num_steps if len(drawn) else 0):
                seen = {name: live.obs[name] for name in (*SEEN, "stochastic")}
                obs = seen if everyone else {name: each[drawn] for name, each in seen.items()}
                # What is stored is what the policy sees: rounding later would score another state.
                obs["latent"] = obs["latent"].to(self.head.storage_dtype)
                if not len(rows):
                    obs["stochastic"] = torch.zeros_like(obs["stochastic"])
                step = self.actor.act(obs, noise.of(k), phase=self.phase, reading=reading, solver=solver)
                if not len(rows):
                    continue
                stored.put(k, rows, obs, step)
                latent = _spread(step.latent, rows, total)
                live.step({"latent": latent} if "phase" in live.obs else latent)
        if not kept:
            return None

        mask = torch.zeros(total, len(kept), dtype=torch.bool, device=device)
        mask[rows] = True
        observation = {name: stored.of[name] for name in SEEN}
        if not (explored and request.keep_steps):
            # A step that was not drawn must say so, or it would be scored as if it had been.
            observation["stochastic"] = torch.zeros_like(mask)
        action = stored.of["action"]
        return Phase(
            observation=observation,
            action=action,
            log_prob=stored.of["log_prob"],
            mask=mask,
            context=context,
            context_row=row,
            mean=stored.of.get("mean"),
            final=(action[:, 0] if latent is None else latent) if request.keep_final else None,
        )


class _Steps:
    """What is recorded, each `[B, S, ...]` and 0 where an episode has no picture: written where it stays.

    Clips have latents of millions of elements; put together at the end, they would be there twice.

    Args:
        total: B.
        kept: The S steps.
        shape: Of a latent.
        dtype: What latents are stored in.
        mean: Whether means are recorded.
        device: Where.
    """

    def __init__(
        self,
        total: int,
        kept: Sequence[int],
        shape: Sequence[int],
        dtype: torch.dtype,
        mean: bool,
        device: torch.device,
    ):
        self._place = {step: place for place, step in enumerate(kept)}
        fields = {"latent": (shape, dtype), "action": (shape, dtype)}
        fields |= {name: ((), torch.float32) for name in ("sigma", "sigma_next", "log_prob")}
        fields |= {"mean": (shape, torch.float32)} if mean else {}
        self.of = {
            name: torch.zeros(total, len(kept), *sizes, dtype=kind, device=device)
            for name, (sizes, kind) in fields.items()
        }

    def put(self, step: int, rows: Tensor, obs: Mapping[str, Tensor], taken: SDEStep) -> None:
        """Record a step of the episodes at `rows`, if it is one of those that are kept."""
        if step not in self._place:
            return
        values = {**obs, "action": taken.latent, "log_prob": taken.log_prob, "mean": taken.mean}
        for name, stored in self.of.items():
            place = stored[:, self._place[step]]
            if len(rows) == len(place):
                place.copy_(values[name])
            else:
                place.index_copy_(0, rows, values[name].to(place.dtype))


class _KeyedSteps:
    """The noise of the steps that explore, of many of them in one call where it is small.

    Args:
        seeds: n keys.
        explored: The steps.
        shape: Of one row.
        device: Where it is made.
    """

    def __init__(
        self, seeds: Sequence[int], explored: Collection[int], shape: Sequence[int], device: torch.device
    ):
        self._seeds, self._shape, self._device = torch.tensor(seeds), shape, device
        self._left, self._made = sorted(explored), dict[int, Tensor]()
        self._at_once = max(1, NOISE_AT_ONCE // max(1, len(seeds) * math.prod(shape)))

    def of(self, step: int) -> Tensor | None:
        """Standard normal `[n, *shape]`; None if `step` does not explore. Steps are asked for in order."""
        if step not in self._made and step in self._left:
            steps, self._left = self._left[: self._at_once], self._left[self._at_once :]
            which = torch.tensor(steps).repeat_interleave(len(self._seeds))
            noise = F.keyed_noise(self._seeds.repeat(len(steps)), which, self._shape, device=self._device)
            self._made = dict(zip(steps, noise.view(len(steps), -1, *self._shape), strict=True))
        return self._made.get(step)


def _kept_steps(explored: Collection[int], num_steps: int, keep_final: bool) -> tuple[int, ...]:
    """The recorded steps: those that explore.

    Where none does, but the finished latent is wanted, it is the last one, which ends in it: a phase then
    has one row for each episode.
    """
    return (num_steps - 1,) if keep_final and not explored else tuple(sorted(explored))


def _contexts(live: LiveEpisodes) -> tuple[dict[str, Tensor], Tensor]:
    """What the network reads beside latents `[P, ...]`, and for each episode `[B]` which of it."""
    model, obs = live.get_attr("unified_model", None), live.obs
    if model is None:
        context = {name: each for name, each in obs.items() if name not in ANNOUNCED}
        keys = [(prompt_key(prompt, prompt.text), prompt.negative) for prompt in live.prompts]
    else:
        names = [*model.context_keys, *(NEGATIVE + name for name in model.context_keys)]
        context = {name: torch.as_tensor(obs[name]) for name in names if name in obs}
        for prefix in ("", NEGATIVE):
            if f"{prefix}length" in context:
                longest = int(context[f"{prefix}length"].max())
                context[f"{prefix}tokens"] = context[f"{prefix}tokens"][:, :longest]
        # Without a text, the episodes of a prompt have one context.
        keys = [*range(len(live))]
        if not live.get_attr("max_new_tokens"):
            keys = [id(encoded) for encoded in live.get_attr("encodings")]
    device = obs["latent"].device
    first, row = (each.to(device) for each in distinct(keys))
    return {name: each[first] for name, each in context.items()}, row


def _spread(values: Tensor, rows: Tensor, total: int) -> Tensor:
    """`values` `[n, ...]` of the episodes at `rows` among `total` ones, zeros elsewhere."""
    if len(rows) == total:
        return values
    return values.new_zeros(total, *values.shape[1:]).index_copy(0, rows, values)
