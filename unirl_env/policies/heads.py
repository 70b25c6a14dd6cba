"""Heads: what a network says, as a policy over the next latent, token or action.

A head owns no weights. It is made of a model and of settings, and is given the network; how it draws and how
it scores is one code path, so that scoring what was drawn gives ratio one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.arguments.values import number, truth, whole
from unirl_env.episode import cat_padded
from unirl_env.errors import ConfigError, ContractError
from unirl_env.functional import SDEStep, TokenStep
from unirl_env.models.denoiser import NEGATIVE
from unirl_env.models.shared.loading import as_dtype
from unirl_env.policies.distributions import distribution_over
from unirl_env.policies.packing import pack_prefixes
from unirl_env.policies.routing import ROUTES, Routing

ANNOUNCED = ("latent", "sigma", "sigma_next", "step", "stochastic")
"""Observation keys of denoising that are not context."""
ROW = "context_row"
"""Which context each row has, where contexts are given once."""
PICTURES = ("pixel_values", "image_grid_thw")


class Head(ABC):
    """How one phase of a model's episodes is acted in.

    Args:
        model: The model's view of the phase.

    Attributes:
        kind: The kind of phase that its actions make, as `Phase.kind` has it.
        recomputes: Whether the layers of transformers may recompute activations in its passes.
        entropy_gradient: Whether the entropy of what `score` returns must have a gradient, if there is one;
            whoever needs it says so.
    """

    kind: str
    recomputes: bool = False
    entropy_gradient: bool = False

    @property
    def forwards(self) -> int:
        """How many rows the network is given for each row."""
        return 1

    def __init__(self, model: Any):
        self.model = model

    def branches(self, network: nn.Module) -> bool:
        """Whether rows may share the beginning of their episodes, as `policies.packing` has it."""
        return False

    @abstractmethod
    def act(self, network: nn.Module, obs: Mapping[str, Tensor], draws: Tensor | None = None) -> Any:
        """Draw the next actions of N episodes.

        Args:
            network: The model's.
            obs: An observation of the environment as tensors `[N, ...]`.
            draws: Keyed random numbers `[N, ...]`; None where nothing is left to chance.

        Returns:
            A named tuple, whose first field is the action, with `log_prob` `[N]`.
        """

    @abstractmethod
    def score(self, network: nn.Module, obs: Mapping[str, Tensor], action: Tensor) -> Any:
        """Score given actions `[N, ...]` as `act` draws them, with gradient to the trainable weights."""

    def likeliest(self, network: nn.Module, obs: Mapping[str, Tensor]) -> Any:
        """The next actions without chance."""
        return self.act(network, obs)


class SecondOrder:
    """DPM-Solver++(2M) over the steps of an episode: it remembers what the last one predicted.

    A step that explores leaves the path of the ODE, and with it what was remembered.
    """

    def __init__(self) -> None:
        self._previous: Any = None

    def forget(self) -> None:
        """Begin anew: the next step is of first order, Euler's."""
        self._previous = None

    def step(self, velocity: Tensor, latent: Tensor, sigma: Tensor, sigma_next: Tensor) -> SDEStep:
        """The next latents `[N, ...]` of the ODE, in float32; arguments as those of `F.dpm2m_step`."""
        following, self._previous = F.dpm2m_step(velocity, latent, sigma, sigma_next, previous=self._previous)
        nothing = torch.zeros_like(sigma)
        return SDEStep(following, nothing, following, nothing)


class LatentHead(Head):
    """A Gaussian over the next latent, of the velocity of a denoising network.

    Args:
        denoiser: The adapter of the model family.
        guidance: Classifier-free guidance; other than 1 it needs negative prompts in the observation.
        guidance_at_once: Evaluate both in one forward of twice the rows; otherwise in two.
        dynamics: `flow`, `dance`, `cps` or `ddim`.
        eta: Noise level.
        storage_dtype: What latents are rounded to before they are scored; the learner replays just that.

    Raises:
        ConfigError: If a setting is out of range.
    """

    kind = "latents"

    def __init__(
        self,
        denoiser: Any,
        *,
        guidance: float = 1.0,
        guidance_at_once: bool = True,
        dynamics: str = "flow",
        eta: float = 0.7,
        storage_dtype: torch.dtype | str = torch.float32,
    ):
        super().__init__(denoiser)
        self.eta, self.guidance = number("eta", eta), number("guidance", guidance)
        self.guidance_at_once = truth("guidance_at_once", guidance_at_once)
        self.dynamics, self.storage_dtype = dynamics, as_dtype("storage_dtype", storage_dtype)
        self.recomputes = getattr(denoiser, "recomputes", False)
        if self.guidance != 1.0:
            denoiser.check_guidance(self.guidance)
        # An impossible kernel is refused here, before a model is loaded.
        F.transition(torch.zeros(1, 1), torch.zeros(1, 1), 0.5, 0.25, dynamics=dynamics, eta=self.eta)

    @property
    def forwards(self) -> int:
        """Two under guidance: with the negative prompt and with the prompt."""
        return 1 if self.guidance == 1.0 else 2

    @contextmanager
    def guided(self, guidance: float | None, denoiser: Any = None) -> Iterator[None]:
        """Within it, another guidance, or an adapter of another size; None keeps the head's own."""
        own = self.guidance, self.model
        if guidance not in (None, 1.0):
            self.model.check_guidance(guidance)
        self.guidance = self.guidance if guidance is None else guidance
        self.model = self.model if denoiser is None else denoiser
        try:
            yield
        finally:
            self.guidance, self.model = own

    def read(self, network: nn.Module, obs: Mapping[str, Tensor]) -> Any:
        """What all steps of the episodes of `obs` share: their contexts as the network reads them.

        Whoever takes many steps reads once and hands the result to `act`.

        Args:
            network: The denoiser's.
            obs: Context, each `[N, ...]`; or each `[P, ...]` with `context_row` `[N]`.

        Raises:
            ContractError: If guidance lacks negative prompts.
        """
        row = obs.get(ROW)
        known = (*ANNOUNCED, ROW)
        context = {k: v for k, v in obs.items() if k not in known and not k.startswith(NEGATIVE)}
        if self.guidance != 1.0:
            missing = [name for name in context if NEGATIVE + name not in obs]
            if missing or not context:
                raise ContractError(
                    f"`guidance` {self.guidance} needs negative prompts in the observation, got none; "
                    "make the environment with `with_negative=True`."
                )
            count = len(next(iter(context.values())))
            context = {k: cat_padded([obs[NEGATIVE + k], v]) for k, v in context.items()}
            row = None if row is None else torch.cat([row, row + count])
        if not context:
            return context  # prompts change nothing: there is nothing to read
        reading = self.model.read(network, context)
        if row is None:
            return reading
        return _picked(reading, row)

    def act(
        self,
        network: nn.Module,
        obs: Mapping[str, Tensor],
        draws: Tensor | None = None,
        *,
        reading: Any = None,
        solver: SecondOrder | None = None,
    ) -> SDEStep:
        """Draw the next latents.

        Args:
            network: The denoiser's.
            obs: An observation of `DenoiseVectorEnv`, each `[N, ...]`.
            draws: `[N, ...]` standard normal, like the latents; None where no step is stochastic.
            reading: What `read` returned for these N episodes; None reads them now.
            solver: What takes the steps without `draws`, in the place of Euler's method.
        """
        if solver is not None and draws is None:
            velocity = self.velocity(network, obs, reading)
            step = solver.step(velocity, obs["latent"], obs["sigma"], obs["sigma_next"])
            return step._replace(latent=step.latent.to(self.storage_dtype))
        if solver is not None:
            solver.forget()
        return self._step(network, obs, reading, noise=draws)

    def score(self, network: nn.Module, obs: Mapping[str, Tensor], action: Tensor) -> SDEStep:
        """Score given next latents `[N, ...]`, with gradient to the trainable weights."""
        return self._step(network, obs, None, next_latent=action)

    def likeliest(self, network: nn.Module, obs: Mapping[str, Tensor]) -> SDEStep:
        """The next latents of the deterministic ODE."""
        return self.act(network, {**obs, "stochastic": torch.zeros_like(obs["sigma"], dtype=torch.bool)})

    def velocity(self, network: nn.Module, obs: Mapping[str, Tensor], reading: Any = None) -> Tensor:
        """The guided velocity `[N, ...]` in float32."""
        latent, sigma = obs["latent"], obs["sigma"]
        reading = self.read(network, obs) if reading is None else reading
        if self.guidance == 1.0:
            return self.model.velocity(network, latent, sigma, reading).float()
        if self.guidance_at_once:
            both = self.model.velocity(
                network, torch.cat([latent, latent]), torch.cat([sigma, sigma]), reading
            ).chunk(2)
        else:
            rows = torch.arange(2 * len(latent), device=latent.device).chunk(2)
            both = tuple(self.model.velocity(network, latent, sigma, _picked(reading, row)) for row in rows)
        without, with_prompt = (velocity.float() for velocity in both)
        return self.model.guided(without, with_prompt, self.guidance, sigma)

    def _step(self, network: nn.Module, obs: Mapping[str, Tensor], reading: Any, **given: Any) -> SDEStep:
        return F.sde_step(
            self.velocity(network, obs, reading),
            obs["latent"],
            obs["sigma"],
            obs["sigma_next"],
            dynamics=self.dynamics,
            eta=self.eta,
            stochastic=obs.get("stochastic"),
            storage_dtype=self.storage_dtype,
            **given,
        )


def _picked(reading: Any, row: Tensor) -> Any:
    """The contexts at `row` `[N]` of what a denoiser has read."""
    if isinstance(reading, Mapping):
        return {name: each[row] for name, each in reading.items()}
    return reading.pick(row)


class TokenHead(Head):
    """A categorical over the next token, tempered and truncated.

    Temperature, top-k and top-p belong to the policy: log-probs are those of the distribution that tokens are
    sampled from, whether a token is drawn or given.

    Args:
        language_model: The adapter of the model family.
        temperature: What logits are divided by; positive.
        top_p: Sample among the likeliest tokens of this mass; 1 keeps all.
        top_k: Sample among this many likeliest tokens; 0 keeps all.
        chunk_bytes: Memory for logits at a time when scoring.

    Raises:
        ConfigError: If a setting is out of range.
    """

    kind = "tokens"
    recomputes = True
    routing: Routing | None = None

    def __init__(
        self,
        language_model: Any,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        chunk_bytes: int = 256 << 20,
    ):
        super().__init__(language_model)
        self.temperature, self.top_p = number("temperature", temperature), number("top_p", top_p)
        self.top_k, self.chunk_bytes = whole("top_k", top_k), chunk_bytes
        check_sampling(self.temperature, self.top_p, self.top_k)

    @torch.no_grad()
    def act(self, network: nn.Module, obs: Mapping[str, Tensor], draws: Tensor | None = None) -> TokenStep:
        """Draw the next token `[N]` of every episode, without a cache.

        It reads the whole prefix for every token, for agents that act step by step; whole answers come from
        an engine (`unirl_env.rollouts.engines`).

        Args:
            network: The language model's.
            obs: An observation of `TokenVectorEnv` as tensors.
            draws: `[N]` in [0, 1), as `F.keyed_uniform` makes it; None takes the likeliest token.
        """
        logits = self._hidden(network, pack_prefixes(obs)) @ self.model.head(network).T
        step = F.token_step(
            logits.float(),
            temperature=0.0 if draws is None else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            uniform=draws,
        )
        return step._replace(token=step.token + self.model.first_id)

    def branches(self, network: nn.Module) -> bool:
        """Whether `score` takes rows in which prompts are shared."""
        return self.model.branches(network)

    def score(self, network: nn.Module, obs: Mapping[str, Tensor], action: Tensor) -> TokenStep:
        """Score given tokens `[N]`, with gradient to the trainable weights.

        Args:
            network: The language model's.
            obs: A packed row, as `unirl_env.policies.packing` makes it.
            action: The tokens that follow the places `obs["source"]` `[N]` of the row.
        """
        step = F.score_tokens(
            self._routed(network, obs),
            self.model.head(network),
            action - self.model.first_id,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            chunk_bytes=self.chunk_bytes,
            entropy_gradient=self.entropy_gradient,
        )
        return step._replace(token=action)

    def _routed(self, network: nn.Module, obs: Mapping[str, Tensor]) -> Tensor:
        """The same as `_hidden` by the experts that were recorded, where they are replayed."""
        if self.routing is None:
            return self._hidden(network, obs)
        if ROUTES not in obs:
            raise ContractError(
                f"An observation must hold `{ROUTES}` to be scored with policy.replay_routing, got "
                f"{', '.join(sorted(obs))}; try episodes that were played with it."
            )
        with self.routing.replaying(obs[ROUTES]) as replayed:
            hidden = self._hidden(network, obs)
        self.routing.rerouted = replayed.differed[obs["source"]]
        return hidden

    def _hidden(self, network: nn.Module, obs: Mapping[str, Tensor]) -> Tensor:
        """The last hidden states `[N, D]` at the places that predict."""
        hidden = self.model.hidden(
            network,
            obs["tokens"][None],
            obs["positions"][:, None],
            lengths=obs["lengths"],
            follows=obs.get("follows"),
            inputs={name: obs[name] for name in PICTURES if name in obs} or None,
        )
        return hidden[0, obs["source"]]


class ActionHead(Head):
    """The distribution over a model's `action_space`, of what its network makes of an observation.

    Args:
        model: What has `action_space`, and `network()`, a module from observations (a mapping of tensors
            `[N, ...]`) to what the distribution is made of; maybe `rows_per_forward`.
        temperature: Of the distribution.

    Raises:
        ConfigError: If the temperature is not positive, or there is no distribution over the actions.
    """

    def __init__(self, model: Any, *, temperature: float = 1.0):
        super().__init__(model)
        self.temperature = temperature
        self.distribution = distribution_over(model.action_space, temperature=temperature)
        self.kind = self.distribution.kind

    @torch.no_grad()
    def act(self, network: nn.Module, obs: Mapping[str, Tensor], draws: Tensor | None = None) -> Any:
        """Draw the actions of N episodes with what `distribution.draws` gave; without, the likeliest ones."""
        return self._step(network, obs, draws=draws)

    def score(self, network: nn.Module, obs: Mapping[str, Tensor], action: Tensor) -> Any:
        """Score given actions `[N, ...]`, with gradient to the trainable weights."""
        return self._step(network, obs, action=action)

    def _step(self, network: nn.Module, obs: Mapping[str, Tensor], **given: Tensor | None) -> Any:
        """The step; in batches of one size where the model asks for them, the last one filled up."""
        rows = getattr(self.model, "rows_per_forward", None)
        count = len(next(iter(obs.values())))
        if rows is None or count == 0:
            return self.distribution.step(network(dict(obs)), **given)
        steps, device = [], next(iter(obs.values())).device
        for start in range(0, count, rows):
            at = torch.arange(start, start + rows, device=device).clamp_max(count - 1)
            output = network({name: value[at] for name, value in obs.items()})
            chosen = {name: None if value is None else value[at] for name, value in given.items()}
            step = self.distribution.step(output, **chosen)
            steps.append([part[: count - start] for part in step])
        return type(step)(*(torch.cat(parts) for parts in zip(*steps, strict=True)))


def heads_of(model: Any, **settings: Any) -> dict[str, Head]:
    """The heads of a model's phases, by the phases' names in the order of an episode.

    Args:
        model: A denoiser (`image` or `video`), a language model (`text`), a unified model (text and image),
            or anything with an `action_space` (`actions`).
        **settings: Of the heads. In a unified model, those of `TokenHead` are for tokens of texts and
            pictures, and those of `LatentHead` for latents; pictures of tokens know none of these, and
            their `guidance` must be 1.

    Raises:
        ConfigError: If a setting is out of range.
        ContractError: If the model is none of these.
    """
    if hasattr(model, "action_space"):
        return {"actions": ActionHead(model, **settings)}
    if hasattr(model, "text") and hasattr(model, "image"):
        tokens = ("temperature", "top_p", "top_k", "chunk_bytes")
        sampling = {name: settings.pop(name) for name in tokens if name in settings}
        text = TokenHead(model.text, **sampling)
        if not model.discrete:
            return {"text": text, "image": LatentHead(model.image, **settings)}
        if settings.get("guidance", 1.0) != 1.0:
            raise ConfigError(
                f"`guidance` must be 1 where pictures are tokens, got {settings['guidance']}; the model's "
                "own option says how they are guided."
            )
        return {"text": text, "image": TokenHead(model.image, **sampling)}
    if hasattr(model, "velocity"):
        return {getattr(model, "makes", "image"): LatentHead(model, **settings)}
    if hasattr(model, "hidden"):
        return {"text": TokenHead(model, **settings)}
    raise ContractError(
        "A policy's model must be a denoiser, a language model, a unified model, or have an `action_space` "
        f"and a `network`, got {type(model).__name__}, which is incomplete."
    )


def check_sampling(temperature: float, top_p: float, top_k: int) -> None:
    """Refuse a distribution that cannot be sampled from or trained on.

    Raises:
        ConfigError: Naming the setting.
    """
    if not temperature > 0:
        raise ConfigError(
            f"`temperature` must be positive, got {temperature}: a greedy policy has no log-probability to "
            "train on; try 1.0."
        )
    if not 0 < top_p <= 1:
        raise ConfigError(f"`top_p` must lie in (0, 1], got {top_p}; try 1.0, which keeps all tokens.")
    if top_k < 0:
        raise ConfigError(f"`top_k` must be at least 0, got {top_k}; try 0, which keeps all tokens.")
