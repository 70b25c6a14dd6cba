"""Samples, prompts and scores as bytes: what `RemoteScorer` says to the service, and what it hears."""

from unirl_env.rewards.wire.replies import scores_as_json, scores_from_json
from unirl_env.rewards.wire.requests import (
    PROTOCOL,
    TENSORS,
    ScoreRequest,
    decode_request,
    encode_request,
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
