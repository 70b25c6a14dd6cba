"""BAGEL: one mixture of two transformers that thinks in words and then draws by rectified flow."""

from unirl_env.models.bagel.model import Bagel

__all__ = ["Bagel"]
