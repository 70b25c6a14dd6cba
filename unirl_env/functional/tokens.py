"""One token of a language model, drawn or scored by the same function, under the distribution that draws.

The distribution is the softmax of the logits over the temperature, cut to the `top_k` likeliest tokens, then
to the smallest set of the likeliest that holds `top_p` of what is left, and renormalised: the order of
Hugging Face and vLLM. Tokens as likely as the last one kept are kept with it.

Tokens are scored from hidden states, a chunk of rows at a time, forward and backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.autograd.function import once_differentiable

from unirl_env.errors import ConfigError, ContractError, ShapeError
from unirl_env.functional.require import require_floating
from unirl_env.functional.vocabulary import (
    Cells,
    cells,
    draw,
    entropy,
    lowest_kept,
    scratch_bytes,
    token_log_prob,
)


class TokenStep(NamedTuple):
    """What `token_step` and `score_tokens` return.

    Attributes:
        token: `[N]` int64, drawn or given.
        log_prob: `[N]` float32 in nats, under the distribution that samples.
        entropy: `[N]` float32 in nats of that distribution, without gradient unless `score_tokens` is asked
            for one.
    """

    token: Tensor
    log_prob: Tensor
    entropy: Tensor


def token_step(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    token: Tensor | None = None,
    uniform: Tensor | None = None,
) -> TokenStep:
    """Draw the next token of each row, or score the given one.

    Args:
        logits: `[N, V]`; half precision is widened. -inf forbids a token.
        temperature: Divides the logits; 0 takes the likeliest token, with log-probability 0.
        top_p: Share of the probability that is kept, in (0, 1]; 1 keeps all.
        top_k: Number of likeliest tokens that are kept; 0 keeps all.
        token: `[N]` int64 to score. If it lies outside the set that its row keeps, the set is widened by it:
            the network has moved since it was drawn, and its log-probability stays finite.
        uniform: `[N]` float64 in [0, 1), as `keyed_uniform` makes them, to draw with by the inverse of the
            cumulative distribution. A token of probability 0 is never drawn.

    Returns:
        The step; its log-probability has a gradient if `logits` wants one.

    Raises:
        ShapeError: Shapes or dtypes do not fit, or there is nothing to draw with.
        ConfigError: A setting is out of range, or both `token` and `uniform` are given.
        ContractError: A row to draw from holds NaN or +inf, or at temperature 0 a given token is not the
            likeliest.

    Reference:
        Fan et al. (arXiv 1805.04833) for `top_k`; Holtzman et al. (1904.09751) for the nucleus, `top_p`.
    """
    _require_settings(temperature, top_p, top_k)
    require_floating("logits", logits)
    if logits.ndim != 2 or logits.shape[-1] == 0:
        raise ShapeError(f"`logits` must be [N, V], got {list(logits.shape)}; try logits.flatten(0, -2).")
    if token is not None and uniform is not None:
        raise ConfigError(
            "`token` and `uniform` must not both be given; try `uniform` to draw, `token` to score."
        )
    if token is not None:
        _require_token(token, logits.shape[0], "logits")
    if temperature == 0:
        return _likeliest(logits.detach(), token)
    if token is None:
        uniform = _required_uniform(uniform, logits.shape[0])
    shifted = logits.float() / temperature
    shifted = shifted.sub_(shifted.detach().amax(-1, keepdim=True))
    rows = cells(shifted, lowest_kept(shifted.detach(), top_p, top_k), token)
    if token is None:
        assert uniform is not None
        _require_finite(rows.total)
        token = draw(rows, uniform.to(logits.device))
    return TokenStep(token, token_log_prob(rows, token), entropy(rows))


def score_tokens(
    hidden: Tensor,
    weight: Tensor,
    token: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    chunk_bytes: int = 256 << 20,
    entropy_gradient: bool = False,
) -> TokenStep:
    """`token_step(hidden @ weight.T, token=token, ...)` in memory that does not grow with N x V.

    Works on chunks of rows, whose logits are never kept. The scratch memory of a chunk, all copies counted,
    is at most `chunk_bytes`, or else what one row needs: 8 bytes per logit, with `top_p` or `top_k` 12 per
    logit and 32 for each of the likeliest `top_k` or 256. (Rows whose nucleus has more than 256 tokens take
    up to 64 MB on top.)

    Where `weight` wants no gradient, as under LoRA, the forward pass finds each row's slope `[N, D]` and the
    backward pass only scales it; otherwise backward computes each chunk again, and sums the gradient of
    `weight` `[V, D]` in float32.

    With s the kept logits over the temperature, p their softmax and H its entropy, the gradient of H by s_j
    is -p_j (ln p_j + H). Which tokens are kept is taken as given.

    Args:
        hidden: `[N, D]` floating; logits are computed in its dtype, all else is float32.
        weight: `[V, D]` of the output layer.
        token: `[N]` int64.
        temperature: Positive; otherwise as in `token_step`.
        top_p: As in `token_step`.
        top_k: As in `token_step`.
        chunk_bytes: Bound of a chunk's scratch memory.
        entropy_gradient: Whether the entropy, too, has a gradient: two bytes more per logit, a second slope
            `[N, D]` where the output layer is frozen, and a third product of matrices.

    Returns:
        The step; its log-probability has a gradient if `hidden` or `weight` wants one.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
        ConfigError: A setting is out of range.
    """
    _require_settings(temperature, top_p, top_k)
    if temperature == 0:
        raise ConfigError(
            "`temperature` must be positive to score tokens, got 0; try the one that they were drawn at."
        )
    if chunk_bytes < 1:
        raise ConfigError(f"`chunk_bytes` must be positive, got {chunk_bytes}; try 256 << 20.")
    require_floating("hidden", hidden)
    require_floating("weight", weight)
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or not len(weight):
        raise ShapeError(
            "`hidden` must be [N, D] and `weight` [V, D], "
            f"got {list(hidden.shape)} and {list(weight.shape)}; try hidden.flatten(0, -2)."
        )
    _require_token(token, hidden.shape[0], "hidden")
    trained = torch.is_grad_enabled()
    row_bytes = scratch_bytes(len(weight), top_p, top_k) + (2 * len(weight) if entropy_gradient else 0)
    chunking = Chunking(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        rows=max(1, chunk_bytes // row_bytes),
        train_hidden=trained and hidden.requires_grad,
        train_weight=trained and weight.requires_grad,
        train_entropy=trained and entropy_gradient,
    )
    return TokenStep(token, *ChunkedScores.apply(hidden, weight, token, chunking))  # type: ignore[no-untyped-call]


def _likeliest(logits: Tensor, token: Tensor | None) -> TokenStep:
    best, index = logits.float().max(-1)
    _require_finite(best)
    if token is None:
        token = index
    elif bool((logits.gather(-1, token[:, None])[:, 0] < best).any()):
        raise ContractError(
            "`token` must be the likeliest one at temperature 0, got one of probability 0; "
            "try the temperature that it was drawn at."
        )
    return TokenStep(token, torch.zeros_like(best), torch.zeros_like(best))


def _require_settings(temperature: float, top_p: float, top_k: int) -> None:
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"`temperature` must be at least 0 and finite, got {temperature}; try 1.0.")
    if not 0 < top_p <= 1:
        raise ConfigError(f"`top_p` must lie in (0, 1], got {top_p}; try 1.0, which keeps all.")
    if top_k < 0:
        raise ConfigError(f"`top_k` must be at least 0, got {top_k}; try 0, which keeps all.")


def _require_token(token: Tensor, count: int, like: str) -> None:
    if not isinstance(token, Tensor) or token.dtype != torch.int64 or tuple(token.shape) != (count,):
        got = f"{token.dtype} {list(token.shape)}" if isinstance(token, Tensor) else type(token).__name__
        raise ShapeError(
            f"`token` must be int64, one token per row of `{like}` [{count}], got {got}; try token.long()."
        )


def _required_uniform(uniform: Tensor | None, count: int) -> Tensor:
    if uniform is None:
        raise ShapeError(
            "`uniform` must be given to draw tokens, got None; try keyed_uniform(episode_seeds, step)."
        )
    # A float32 has 2**24 values in [0, 1): rarer tokens would never be drawn.
    if uniform.dtype != torch.float64 or tuple(uniform.shape) != (count,):
        raise ShapeError(
            f"`uniform` must be float64 with one number per row of `logits` [{count}], got {uniform.dtype} "
            f"{list(uniform.shape)}; try keyed_uniform(episode_seeds, step)."
        )
    return uniform


def _require_finite(per_row: Tensor) -> None:
    if not bool(per_row.isfinite().all()):
        raise ContractError(
            "`logits` must hold a finite largest number in each row, got NaN or infinity; "
            "try the network in float32 or bfloat16, and look for NaN in its weights."
        )


class Chunking(NamedTuple):
    """The settings of `ChunkedScores`.

    Attributes:
        temperature: Positive.
        top_p: As in `token_step`.
        top_k: As in `token_step`.
        rows: Rows per chunk.
        train_hidden: Whether the hidden states want a gradient.
        train_weight: Whether the output layer wants one.
        train_entropy: Whether the entropy has one, too.
    """

    temperature: float
    top_p: float
    top_k: int
    rows: int
    train_hidden: bool
    train_weight: bool
    train_entropy: bool = False

    def cuts(self, count: int) -> list[slice]:
        """The chunks of `count` rows."""
        return [slice(start, start + self.rows) for start in range(0, count, self.rows)]

    @property
    def slopes_are_kept(self) -> bool:
        """Whether backward scales the slopes `[N, D]` that forward found, and computes nothing again.

        The slope of a row's log-probability does not depend on the gradient that arrives, which only scales
        it. The gradient of the output layer is a sum over rows, where this helps nothing.
        """
        return self.train_hidden and not self.train_weight


class ChunkedScores(torch.autograd.Function):
    """`(hidden [N, D], weight [V, D], token [N], Chunking) -> (log_prob [N], entropy [N])`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, token: Tensor, chunking: Chunking
    ) -> tuple[Tensor, Tensor]:
        """Score; keep the slopes, or the inputs."""
        head = weight.to(hidden.dtype)
        log_prob = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        entropies = torch.empty_like(log_prob)
        # Of the log-probability, and of the entropy where it has a gradient.
        kept = (1 + chunking.train_entropy) if chunking.slopes_are_kept else 0
        slopes = tuple(torch.empty_like(hidden) for _ in range(kept))
        floors = []
        for cut in chunking.cuts(hidden.shape[0]):
            log_prob[cut], entropies[cut], floor, found = _score(hidden[cut], head, token[cut], chunking)
            floors.append(floor)
            for slope, part in zip(slopes, found, strict=True):
                slope[cut] = part
        ctx.chunking, ctx.floors = chunking, floors
        ctx.save_for_backward(*(slopes or (hidden, weight, token)))
        if not chunking.train_entropy:
            ctx.mark_non_differentiable(entropies)
        return log_prob, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, entropy_grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the slopes, or compute each chunk again."""
        chunking = ctx.chunking
        if chunking.slopes_are_kept:
            slope, *other = ctx.saved_tensors
            scaled = slope * grad[:, None]
            for each in other:
                scaled += each * entropy_grad[:, None]
            return scaled.to(slope.dtype), None, None, None
        hidden, weight, token = ctx.saved_tensors
        head = weight.to(hidden.dtype)
        grad, entropy_grad = grad / chunking.temperature, entropy_grad / chunking.temperature
        grad_hidden = torch.empty_like(hidden) if chunking.train_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for cut, floor in zip(chunking.cuts(hidden.shape[0]), ctx.floors, strict=True):
            shifted = _shifted_logits(hidden[cut], head, chunking.temperature)
            rows = cells(shifted, floor, token[cut])
            other = _entropy_and_slope(rows, entropy_grad[cut])[1] if chunking.train_entropy else None
            slope = _slope(rows, token[cut], grad[cut])
            if other is not None:
                slope += other
            del shifted, rows, other  # makes room for the copy in half precision
            slope = slope.to(head.dtype)
            if grad_hidden is not None:
                grad_hidden[cut] = slope @ head
            if head.dtype == torch.float32:
                grad_weight.addmm_(slope.T, hidden[cut])
            else:
                grad_weight += slope.T @ hidden[cut]
            del slope
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _score(
    hidden: Tensor, head: Tensor, token: Tensor, chunking: Chunking
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
    """One chunk: log-probability, entropy, the smallest logit kept, and slopes by the hidden states."""
    shifted = _shifted_logits(hidden, head, chunking.temperature)
    floor = lowest_kept(shifted, chunking.top_p, chunking.top_k)
    rows = cells(shifted, floor, token)
    log_prob, scale = token_log_prob(rows, token), torch.full_like(rows.total, 1.0 / chunking.temperature)
    if not (chunking.slopes_are_kept and chunking.train_entropy):
        entropies, others = entropy(rows, finite=True), []
    else:
        entropies, slope = _entropy_and_slope(rows, scale)
        others = [slope.to(head.dtype) @ head]
        del slope
    if not chunking.slopes_are_kept:
        return log_prob, entropies, floor, []
    slope = _slope(rows, token, scale)
    del shifted, rows  # makes room for the copy in half precision
    return log_prob, entropies, floor, [slope.to(head.dtype) @ head, *others]


def _shifted_logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    scaled = nnf.linear(hidden, head).float()
    if temperature != 1:  # a pass over memory that is worth sparing
        scaled = scaled.div_(temperature)
    return scaled.sub_(scaled.amax(-1, keepdim=True))


def _slope(rows: Cells, token: Tensor, scale: Tensor) -> Tensor:
    """`scale` `[n]` times the log-probability's derivative by the logits, in the memory of the weights."""
    slope = rows.weights.mul_((-scale / rows.total)[:, None])
    return slope.scatter_add_(-1, token[:, None], scale[:, None])


def _entropy_and_slope(rows: Cells, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The entropy `[n]`, and `scale` `[n]` times its derivative by the logits, in the memory of `shifted`."""
    products = rows.shifted.mul_(rows.weights)
    mean = products.sum(-1) / rows.total
    # -p_j (ln p_j + H) = -(w_j s_j - w_j mean) / total, where H = ln total - mean.
    slope = products.addcmul_(rows.weights, -mean[:, None]).mul_((-scale / rows.total)[:, None])
    return rows.total.log() - mean, slope
