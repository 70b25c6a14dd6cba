"""Policy losses: pure functions of log-probabilities, advantages and, for some, of the policies' means.

Every loss takes entries `[B]` or `[B, S]` (steps or tokens), returns `(loss, metrics)`, and is a sum over
unmasked entries divided by `denominator`. With the number of unmasked entries of the whole optimizer step as
denominator, the losses of any split into micro-batches and shards add up to the loss of the whole, and so do
the gradients and the metrics. A `Metric` says itself how it is reduced; `merge_metrics` does it.
"""

from unirl_env.functional.losses.dppo import dppo_loss
from unirl_env.functional.losses.drpo import drpo_gaussian_loss, drpo_loss
from unirl_env.functional.losses.flow_dppo import flow_dppo_loss
from unirl_env.functional.losses.guard import guard_loss
from unirl_env.functional.losses.nft import nft_loss
from unirl_env.functional.losses.policy_gradient import pg_loss
from unirl_env.functional.losses.ratio import Metric, grpo_loss, gspo_loss, merge_metrics, token_weights
from unirl_env.functional.losses.reference import reference_kl, token_reference_kl

__all__ = [
    "Metric",
    "dppo_loss",
    "drpo_gaussian_loss",
    "drpo_loss",
    "flow_dppo_loss",
    "grpo_loss",
    "gspo_loss",
    "guard_loss",
    "merge_metrics",
    "nft_loss",
    "pg_loss",
    "reference_kl",
    "token_reference_kl",
    "token_weights",
]
