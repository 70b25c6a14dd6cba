"""Advantages from the rewards of groups: several samples of one prompt, judged against each other.

Shared rules. Rewards that failed (`valid` False, NaN or infinite) are left out of every statistic and get 0.
A group whose valid rewards are all equal, or that has a single valid member, gets exactly 0: equality is
tested as max == min, because the mean of equal float32 numbers need not equal them. No standard deviation
below 1e-4 is divided by, so rounding is never amplified to a signal; rewards on a smaller scale should be
rescaled. Statistics are taken in float64, in the order of the values, so that neither the order of the batch
nor the names of the groups change a bit of the result. Groups may be of any sizes, with any integer ids, in
any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ShapeError
from unirl_env.functional.require import require_choice, require_floating, require_shape

STD_FLOOR = 1e-4


def group_advantages(
    rewards: Tensor,
    group: Tensor,
    *,
    scale: str = "group",
    valid: Tensor | None = None,
    clip: float | None = None,
) -> Tensor:
    """`(r - mean of its group) / max(std, 1e-4)`, population statistics over valid rewards.

    Args:
        rewards: `[B]` floating.
        group: `[B]` integer ids; equal ids share a prompt.
        scale: "group" divides by the std of the group (GRPO); "batch" by the std of all valid rewards, so
            that groups whose rewards differ much weigh more (Flow-GRPO's global std); "none" does not divide
            (Dr. GRPO).
        valid: `[B]` bool; None takes every finite reward.
        clip: Positive bound on the absolute advantage; a clipped group no longer has mean zero.

    Returns:
        `[B]` float32 without gradient, mean zero over the valid members of each group.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: `scale` is unknown or `clip` is not positive.

    Reference:
        GRPO (arXiv 2402.03300); Dr. GRPO (2503.20783); Flow-GRPO (2505.05470).
    """
    require_choice("scale", scale, ("group", "batch", "none"))
    _require_clip(clip)
    _check_rewards(rewards, group, valid, rank=1)
    batch = _Groups(rewards, group, valid)
    if scale == "group":
        advantages = batch.centered / batch.group_std.clamp_min(STD_FLOOR)
    elif scale == "batch":
        advantages = batch.centered / _std(batch.rewards, batch.valid).clamp_min(STD_FLOOR)
    else:
        advantages = batch.centered
    return _finish(batch.restore(advantages), clip)


def leave_one_out_advantages(rewards: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """`r` minus the mean of the *other* valid rewards of its group: the unbiased baseline, not rescaled.

    Args:
        rewards: `[B]` floating.
        group: `[B]` integer ids.
        valid: `[B]` bool; None takes every finite reward.

    Returns:
        `[B]` float32 without gradient.

    Raises:
        ShapeError: Shapes or dtypes do not fit.

    Reference:
        RLOO: Ahmadian et al. (arXiv 2402.14740). Equals n / (n - 1) times `scale="none"`.
    """
    _check_rewards(rewards, group, valid, rank=1)
    batch = _Groups(rewards, group, valid)
    others = (batch.count - 1).clamp_min(1)
    return _finish(batch.restore(batch.centered * batch.count / others), None)


def gdpo_advantages(
    rewards: Tensor | Mapping[str, Tensor],
    group: Tensor,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    valid: Tensor | None = None,
    *,
    clip: float | None = None,
) -> Tensor:
    """Advantages from several rewards, each normalised within its group before they are added.

    Adding first lets the reward with the largest spread decide alone, and makes different mixtures of rewards
    with the same sum indistinguishable. Step by step, with population statistics over valid samples and the
    floor 1e-4 on both standard deviations:

    1. `A_k = (r_k - group mean) / group std` for each reward k; exactly 0 where it is constant in the group.
    2. `A = sum_k w_k A_k`.
    3. `A / batch std(A)`. The paper also subtracts the batch mean, which is zero because every group's is;
       leaving that out keeps constant groups at exactly 0.

    A sample counts as valid only if all its rewards do: a sum over the ones that happened to succeed would
    compare it with siblings that were judged on more.

    Args:
        rewards: `[B, R]` floating, or a mapping of names to `[B]` such as `Scores.parts`.
        group: `[B]` integer ids.
        weights: R numbers, or a mapping with the names of `rewards`; None weighs all by 1. Negative weights
            turn a reward into a cost.
        valid: `[B]` bool; None takes every sample whose rewards are all finite.
        clip: Positive bound on the absolute advantage.

    Returns:
        `[B]` float32 without gradient, mean zero per group, standard deviation 1 over the valid batch.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: The weights do not fit the rewards, or `clip` is not positive.

    Reference:
        GDPO (arXiv 2601.05242), equations 4 to 6.
    """
    _require_clip(clip)
    rewards, weights = _stack(rewards, weights)
    _check_rewards(rewards, group, valid, rank=2)
    finite = torch.isfinite(rewards).all(dim=1)
    valid = finite if valid is None else valid & finite
    total = torch.zeros(len(rewards), dtype=torch.float64, device=rewards.device)
    for column, weight in zip(rewards.unbind(1), weights, strict=True):
        batch = _Groups(column, group, valid)
        total += weight * batch.restore(batch.centered / batch.group_std.clamp_min(STD_FLOOR))
    order = total.argsort()
    std = _std(total[order], valid[order])
    return _finish(total / std.clamp_min(STD_FLOOR), clip)


def charged_advantages(
    rewards: Tensor,
    group: Tensor,
    charge: Tensor,
    reach: Tensor,
    *,
    scale: str = "group",
    valid: Tensor | None = None,
    clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages of steps whose returns are charged with what the later steps pay: `(R_k - mean) / c`.

    `R_k = r - charge_k` is what an episode earns from step k on, and its baseline the mean of R_k over the
    members of its group that come to step k. With `charge_k = beta * sum of KL_j over j > k` in nats of whole
    actions, and the exact KL of each step in the loss, the gradient is that of

        J = E[r] - beta * E[sum of KL_k],

    where the KL in the loss alone leaves out that a step changes what later ones pay. A baseline of n
    episodes that holds the judged one shrinks the gradient of R_k by (n - 1) / n; so that own and later KL
    keep one price, the own one must be weighed by what is returned beside the advantages.

    Args:
        rewards: `[B]` floating.
        group: `[B]` integer ids.
        charge: `[B, S]` floating, in units of the reward: the price of what comes after each step.
        reach: `[B, S]` bool, which steps each episode comes to.
        scale: What c is: the std of the group's rewards ("group"), of all valid ones ("batch"), or 1 ("none",
            and "leave_one_out", which leaves the judged episode out of its baseline). Where rewards do not
            vary in a group, c is the root mean square of the stds of the groups in which they do, or 1.
        valid: `[B]` bool; None takes every finite reward.
        clip: Positive bound on the absolute advantage.

    Returns:
        Advantages `[B, S]` float32, and what the KL of each step itself is to be multiplied with in the loss,
        beside beta, `[B, S]` float32: `(n - 1) / (n c)`. Both are 0 where an episode does not come, comes
        alone, or is not valid, be it in what it is charged. Without a charge, constant groups get advantages
        of exactly 0.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: `scale` is unknown or `clip` is not positive.

    Reference:
        The reward to go of KL-regularised control (Levine, arXiv 1805.00909); as a reward of each token in
        Ouyang et al. (2203.02155), equation 2.
    """
    require_choice("scale", scale, ("group", "batch", "none", "leave_one_out"))
    _require_clip(clip)
    _check_rewards(rewards, group, valid, rank=1)
    require_floating("charge", charge)
    if charge.ndim != 2 or len(charge) != len(rewards):
        raise ShapeError(f"`charge` must be [{len(rewards)}, S], got {list(charge.shape)}.")
    if not isinstance(reach, Tensor) or reach.dtype != torch.bool:
        raise ShapeError("`reach` must be a bool tensor [B, S]; try the mask of the phase.")
    require_shape("reach", reach, charge.shape, "charge")
    batch = _Groups(rewards, group, valid)
    there = reach & batch.restore(batch.valid)[:, None] & torch.isfinite(charge)
    returns = torch.where(there, rewards.detach().double()[:, None] - charge.detach().double(), 0.0)
    centered, count = _centered_by_step(returns, group, there)
    others = torch.where(count > 1, (count - 1) / count.clamp_min(1), 0.0)
    if scale == "leave_one_out":
        centered = centered / torch.where(count > 1, others, 1.0)
        others = (count > 1).double()
    size = _scale_of_rewards(batch, scale)[:, None]
    return _finish(torch.where(there, centered / size, 0.0), clip), torch.where(
        there, others / size, 0
    ).float()


class _Groups:
    """Rewards `[B]` in rising order with the statistics of their groups, each `[B]` float64.

    The rising order makes every sum a function of the set of rewards, not of their places in the batch.
    """

    def __init__(self, rewards: Tensor, group: Tensor, valid: Tensor | None):
        rewards = rewards.detach().double()
        usable = torch.isfinite(rewards) if valid is None else valid & torch.isfinite(rewards)
        rewards = torch.where(usable, rewards, 0.0)
        self.order = rewards.argsort()
        self.rewards, self.valid = rewards[self.order], usable[self.order]
        ids, index = torch.unique(group[self.order], return_inverse=True)
        self._index, self._size = index, len(ids)

        self.count = self._sum(self.valid.double())
        at_least_one = self.count.clamp_min(1)
        highest = self._extreme(torch.where(self.valid, self.rewards, -torch.inf), "amax")
        lowest = self._extreme(torch.where(self.valid, self.rewards, torch.inf), "amin")
        varied = self.valid & (highest > lowest)
        mean = self._sum(self.rewards) / at_least_one
        self.centered = torch.where(varied, self.rewards - mean, 0.0)
        self.group_std = (self._sum(self.centered.square()) / at_least_one).sqrt()

    def _sum(self, values: Tensor) -> Tensor:
        return values.new_zeros(self._size).index_add(0, self._index, values)[self._index]

    def _extreme(self, values: Tensor, reduce: str) -> Tensor:
        start = values.new_full((self._size,), -torch.inf if reduce == "amax" else torch.inf)
        return start.scatter_reduce(0, self._index, values, reduce)[self._index]

    def restore(self, values: Tensor) -> Tensor:
        """`values` back in the order of the batch."""
        return torch.empty_like(values).index_copy_(0, self.order, values)


def _centered_by_step(returns: Tensor, group: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `[B, S]` minus their group's mean over those that are there, and how many these are, float64.

    Sums run in rising order, and equal returns give exactly 0, as in `_Groups`.
    """
    ids, index = torch.unique(group, return_inverse=True)
    order = returns.argsort(dim=0, stable=True)
    place = index[:, None].expand_as(returns)
    blank = returns.new_zeros(len(ids), returns.shape[1])
    total = blank.scatter_add(0, place.gather(0, order), returns.gather(0, order)).gather(0, place)
    count = blank.scatter_add(0, place, there.double()).gather(0, place)
    high = _extreme_by_step(returns, place, there, blank - torch.inf, "amax")
    low = _extreme_by_step(returns, place, there, blank + torch.inf, "amin")
    return torch.where(there & (high > low), returns - total / count.clamp_min(1), 0.0), count


def _extreme_by_step(returns: Tensor, place: Tensor, there: Tensor, start: Tensor, reduce: str) -> Tensor:
    values = torch.where(there, returns, start[0])
    return start.scatter_reduce(0, place, values, reduce).gather(0, place)


def _scale_of_rewards(batch: _Groups, scale: str) -> Tensor:
    """The size `[B]` float64 of the differences between rewards, in the order of the batch."""
    if scale not in ("group", "batch"):
        return torch.ones_like(batch.rewards)
    if scale == "batch":
        known = batch.rewards[batch.valid]
        same = not len(known) or bool(known.max() == known.min())
        std = _std(batch.rewards, batch.valid).clamp_min(STD_FLOOR)
        return (torch.ones_like(std) if same else std).expand_as(batch.rewards)
    # Nothing tells how much a reward means where none differ: a price over the floor would drown all else.
    varied = batch.group_std > 0
    pooled = (batch.centered.square().sum() / (batch.valid & varied).sum().clamp_min(1)).sqrt()
    pooled = torch.where(varied.any(), pooled, 1.0).clamp_min(STD_FLOOR)
    return batch.restore(torch.where(varied, batch.group_std.clamp_min(STD_FLOOR), pooled))


def _std(values: Tensor, valid: Tensor) -> Tensor:
    """Population standard deviation over the valid entries; 0 if there is none."""
    count = valid.sum().clamp_min(1)
    centered = torch.where(valid, values - torch.where(valid, values, 0.0).sum() / count, 0.0)
    return (centered.square().sum() / count).sqrt()


def _finish(advantages: Tensor, clip: float | None) -> Tensor:
    if clip is not None:
        advantages = advantages.clamp(-clip, clip)
    return advantages.float() + 0.0  # -0.0 becomes 0.0


def _stack(
    rewards: Tensor | Mapping[str, Tensor], weights: Sequence[float] | Mapping[str, float] | None
) -> tuple[Tensor, list[float]]:
    if isinstance(rewards, Mapping):
        if not rewards:
            raise ShapeError("`rewards` must hold at least one named reward, got none; try Scores.parts.")
        if isinstance(weights, Mapping):
            if set(weights) != set(rewards):
                raise ConfigError(
                    f"`weights` must have the names of `rewards` {sorted(rewards)}, got {sorted(weights)}."
                )
            weights = [weights[name] for name in rewards]
        columns = list(rewards.values())
        for name, column in rewards.items():
            require_floating(f"rewards[{name!r}]", column)
            require_shape(f"rewards[{name!r}]", column, columns[0].shape, "the first reward")
        rewards = torch.stack([column.double() for column in columns], dim=-1)
    elif isinstance(weights, Mapping):
        raise ConfigError("`weights` must be a sequence when `rewards` is a tensor, got a mapping.")
    require_floating("rewards", rewards)
    width = rewards.shape[-1] if rewards.ndim else 0
    weights = [1.0] * width if weights is None else [float(weight) for weight in weights]
    if len(weights) != width:
        raise ConfigError(f"`weights` must hold one number per reward ({width}), got {len(weights)}.")
    return rewards, weights


def _check_rewards(rewards: Tensor, group: Tensor, valid: Tensor | None, rank: int) -> None:
    require_floating("rewards", rewards)
    if rewards.ndim != rank:
        raise ShapeError(f"`rewards` must be {'[B]' if rank == 1 else '[B, R]'}, got {list(rewards.shape)}.")
    if not isinstance(group, Tensor) or group.is_floating_point() or group.dtype == torch.bool:
        raise ShapeError("`group` must be an integer tensor [B]; try torch.as_tensor(group).long().")
    require_shape("group", group, rewards.shape[:1], "rewards")
    if valid is not None:
        if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
            raise ShapeError("`valid` must be a bool tensor [B]; try torch.as_tensor(valid).bool().")
        require_shape("valid", valid, rewards.shape[:1], "rewards")


def _require_clip(clip: float | None) -> None:
    if clip is not None and not clip > 0:
        raise ConfigError(f"`clip` must be positive, got {clip}; try 5.0, or None for no clipping.")
