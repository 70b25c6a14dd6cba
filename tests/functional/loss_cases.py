"""A batch of latent steps under an old and a new policy, and every loss as one function of it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Normal

import unirl_env.functional as F


@dataclass(frozen=True)
class Case:
    """Entries [B, S] with actions [B, S, D]; `old_*` sampled them."""

    action: Tensor
    mean: Tensor
    old_mean: Tensor
    std: Tensor
    advantages: Tensor
    old_log_prob: Tensor
    mask: Tensor

    @property
    def log_prob(self) -> Tensor:
        """Mean-reduced, from torch.distributions and not from the library."""
        wide = torch.where(self.std > 0, self.std, 1.0)[..., None]
        return Normal(self.mean, wide).log_prob(self.action).mean(-1)

    def rows(self, index) -> "Case":
        return Case(**{name: value[index] for name, value in vars(self).items()})


def make_case(batch=6, steps=3, elements=8, *, moved=0.0, masked=0.0, seed=0) -> Case:
    """`moved`: how far, in standard deviations per element, the new means lie from the old."""
    g = torch.Generator().manual_seed(seed)
    old_mean = torch.randn(batch, steps, elements, generator=g)
    std = 0.3 + torch.rand(batch, steps, generator=g)
    action = old_mean + std[..., None] * torch.randn(batch, steps, elements, generator=g)
    shift = moved * std[..., None] * torch.randn(batch, steps, elements, generator=g)
    case = Case(
        action=action,
        mean=old_mean,
        old_mean=old_mean,
        std=std,
        advantages=torch.randn(batch, steps, generator=g),
        old_log_prob=torch.zeros(batch, steps),
        mask=torch.rand(batch, steps, generator=g) >= masked,
    )
    return replace(case, old_log_prob=case.log_prob, mean=old_mean + shift)


def grpo(case, log_prob, **kwargs):
    settings = dict(clip_low=0.05, clip_high=0.1) | kwargs
    return F.grpo_loss(log_prob, case.old_log_prob, case.advantages, **settings)


def flow_dppo(case, log_prob, **kwargs):
    settings = dict(kl_threshold=0.02) | kwargs
    return F.flow_dppo_loss(
        log_prob, case.old_log_prob, case.mean, case.old_mean, case.std, case.advantages, **settings
    )


def flow_dppo_exact(case, log_prob, **kwargs):
    return flow_dppo(case, log_prob, direction="exact", **kwargs)


def pg(case, log_prob, **kwargs):
    return F.pg_loss(log_prob, case.old_log_prob, case.advantages, **kwargs)


def drpo(case, log_prob, **kwargs):
    # Tokens have log-probabilities of at most 0; the log-ratio is kept.
    offset = case.old_log_prob.detach() + 1.0
    settings = dict(epsilon=0.3) | kwargs
    return F.drpo_loss(log_prob - offset, case.old_log_prob - offset, case.advantages, **settings)


def dppo(case, log_prob, **kwargs):
    offset = case.old_log_prob.detach() + 1.0
    settings = dict(threshold=0.05) | kwargs
    return F.dppo_loss(log_prob - offset, case.old_log_prob - offset, case.advantages, **settings)


def dppo_kl(case, log_prob, **kwargs):
    return dppo(case, log_prob, divergence="kl", **kwargs)


def drpo_gaussian(case, log_prob, **kwargs):
    settings = dict(epsilon=0.3) | kwargs
    return F.drpo_gaussian_loss(
        log_prob, case.old_log_prob, case.mean, case.old_mean, case.std, case.advantages, **settings
    )


OF_TOKENS = (drpo, dppo, dppo_kl)
LOSSES = {
    "grpo": grpo,
    "flow_dppo": flow_dppo,
    "flow_dppo_exact": flow_dppo_exact,
    "pg": pg,
    "drpo": drpo,
    "dppo": dppo,
    "dppo_kl": dppo_kl,
    "drpo_gaussian": drpo_gaussian,
}
