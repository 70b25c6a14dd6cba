"""What an algorithm is called in a picture or a table, and its colour there, whoever wrote it."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterable, Sequence

__all__ = ["colours", "short_name", "styles", "titles"]

TITLES = {"drpo": "DRPO", "flow_dppo": "FlowDPPO", "grpo": "GRPO", "gspo": "GSPO"}
COLOURS = {"flow_dppo": "#2563eb", "grpo": "#d97706", "drpo": "#059669", "gspo": "#9333ea", "pg": "#6b7280"}
"""Of what has appeared in pictures before."""
FREE = ("#db2777", "#0891b2", "#84cc16", "#b91c1c", "#92400e", "#1e3a8a", "#f472b6", "#a3a300", "#14b8a6")
"""Apart from those above and from each other; a tenth name in one picture gets a hue of its own."""
STYLES = ("main", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
"""Classes of the report's page; a ninth curve has the colour of the first again."""


def short_name(name: str) -> str:
    """A name for people: of a path its last part, without what all classes of configurations end in.

    Example:
        >>> short_name("mylab.alg:ReinforceConfig"), short_name("grpo")
        ('Reinforce', 'GRPO')
    """
    last = name.rpartition(":")[2].rpartition(".")[2] or name
    return TITLES.get(name) or last.removesuffix("Config") or last


def titles(names: Iterable[str]) -> dict[str, str]:
    """Short names of everything in one picture; two that would be alike stay whole."""
    short = {name: short_name(name) for name in names}
    alike = [title for title in short.values() if list(short.values()).count(title) > 1]
    return {name: name if title in alike else title for name, title in short.items()}


def colours(names: Iterable[str]) -> dict[str, str]:
    """Colours as `#rrggbb` of everything in one picture, no two alike.

    A name has the same colour in every picture, unless one before it in the alphabet took that there.
    """
    found = {name: COLOURS[name] for name in names if name in COLOURS}
    for name in sorted(set(names) - found.keys()):
        start = _number(name)
        turned = [FREE[(start + i) % len(FREE)] for i in range(len(FREE))]
        found[name] = next((c for c in turned if c not in found.values()), None) or _hue(len(found))
    return {name: found[name] for name in names}


def styles(count: int) -> list[str]:
    """The page's classes for that many curves of one chart."""
    return [STYLES[i % len(STYLES)] for i in range(count)]


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _hue(place: int) -> str:
    """The `place`th of a row of hues that keep apart: the golden angle, at three depths."""
    rgb: Sequence[float] = colorsys.hls_to_rgb(place * 0.618034 % 1.0, (0.35, 0.5, 0.65)[place % 3], 0.75)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
