"""Two phases: the action is the next token of a text, then the next latent or token of its picture."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from unirl_env.arguments.indices import as_numpy
from unirl_env.arguments.names import ENVIRONMENTS
from unirl_env.arguments.values import truth, whole
from unirl_env.envs.activity import Activity
from unirl_env.envs.denoising import Denoising
from unirl_env.envs.encodings import HybridContexts
from unirl_env.envs.groups import Groups
from unirl_env.envs.painting import Painting
from unirl_env.envs.vector_env import GenerativeVectorEnv
from unirl_env.envs.writing import NextTokens, Writing
from unirl_env.errors import ConfigError, ContractError, PromptError, ShapeError
from unirl_env.models.unified import UnifiedModel
from unirl_env.models.words import Encoded
from unirl_env.types import Prompt, Sample

TEXT, IMAGE = 0, 1
"""The values of `phase`."""

NUM_STEPS = 10
"""Denoising steps where no number is given."""


class Beginning(NamedTuple):
    """What the phases of new episodes begin with, and the context of pictures that begin at once."""

    writing: Any
    drawing: Any
    context: dict[str, Tensor]


class Acts(NamedTuple):
    """What is done in each phase (None: nothing), whose pictures begin, and what these are drawn from."""

    said: NextTokens | None
    drawn: Any
    opened: np.ndarray
    by: list[int]
    context: dict[str, Tensor]


class TwoPhases(Activity):
    """B episodes that write a text and then draw; each enters its second phase when its own text opens it.

    Args:
        model: Says which tokens open a picture, and what follows them.
        writing: The first phase.
        drawing: The second phase; None where it is empty, and an opening token ends the episode.
        contexts: What pictures are drawn from beside the tokens.
        drawn: What actions call the part of the second phase.
        num_envs: B.
        partly: Whether actions may leave out a part, so that all episodes of its phase stand still.
        device: Where observed tensors live.
        array_backend: `"numpy"` or `"torch"`.
    """

    action_space: spaces.Dict

    def __init__(
        self,
        model: UnifiedModel,
        writing: Writing,
        drawing: Denoising | Painting | None,
        contexts: HybridContexts | None,
        *,
        drawn: str,
        num_envs: int,
        partly: bool,
        device: torch.device,
        array_backend: str,
    ):
        self.model, self.writing, self.drawing, self.contexts = model, writing, drawing, contexts
        self.drawn, self.partly, self.device, self.array_backend = drawn, partly, device, array_backend
        self.phase = np.full(num_envs, TEXT, dtype=np.int64)
        self._opens = np.zeros(len(writing.ends), dtype=bool)
        self._openings: dict[int | None, list[int]] = {}
        parts: dict[str, spaces.Space] = {"token": writing.action_space} if writing.max_new_tokens else {}
        if drawing is not None:
            self._opens[list(model.opens)] = True
            self._openings = {token: list(model.opening(token)) for token in (None, *model.opens)}
            parts[drawn] = drawing.action_space
        self.action_space = spaces.Dict(parts)
        self.observation_spaces = {
            "phase": spaces.Box(TEXT, IMAGE, (), np.int64),
            **writing.observation_spaces,
            **(drawing.observation_spaces if drawing is not None else {}),
        }

    @property
    def at_once(self) -> bool:
        """Whether pictures follow their prompts at once."""
        return not self.writing.max_new_tokens

    def prepared(self, rows: np.ndarray, groups: Groups, options: Mapping[str, Any]) -> Beginning:
        """What both phases begin with."""
        writing = self.writing.prepared(rows, groups, options)
        drawing = None if self.drawing is None else self.drawing.prepared(rows, groups, options)
        context: dict[str, Tensor] = {}
        if self.at_once and self.contexts is not None:
            context = self.contexts.read([groups.prompts[row] for row in rows], [None] * len(rows))
        return Beginning(writing, drawing, context)

    def begin(self, rows: np.ndarray, prepared: Beginning) -> None:
        """Start with the text, or with the picture where there is none."""
        self.writing.begin(rows, prepared.writing)
        self.phase = self.phase.copy()
        self.phase[rows] = TEXT
        if self.drawing is not None:
            self.drawing.begin(rows, prepared.drawing)
        if self.at_once:
            self._open(rows, [None] * len(rows), prepared.context)

    def checked(self, actions: Any, active: np.ndarray, groups: Groups) -> Acts:
        """What is done in each phase.

        Raises:
            ShapeError: If the actions are not a mapping of the phases' parts.
        """
        parts, writes = self._parts(actions), self.phase == TEXT
        said, drawn, opened, by = None, None, np.zeros(0, dtype=np.int64), []
        if "token" in parts and not self.at_once:
            said = self.writing.checked(parts["token"], active & writes, groups)
            opens = self._opens[said.token]
            opened, by = said.rows[opens], said.token[opens].tolist()
        if self.drawn in parts and self.drawing is not None:
            draws = active & ~writes
            drawn = self.drawing.checked(parts[self.drawn], draws, groups)
            drawn = drawn if draws.any() else None
        context: dict[str, Tensor] = {}
        if by and self.contexts is not None:
            texts = [self.writing.turn(row, last) for row, last in zip(opened.tolist(), by, strict=True)]
            context = self.contexts.read([groups.prompts[row] for row in opened], texts)
        return Acts(said, drawn, opened, by, context)

    def advance(self, checked: Acts) -> None:
        """Go on in each phase; what a text has opened is drawn from the next step on."""
        if checked.said is not None and len(checked.said.rows):
            self.writing.advance(checked.said)
        if checked.drawn is not None and self.drawing is not None:
            self.drawing.advance(checked.drawn)
        if checked.by:
            self._open(checked.opened, checked.by, checked.context)

    def ended(self) -> tuple[np.ndarray, np.ndarray]:
        """Terminated by the end of a picture or of a text without one; truncated as `Writing` is."""
        terminated, truncated = self.writing.ended()
        if self.drawing is not None:
            terminated |= self.drawing.ended()[0]
        return terminated, truncated

    def observe(self) -> dict[str, Any]:
        """The phase, and what both activities show."""
        phase = self.phase.copy()
        return {
            "phase": torch.from_numpy(phase).to(self.device) if self.array_backend == "torch" else phase,
            **self.writing.observe(),
            **(self.drawing.observe() if self.drawing is not None else {}),
        }

    def finish(self, rows: np.ndarray) -> list[Sample]:
        """Pictures with their texts; texts alone where no picture began; without texts, pictures alone."""
        drew = self.phase[rows] == IMAGE
        pictures = iter(self.drawing.finish(rows[drew]) if self.drawing is not None and drew.any() else ())
        if self.at_once:
            return list(pictures)
        texts = self.writing.finish(rows)
        return [
            replace(next(pictures), text=text.text, tokens=text.tokens, before=text.before)
            if with_picture
            else text
            for text, with_picture in zip(texts, drew, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """The phase of each episode, and both activities' states."""
        drawing = None if self.drawing is None else self.drawing.state()
        return {"phase": self.phase, "text": self.writing.state(), "image": drawing}

    def facts(self) -> dict[str, Any]:
        """The model as a whole, and what matters to each phase."""
        drawing = {} if self.drawing is None else self.drawing.facts()
        return {**self.writing.facts(), **drawing, **self.model.identity()}

    def select(self, state: Mapping[str, Any], rows: np.ndarray) -> None:
        """Go on in each episode's own phase."""
        self.phase = state["phase"][rows]
        self.writing.select(state["text"], rows)
        if self.drawing is not None:
            self.drawing.select(state["image"], rows)

    def _open(self, rows: np.ndarray, by: Sequence[int | None], context: Mapping[str, Tensor]) -> None:
        """The pictures of `rows` begin; their texts ended with the tokens `by`."""
        for row, token in zip(rows.tolist(), by, strict=True):
            self.writing.follow(row, self._openings[token])
        self.phase = self.phase.copy()
        self.phase[rows] = IMAGE
        if context:
            assert isinstance(self.drawing, Denoising)  # pictures of tokens have no contexts
            self.drawing.receive(rows, context)

    def _parts(self, actions: Any) -> dict[str, Any]:
        """The parts of the actions that are given."""
        known = ("token", self.drawn)
        needed = [name for name in known if name in self.action_space.spaces]
        if not isinstance(actions, Mapping):
            raise ShapeError(f"`actions` must be a mapping with {needed}, got {type(actions).__name__}.")
        unknown = sorted(set(actions) - set(known))
        if unknown:
            raise ShapeError(f"`actions` must be a mapping with {needed}, got unknown parts {unknown}.")
        parts = {name: part for name, part in actions.items() if part is not None}
        missing = [name for name in needed if name not in parts]
        if missing and not (self.partly and len(missing) < len(needed)):
            raise ShapeError(
                f"`actions` must be a mapping with {needed}, got none of {missing}; a part may be left out "
                "in autoreset mode DISABLED, if another one is there."
            )
        return parts


class HybridVectorEnv(GenerativeVectorEnv):
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
        levels: As in `DenoiseVectorEnv`, for latents.
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
        levels: Sequence[int] | None = None,
        stochastic_steps: Sequence[int] | None = None,
        with_negative: bool = False,
        with_inputs: bool = True,
        context_cache: int = 1024,
        edits: bool = False,
        **shared: Any,
    ):
        image: Any = unified_model.image  # of the kind that `discrete` says
        if unified_model.discrete:
            _require_discrete(num_steps, with_negative)
            num_steps = image.num_tokens
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
        waits = self.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        self._writing = Writing(
            unified_model.text,
            max_new_tokens=self.max_new_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
            room=room,
            with_inputs=truth("with_inputs", with_inputs),
            waits=waits,
            **self._shared,
        )
        self.max_length = self._writing.max_length
        self._denoising: Denoising | None = None
        self._drawing: Denoising | Painting | None = None
        contexts = None
        if unified_model.discrete:
            self._drawing = Painting(image, waits=waits, **self._shared)
        if self.num_steps and not unified_model.discrete:
            example = self.prompts[0]
            contexts = HybridContexts(
                unified_model,
                example,
                with_negative=with_negative,
                size=whole("context_cache", context_cache, 0),
                device=self.device,
            )
            self._drawing = self._denoising = Denoising(
                image,
                num_steps=self.num_steps,
                levels=levels,
                context=contexts.blank,
                example=example,
                **self._shared,
            )
            self.num_steps = self._denoising.num_steps
        elif levels is not None:
            raise ConfigError(f"`levels` must be None where no latents are, got {list(levels)}.")
        self.sigmas: Tensor | None = None if self._denoising is None else self._denoising.sigmas
        """The noise levels that an episode visits, from 1 to 0; None where no latents are denoised."""
        self._defaults["stochastic_steps"] = self._checked_steps(stochastic_steps)
        drawn = "image_token" if unified_model.discrete else "latent"
        self._phases = TwoPhases(
            unified_model, self._writing, self._drawing, contexts, drawn=drawn, partly=waits, **self._shared
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
        """Act by what was said; every third token opens a picture, where any can, and latents shrink."""
        opens = self.unified_model.opens
        space: Any = self.single_action_space
        tokens, lengths = as_numpy(obs["tokens"]), as_numpy(obs["length"])
        painted = as_numpy(obs["image_length"]) if "image_length" in obs else np.zeros_like(lengths)
        rows = zip(tokens, lengths, painted, strict=True)
        keys = [zlib.crc32(row[:length].tobytes(), int(count)) for row, length, count in rows]
        actions: dict[str, Any] = {}
        for name in space:
            if name == "latent":
                actions[name] = obs["latent"] * 0.9
                continue
            chosen = np.array([int(space[name].start) + key % int(space[name].n) for key in keys])
            if name == "token" and opens:
                opening = np.array([opens[key % len(opens)] for key in keys])
                chosen = np.where(np.array(keys) % 3, chosen, opening)
            live = isinstance(obs["length"], Tensor)
            actions[name] = torch.from_numpy(chosen).to(obs["length"].device) if live else chosen
        return actions

    def render(self) -> tuple[np.ndarray, ...] | tuple[str, ...] | None:
        """What has been said so far as text, or what each episode is heading for as pictures `[H, W, 3]`.

        An episode that writes is heading for its initial noise.
        """
        if self.render_mode is None or not self.started:
            return None
        if self.render_mode == "ansi" or self._drawing is None:
            return self._writing.text_so_far()
        return self._drawing.pictures()

    def _begin(self, rows: np.ndarray, groups: Groups, options: Mapping[str, Any]) -> None:
        self._check_prompts(groups.prompts[row] for row in rows)
        super()._begin(rows, groups, options)

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
                f"`UnifiedModel.opens` must be among {model.text.eos_ids} (`eos_ids`), got {model.opens}."
            )
        if self.edits and not model.max_images:
            raise ConfigError("`edits` must be False for a model that takes no pictures, got True.")
        room = max(len(model.opening(token)) for token in (None, *model.opens)) if self.num_steps else 0
        image: Any = model.image
        beyond = room + (image.num_tokens if model.discrete else 0)
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
