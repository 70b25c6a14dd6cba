"""Episodes scored by the policy that played them and by the untrained model: what lies between the two.

`reference_kls` is what each step pays for leaving the untrained model, taken before credit is given. `Drift`
is how far a whole policy has gone from it, measured alike for every agent, whatever its updates look at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from torch import Tensor

from unirl_env.agents.kinds import KINDS, PhaseKind, micro_batches_of
from unirl_env.agents.loss import Context
from unirl_env.agents.parallel import Minibatch
from unirl_env.agents.rows import Rows, Shard, Step


@dataclass(frozen=True)
class Drift:
    """How far a policy is from the untrained model.

    Attributes:
        kl: By phase, in nats of a whole episode, the mean over episodes that the policy played: exact at each
            visited state of latents, whose steps all explore (the last one aside); of tokens and actions the
            difference of log-probs of what was sampled.
        velocity_norm: By phase of latents, the root mean square of the policy's velocities there over that of
            the untrained model's. Above 1 contrast grows; pictures fall apart long before 2.
        velocity_change: The root mean square of their difference, over the same.
    """

    kl: Mapping[str, float]
    velocity_norm: Mapping[str, float]
    velocity_change: Mapping[str, float]

    def row(self) -> dict[str, float]:
        """The numbers by name: `kl` over all phases, and `<phase>/kl`, where there are several."""
        found = {"kl": math.fsum(self.kl.values())}
        found |= {f"{phase}/kl": kl for phase, kl in self.kl.items() if len(self.kl) > 1}
        for phase, norm in self.velocity_norm.items():
            place = f"{phase}/" if len(self.kl) > 1 else ""
            found[f"{place}velocity_norm"] = norm
            found[f"{place}velocity_change"] = self.velocity_change[phase]
        return found


def drift(learner: Any, shard: Shard, weights: str) -> Drift:
    """How far `weights` of a learner are from the untrained model, on episodes that they played.

    Args:
        learner: The learner.
        shard: Whole episodes, whose latents have every step that explores.
        weights: `"trained"` or `"ema"`: whose policy it is.
    """
    kl, norm, change = {}, {}, {}
    with learner.policy.actor.under(weights):
        for name, phase in shard.phases.items():
            kind, paid = KINDS[phase.kind], 0.0
            if kind.nats is None:
                continue
            squares = torch.zeros(3, dtype=torch.float64)
            for rows, new, reference in _both(learner, shard, name):
                paid += float(_nats(kind, learner.config, rows, new, reference).double().sum())
                if kind.velocities is not None:
                    ours, theirs = kind.velocities(new, reference, rows, learner.config.policy)
                    squares += torch.stack([_square(each) for each in (ours, theirs, ours - theirs)]).cpu()
            kl[name] = paid / len(shard)
            if squares[1] > 0:
                norm[name] = math.sqrt(squares[0] / squares[1])
                change[name] = math.sqrt(squares[2] / squares[1])
    return Drift(kl, norm, change)


def reference_kls(learner: Any, shard: Shard) -> dict[str, Tensor]:
    """The KL of each step to the untrained model, at the visited states, under the policy that sampled.

    Args:
        learner: The learner, whose weights are those that sampled.
        shard: Whole episodes.

    Returns:
        By phase `[b, S]` float32 on the CPU, in nats of whole actions: exact on latents; elsewhere the
        difference of log-probs of what was sampled, at most `max_log_ratio` (with `top_p` the untrained model
        may exclude it); 0 where masked.
    """
    found = {}
    for name, phase in shard.phases.items():
        kl = torch.zeros_like(phase.log_prob, dtype=torch.float32, device="cpu")
        for rows, new, reference in _both(learner, shard, name):
            nats = _nats(KINDS[phase.kind], learner.config, rows, new, reference)
            kl[rows.episode.cpu(), rows.step.cpu()] = nats.cpu()
        found[name] = kl
    return found


def own_reference_kls(learner: Any, shards: Sequence[Any]) -> tuple[int, dict[str, Tensor]]:
    """`reference_kls` of this learner's share: of `shards`, or of references to them.

    Returns:
        Which share it is, and what was found.
    """
    place = learner.parallel.share
    with learner.policy.actor.under(learner.config.rollout_weights):
        return place, reference_kls(learner, learner.fetched(_here(shards[place])))


def own_drift(learner: Any, shards: Sequence[Any], weights: str) -> Drift:
    """`drift` of the one shard in `shards`, or of a reference to it, which every learner looks at."""
    return drift(learner, learner.fetched(_here(shards[0])), weights)


def _here(shard: Any) -> Shard:
    return ray.get(shard) if isinstance(shard, ray.ObjectRef) else shard


@torch.no_grad()
def _both(learner: Any, shard: Shard, name: str) -> Iterator[tuple[Rows, Step | None, Step]]:
    """The rows of a phase, their step under the policy that sampled (None: as recorded) and the base."""
    config, actor = learner.config, learner.policy.actor
    shard = replace(shard.to(learner.device), branching=frozenset({name} if actor.branches(name) else ()))
    phase = shard.phases[name]
    kind = KINDS[phase.kind]
    context = Context(learner.policy, config, phase=name, kind=phase.kind)
    recorded = config.old_log_probs == "rollout" and (phase.mean is not None or not kind.per_element)
    here = phase.mask.any(1).nonzero()[:, 0].cpu() if phase.drawn else torch.empty(0, dtype=torch.int64)
    own: Minibatch = {name: micro_batches_of(learner, name, phase, here)}
    for index in learner.parallel.level([own])[0][name]:
        for rows in learner.parts(shard, name, index, 1.0):
            new = None if recorded else context.score(rows.observation, rows.action)
            with context.weights("reference"):
                reference = context.score(rows.observation, rows.action)
            if len(index):
                yield rows, new, reference


def _nats(kind: PhaseKind, config: Any, rows: Rows, new: Step | None, reference: Step) -> Tensor:
    assert kind.nats is not None  # whoever asks has seen to it
    nats = kind.nats(new, reference, rows)
    if not kind.per_element:
        nats = nats.clamp(-config.max_log_ratio, config.max_log_ratio)
    return torch.where(rows.mask, nats, 0.0)


def _square(values: Tensor) -> Tensor:
    return values.double().square().sum()
