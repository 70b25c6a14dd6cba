"""The hybrid MDP: the action is the next token of a text, and then the next latent of its picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from torch import Tensor

from unirl_env.arguments.names import ENVIRONMENTS
from unirl_env.arguments.values import truth, whole
from unirl_env.envs.activity import ActivityVectorEnv
from unirl_env.envs.denoising import Denoising
from unirl_env.envs.hybrid_acts import hybrid_act
from unirl_env.envs.hybrid_contexts import HybridContexts
from unirl_env.envs.painting import Painting
from unirl_env.envs.roster import Roster
from unirl_env.envs.two_phases import TwoPhases
from unirl_env.envs.writing import Writing
from unirl_env.errors import ConfigError, ContractError, PromptError
from unirl_env.models.unified import UnifiedModel
from unirl_env.models.words import Encoded
from unirl_env.types import Prompt

__all__ = ["NUM_STEPS", "HybridVectorEnv"]

NUM_STEPS = 10
"""Denoising steps where no number is given."""


class HybridVectorEnv(ActivityVectorEnv):
    """Texts of a unified model, token by token, and then the pictures that they ask for.

    Description:
        An episode begins with an encoded prompt and writes: each action *is* the next token. When the text
        ends with a token that opens a picture, the environment writes what stands between text and picture,
        and the episode draws: each action *is* the next latent (or the next token of the picture, for models
        whose pictures are tokens). Draws and noise belong to the policy. The episodes of a batch enter their
        second phase one by one.

        An empty text phase (`max_new_tokens=0`) leaves the pictures, samples and rewards of
        `DenoiseVectorEnv` on the model's image view; an empty image phase (`num_steps=0`) leaves the texts,
        ends, samples and rewards of `TokenVectorEnv` on its text view.

    Action Space:
        `Dict`: `token`, `Discrete(vocab_size)`, the next token; and `latent`, `Box(-16, 16, latent_shape)`,
        the next latent x_{k+1}, or `image_token`, `Discrete(n, start=first_id)`, the next token of the
        picture. A phase that is always empty has no part. What an action says for a phase that its episode
        is not in means nothing.

        In autoreset mode DISABLED, a part that is left out lets all episodes of its phase stand still, so
        that a caller can first play all texts and then all pictures; and the token `WAIT` (-1) lets one
        episode stand still. Off-the-shelf agents that know no `Dict` of actions (those of
        Stable-Baselines3) cannot play this environment; play one of its phases by a model's own view.

    Observation Space:
        | key | shape | meaning |
        |---|---|---|
        | `phase` | `()` | 0 while the episode writes, 1 while it draws |
        | `tokens` | `[L]` | prompt, text and opening; beyond `length` there is `pad_id` |
        | `length` | `()` | how many of them there are |
        | `prompt_length` | `()` | how many of them are the prompt |
        | `is_action` | `[L]` | 1 where a token was an action; 0 in the prompt and in the opening |
        | inputs | the model's | what goes in beside the tokens, as in `TokenVectorEnv` |
        | `latent` | `latent_shape` | x_k; the initial noise while the episode writes |
        | `sigma`, `sigma_next` | `()` | noise level of x_k, and the one that the action is to have |
        | `step` | `()` | k |
        | `stochastic` | `()` | whether this step explores (and is trained) |
        | context | the model's | of two backbones, what the image view reads; zeros before the picture |
        | `negative_...` | the model's | if asked for, the encoded negative prompt |
        | `image_tokens` | `[n]` | instead of all from `latent` on: the picture; then `pad_id` |
        | `image_length` | `()` | how many of its tokens are painted |

        L is `max_prompt_tokens + max_new_tokens` and the length of the longest opening. With the torch
        backend, `tokens`, `is_action` and `image_tokens` are live buffers, as in `TokenVectorEnv`.

    Rewards:
        0 at every step. `RewardWrapper` pays the score of the sample at the last one. Samples have no
        `image` where the text never came to a picture: the scorer `pictured` says what these are paid.

    Episode End:
        Terminates after `num_steps` denoising steps or the last token of a picture, and with a token that
        ends the text without opening a picture. Truncates without a picture when the text reaches
        `max_new_tokens`; an end exactly there terminates or opens.

    Arguments:
        unified_model: The model family's adapter, with its frozen half.
        max_new_tokens: The most tokens of a text; 0 lets pictures follow their prompts at once.
        max_prompt_tokens: The longest prompt that is accepted.
        num_steps: T, by default 10; 0 ends an episode with its text. Pictures of tokens have their own
            number of steps.
        stochastic_steps: The denoising steps that explore; by default all but the last.
        with_negative: Encode negative prompts as well, for classifier-free guidance of latents.
        with_inputs: Observe the inputs beside the tokens, too.
        context_cache: How many encoded texts to keep.
        edits: Every prompt must bring a picture.

        And those of `GenerativeVectorEnv`.

    Version History:
        v0: The first one.
    """

    arguments = ENVIRONMENTS["unified_model"]

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}
    laws = ("hybrid",)

    def __init__(
        self,
        unified_model: UnifiedModel,
        *,
        num_envs: int = 1,
        max_new_tokens: int = 256,
        max_prompt_tokens: int = 512,
        num_steps: int | None = None,
        stochastic_steps: Sequence[int] | None = None,
        with_negative: bool = False,
        with_inputs: bool = True,
        context_cache: int = 1024,
        edits: bool = False,
        **shared: Any,
    ):
        if unified_model.discrete:
            _require_discrete(num_steps, with_negative)
            num_steps = unified_model.image.num_tokens
        self.num_steps = NUM_STEPS if num_steps is None else whole("num_steps", num_steps, 0)
        self.max_new_tokens = whole("max_new_tokens", max_new_tokens, 0)
        self.max_prompt_tokens = whole("max_prompt_tokens", max_prompt_tokens, 1)
        self.unified_model, self.edits = unified_model, truth("edits", edits)
        with_negative = truth("with_negative", with_negative)
        room = self._checked_limits()
        super().__init__(num_envs=num_envs, **shared)
        if self.render_mode == "rgb_array" and not self.num_steps:
            raise ConfigError("`render_mode` must be 'ansi' or None where nothing is drawn, got 'rgb_array'.")
        self._check_prompts(self.prompts)
        made = {"num_envs": self.num_envs, "device": self.device, "array_backend": self.array_backend}
        waits = self.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        self._writing = Writing(
            unified_model.text,
            max_new_tokens=self.max_new_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
            room=room,
            with_inputs=truth("with_inputs", with_inputs),
            waits=waits,
            **made,
        )
        self.max_length = self._writing.max_length
        self._denoising: Denoising | None = None
        self._drawing: Denoising | Painting | None = None
        contexts = None
        if unified_model.discrete:
            self._drawing = Painting(unified_model.image, waits=waits, **made)
        elif self.num_steps:
            example = self.prompts[0]
            kept = {"size": whole("context_cache", context_cache, 0), "device": self.device}
            contexts = HybridContexts(unified_model, example, with_negative=with_negative, **kept)
            self._drawing = self._denoising = Denoising(
                unified_model.image,
                num_steps=self.num_steps,
                context=contexts.blank,
                example=example,
                **made,
            )
        self.sigmas: Tensor | None = None if self._denoising is None else self._denoising.sigmas
        """The noise schedule `[T+1]`, from 1 to 0; None where no latents are denoised."""
        self._defaults["stochastic_steps"] = self._checked_steps(stochastic_steps)
        drawn = "image_token" if unified_model.discrete else "latent"
        self._phases = TwoPhases(
            unified_model, self._writing, self._drawing, contexts, drawn=drawn, partly=waits, **made
        )
        self._play(self._phases)

    @property
    def encodings(self) -> tuple[Encoded | None, ...]:
        """Each present episode's prompt as the model reads it; episodes that share a prompt share it."""
        return tuple(self._writing.encodings)

    @property
    def stochastic_steps(self) -> tuple[int, ...]:
        """The denoising steps of the present episodes that explore."""
        return self._held("stochastic_steps")

    def example_act(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Each episode acts by what it has said itself, and pulls its latent towards zero."""
        return hybrid_act(self.single_action_space, self.unified_model.opens, obs)

    def render(self) -> tuple[np.ndarray, ...] | tuple[str, ...] | None:
        """What has been said so far as text, or what each episode is heading for as pictures `[H, W, 3]`.

        An episode that writes is heading for its initial noise.
        """
        if self.render_mode is None or not self.started:
            return None
        return self._writing.text_so_far() if self.render_mode == "ansi" else self._drawing.pictures()

    def _begin(self, rows: np.ndarray, roster: Roster, options: Mapping[str, Any]) -> None:
        self._check_prompts(roster.prompts[row] for row in rows)
        super()._begin(rows, roster, options)

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "edits": self.edits}

    def _checked_held(self, held: Mapping[str, Any]) -> dict[str, Any]:
        steps = self._checked_steps(held["stochastic_steps"])
        return {**super()._checked_held(held), "stochastic_steps": steps}

    def _checked_steps(self, steps: Sequence[int] | None) -> tuple[int, ...]:
        """The steps that explore; none where no latents are denoised."""
        if self._denoising is not None:
            return self._denoising.checked_steps(steps)
        if steps is not None and len(tuple(steps)):
            raise ConfigError(f"`stochastic_steps` must be empty where no latents are, got {list(steps)}.")
        return ()

    def _check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Refuse prompts whose pictures the model cannot take, or that lack one to edit."""
        most = self.unified_model.max_images
        for prompt in prompts:
            count = len(prompt.images)
            if self.edits and not count:
                raise PromptError(
                    f"With `edits` every prompt must bring a picture, got none in {prompt.id[:60]!r}; try "
                    "`images`, or edits=False."
                )
            if count > most:
                raise PromptError(
                    f"Prompts must bring at most {most} pictures for this model, got {count} in "
                    f"{prompt.id[:60]!r}; try a model that sees more, or its option `max_images`."
                )

    def _checked_limits(self) -> int:
        """Places that the longest opening takes, if all that is written fits into the model's context."""
        model, limits = self.unified_model, (self.max_prompt_tokens, self.max_new_tokens)
        if not self.max_new_tokens and not self.num_steps:
            raise ConfigError(
                "`max_new_tokens` and `num_steps` must not both be 0, got two empty phases; try one of "
                f"max_new_tokens=256 and num_steps={NUM_STEPS}."
            )
        if not set(model.opens) <= set(model.text.eos_ids):
            raise ContractError(
                f"`UnifiedModel.opens` must be among the tokens that end texts, {model.text.eos_ids}, got "
                f"{model.opens}."
            )
        if self.edits and not model.max_images:
            raise ConfigError("`edits` must be False for a model that takes no pictures, got True.")
        room = max(len(model.opening(token)) for token in (None, *model.opens)) if self.num_steps else 0
        beyond = room + (model.image.num_tokens if model.discrete else 0)
        left = model.text.max_context - beyond
        if sum(limits) > left:
            raise ConfigError(
                f"`max_prompt_tokens` + `max_new_tokens` must be at most {left}, the model's context of "
                f"{model.text.max_context} tokens without the {beyond} of opening and picture, got "
                f"{limits[0]} + {limits[1]}; try max_new_tokens={max(0, left - limits[0])}."
            )
        return room


def _require_discrete(num_steps: int | None, with_negative: bool) -> None:
    """Refuse what pictures of tokens do not know."""
    if num_steps is not None:
        raise ConfigError(
            f"`num_steps` must be left out for a model whose pictures are tokens, got {num_steps}: it takes "
            "a step for each token."
        )
    if with_negative:
        raise ConfigError("`with_negative` must be False for a model whose pictures are tokens, got True.")
