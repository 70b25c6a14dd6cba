"""The kinds of phases: how their episodes become rows, and what pulls them towards the untrained model.

The table is open to users.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import unirl_env.functional as F
from unirl_env.agents.rows import Rows, flat_rows, latent_rows, token_rows
from unirl_env.episode import Phase
from unirl_env.functional import SDEStep, TokenStep
from unirl_env.policies.distributions import ActionStep
from unirl_env.policies.packing import sequence_lengths
from unirl_env.registry import Registry

ELEMENTS_AT_ONCE = 1 << 15
"""Of latents, in one forward and backward on a CPU."""


def episodes_at_once(phase: Phase, device: torch.device | str, *, forwards: int = 1) -> int | None:
    """How many episodes of a phase `micro_batch_size="auto"` trains in one forward; None for all.

    An accelerator is the busier the more it is given. A CPU is not once activations leave its caches: of
    latents it takes as many as have `ELEMENTS_AT_ONCE` elements in all steps. It is a rule of sizes and not
    of clocks, so that runs repeat themselves.

    Args:
        phase: The phase.
        device: Where it is trained.
        forwards: How many rows of the network a row of the phase takes: 2 under guidance.
    """
    if phase.kind != "latents" or torch.device(device).type != "cpu":
        return None
    return max(1, ELEMENTS_AT_ONCE // max(1, forwards * phase.action[0].numel()))


def by_episodes(phase: Phase, busy: Tensor, *, size: int | None, tokens: int | None) -> list[Tensor]:
    """The episodes `busy` in micro-batches of at most `size`; None takes all at once."""
    return list(busy.split(size or len(busy))) if len(busy) else []


def by_tokens(phase: Phase, busy: Tensor, *, size: int | None, tokens: int | None) -> list[Tensor]:
    """The episodes `busy` in micro-batches of at most `size` episodes and `tokens` packed tokens.

    None bounds nothing. Episodes of one prompt stay together, which may share it; of prompts, those with the
    longest episode come first, so that the episodes of a micro-batch are of about one length. Each episode
    counts with its prompt. One that alone exceeds `tokens` is a micro-batch of its own.
    """
    assert phase.context_row is not None
    lengths = sequence_lengths(phase).cpu()[busy].tolist()
    prompts = phase.context_row.cpu()[busy].tolist()
    longest: dict[int, int] = {}
    for prompt, length in zip(prompts, lengths, strict=True):
        longest[prompt] = max(length, longest.get(prompt, 0))
    order = sorted(range(len(busy)), key=lambda i: (-longest[prompts[i]], prompts[i], -lengths[i]))
    found: list[list[int]] = []
    room = 0
    for i in order:
        full = not found or (size is not None and len(found[-1]) == size)
        if full or (tokens is not None and lengths[i] > room):
            found.append([])
            room = tokens or 0
        found[-1].append(int(busy[i]))
        room -= lengths[i]
    return [torch.tensor(each) for each in found]


@dataclass(frozen=True)
class PhaseKind:
    """How the episodes of a phase become rows, and what scoring them gives.

    Attributes:
        step: What the policy's forward pass returns, as named fields.
        rows: `(shard, name of the phase, episodes, denominator) -> Rows`.
        micro_batches: `(phase, busy episodes, size=, tokens=) -> ` the episodes of each.
        reference_kl: `(new, reference, rows, config) -> ` what pulls towards the untrained policy in the
            loss, each row by its `kl_scale`, and the mean divergence from it, to be reported.
        like: Another kind, whose losses hold here as they are: where the step has the fields that those read,
            with the same meaning. Without one, an agent must have a loss of this very kind.
        per_element: Whether log-probs are means over the elements of an action, and not its own in nats.
        about: What the actions are, for the error about an agent that has no loss on them.
        nats: `(new, reference, rows) -> [N]`, what each row pays for leaving the untrained policy, in nats of
            whole actions; `new` is None where what was recorded will do (log-probs, and of latents means).
            Without it, returns cannot be charged, and no drift is measured.
        velocities: `(new, reference, rows, policy) -> ` those of both, each `[N, ...]` and 0 where masked;
            None where nothing is denoised.
    """

    step: type
    rows: Callable[..., Rows]
    micro_batches: Callable[..., list[Tensor]]
    reference_kl: Callable[[Any, Any, Rows, Any], tuple[Tensor, Tensor]]
    like: str | None = None
    per_element: bool = False
    about: str = ""
    nats: Callable[[Any, Any, Rows], Tensor] | None = None
    velocities: Callable[[Any, Any, Rows, Any], tuple[Tensor, Tensor]] | None = None


def _latent_kl(new: SDEStep, reference: SDEStep, rows: Rows, config: Any) -> tuple[Tensor, Tensor]:
    at = (new.mean, reference.mean, new.std, rows.mask, rows.denominator)
    if config.reference_distance == "velocity":
        with torch.no_grad():
            kl = F.reference_kl(*at)
        return rows.mean(_velocity_distance(new, reference, rows, config.policy)), kl
    if rows.kl_scale is None:
        kl = F.reference_kl(*at)
        return kl, kl.detach()
    with torch.no_grad():
        kl = F.reference_kl(*at)
    return F.reference_kl(*at, weight=rows.kl_scale), kl


def _velocity_distance(new: SDEStep, reference: SDEStep, rows: Rows, policy: Any) -> Tensor:
    """Mean square per element of the difference of velocities `[N]`: means lie `push` times that apart."""
    _, push = _of_mean(new.mean, rows, policy)
    apart = torch.where(rows.mask.reshape(push.shape), (new.mean - reference.mean.detach()) / push, 0.0)
    return apart.square().flatten(1).mean(1)


def _latent_velocities(
    new: SDEStep | None, reference: SDEStep, rows: Rows, policy: Any
) -> tuple[Tensor, Tensor]:
    mean = rows.old_mean if new is None else new.mean
    assert mean is not None  # `new` is given where none were recorded
    keep, push = _of_mean(mean, rows, policy)
    start, mask = rows.observation["latent"].float() * keep, rows.mask.reshape(push.shape)
    ours, theirs = ((each - start) / push for each in (mean, reference.mean))
    return torch.where(mask, ours, 0.0), torch.where(mask, theirs, 0.0)


def _of_mean(mean: Tensor, rows: Rows, policy: Any) -> tuple[Tensor, Tensor]:
    """What latent and velocity count in the mean of the next latent, each `[N, 1, ...]`."""
    seen = rows.observation
    one, none = torch.ones(len(rows), 1, device=mean.device), torch.zeros(len(rows), 1, device=mean.device)
    at = (seen["sigma"], seen["sigma_next"])
    kernel = {"dynamics": policy.dynamics, "eta": policy.eta, "stochastic": seen.get("stochastic")}
    shape = (len(rows), *[1] * (mean.ndim - 1))
    keep, push = F.transition(none, one, *at, **kernel)[0], F.transition(one, none, *at, **kernel)[0]
    return keep.reshape(shape), push.reshape(shape)


def _latent_nats(new: SDEStep | None, reference: SDEStep, rows: Rows) -> Tensor:
    mean = rows.old_mean if new is None else new.mean
    assert mean is not None  # `new` is given where none were recorded
    return F.gaussian_kl(mean, reference.mean, reference.std, reduction="sum")


def _token_kl(new: Any, reference: Any, rows: Rows, config: Any) -> tuple[Tensor, Tensor]:
    scaled = rows.weight if rows.kl_scale is None else rows.weight * rows.kl_scale

    def estimate(log_prob: Tensor, estimator: str, weight: Tensor) -> Tensor:
        return F.token_reference_kl(
            log_prob,
            reference.log_prob,
            old_log_prob=rows.old_log_prob,
            estimator=estimator,
            mask=rows.mask,
            denominator=rows.denominator,
            weight=weight,
            max_log_ratio=config.max_log_ratio,
        )

    # The value of "k2" is no KL far from the reference; that of "k3" is unbiased, and never negative.
    pull = estimate(new.log_prob, config.kl_estimator, scaled)
    return pull, estimate(new.log_prob.detach(), "k3", rows.weight)


def _token_nats(new: Any, reference: Any, rows: Rows) -> Tensor:
    # Of one token: its mean under the policy that sampled is the KL.
    log_prob: Tensor = rows.old_log_prob if new is None else new.log_prob
    return log_prob - reference.log_prob


LATENTS = PhaseKind(
    SDEStep,
    latent_rows,
    by_episodes,
    _latent_kl,
    per_element=True,
    nats=_latent_nats,
    velocities=_latent_velocities,
)
TOKENS = PhaseKind(TokenStep, token_rows, by_tokens, _token_kl, nats=_token_nats)
DISCRETE = PhaseKind(
    TokenStep,
    flat_rows,
    by_episodes,
    _token_kl,
    like="tokens",
    about="one of n actions",
    nats=_token_nats,
)
CONTINUOUS = PhaseKind(
    ActionStep,
    flat_rows,
    by_episodes,
    _token_kl,
    about="real actions with densities: what bounds probabilities means nothing of them",
    nats=_token_nats,
)


def micro_batches_of(learner: Any, name: str, phase: Phase, busy: Tensor) -> list[Tensor]:
    """The episodes `busy` of a phase in a learner's micro-batches, as its settings bound them.

    Args:
        learner: A `GenerativeLearner`.
        name: Of the phase.
        phase: The phase.
        busy: `[n]` int64 on the CPU.
    """
    config, size = learner.config, learner.config.micro_batch_size
    if size == "auto":
        size = episodes_at_once(phase, learner.device, forwards=learner.policy.actor.forwards(name))
    return KINDS[phase.kind].micro_batches(phase, busy, size=size, tokens=config.micro_batch_tokens)


class _Kinds(Registry):
    """Kinds by name: a registered one, or the dotted path of a `PhaseKind`, which every process can find."""

    def __getitem__(self, name: str) -> PhaseKind:
        return _kind(name)


KINDS = _Kinds(
    "phase kind",
    {name.lower(): f"{__name__}:{name}" for name in ("LATENTS", "TOKENS", "DISCRETE", "CONTINUOUS")},
)
"""By the name of the kind, as `Phase.kind` has it; `KINDS.register` adds one."""


@functools.cache
def _kind(name: str) -> PhaseKind:
    found: PhaseKind = KINDS.get(name)
    return found


class Losses(dict[str, Any]):
    """Losses by kinds of phases; a kind without a loss of its own takes that of the kind which it is like."""

    def __contains__(self, kind: Any) -> bool:
        return super().__contains__(kind) or super().__contains__(KINDS[kind].like)

    def __missing__(self, kind: str) -> Any:
        like = KINDS[kind].like
        if like is None:
            raise KeyError(kind)
        return self[like]
