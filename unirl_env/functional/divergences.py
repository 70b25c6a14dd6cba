"""Exact divergences between two Gaussian policies of one denoising step, and the units they are told in.

Both policies have the same standard deviation, which the schedule fixes, so only the means differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unirl_env.errors import ConfigError
from unirl_env.functional.require import require_choice, require_floating, require_lead, require_shape


def gaussian_kl(mean: Tensor, old_mean: Tensor, std: Tensor, *, reduction: str = "mean") -> Tensor:
    """KL divergence of N(mean, std^2 I) from N(old_mean, std^2 I): `|mean - old_mean|^2 / (2 std^2)`.

    Symmetric in the two means, because the variances are equal. Half-precision means are widened before they
    are subtracted; a caller that rounds them to bfloat16 earlier has already lost divergences below about
    1e-5.

    Args:
        mean: `[*lead, ...]` floating, with gradient if wanted.
        old_mean: As `mean`.
        std: `[*lead]`, [B] or [B, S]: what `transition` or `sde_step` returned. Where it is 0 the two
            policies are
            points: the divergence is 0 if the means are equal and infinite if not.
        reduction: "mean" divides by the number of elements per row, the scale of mean-reduced
            log-probabilities; "sum" is the divergence of the joint policies in nats.

    Returns:
        `[*lead]` float32.

    Raises:
        ShapeError: The shapes do not belong together.

    Reference:
        Flow-DPPO (arXiv 2606.11025): the per-step divergence of a flow policy in closed form.
    """
    require_choice("reduction", reduction, ("mean", "sum"))
    require_floating("mean", mean)
    require_floating("old_mean", old_mean)
    require_shape("old_mean", old_mean, mean.shape, "mean")
    require_floating("std", std)
    require_lead("std", std, mean, "mean")
    square = (mean.float() - old_mean.float()).square().flatten(std.ndim)
    square = square.mean(-1) if reduction == "mean" else square.sum(-1)
    positive = std > 0
    safe = torch.where(positive, std.float(), 1.0)
    points = torch.where(square.detach() > 0, torch.inf, 0.0)
    return torch.where(positive, square / (2.0 * safe.square()), points)


@torch.no_grad()
def gaussian_tv(mean: Tensor, old_mean: Tensor, std: Tensor) -> Tensor:
    """Total variation of the two joint policies: `erf(|mean - old_mean| / (2 sqrt(2) std))`, in [0, 1].

    It is the largest change of the probability of any event. With K the joint KL divergence in nats it is
    `erf(sqrt(K) / 2)`: 0.06 at 0.01 nats, 0.43 at 0.66 nats, 0.84 at 4 nats.

    Args:
        mean: `[*lead, ...]` floating.
        old_mean: As `mean`.
        std: `[*lead]`; where it is 0 the result is 0 for equal means and 1 otherwise.

    Returns:
        `[*lead]` float32, without gradient (its slope at equal means does not exist).

    Raises:
        ShapeError: The shapes do not belong together.
    """
    return torch.erf(gaussian_kl(mean, old_mean, std, reduction="sum").sqrt() / 2.0)


def nats_to_mean(nats: float, num_elements: int) -> float:
    """A joint divergence in nats on the mean-reduced scale that `kl_threshold` is given in.

    Args:
        nats: Divergence of the joint policies of one step.
        num_elements: Elements of one action, for example 16 * 64 * 64 = 65536 for SD3 at 512 x 512.

    Returns:
        `nats / num_elements`.

    Raises:
        ConfigError: `num_elements` is not positive.
    """
    _require_elements(num_elements)
    return nats / num_elements


def mean_to_nats(mean: float, num_elements: int) -> float:
    """The inverse of `nats_to_mean`: a mean-reduced divergence as joint nats.

    Args:
        mean: Divergence per element.
        num_elements: Elements of one action.

    Returns:
        `mean * num_elements`.

    Raises:
        ConfigError: `num_elements` is not positive.
    """
    _require_elements(num_elements)
    return mean * num_elements


def _require_elements(num_elements: int) -> None:
    if num_elements < 1:
        raise ConfigError(
            f"`num_elements` must be at least 1, got {num_elements}; try latent[0].numel() of one row."
        )
