"""From texts to pictures or clips: a frozen generator draws what the policy wrote."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import nn

import unirl_env.functional as F
from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.indices import as_numpy
from unirl_env.arguments.values import is_number, is_whole, truth
from unirl_env.envs.contract import env_attr
from unirl_env.envs.encodings import Contexts
from unirl_env.envs.info import of_samples
from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.denoiser import Denoiser
from unirl_env.models.shared.generate import draw_latents
from unirl_env.types import Prompt, Sample
from unirl_env.wrappers.base import Wrapper

logger = logging.getLogger(__name__)

SAID = ("sample", "_sample", "samples", "_samples")
"""What an `info` calls the samples, as plain data and as objects."""


class FrozenNetwork(FromArguments):
    """A generator's network, loaded on first use, for any number of wrappers; it is pickled without weights.

    Args:
        generator: Whose network.
    """

    def __init__(self, generator: Denoiser):
        self.generator = generator
        self._loaded: list[nn.Module] = []

    @property
    def module(self) -> nn.Module:
        """The network, frozen."""
        if not self._loaded:
            self._loaded.append(self.generator.network().eval().requires_grad_(False))
        return self._loaded[0]


class DrawWrapper(Wrapper):
    """Draw the texts of finished episodes, so that rewards see pictures: prompt enhancement.

    Goes around an environment of texts, inside the `RewardWrapper`. The finished samples get their `image`,
    and `pictures` `[K, 3, H, W]` where several are drawn, or their `video`, from a generator of clips, of
    which all that follows is true as well; text, tokens and `truncated` stay. The prompt that rewards see
    stays the user's: the picture is judged by what was asked for, not by what was made of it.

    A text that is empty, longer than `max_characters`, or in which `after` does not occur (because it was cut
    off before) has no picture: `image` is None; the scorer `pictured` says what that pays. What a shorter
    text has beyond the tokens that the generator's own text encoders read, they cut off.

    The noise of a picture is keyed by (episode seed, number of the picture), and pictures are drawn in
    batches of one size: an episode's picture does not depend on what else is drawn, bitwise so on a CPU.

    Args:
        env: A vector environment whose samples have a `text`.
        generator: The adapter of the model that draws.
        num_steps: Its denoising steps.
        guidance: Its classifier-free guidance, away from the user's negative prompt; 1 is none.
        pictures: K, how many are drawn of each text; 1 of clips.
        network: The generator's network, which is frozen; None loads it on first use. A `FrozenNetwork` is
            loaded once for all wrappers that are given it.
        together: Let finished texts wait for the last one of their batch, and draw all of them in one go, in
            autoreset mode DISABLED; the samples then come at that step. What was not drawn by then is dropped
            by a reset, and not known to a snapshot.
        after: Draw only what follows the last occurrence of this (`"</think>"`); None draws the whole text.
        max_characters: The longest text that is drawn.
        rows: How many pictures are denoised at a time. Bounds memory; fewer are filled up to it.
        context_cache: How many encoded texts to keep.

    Attributes:
        finished: The samples of the last step with their pictures, by their rows.
        drawn: How many pictures have been drawn so far.
        undrawn: How many texts had no picture.
        makes: What is drawn, a field of `Sample`: `"image"` or `"video"`.
        fps: Frames that clips show in a second; None of pictures.

    Raises:
        ConfigError: If an argument is out of range, or `together` meets an environment that resets by itself.
    """

    def __init__(
        self,
        env: VectorEnv,
        generator: Denoiser,
        *,
        num_steps: int = 8,
        guidance: float = 1.0,
        pictures: int = 1,
        network: nn.Module | FrozenNetwork | None = None,
        together: bool = False,
        after: str | None = None,
        max_characters: int = 2000,
        rows: int = 16,
        context_cache: int = 128,
    ):
        super().__init__(env)
        if not isinstance(generator, Denoiser):
            raise ConfigError(
                f"`generator` must be a Denoiser, got {type(generator).__name__}; try the adapter of a "
                "text-to-image model."
            )
        for name, count in {
            "num_steps": num_steps,
            "pictures": pictures,
            "max_characters": max_characters,
            "rows": rows,
            "context_cache": context_cache,
        }.items():
            if not is_whole(count) or count < 1:
                raise ConfigError(f"`{name}` of a generator must be an integer from 1 on, got {count!r}.")
        if not is_number(guidance):
            raise ConfigError(f"`guidance` of a generator must be a finite number, got {guidance!r}.")
        if generator.makes != "image" and pictures > 1:
            raise ConfigError(
                f"`pictures` of a generator must be 1 where it makes a {generator.makes}, as "
                f"{type(generator).__name__} does, got {pictures}; try pictures=1."
            )
        generator.check_guidance(guidance)
        together = truth("together", together)
        if after is not None and not (isinstance(after, str) and after):
            raise ConfigError(f"`after` of a generator must be a text or None, got {after!r}.")
        if network is not None and not isinstance(network, nn.Module | FrozenNetwork):
            raise ConfigError(f"`network` of a generator must be a module, got {type(network).__name__}.")
        if together and env.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            raise ConfigError(
                "`together` must be False unless the environment's autoreset mode is DISABLED, got "
                f"{env.metadata.get('autoreset_mode')}: a batch that resets by itself has no common end."
            )
        self.metadata = {**env.metadata, "samples_together": together}
        self.generator, self.together, self.after = generator, together, after
        self.makes, self.fps = generator.makes, generator.fps
        self.num_steps, self.guidance, self.num_pictures = num_steps, float(guidance), pictures
        self.max_characters, self.rows, self.context_cache = max_characters, rows, context_cache
        self.drawn = self.undrawn = 0
        self._contexts = Contexts(
            generator,
            with_negative=self.guidance != 1.0,
            size=context_cache,
            device=getattr(generator, "device", torch.device("cpu")),
        )
        own = network.eval().requires_grad_(False) if isinstance(network, nn.Module) else network
        self._network = FrozenNetwork(generator) if own is None else own
        self.finished: dict[int, Sample] = {}
        self._waiting: dict[int, Sample] = {}

    @property
    def network(self) -> nn.Module:
        """The generator's network."""
        return self._network.module if isinstance(self._network, FrozenNetwork) else self._network

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        obs, info = self.env.reset(seed=seed, options=options)
        self.finished = {}
        mask = (options or {}).get("reset_mask")
        self._waiting = {} if mask is None else {i: s for i, s in self._waiting.items() if not mask[i]}
        return obs, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment, and draw the texts that are finished.

        Raises:
            ContractError: If a sample has no text, or the generator gives no pictures.
        """
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        finished: dict[int, Sample] = env_attr(self.env, "finished")
        self.finished = {}
        if self.together:
            finished = self._waiting = {**self._waiting, **finished}
            if not bool((terminated | truncated).all()):
                finished = {}
            else:
                self._waiting = {}
        if finished:
            prompts, seeds = env_attr(self.env, "playing"), as_numpy(info["episode_seed"])
            self.finished = self._draw(finished, prompts, seeds)
        # What was said of the texts, with their pictures or not at all.
        info = {name: value for name, value in info.items() if name not in SAID}
        return obs, rewards, terminated, truncated, info | of_samples(self, self.finished)

    def _draw(
        self, samples: Mapping[int, Sample], prompts: Sequence[Prompt], seeds: np.ndarray
    ) -> dict[int, Sample]:
        """The samples of each row with their pictures."""
        texts = {row: self._drawable(samples[row]) for row in sorted(samples)}
        rows = [row for row, text in texts.items() if text]
        self.undrawn += len(texts) - len(rows)
        asked = [Prompt(texts[row], negative=prompts[row].negative) for row in rows]
        count = self.num_pictures
        latents = draw_latents(
            self.generator,
            self.network,
            [prompt for prompt in asked for _ in range(count)],
            [F.derive_seed("picture", int(seeds[row]), number) for row in rows for number in range(count)],
            num_steps=self.num_steps,
            guidance=self.guidance,
            rows=self.rows,
            contexts=self._contexts.of,
        )
        pictures = self.generator.pictures(latents) if rows else []
        self.drawn += len(pictures)
        broken = sum(not bool(picture.isfinite().all()) for picture in pictures)
        if broken:
            logger.warning(
                "The generator drew %d of %d pictures that are not finite; try another `dtype` or a smaller "
                "`guidance`.",
                broken,
                len(pictures),
            )
        done = dict(samples)
        for place, row in enumerate(rows):
            own = pictures[place * count : (place + 1) * count]
            found: dict[str, Any] = {self.makes: own[0], "pictures": torch.stack(own) if count > 1 else None}
            done[row] = replace(samples[row], **found)
        return done

    def _drawable(self, sample: Sample) -> str:
        """What is to be drawn of a text; empty for nothing."""
        if sample.text is None:
            raise ContractError(
                "`Sample.text` must be there to be drawn, got none; try an environment of a language model."
            )
        text = sample.text
        if self.after is not None:
            _, found, text = text.rpartition(self.after)
            text = text if found else ""
        text = text.strip()
        return text if len(text) <= self.max_characters else ""
