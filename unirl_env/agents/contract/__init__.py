"""What every agent promises, and the judge that holds one against it: `check_agent`."""

from unirl_env.agents.contract.certificate import Certificate, Check
from unirl_env.agents.contract.judge import check_agent

__all__ = ["Certificate", "Check", "check_agent"]
