"""Environments: generation as Gymnasium's vector environments, and what judges them."""

from unirl_env.envs.acting import MDPVectorEnv
from unirl_env.envs.contract.judge import check_vector_env
from unirl_env.envs.denoising import DenoiseVectorEnv
from unirl_env.envs.hybrid import HybridVectorEnv
from unirl_env.envs.single import SingleEnv
from unirl_env.envs.snapshot import Snapshot
from unirl_env.envs.token_rows import WAIT
from unirl_env.envs.tools import Calculator
from unirl_env.envs.vector_env import GenerativeVectorEnv
from unirl_env.envs.writing import TokenVectorEnv
from unirl_env.prompts.sources import PromptSource

__all__ = [
    "WAIT",
    "Calculator",
    "DenoiseVectorEnv",
    "GenerativeVectorEnv",
    "HybridVectorEnv",
    "MDPVectorEnv",
    "PromptSource",
    "SingleEnv",
    "Snapshot",
    "TokenVectorEnv",
    "check_vector_env",
]
