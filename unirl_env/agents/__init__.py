"""The agents, as RLlib algorithms. Each loads on first use, so that listing them starts nothing."""

from importlib import import_module
from typing import Any

__all__ = [
    "DRPO",
    "GRPO",
    "GSPO",
    "Agent",
    "AgentConfig",
    "DRPOConfig",
    "FlowDPPO",
    "FlowDPPOConfig",
    "GRPOConfig",
    "GSPOConfig",
]

PLACES = {
    "Agent": "base",
    "AgentConfig": "config",
    "DRPO": "drpo",
    "DRPOConfig": "drpo",
    "FlowDPPO": "flow_dppo",
    "FlowDPPOConfig": "flow_dppo",
    "GRPO": "grpo",
    "GRPOConfig": "grpo",
    "GSPO": "gspo",
    "GSPOConfig": "gspo",
}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
