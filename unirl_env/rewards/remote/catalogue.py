"""What a reward service says of the rewards it serves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from unirl_env.errors import ConfigError, ServiceLost, WireError
from unirl_env.http import CallFailed, Deadline
from unirl_env.rewards.remote.service_client import ServiceClient
from unirl_env.rewards.wire import PROTOCOL

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedReward:
    """A reward that is served.

    Attributes:
        scorer: What the service calls its scorer.
        needs: The fields of `Sample` that it looks at.
        pointwise: Whether each score depends on its own sample alone.
    """

    scorer: str
    needs: tuple[str, ...]
    pointwise: bool


def agreed(client: ServiceClient, reward: str) -> ServedReward:
    """What all replicas say of `reward`, each asked once; those that do not answer yet are named in the log.

    Raises:
        ConfigError: If none answers, one refuses or does not serve the reward, or they differ.
    """
    found: dict[str, ServedReward] = {}
    silent = []
    for url in client.urls:
        try:
            found[url] = client.look(url, "/rewards", partial(_read, reward=reward, url=url))
        except CallFailed as failed:
            silent.append(str(failed))
    if not found:
        raise ConfigError(
            f"`urls` must be those of a running reward service, got: {'; '.join(silent)}; try "
            "`python -m unirl_env.service --config ...` there, or check=False to ask later."
        )
    for cause in silent:
        logger.warning("A replica of the reward service does not answer yet: %s", cause)
    first, served = next(iter(found.items()))
    for url, other in found.items():
        if other != served:
            raise ConfigError(
                f"`urls` must be replicas that serve the same {reward!r}, got {served} at {first} and "
                f"{other} at {url}; try one RemoteScorer for each."
            )
    return served


def asked(client: ServiceClient, reward: str) -> ServedReward:
    """What any replica says of `reward`, asked as persistently as for scores.

    Raises:
        ServiceLost: If none answers.
        ConfigError: If one refuses, or does not serve the reward.
    """
    try:
        where = ", ".join(client.urls)
        return client.ask("/rewards", None, lambda reply: _read(reply, reward, where), Deadline())
    except CallFailed as failed:
        raise ServiceLost(f"The reward service must say what it serves, got: {failed}.") from failed


def _read(reply: Any, reward: str, url: str) -> ServedReward:
    if (
        not isinstance(reply, Mapping)
        or "protocol" not in reply
        or not isinstance(reply.get("rewards"), list)
    ):
        raise WireError("it must say `protocol` and `rewards`")
    if reply["protocol"] != PROTOCOL:
        raise ConfigError(
            f"The reward service at {url} must speak protocol {PROTOCOL}, got {reply['protocol']!r:.40}; try "
            "the same version of unirl_env on both sides."
        )
    found = {}
    for one in reply["rewards"]:
        try:
            found[one["name"]] = ServedReward(
                str(one["scorer"]), tuple(one["needs"]), one["pointwise"] is True
            )
        except (TypeError, KeyError) as error:
            raise WireError(
                f"a reward must have a name, a scorer, needs and pointwise, got {one!r:.80}"
            ) from error
    if reward not in found:
        raise ConfigError(
            f"`reward` must be one that {url} serves, got {reward!r}; try one of {sorted(map(str, found))}."
        )
    return found[reward]
