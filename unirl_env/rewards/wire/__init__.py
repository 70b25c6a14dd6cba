"""Samples, prompts and scores as bytes: the one format that the reward service and its clients speak."""

from unirl_env.rewards.wire.messages import (
    PROTOCOL,
    TENSORS,
    ScoreRequest,
    decode_request,
    encode_request,
    scores_as_json,
    scores_from_json,
)
from unirl_env.rewards.wire.tensors import Limits, read_png

__all__ = [
    "PROTOCOL",
    "TENSORS",
    "Limits",
    "ScoreRequest",
    "decode_request",
    "encode_request",
    "read_png",
    "scores_as_json",
    "scores_from_json",
]
