"""TempFlow-GRPO: GRPO whose steps of latents weigh by their noise."""

from __future__ import annotations

from unirl_env.agents.agent import Agent
from unirl_env.agents.grpo import GRPOConfig


class TempFlowGRPOConfig(GRPOConfig):
    """GRPO whose steps of latents weigh by their noise (`step_weights` is `"noise"`).

    Reference:
        TempFlow-GRPO (arXiv 2508.04324), the noise-aware weighting.
    """

    own_step_weights = "noise"

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or TempFlowGRPO)


class TempFlowGRPO(Agent):
    """GRPO with noise-aware weights of steps; see `TempFlowGRPOConfig`."""

    config_class = TempFlowGRPOConfig
