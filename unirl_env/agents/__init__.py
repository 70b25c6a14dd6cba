"""The agents, as RLlib algorithms. Each loads on first use, so that listing them starts nothing."""

from typing import TYPE_CHECKING

from unirl_env.agents.catalogue import AGENTS
from unirl_env.registry import lazily

if TYPE_CHECKING:
    from unirl_env.agents.agent import Agent
    from unirl_env.agents.awm import AWM, AWMConfig
    from unirl_env.agents.config import AgentConfig
    from unirl_env.agents.contract import Certificate, Check, check_agent
    from unirl_env.agents.drpo import DRPO, DRPOConfig
    from unirl_env.agents.estimators import NoisedStep
    from unirl_env.agents.flow_dppo import FlowDPPO, FlowDPPOConfig
    from unirl_env.agents.grpo import GRPO, GRPOConfig
    from unirl_env.agents.gspo import GSPO, GSPOConfig
    from unirl_env.agents.guard import GRPOGuard, GRPOGuardConfig
    from unirl_env.agents.loss import Context, Loss
    from unirl_env.agents.nft import NFT, NFTConfig
    from unirl_env.agents.pg import ELBOPG, PG, ELBOPGConfig, PGConfig
    from unirl_env.agents.rows import Rows
    from unirl_env.agents.temp_flow import TempFlowGRPO, TempFlowGRPOConfig
    from unirl_env.functional import Metric, SDEStep, TokenStep

__all__ = [
    "AGENTS",
    "AWM",
    "DRPO",
    "ELBOPG",
    "GRPO",
    "GSPO",
    "NFT",
    "PG",
    "AWMConfig",
    "Agent",
    "AgentConfig",
    "Certificate",
    "Check",
    "Context",
    "DRPOConfig",
    "ELBOPGConfig",
    "FlowDPPO",
    "FlowDPPOConfig",
    "GRPOConfig",
    "GRPOGuard",
    "GRPOGuardConfig",
    "GSPOConfig",
    "Loss",
    "Metric",
    "NFTConfig",
    "NoisedStep",
    "PGConfig",
    "Rows",
    "SDEStep",
    "TempFlowGRPO",
    "TempFlowGRPOConfig",
    "TokenStep",
    "check_agent",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazily(__name__)
