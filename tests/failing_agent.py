"""An agent whose loss fails on one of two learners; processes of Ray can import it."""

from unirl_env.agents import GRPOConfig, Loss


def failing(rows, new, context):
    """Fails where the fourth group's episodes are, which one learner of two has."""
    if bool((rows.group == 3).any()):
        raise MemoryError("a learner of two")
    return rows.mean(-rows.advantages * new.log_prob), {}


class FailingConfig(GRPOConfig):
    losses = {"latents": Loss(failing)}
