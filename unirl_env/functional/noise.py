"""Keyed noise: every random number is a function of its key, never of what was drawn before it.

An episode's noise depends on (run seed, prompt, sample, step) alone, so it comes out the same whatever the
batch size, the split over workers, the order or a resume. The generator is Philox 4x32-10, written in tensor
operations: it is counter-based (element j of step k of an episode is computed directly), takes the whole
63-bit seed as its key (the CPU generator of torch keeps 32 bits of a seed), and gives the same bits on every
device.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from unirl_env.errors import ShapeError

INITIAL = -1
"""The step that keys the initial noise of an episode."""
WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
NORMAL, UNIFORM = 0, 1  # a word of the counter, so that no use repeats the bits of another
MAX_ELEMENTS_AT_ONCE = 1 << 20  # bounds the int64 scratch memory; rows do not depend on the cut


def derive_seed(*keys: int | str) -> int:
    """A seed that is a function of the keys and of nothing else.

    Args:
        *keys: Integers and strings, at least one. Their types, order and borders all count: ("1", 2), (1, 2)
            and ("12",) give unrelated seeds.

    Returns:
        An integer in [0, 2**63), from BLAKE2b; it fits an int64 tensor and every generator.

    Raises:
        ShapeError: No key, or a key that is neither an integer nor a string.
    """
    if not keys:
        raise ShapeError("`keys` must hold at least one integer or string, got none; try derive_seed(seed).")
    digest = hashlib.blake2b(digest_size=8)
    for key in keys:
        if isinstance(key, str):
            tag, payload = b"s", key.encode("utf-8", "surrogatepass")
        else:
            try:
                tag, payload = b"i", str(operator.index(key)).encode()
            except TypeError:
                raise ShapeError(
                    f"`keys` must be integers or strings, got {type(key).__name__}; try str(key)."
                ) from None
        digest.update(tag + str(len(payload)).encode() + b":" + payload)
    return int.from_bytes(digest.digest(), "big") >> 1


def episode_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of one episode.

    Args:
        seed: The seed of the run, or of this rollout of it.
        prompt_id: `Prompt.id`.
        sample: Which of the prompt's samples, from 0.

    Returns:
        An integer in [0, 2**63) for `keyed_noise`.
    """
    return derive_seed("episode", operator.index(seed), str(prompt_id), operator.index(sample))


def keyed_noise(
    episode_seeds: Sequence[int] | Tensor,
    step: int | Sequence[int] | Tensor,
    shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise of one step for a batch of episodes.

    Row i is a function of (`episode_seeds[i]`, `step[i]`, `shape`): bitwise the same on one device in any
    batch. Between devices the random bits are equal and the normal numbers agree to the last place or so.

    Args:
        episode_seeds: `[B]` integers in [0, 2**63), as `episode_seed` makes them.
        step: The denoising step from 0, one for all rows or `[B]`; -1 is the initial noise.
        shape: The shape of one row, without the batch.
        device: Where the noise is made.
        dtype: Floating; the numbers are made in float64 and then rounded.

    Returns:
        `[B, *shape]` of `dtype`.

    Raises:
        ShapeError: Seeds or steps are out of range, or their counts differ.
    """
    device = torch.device(device)
    if not dtype.is_floating_point:
        raise ShapeError(f"`dtype` must be floating, got {dtype}; try torch.float32.")
    seeds, steps = _keys(episode_seeds, step)
    if any(size < 0 for size in shape):
        raise ShapeError(f"`shape` must hold sizes of at least 0, got {list(shape)}.")

    # Metal has no float64: make the noise on the CPU there.
    maker = torch.device("cpu") if device.type == "mps" else device
    seeds, steps = seeds.to(maker), steps.to(maker)
    elements = math.prod(shape)
    out = torch.empty(len(seeds), elements, device=maker, dtype=dtype)
    rows = max(1, MAX_ELEMENTS_AT_ONCE // max(1, elements))
    for start in range(0, len(seeds), rows):
        cut = slice(start, start + rows)
        out[cut] = _normal(seeds[cut], steps[cut], elements).to(dtype)
    return out.reshape(len(seeds), *shape).to(device)


def keyed_uniform(
    episode_seeds: Sequence[int] | Tensor,
    step: int | Sequence[int] | Tensor,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One uniform number of one step for each of a batch of episodes, to draw its action with.

    Row i is a function of (`episode_seeds[i]`, `step[i]`), and bitwise the same on every device. It has
    nothing in common with the `keyed_noise` of the same keys.

    Args:
        episode_seeds: `[B]` integers in [0, 2**63), as `episode_seed` makes them.
        step: The step from 0 (of a text, the tokens so far), one for all rows or `[B]`.
        device: Where the numbers are made; one that has float64.

    Returns:
        `[B]` float64 in [0, 1): multiples of 2**-53.

    Raises:
        ShapeError: Seeds or steps are out of range, or their counts differ.
    """
    seeds, steps = (keys.to(device) for keys in _keys(episode_seeds, step))
    zero = torch.zeros_like(steps)
    high, low, _, _ = philox((zero, steps + 1, zero + UNIFORM, zero), (seeds & WORD, seeds >> 32))
    return ((high >> 5) * 2**26 + (low >> 6)).to(torch.float64) * 2.0**-53


def _keys(episode_seeds: Sequence[int] | Tensor, step: int | Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
    """Seeds and steps, checked, one per row."""
    seeds = _int64("episode_seeds", episode_seeds)
    steps = _int64("step", step)
    if seeds.ndim != 1 or (seeds.numel() and int(seeds.min()) < 0):
        raise ShapeError(
            f"`episode_seeds` must be one integer in [0, 2**63) per row [B], got {episode_seeds!r}; "
            "try episode_seed(seed, prompt.id, sample)."
        )
    if steps.ndim > 1 or (steps.ndim == 1 and steps.shape != seeds.shape):
        raise ShapeError(
            f"`step` must be one integer or one per episode [{len(seeds)}], got shape {list(steps.shape)}."
        )
    if steps.numel() and not (-1 <= int(steps.min()) and int(steps.max()) < WORD):
        raise ShapeError(f"`step` must be -1 (the initial noise) or a step from 0, got {step!r}.")
    return seeds, steps.expand(seeds.shape)


def _int64(name: str, value: int | Sequence[int] | Tensor) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
        if tensor.numel() == 0:
            return tensor.long()
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"got {tensor.dtype}")
        return tensor.to(torch.int64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ShapeError(f"`{name}` must be integers below 2**63, got {value!r} ({error}).") from None


def _normal(seeds: Tensor, steps: Tensor, elements: int) -> Tensor:
    """`[rows, elements]` float64 by Box-Muller; the smallest uniform is 2**-33, so none is infinite."""
    blocks = torch.arange((elements + 3) // 4, device=seeds.device, dtype=torch.int64)
    zero = torch.zeros_like(blocks)
    counter = (blocks.expand(len(seeds), -1), (steps + 1)[:, None] + zero, zero + NORMAL, zero)
    words = philox(counter, ((seeds & WORD)[:, None], (seeds >> 32)[:, None]))
    # Both pairs of words at once, `[2, rows, blocks]`.
    first, second = (
        torch.stack(pair).to(torch.float64).add_(0.5).mul_(2.0**-32) for pair in (words[::2], words[1::2])
    )
    radius = first.log_().mul_(-2.0).sqrt_()
    angle = second.mul_(2.0 * math.pi)
    normals = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return normals.permute(1, 2, 0, 3).flatten(1)[:, :elements]


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10: four 32-bit words from a 128-bit counter and a 64-bit key.

    Args:
        counter: Four int64 tensors that broadcast, each holding 32-bit words.
        key: Two int64 tensors that broadcast with them.

    Returns:
        Four int64 tensors of 32-bit words.

    Reference:
        Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
    """
    c0, c1, c2, c3, *_ = torch.broadcast_tensors(*counter, *key)
    rounds = torch.arange(ROUNDS, device=c0.device)
    keys = [(part[..., None] + rounds * weyl & WORD).unbind(-1) for part, weyl in zip(key, WEYL, strict=True)]
    for k0, k1 in zip(*keys, strict=True):
        # The 64-bit product wraps around in int64; its upper word is read with the sign bits masked away.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_and_(WORD).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (p0 >> 32).bitwise_and_(WORD).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = p1.bitwise_and_(WORD), p0.bitwise_and_(WORD)
    return c0, c1, c2, c3
