"""Keep what the episodes produced, with its prompt and its score, in a folder."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium.vector import VectorEnv

from unirl_env.arguments.copies import Carried
from unirl_env.arguments.indices import as_numpy
from unirl_env.envs.contract import env_attr
from unirl_env.errors import ConfigError, ContractError, MissingExtra
from unirl_env.media.frames import (
    Frames,
    clip_frames,
    makes_mp4,
    to_frame,
    write_gif,
    write_mp4,
    write_png,
    write_strip,
    write_webp,
)
from unirl_env.types import Sample, Scores
from unirl_env.wrappers.base import EpisodeRows, Wrapper

logger = logging.getLogger(__name__)

STILL, STRIP = 5, 16
"""Frames of a clip that stand side by side at most, as `"png"` and as `"strip"`."""
STEPS: Mapping[str, tuple[str, Callable[[Path, Frames, float], None]]] = {
    "png": (".png", write_png),
    "strip": (".png", write_strip),
    "gif": (".gif", partial(write_gif, rest=1.0)),
    "webp": (".webp", partial(write_webp, rest=1.0)),
    "mp4": (".mp4", write_mp4),
}
"""How a picture is written, with the steps that it came about in: suffix and writer of each format."""
CLIPS: Mapping[str, tuple[str, Callable[[Path, Frames, float], None]]] = {
    "png": (".png", partial(write_strip, most=STILL)),
    "strip": (".png", partial(write_strip, most=STRIP)),
    "gif": (".gif", write_gif),
    "webp": (".webp", write_webp),
    "mp4": (".mp4", write_mp4),
}
"""How a clip is written; it rests nowhere."""


class RecordMedia(Wrapper):
    """Write the sample of finished episodes as pictures or clips, each with a JSON file of what it is.

    Round n of a row is its n-th episode, from 0. The files of round 12 of row 3 are `sample-000012-003.png`
    (or `.gif`, `.webp`, `.mp4`) and `sample-000012-003.json`, which holds the prompt, the seed, the reward
    and the scores. A sample without a picture (a text, a bare latent) has the JSON file alone; one with text
    and picture has both, and where several pictures were drawn from its text, `sample-000012-003-1.png` is
    the second. Put it outside the `RewardWrapper`, so that there are scores to write.

    A clip is written as it is, whatever steps it took, and its JSON file has `frames` and `fps`, too. Where
    the environment says that it makes clips (`makes` is `"video"`), nothing is rendered on the way, and no
    `render_mode` is needed.

    Args:
        env: A generative vector environment.
        folder: Where the files go; made if it is not there.
        every: Record every n-th round, or those for which this function of the round is true.
        episodes: Record the first n rows, or `"all"`.
        format: `"png"` is the final picture; of a clip, 5 of its frames side by side. `"strip"`, `"gif"`,
            `"webp"` and `"mp4"` show how a picture came about: what `env.render()` gave at the reset and
            after every step but the last (side by side, or one after another), and then the picture itself.
            Of a clip, they show its own frames at the `fps` of the environment: all of them, or 16 at most
            side by side, evenly spread. While a text is written that comes before a picture, there is
            nothing to show.
        name_prefix: What file names begin with.

    Attributes:
        written: How many samples have been written.

    Raises:
        ConfigError: If an argument is out of range, the folder cannot be written to, or a format that shows
            steps meets an environment of pictures without `render_mode="rgb_array"`.
        MissingExtra: If the format is `"mp4"` and moviepy is not installed.
    """

    def __init__(
        self,
        env: VectorEnv,
        folder: str | os.PathLike[str],
        every: int | Callable[[int], bool] = 1,
        episodes: int | Literal["all"] = "all",
        format: Literal["png", "strip", "gif", "webp", "mp4"] = "png",
        name_prefix: str = "sample",
    ):
        super().__init__(env)
        if format not in STEPS:
            raise ConfigError(f"`format` must be one of {list(STEPS)}, got {format!r}.")
        if not callable(every) and not (type(every) is int and every >= 1):
            raise ConfigError(f"`every` must be an integer of at least 1 or a function, got {every!r}.")
        if episodes != "all" and not (type(episodes) is int and episodes >= 1):
            raise ConfigError(f"`episodes` must be 'all' or an integer of at least 1, got {episodes!r}.")
        if not name_prefix or Path(name_prefix).name != name_prefix:
            raise ConfigError(f"`name_prefix` must be the beginning of a file name, got {name_prefix!r}.")
        watch = format != "png" and env_attr(env, "makes", "image") != "video"
        if watch and env.render_mode != "rgb_array":
            raise ConfigError(
                f"`render_mode` must be 'rgb_array' to record {format!r}, got {env.render_mode!r}; "
                f"try making the environment with render_mode='rgb_array', or format='png'."
            )
        if format == "mp4" and not makes_mp4():
            raise MissingExtra("moviepy", "video")
        self.folder = _writable(folder)
        self.name_prefix = name_prefix
        self.written = 0
        self.every = every
        self._limit = env.num_envs if episodes == "all" else min(episodes, env.num_envs)
        self._suffix, self._write = STEPS[format]
        self._write_clip = CLIPS[format][1]
        self._watch = watch
        self._rows = EpisodeRows(env.num_envs)
        self._round = np.full(env.num_envs, -1)
        self._frames: list[list[np.ndarray]] = [[] for _ in range(env.num_envs)]
        self._recorded = np.zeros(env.num_envs, dtype=bool)
        if any(self.folder.glob(f"{name_prefix}-*{self._suffix}")):
            logger.warning("%s holds recordings already; those of equal names are replaced.", self.folder)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "every": Carried("every", self.every)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; a new round begins for the rows that were reset."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._begin(self._rows.reset(info, options))
        self._look(obs, self._recorded)
        return obs, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment and write what has finished.

        Raises:
            ContractError: If an episode ends without a sample.
        """
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        change = self._rows.step(info, terminated, truncated)
        self._begin(change.began)
        self._look(obs, self._recorded & (change.began | change.stepped) & ~change.ended)
        finished: Mapping[int, Sample] = env_attr(self.env, "finished")
        for row in np.flatnonzero(change.ended & self._recorded).tolist():
            if finished.get(row) is None:
                raise ContractError(
                    f"`finished` must hold the sample of an ended episode, got none of row {row}."
                )
            self._save(row, finished[row], float(rewards[row]), info)
        return obs, rewards, terminated, truncated, info

    def _begin(self, began: np.ndarray) -> None:
        self._round[began] += 1
        for row in np.flatnonzero(began):
            self._frames[row] = []
            self._recorded[row] = row < self._limit and self._wanted(int(self._round[row]))

    def _wanted(self, round: int) -> bool:
        return bool(self.every(round)) if callable(self.every) else round % self.every == 0

    def _look(self, obs: Any, rows: np.ndarray) -> None:
        """Rendering decodes latents, so it is done for rounds that are recorded only."""
        if isinstance(obs, Mapping) and "phase" in obs:
            rows = rows & (as_numpy(obs["phase"]) > 0)
        if self._watch and rows.any():
            pictures: Any = self.env.render()
            for row in np.flatnonzero(rows):
                self._frames[row].append(np.asarray(pictures[row]))

    def _save(self, row: int, sample: Sample, reward: float, info: dict[str, Any]) -> None:
        stem = f"{self.name_prefix}-{self._round[row]:06d}-{row:03d}"
        shown = sample.video is not None or sample.image is not None
        path, fps = self.folder / f"{stem}{self._suffix}", self.metadata.get("render_fps", 4)
        if sample.video is not None:
            fps = env_attr(self.env, "fps", None) or fps
            self._write_clip(path, clip_frames(sample.video), fps)
        elif sample.image is not None:
            self._write(path, [*self._frames[row], to_frame(sample.image)], fps)
        page: dict[str, Any] = {
            "file": path.name if shown else None,
            "round": int(self._round[row]),
            "row": int(row),
        }
        page |= {"reward": _number(reward), "text": sample.text, **self._facts(row, info)}
        if sample.video is not None:
            page |= {"frames": len(sample.video), "fps": fps}
        if sample.text is not None:
            page["truncated"] = bool(sample.truncated)
        if sample.pictures is not None:
            page["further"] = [f"{stem}-{k}.png" for k in range(1, len(sample.pictures))]
            for name, picture in zip(page["further"], sample.pictures[1:], strict=True):
                write_png(self.folder / name, [to_frame(picture)], 0)
        (self.folder / f"{stem}.json").write_text(
            json.dumps(page, indent=1, ensure_ascii=False) + "\n", "utf-8"
        )
        self._frames[row] = []
        self.written += 1

    def _facts(self, row: int, info: Mapping[str, Any]) -> dict[str, Any]:
        """What is said about one episode, as JSON values."""
        facts: dict[str, Any] = {"episode_seed": int(as_numpy(info["episode_seed"])[row])}
        if "group" in info:
            facts["group"] = int(as_numpy(info["group"])[row])
        prompt = env_attr(self.env, "playing")[row]
        facts |= {"prompt": prompt.text, "prompt_id": prompt.id, "negative": prompt.negative}
        scores = env_attr(self.env, "scores", None)
        if isinstance(scores, Scores) and env_attr(self.env, "judged")[row]:
            facts |= {"score": _number(float(scores.value[row])), "valid": bool(scores.valid[row])}
            facts["parts"] = {name: _number(float(part[row])) for name, part in scores.parts.items()}
        return facts


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _writable(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"`folder` must be a directory that can be written to, got {str(folder)!r} ({error.strerror}); "
            f"try another one."
        ) from error
    return path
