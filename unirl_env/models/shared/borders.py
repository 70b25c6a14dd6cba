"""Lengths at which a transformer begins to read a text in another way: windows, chunks, rotary scaling."""

from __future__ import annotations

from typing import Any

from unirl_env.errors import ConfigError

LENGTHS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length")
"""What configurations call the most tokens of a text."""
BOUNDLESS = 1 << 20
"""Tokens of a text for an architecture that counts none, as recurrent ones do."""


def longest_text(config: Any) -> int:
    """The most tokens that a text model of this configuration reads at once, and reads alike throughout.

    Where rotary frequencies change with the length of a text (`longrope`, `dynamic`), a token that was
    generated before the change would be scored after it, by other frequencies. Texts end before it.
    """
    declared = [value for name in LENGTHS if (value := getattr(config, name, None)) is not None]
    changing = changing_rotary(config)
    return min([*declared[:1], *([changing] if changing else [])], default=BOUNDLESS)


def changing_rotary(config: Any) -> int | None:
    """The longest text before rotary frequencies change with its length; None if they never do.

    Raises:
        ConfigError: If the configuration does not say where they change.
    """
    found = []
    for rope in _rotary(config):
        kind = rope.get("rope_type", rope.get("type"))
        if kind == "longrope":
            found.append(_original(config, rope))
        elif kind is not None and "dynamic" in kind:
            found.append(getattr(config, "max_position_embeddings", None))
    if None in found:
        raise ConfigError(
            f"{type(config).__name__} must say at which length its rotary frequencies change, got no "
            "`original_max_position_embeddings`; try adding it to `rope_parameters` of its config.json."
        )
    return min(found, default=None)


def borders(config: Any) -> dict[str, int]:
    """Every length up to which texts are read alike, by the setting that declares it.

    Args:
        config: Of the text model.
    """
    kinds = getattr(config, "layer_types", None)
    found: dict[str, int | None] = {}
    if kinds is None or any("full" not in kind for kind in kinds):
        if getattr(config, "use_sliding_window", True):
            found["sliding_window"] = getattr(config, "sliding_window", None)
            found["window_size"] = getattr(config, "window_size", None)
        found["attention_chunk_size"] = getattr(config, "attention_chunk_size", None)
    if getattr(config, "attn_temperature_tuning", False):
        found["floor_scale"] = getattr(config, "floor_scale", None)
    for rope in _rotary(config):
        if rope.get("llama_4_scaling_beta") is not None:
            found["original_max_position_embeddings"] = _original(config, rope)
    return {name: value for name, value in found.items() if isinstance(value, int)}


def _rotary(config: Any) -> list[dict[str, Any]]:
    """The rotary settings, one for all layers or one for each kind of them."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [part for part in rope.values() if isinstance(part, dict)]
    return parts or [rope]


def _original(config: Any, rope: dict[str, Any]) -> int | None:
    name = "original_max_position_embeddings"
    return rope.get(name, getattr(config, name, None))
