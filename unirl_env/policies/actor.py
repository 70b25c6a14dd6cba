"""The policy in plain torch: one network, with adapters or whole, and a head for each phase."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.shared.outline import stood_in_for
from unirl_env.policies.forward_only import forward_only
from unirl_env.policies.heads import Head, LatentHead, TokenHead, heads_of
from unirl_env.policies.routing import Routing
from unirl_env.policies.trained_weights import AVERAGE, TrainedWeights

Gate = Callable[[Callable[[], Any]], Any]
"""Calls what it is given while a network can be read that processes hold in parts."""


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters, by peft.

    Attributes:
        rank: Their rank.
        alpha: Their scale is `alpha / rank`.
        targets: Names of layers; None takes the model family's own list.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] | None = None


class Actor(TrainedWeights):
    """Acts with a model's network, and scores what was done by the same code.

    Args:
        model: The adapter of the model family: a denoiser, a language model, a unified model, or anything
            with an `action_space`. Only its trained half is loaded.
        lora: Train adapters on a frozen network, or all weights if None.
        heads: How each phase is acted in, by its name; None takes those of `heads_of`.
        train_phases: The phases that are trained, None all of them; weights of a unified model that only
            another one reads are frozen.
        keep_reference: Keep a frozen copy of all weights for `reference()`; adapters need none.
        keep_average: Keep an average of the trained weights, `"ema"`, which begins as they do.
        merge_adapters: Act with adapters merged into the weights (`acting`); None does so in float32, unless
            the model is evaluated in `rows_per_forward`, which promises that scoring finds the very bits of
            sampling, or has quantised weights, to which nothing can be added.
        gradient_checkpointing: Recompute activations in the backward pass, where the network can; the layers
            of transformers do so for tokens, and for latents where the denoiser `recomputes`.
        replay_routing: Score tokens by the experts that sampled them (`policies.routing`).
        **settings: Of the heads: `guidance`, `dynamics`, `eta` and `storage_dtype` of latents;
            `temperature`, `top_p`, `top_k` and `chunk_bytes` of tokens; `temperature` of other actions.

    Attributes:
        network: What is trained.
        heads: By the phases' names, in the order of an episode.
        routing: What follows the choices of experts; None unless `replay_routing`.
        copies: By name, other values of the trained weights, in float32: `"ema"`, and whatever `keep` kept.

    Raises:
        ConfigError: If a setting is out of range, or the network cannot do what it is asked for.
    """

    def __init__(
        self,
        model: Any,
        *,
        lora: LoRAConfig | None = None,
        heads: Mapping[str, Head] | None = None,
        train_phases: Sequence[str] | None = None,
        keep_reference: bool = False,
        keep_average: bool = False,
        merge_adapters: bool | None = None,
        gradient_checkpointing: bool = False,
        replay_routing: bool = False,
        **settings: Any,
    ):
        super().__init__()
        self.model = model
        if heads is not None and settings:
            raise ConfigError(f"`heads` must have their own settings, got {sorted(settings)} beside them.")
        self.heads = heads_of(model, **settings) if heads is None else dict(heads)
        trained = tuple(self.heads if train_phases is None else train_phases)
        if not trained or not set(trained) <= set(self.heads):
            raise ConfigError(f"`train_phases` must name some of {tuple(self.heads)}, got {list(trained)}.")
        self.network = model.network().eval()
        self.quantized = getattr(self.network, "hf_quantizer", None) is not None
        if self.quantized and merge_adapters:
            raise ConfigError(
                "`merge_adapters` must be null or false for a network with quantised weights, got True: they "
                "cannot be added to."
            )
        self.lora, self.merge_adapters = lora, merge_adapters
        self._frozen: list[nn.Module] = []
        self._gates: dict[nn.Module, Gate] = {}
        self._any: Callable[[bool], bool] | None = None
        self._layers: list[nn.Module] = []
        if lora is None:
            if self.quantized:
                raise ConfigError(
                    "`lora` must be given for a network with quantised weights, which cannot be trained; try "
                    "`policy.lora_rank=32`, or `quantization` null."
                )
            self.network.requires_grad_(True)
            if keep_reference:
                # In a list, so that the copy is neither moved into the state nor into the optimizer.
                self._frozen = [copy.deepcopy(self.network).requires_grad_(False)]
        else:
            self._attach_adapters(lora)
        # Once more: layers that peft adds begin in training mode.
        self.network.eval()
        self.routing = Routing() if replay_routing else None
        if self.routing is not None:
            self._watch_routers(self.routing)
        if gradient_checkpointing:
            self._checkpoint_gradients()
        for phase in set(self.heads) - set(trained):
            for parameter in model.private(self.network, phase):
                parameter.requires_grad_(False)
        if keep_average:
            self.keep(AVERAGE)

    def head(self, phase: str | None = None) -> Head:
        """The head of `phase`; where there is one alone, it acts in a phase of any name.

        Raises:
            ContractError: If there are several, and none of that name.
        """
        if len(self.heads) == 1:
            return next(iter(self.heads.values()))
        if phase not in self.heads:
            raise ContractError(f"`phase` must be one of {', '.join(map(repr, self.heads))}, got {phase!r}.")
        return self.heads[phase]

    def forwards(self, phase: str | None = None) -> int:
        """Rows that the network is given for each row of `phase`."""
        return self.head(phase).forwards

    def branches(self, phase: str | None = None) -> bool:
        """Whether rows of `phase` may share their prompts; see `policies.packing`."""
        return self.head(phase).branches(self.part(phase))

    def read(self, obs: Mapping[str, Tensor], *, phase: str | None = None) -> Any:
        """The contexts of latents, read once for many steps; see `LatentHead.read`."""
        return self.within(lambda: self.latent_head(phase).read(self.part(phase), obs))

    def act(
        self, obs: Mapping[str, Tensor], draws: Tensor | None = None, *, phase: str | None = None, **more: Any
    ) -> Any:
        """Draw the next actions of N episodes.

        Args:
            obs: An observation of the environment as tensors `[N, ...]`.
            draws: Keyed random numbers: noise like the latents, or `[N]` in [0, 1) for tokens. None where
                nothing is left to chance.
            phase: Of the episodes; None where there is one.
            **more: What the head can be given beside: of latents the `reading` that `read` returned, and the
                `solver` of steps that do not explore.

        Returns:
            A named tuple, whose first field is the action, with `log_prob` `[N]`.
        """
        head = self.head(phase)
        with self._recomputing(head):
            return self.within(lambda: head.act(self.part(phase), obs, draws, **more))

    def likeliest(self, obs: Mapping[str, Tensor], *, phase: str | None = None) -> Any:
        """The next actions without chance: those of the deterministic ODE, or the likeliest ones."""
        return self.within(lambda: self.head(phase).likeliest(self.part(phase), obs))

    def score(self, obs: Mapping[str, Tensor], action: Tensor, *, phase: str | None = None) -> Any:
        """Score given actions `[N, ...]`, with gradient to the trainable weights.

        Args:
            obs: Their observations, each `[N, ...]`; for tokens a packed row, as `policies.packing` makes it.
            action: As `act` gives them.
            phase: Theirs; None where there is one.
        """
        head = self.head(phase)
        with self._recomputing(head):
            return self.within(lambda: head.score(self.part(phase), obs, action))

    def velocity(self, obs: Mapping[str, Tensor], *, phase: str | None = None) -> Tensor:
        """The guided velocity `[N, ...]` float32 of a phase that denoises, with gradient.

        Raises:
            ContractError: If the phase does not denoise.
        """
        head = self.latent_head(phase)
        with self._recomputing(head):
            return self.within(lambda: head.velocity(self.part(phase), obs))

    def latent_head(self, phase: str | None = None) -> LatentHead:
        """The head of a phase that denoises latents.

        Raises:
            ContractError: If `phase` does something else.
        """
        head = self.head(phase)
        if not isinstance(head, LatentHead):
            raise ContractError(
                f"A velocity must be asked of a phase that denoises latents, got `{phase}`, in which "
                f"{type(head).__name__} acts; try `context.score`."
            )
        return head

    def acting(self, *, base: bool = False) -> AbstractContextManager[None]:
        """What whoever plays whole episodes does so within.

        Args:
            base: Play the untrained model.
        """
        if base or self.lora is None or self._gates:
            return self.reference() if base else nullcontext()
        merging = self.merge_adapters
        if merging is None:
            exact = getattr(self.model, "rows_per_forward", None) is not None
            merging = self._precise and not exact and not self.quantized
        return self.merged() if merging else nullcontext()

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within it, adapters are part of the weights: one matrix product in the place of three.

        Nothing can be trained within. Afterwards every layer has the very weights of before: they are kept,
        not computed back. Sums are rounded otherwise than with the adapters beside the weights, so that
        scores agree with those to rounding. The adapters are not in the network meanwhile.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        places = [
            (parent, name, layer)
            for parent in self.network.modules()
            for name, layer in parent.named_children()
            if isinstance(layer, BaseTunerLayer)
        ]
        own: dict[Any, Any] = {layer: layer.get_base_layer().weight for _, _, layer in places}
        try:
            for layer, weight in own.items():
                change = sum(layer.get_delta_weight(name).detach() for name in layer.active_adapters)
                # Another parameter, because the weight may be tied to a layer without an adapter.
                layer.get_base_layer().weight = nn.Parameter(weight + change.to(weight.dtype), False)
            for parent, name, layer in places:
                setattr(parent, name, layer.get_base_layer())
            yield
        finally:
            for parent, name, layer in places:
                setattr(parent, name, layer)
            for layer, weight in own.items():
                layer.get_base_layer().weight = weight

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it, the actor is the untrained model.

        Raises:
            ContractError: If all weights are trained and no copy was kept, or adapters are merged.
        """
        if self.lora is not None:
            layers = list(self._adapter_layers())
            if not layers:
                raise ContractError("The untrained weights must be asked for outside of `merged`.")
            with self._without(layers):
                yield
            return
        if not self._frozen:
            raise ContractError(
                "The untrained weights must be kept, got none; try `keep_reference=True`, or adapters."
            )
        trained, self.network = self.network, self._frozen[0]
        try:
            yield
        finally:
            self.network = trained

    def save_adapters(self, directory: str) -> None:
        """Write the adapters in the form that the family's own pipeline loads.

        Raises:
            ConfigError: If all weights are trained.
        """
        if self.lora is None:
            raise ConfigError("There are no adapters to export: this policy trains all weights.")
        self.model.save_adapters(self.network, directory)

    def save_weights(self, directory: str) -> None:
        """Write all weights in the form that the family's own library loads, adapters merged in."""
        self.model.save_weights(self.network, directory)

    @cached_property
    def _precise(self) -> bool:
        """Whether all weights are in float32, so that sums with them are rounded finely."""
        return all(parameter.dtype == torch.float32 for parameter in self.network.parameters())

    def _apply(self, function: Any, recurse: bool = True) -> Self:  # the frozen copy follows `.to(...)`
        vars(self).pop("_precise", None)
        self._frozen = [module._apply(function) for module in self._frozen]
        return super()._apply(function, recurse)

    def _attach_adapters(self, lora: LoRAConfig) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        targets: Sequence[str] = lora.targets or self.model.lora_targets
        if not targets:
            raise ConfigError(
                f"{type(self.model).__name__} names no layers for adapters; train all weights instead "
                "(`lora_rank: null`)."
            )
        config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=list(targets), init_lora_weights="gaussian"
        )
        self.network.requires_grad_(False)
        try:
            for part in self._adapted():
                with stood_in_for(part):
                    inject_adapter_in_model(config, part)
        except ValueError as error:
            raise ConfigError(
                f"`lora_targets` must name layers of the network, got {list(targets)}: {error}"
            ) from error
        self._check_targets(lora.targets or ())
        for name, parameter in self.network.named_parameters():
            if "lora_" in name:
                # Small steps vanish in half precision; the adapters are small enough for float32.
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)

    def _check_targets(self, targets: Sequence[str]) -> None:
        """Refuse a name that no adapted layer has: peft passes over it where another one matches."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        parts = (module for part in self._adapted() for module in part.named_modules())
        names = [name for name, module in parts if isinstance(module, BaseTunerLayer)]
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                raise ConfigError(
                    f"`lora_targets` must each name layers of the network, got {target!r}, which names none; "
                    f"try some of {sorted({name.rpartition('.')[2] for name in names})}."
                )

    def networks(self) -> tuple[nn.Module, ...]:
        """The network, and the frozen copy of it if one is kept."""
        return (self.network, *self._frozen)

    def enter_by(self, gates: Mapping[nn.Module, Gate], any_process: Callable[[bool], bool]) -> None:
        """Let what reads a network do so within its gate, for which all processes that hold parts must come.

        Args:
            gates: Of each of `networks()`.
            any_process: Answers `anyone`.
        """
        self._gates, self._any = dict(gates), any_process

    @property
    def divided(self) -> bool:
        """Whether processes hold parts of the network: then all must pass through it equally often."""
        return self._any is not None

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def anyone(self, found: bool) -> bool:
        """Whether it is found here, or in another process that holds a part of the network; all must ask."""
        return found if self._any is None else self._any(found)

    def within(self, read: Callable[[], Any]) -> Any:
        """What `read()` returns, which may pass through the network and read its weights."""
        gate = self._gates.get(self.network)
        if gate is not None:
            return gate(read)
        with forward_only():
            return read()

    def part(self, phase: str | None) -> nn.Module:
        """What `phase` acts with of the network: all of it, where there is one phase or one backbone."""
        return self.network if len(self.heads) == 1 else self.model.part(self.network, phase)

    def private(self, phase: str) -> tuple[nn.Parameter, ...]:
        """The weights that `phase` alone reads: all of them, where there is one phase."""
        alone = len(self.heads) == 1
        return tuple(self.network.parameters() if alone else self.model.private(self.network, phase))

    def _adapted(self) -> tuple[nn.Module, ...]:
        """The networks that adapters attach to one by one."""
        return tuple(dict.fromkeys(self.part(phase) for phase in self.heads))

    def _adapter_layers(self) -> Iterator[Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return (module for module in self.network.modules() if isinstance(module, BaseTunerLayer))

    @contextmanager
    def _without(self, layers: Sequence[Any]) -> Iterator[None]:
        """Within it, the adapters of `layers` do nothing."""
        # peft would have all of them trained afterwards, also those of a phase that is frozen.
        trained = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)

    def _watch_routers(self, routing: Routing) -> None:
        for phase, head in self.heads.items():
            if isinstance(head, TokenHead):
                head.routing = routing
                for network in self.networks():
                    part = network if len(self.heads) == 1 else self.model.part(network, phase)
                    routing.watch(head.model.routers(part), part)

    def _checkpoint_gradients(self) -> None:
        network: Any
        for network in self._adapted():
            if hasattr(network, "enable_gradient_checkpointing"):
                network.enable_gradient_checkpointing()
            elif getattr(network, "supports_gradient_checkpointing", False):
                options: dict[str, Any] = {"use_reentrant": False}
                if self.routing is not None:
                    options["context_fn"] = self.routing.recomputed
                network.gradient_checkpointing_enable(options)
                self._layers += [m for m in network.modules() if getattr(m, "gradient_checkpointing", False)]
            else:
                raise ConfigError(f"{type(network).__name__} cannot checkpoint gradients; turn it off.")

    @contextmanager
    def _recomputing(self, head: Head) -> Iterator[None]:
        """Within it, transformers' layers recompute for `head`; a cache outside it would exclude that.

        They do so in training mode only. The flag is set on the layers alone: dropout inside them would score
        an action under another policy than the one that sampled it.
        """
        layers = self._layers if head.recomputes else ()
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False
