"""Router replay: the experts that sampled a token score it, too.

A mixture of experts is two policies where its routers choose otherwise in scoring than in sampling, as they
do by rounding or after an optimizer step. Choices are recorded when tokens are sampled and put in force when
they are scored, for the untrained and the old weights as for the new; how much each chosen expert weighs is
computed anew, so that gradients reach the routers by the probabilities of the recorded experts.

Reference:
    Ma et al., Stabilizing MoE reinforcement learning by aligning training and inference routers
    (arXiv 2510.11370).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.shared.routers import Router

ROUTES = "routes"
"""Of an observation: the experts chosen in reading each token of a packed row, `[L, R, k]` of R routers."""

Pass = Callable[[int, Router, Any], Any]
"""What happens to what a router returned, given its number; None leaves it."""


def unknown(routes: Tensor) -> int:
    """What stands where no choice was recorded, or a router chooses fewer experts than others."""
    return torch.iinfo(routes.dtype).max


class Recorded:
    """What the routers choose in one forward pass of T tokens."""

    def __init__(self) -> None:
        self._chosen: list[Tensor] = []
        self._experts = 0

    def __call__(self, number: int, router: Router, output: Any) -> None:
        """Note what router `number` returned."""
        if number != len(self._chosen):
            raise ContractError(
                f"A forward pass must come by each router once and in order, got router {number} after "
                f"{len(self._chosen)} of them; try policy.replay_routing=false."
            )
        self._chosen.append(output[-1])
        self._experts = max(self._experts, output[0].shape[-1])

    def routes(self) -> Tensor:
        """The experts `[T, R, k]`, uint8 where their numbers are below 255, else int16."""
        dtype = torch.uint8 if self._experts <= torch.iinfo(torch.uint8).max else torch.int16
        most = max(chosen.shape[1] for chosen in self._chosen)
        wide = [
            torch.nn.functional.pad(chosen, (0, most - chosen.shape[1]), value=torch.iinfo(dtype).max)
            for chosen in self._chosen
        ]
        return torch.stack(wide, 1).to(dtype)


class Replayed:
    """Recorded choices in force.

    Args:
        routes: `[T, R, k]`.

    Attributes:
        differed: `[T]` float32, the share of the recorded experts of each token that the routers would not
            have chosen now.
    """

    def __init__(self, routes: Tensor):
        self._routes = routes
        self.differed = torch.zeros(len(routes), device=routes.device)

    def __call__(self, number: int, router: Router, output: Any, *, counted: bool = True) -> Any:
        """What router `number` would have returned, had it chosen what is recorded."""
        own = output[-1]
        if len(own) != len(self._routes):
            raise ContractError(
                f"`{ROUTES}` must hold a choice for each of the {len(own)} tokens that are scored, got "
                f"{len(self._routes)}."
            )
        recorded = self._routes[:, number, : own.shape[1]].long()
        chosen = torch.where(recorded == unknown(self._routes), own, recorded)
        if counted:
            missed = (chosen[:, :, None] != own[:, None]).all(-1)
            self.differed += missed.float().mean(-1) / self._routes.shape[1]
        return *output[:-2], router.weigh(output, chosen), chosen

    def again(self, number: int, router: Router, output: Any) -> Any:
        """The same where activations are recomputed."""
        return self(number, router, output, counted=False)


class Routing:
    """Watches the routers of a policy's network, and of frozen copies of it.

    Attributes:
        rerouted: `[N]` float32 of the rows scored last: which share of the recorded experts the routers would
            not have chosen, in reading the token that predicts each row's. None before the first.
    """

    def __init__(self) -> None:
        self._now: Pass | None = None
        self._known: set[Router] = set()
        self.rerouted: Tensor | None = None

    def watch(self, routers: Sequence[Router], network: Any) -> None:
        """Follow what these routers return.

        Args:
            routers: In the order in which a token passes them.
            network: Theirs, for the error.

        Raises:
            ConfigError: If there are none.
        """
        if not routers:
            raise ConfigError(
                f"`policy.replay_routing` must be false where no routers are known that choose experts, got "
                f"true with {type(network).__name__}; try policy.replay_routing=false."
            )
        for number, router in enumerate(routers):
            router.module.register_forward_hook(partial(self._routed, number, router))

    @contextmanager
    def recording(self) -> Iterator[Recorded]:
        """Within it, one forward pass is recorded."""
        recorded = Recorded()
        with _Passing(self, recorded):
            yield recorded

    @contextmanager
    def replaying(self, routes: Tensor) -> Iterator[Replayed]:
        """Within it, routers choose what is recorded, `[T, R, k]`, for the T tokens of a forward pass."""
        replayed = Replayed(routes)
        with _Passing(self, replayed):
            yield replayed

    def recomputed(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """What a checkpoint of activations computes within, and recomputes within later."""
        now = self._now
        return nullcontext(), _Passing(self, now.again if isinstance(now, Replayed) else None)

    def _routed(self, number: int, router: Router, module: Any, arguments: Any, output: Any) -> Any:
        if self._now is None:
            return None
        if router not in self._known:
            self._known.add(router)
            _require_understood(router, output)
        return self._now(number, router, output)


class _Passing:
    """Within it, what routers return goes by `now`; it can be entered again and again."""

    def __init__(self, routing: Routing, now: Pass | None):
        self._routing, self._within, self._before = routing, now, list[Pass | None]()

    def __enter__(self) -> None:
        self._before.append(self._routing._now)
        self._routing._now = self._within

    def __exit__(self, *error: object) -> None:
        self._routing._now = self._before.pop()


def _require_understood(router: Router, output: Any) -> None:
    """Refuse a router whose own choice is weighed otherwise than it does itself."""
    with torch.no_grad():
        own, ours = output[-2], router.weigh(output, output[-1])
    if ours.shape != own.shape or not torch.allclose(ours.float(), own.float(), rtol=1e-2, atol=1e-5):
        raise ConfigError(
            f"`policy.replay_routing` must be false with routers whose weights are not the probabilities of "
            f"the chosen experts, got true with {type(router.module).__name__}; try "
            "policy.replay_routing=false."
        )
