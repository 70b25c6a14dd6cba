"""The core: pure functions, torch in and torch out. Import it as `import unirl_env.functional as F`.

All maths is float32 (half-precision inputs are widened before they are subtracted), shapes are checked in the
first lines, and randomness is passed in.
"""

from unirl_env.functional.advantages import (
    charged_advantages,
    gdpo_advantages,
    group_advantages,
    leave_one_out_advantages,
)
from unirl_env.functional.correction import correction_weights
from unirl_env.functional.divergences import gaussian_kl, gaussian_tv, mean_to_nats, nats_to_mean
from unirl_env.functional.forward import noised, stratified_sigmas, surrogate, velocity_kl
from unirl_env.functional.losses import (
    Metric,
    dppo_loss,
    drpo_gaussian_loss,
    drpo_loss,
    flow_dppo_loss,
    grpo_loss,
    gspo_loss,
    guard_loss,
    merge_metrics,
    nft_loss,
    pg_loss,
    reference_kl,
    token_reference_kl,
    token_weights,
)
from unirl_env.functional.noise import derive_seed, episode_seed, keyed_noise, keyed_uniform
from unirl_env.functional.schedules import dynamic_shift_sigmas, flow_sigmas
from unirl_env.functional.sde import SDEStep, choose_steps, sde_step, shortened_tail, transition
from unirl_env.functional.solvers import Prediction, dpm2m_step
from unirl_env.functional.step_weights import step_weights
from unirl_env.functional.tokens import TokenStep, score_tokens, token_step

__all__ = [  # noqa: RUF022, grouped by topic
    # the trajectory
    "choose_steps",
    "derive_seed",
    "dynamic_shift_sigmas",
    "episode_seed",
    "flow_sigmas",
    "keyed_noise",
    "keyed_uniform",
    "shortened_tail",
    # the forward process
    "noised",
    "stratified_sigmas",
    "surrogate",
    "velocity_kl",
    # the step
    "Prediction",
    "SDEStep",
    "TokenStep",
    "dpm2m_step",
    "score_tokens",
    "sde_step",
    "token_step",
    "transition",
    # divergences
    "gaussian_kl",
    "gaussian_tv",
    "mean_to_nats",
    "nats_to_mean",
    # advantages
    "charged_advantages",
    "correction_weights",
    "gdpo_advantages",
    "group_advantages",
    "leave_one_out_advantages",
    "step_weights",
    # losses
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
