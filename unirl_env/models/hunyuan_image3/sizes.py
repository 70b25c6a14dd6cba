"""The picture sizes that the model knows: about one area, in steps from twice as wide to twice as tall."""

from __future__ import annotations

from unirl_env.errors import ConfigError

__all__ = ["bucket", "buckets"]

STEPS = 16
"""How many times a side changes between a square and the longest picture."""


def buckets(base: int) -> list[tuple[int, int]]:
    """All `(height, width)` in pixels, the widest first; the place in the list is the model's ratio token.

    Args:
        base: The side of a square picture. A side grows by a 16th of it, at most to twice it, while the
            other one shrinks, at least to half of it.
    """
    step = base // STEPS

    def side(steps: int) -> int:
        return min(max(base + steps * step, base // 2), 2 * base)

    sizes = {(side(steps), side(-steps)) for steps in range(-STEPS, STEPS + 1)}
    return sorted(sizes, key=lambda size: size[0] / size[1])


def bucket(height: int, width: int, *, base: int, unit: tuple[int, int]) -> int:
    """The place of a size among the buckets.

    Args:
        height: In pixels.
        width: In pixels.
        base: The side of a square picture.
        unit: Height and width in pixels of one token's patch.

    Raises:
        ConfigError: If the size is not one of the buckets; names the nearest ones.
    """
    sizes = buckets(base)
    whole = [size for size in sizes if size[0] % unit[0] == 0 and size[1] % unit[1] == 0]
    if (height, width) not in whole:
        near = sorted(whole, key=lambda size: abs(size[0] - height) + abs(size[1] - width))[:3]
        raise ConfigError(
            f"`height` and `width` must be one of the sizes that the model was trained for, got {height} x "
            f"{width}; the nearest are {', '.join(f'{h} x {w}' for h, w in near)}."
        )
    return sizes.index((height, width))
