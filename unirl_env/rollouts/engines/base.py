"""What an engine must answer: token ids in, token ids and their log-probabilities out.

An engine proposes, the environment disposes: what comes back is walked through `env.step` token by token, so
an engine knows neither tools nor rewards nor the ends of episodes, only where the model ended its turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from unirl_env.errors import ContractError, EngineError
from unirl_env.types import Prompt

if TYPE_CHECKING:
    from unirl_env.policies.actor import Actor


@dataclass(frozen=True)
class Request:
    """One continuation to generate.

    Attributes:
        tokens: The whole context, prompt and all that follows it so far.
        prompt: What the context began with; engines with a processor of their own take its pictures.
        inputs: The model's further inputs for the prompt, `Encoded.inputs`.
        seed: The episode's seed. All draws are functions of it and of `position`.
        position: How many tokens follow the prompt so far.
        max_new_tokens: How many tokens to generate at most, from 1.
    """

    tokens: tuple[int, ...]
    prompt: Prompt
    inputs: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    seed: int = 0
    position: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not self.tokens or self.max_new_tokens < 1 or self.position < 0:
            raise ContractError(
                "A request must have a context, a position from 0 and `max_new_tokens` from 1, got "
                f"{len(self.tokens)} tokens, position={self.position}, max_new_tokens={self.max_new_tokens}."
            )


@dataclass(frozen=True)
class Answer:
    """One generated continuation.

    Attributes:
        tokens: The new tokens; an end-of-turn token is the last of them if the model chose one.
        log_probs: Of each token under the distribution it was sampled from: after temperature, top-k and
            top-p, renormalised. 0 where decoding is greedy.
        routes: `[C + n - 1, R, k]`, the experts that R routers chose in reading a context of C tokens and all
            new ones but the last; None of an engine that returns none.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    routes: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.log_probs):
            raise ContractError(
                "An answer must have one log-probability for each token, got "
                f"{len(self.log_probs)} for {len(self.tokens)} tokens."
            )


class Engine(ABC):
    """Generates continuations under one policy's weights.

    Sampling settings and the tokens that end a turn are arguments of the constructor.

    Attributes:
        weights_version: Which publication of weights it holds; None before the first one.
    """

    weights_version: int | None = None

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], *, temperature: float | None = None, base: bool = False
    ) -> list[Answer]:
        """Continue every request's context, until the model ends its turn or `max_new_tokens` are there.

        Args:
            requests: N of them; an answer does not depend on the others beyond the last bits that batching
                changes.
            temperature: None takes the policy's own; 0 decodes greedily.
            base: Answer with the untrained model.

        Returns:
            N answers, in the order of the requests.

        Raises:
            EngineError: If the engine refuses a request.
            EngineLost: If the engine died; `restart` brings it back, without its weights.
            StaleWeights: If what answered holds other weights than were loaded.
        """

    @abstractmethod
    def load_weights(self, version: int, actor: Actor) -> None:
        """Take over `actor`'s trained weights under the name `version`, and forget all cached states.

        Raises:
            EngineError: If the engine refuses the weights.
            EngineLost: If the engine died.
        """

    def join(self, *, base: bool = False) -> None:  # noqa: B027  # most engines generate by themselves
        """Help other processes to their answers, if they cannot go on without this one, until all are there.

        Args:
            base: Whether they come from the untrained model.
        """

    def restart(self) -> None:
        """Bring back an engine that was lost; its weights must then be loaded again.

        Raises:
            EngineError: If it cannot be brought back from here.
        """
        raise EngineError(f"{type(self).__name__} lives in this process and cannot be restarted.")

    def close(self) -> None:  # noqa: B027  # most engines have nothing to give back
        """Give back what the engine holds: memory, processes, connections."""
