"""Learners that hold a part of each weight, by FSDP2: a block is gathered when it computes, and let go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from unirl_env.agents.parallel.alike import require_same
from unirl_env.agents.parallel.gradient import Gradient
from unirl_env.agents.parallel.level import Minibatch, any_learner, level
from unirl_env.agents.parallel.matrices import share_matrices
from unirl_env.agents.parallel.parallel import Parallel
from unirl_env.agents.parallel.sharded_gradient import ShardedGradient
from unirl_env.agents.parallel.tokens import AXES, share_tokens
from unirl_env.errors import ConfigError
from unirl_env.models.shared.outline import outlines, outlining
from unirl_env.policies.parts import own_part, own_place
from unirl_env.settings import LearnerSettings

Kind = tuple[torch.dtype, torch.dtype]
"""In what a weight is kept, and in what it computes."""


class Sharded(Parallel):
    """Weights, gradients and moments divided among learners.

    Every module of a class that the network names in `_no_split_modules` is a unit that is gathered at once;
    what is left of the network is another. Weights in half precision that are trained are kept in float32 and
    computed with in their own precision, so that steps add up; weights of other precisions beside them are
    units of their own.

    Args:
        settings: How weights are divided.
        device: This learner's.
    """

    divides = True

    def __init__(self, settings: LearnerSettings, device: torch.device):
        self._settings, self._device = settings, device
        self._mesh, self._matrices = _meshes(settings, device)
        self._tokens = _groups(settings, device)
        self.sharers = settings.sharers

    def making(self) -> AbstractContextManager[None]:
        """Networks whose weights can be read in parts begin without any."""
        return outlining()

    def place(self, actor: Any) -> None:
        """Divide the actor's network, and the frozen copy of it if there is one; weights are read by then."""
        gates: dict[nn.Module, Callable[[Callable[[], Any]], Any]] = {}
        for network in actor.networks():
            gate = _Gate(network, 1 if self._matrices is None else 2)
            self._divide(gate, network)
            self._fill(gate)
            register_fsdp_forward_method(gate, "read")
            gates[network] = gate.read
        actor.enter_by(gates, self.any)
        for name in actor.copies:
            actor.keep(name)  # anew: it begins as the weights do, and lies as they lie
        for network, gate_of in gates.items():
            for part, outline in outlines(network):
                for check in outline.checks:
                    gate_of(partial(check, part))

    def gradient(self, weights: Sequence[nn.Parameter], *, parts: int, told: int) -> Gradient:
        """The parts of gradients that lie beside those of the weights."""
        alike = self._matrices is not None
        return ShardedGradient(weights, parts=parts, told=told, sharers=self.sharers, alike=alike)

    def level(self, minibatches: Sequence[Minibatch]) -> list[Minibatch]:
        """As many micro-batches as the learner with the most has: every forward pass gathers weights."""
        return level(minibatches, self._device)

    def any(self, found: bool) -> bool:
        """Whether it is found on any learner."""
        return any_learner(found, self._device)

    def require_same(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Refuse to go on where learners that read the same episodes have others."""
        if self._matrices is not None:
            group = self._matrices.get_group()
        elif self._tokens is not None:
            group = self._tokens.get_group(AXES[-1])
        else:
            return
        require_same(group, self._device, tensors, what, self._settings.sharing)

    def _divide(self, gate: _Gate, network: nn.Module) -> None:
        computes = {name: parameter.dtype for name, parameter in network.named_parameters()}
        for parameter in network.parameters():
            if parameter.requires_grad and parameter.dtype.itemsize < torch.float32.itemsize:
                parameter.data = parameter.data.float()
        if self._matrices is not None:
            share_matrices(network, self._matrices)
        if self._tokens is not None:
            share_tokens(network, self._tokens, self._device)
        kinds = {p: (p.dtype, computes[name]) for name, p in network.named_parameters()}
        blocks = list(_blocks(network))
        for block in blocks:
            self._unit(block, kinds)
        self._unit(gate, kinds)
        gate.watch()
        for module in gate.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                module.set_reduce_scatter_unused_params(True)
        _prefetch([block for block in blocks if isinstance(block, FSDPModule)], self._settings.prefetch)

    @torch.no_grad()
    def _fill(self, gate: _Gate) -> None:
        """Read this learner's parts of what is without weights from the files, and nothing else of them."""
        lacking = [
            (part, outline, [name for name, weight in part.named_parameters() if weight.is_meta])
            for part, outline in outlines(gate.network)
        ]

        def made(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device=self._device) if tensor.is_meta else tensor

        gate._apply(made)  # type: ignore[no-untyped-call]
        for part, outline, names in lacking:
            weights = dict(part.named_parameters())
            for name in names:
                own = own_part(weights[name])
                if own.numel():
                    own.copy_(outline.read(name, own_place(weights[name])))
            outline.close()

    def _unit(self, module: nn.Module, kinds: Mapping[nn.Parameter, Kind]) -> None:
        """Make a unit of what is left of a module; other precisions are units of their own."""
        left = {
            owner: [kinds[p] for p in owner.parameters(recurse=False) if p in kinds]
            for owner in module.modules()
            if not isinstance(owner, FSDPModule)
        }
        counts = Counter(kind for owned in left.values() for kind in owned)
        usual = counts.most_common(1)[0][0] if counts else None
        for kind in counts:
            if kind == usual:
                continue
            owners = [owner for owner, owned in left.items() if kind in owned]
            mixed = next((owner for owner in owners if set(left[owner]) != {kind}), None)
            if mixed is not None:
                raise ConfigError(
                    f"`learner.parallel` must be replicated where one module has weights of several "
                    f"precisions, got {self._settings.parallel!r} with {type(mixed).__name__}; try "
                    "model.dtype=float32."
                )
            self._shard(owners, kind)
        self._shard(module, usual or (torch.float32, torch.float32))

    def _shard(self, module: Any, kind: Kind) -> None:
        kept, computes = kind
        narrow = MixedPrecisionPolicy(
            param_dtype=None if kept == computes else computes,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        fully_shard(
            module,
            mesh=self._mesh,
            reshard_after_forward=True,  # weights that change between two passes are gathered anew
            mp_policy=narrow,
        )


class _Gate(nn.Module):
    """The root of a divided network: while it reads, what belongs to no block is there.

    FSDP gathers a block for its backward pass when a gradient reaches what the block returned. Some gradients
    come by another way, such as that of keys and values which a block leaves in a cache. Therefore weights
    that autograd has saved are gathered, too, when it asks for them.

    Args:
        network: It.
        axes: Of the learners among which a weight is divided that is not gathered.
    """

    def __init__(self, network: nn.Module, axes: int):
        super().__init__()
        self.network = network
        self._owners: dict[int, FSDPModule] = {}
        """By the address of a gathered weight, the unit that it is of."""
        self._axes = axes

    def read(self, function: Callable[[], Any]) -> Any:
        """What the function returns, which reads the network in whatever way."""
        with saved_tensors_hooks(self._saved, self._asked):
            return function()

    def watch(self) -> None:
        """Learn where the weights of each unit are, whenever they are gathered."""
        for module in self.network.modules():
            if isinstance(module, FSDPModule):
                module.register_forward_pre_hook(self._gathered)
                module.register_forward_pre_hook(_require_gradient, prepend=True, with_kwargs=True)

    def _gathered(self, unit: Any, arguments: Any) -> None:
        for weight in unit.parameters():
            if not isinstance(weight, DTensor) or weight.device_mesh.ndim < self._axes:
                self._owners[_memory(weight).data_ptr()] = unit

    def _saved(self, tensor: Tensor) -> tuple[Tensor, FSDPModule | None]:
        return tensor, self._owners.get(_memory(tensor).data_ptr())

    def _asked(self, saved: tuple[Tensor, FSDPModule | None]) -> Tensor:
        tensor, unit = saved
        if unit is not None and not _memory(tensor).size():
            unit.unshard()
        return tensor


def _memory(tensor: Tensor) -> Any:
    """Where a tensor lies, or what this learner holds of it."""
    return (own_part(tensor) if isinstance(tensor, DTensor) else tensor).untyped_storage()


def _require_gradient(unit: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Let the first input of a block ask for a gradient, by which FSDP knows that its backward pass is over.

    Of a block that is passed twice in a forward pass, the later pass alone would be noticed otherwise.
    """
    if not torch.is_grad_enabled() or not arguments:
        return None
    first = arguments[0]
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.requires_grad:
        return None
    return (first.detach().requires_grad_(), *arguments[1:]), named


def _meshes(settings: LearnerSettings, device: torch.device) -> tuple[DeviceMesh, DeviceMesh | None]:
    """The learners among which FSDP divides, and those that share matrices with this one, if any."""
    world, sharers = dist.get_world_size(), settings.tensor_parallel
    if sharers > 1:
        both = init_device_mesh(device.type, (world // sharers, sharers), mesh_dim_names=("shard", "matrix"))
        return both["shard"], both["matrix"]
    if settings.parallel == "sharded":
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",)), None
    size = settings.shard_size
    assert size is not None  # the settings' own check has seen to it
    names = ("replicate", "shard")
    return init_device_mesh(device.type, (world // size, size), mesh_dim_names=names), None


def _groups(settings: LearnerSettings, device: torch.device) -> DeviceMesh | None:
    """All learners, by groups that share tokens, if they do: FSDP divides among all, and sums over all."""
    sharers = settings.context_parallel
    if sharers == 1:
        return None
    return init_device_mesh(device.type, (dist.get_world_size() // sharers, 1, sharers), mesh_dim_names=AXES)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The modules of a network that are gathered at once: those that it says must not be split."""
    names = {
        name for module in network.modules() for name in (getattr(module, "_no_split_modules", None) or ())
    }
    found: set[nn.Module] = set()
    for module in network.modules():
        if type(module).__name__ in names and module not in found:
            found.update(module.modules())
            yield module


def _prefetch(blocks: Sequence[Any], ahead: int) -> None:
    """Let each block ask for those that follow it while it computes."""
    for place, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(list(blocks[place + 1 : place + 1 + ahead]))
        block.set_modules_to_backward_prefetch(list(reversed(blocks[max(0, place - ahead) : place])))
