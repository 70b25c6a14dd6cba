"""Worlds: what is frozen, made once from the arguments of an id. Each name loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unirl_env.registry import lazily

if TYPE_CHECKING:
    from unirl_env.worlds.registration import register
    from unirl_env.worlds.world import ForeignWorld, World, make_env, make_vector_env, world_of

__all__ = ["ForeignWorld", "World", "make_env", "make_vector_env", "register", "world_of"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__)
