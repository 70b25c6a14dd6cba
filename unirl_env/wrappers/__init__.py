"""Wrappers around generative vector environments; each leaves the contract of `envs.contract` intact."""

from unirl_env.wrappers.draw import DrawWrapper
from unirl_env.wrappers.flatten import FlattenForPPO, flatten_for_ppo
from unirl_env.wrappers.record import RecordMedia
from unirl_env.wrappers.reward import RewardWrapper
from unirl_env.wrappers.shaping import PotentialShaping
from unirl_env.wrappers.statistics import EpisodeStatistics

__all__ = [
    "DrawWrapper",
    "EpisodeStatistics",
    "FlattenForPPO",
    "PotentialShaping",
    "RecordMedia",
    "RewardWrapper",
    "flatten_for_ppo",
]
