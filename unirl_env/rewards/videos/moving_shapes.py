"""Does the thing of the caption move as it says? Rules for the moving world, over all frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unirl_env.prompts.moving import DIRECTIONS, MovingCaption
from unirl_env.rewards.captions import moving_caption_of, require_moving_caption
from unirl_env.rewards.inputs import video_of
from unirl_env.rewards.pictures.shapes_scorers import Blob, find_blobs
from unirl_env.rewards.videos.block_matching import reduced
from unirl_env.types import Prompt, Sample, Scores

SIDE = 32
"""Clips of any size are read with this shorter side, where the thresholds of blobs are right."""
PARTS = ("colour", "shape", "stays", "direction", "moves", "smooth")
FAR = 0.3
"""The whole way, in shares of the side, that earns all of `moves`; the captions' own go 0.375 and more."""
STEPS = 8
"""So many steps of a clip are looked at, or as many as it has."""
GREY = 0.15
"""A weaker colour is background."""
MOST = 0.85
"""The share of the frames in which colour and shape must be right: of 9, all but one."""


@dataclass(frozen=True)
class _Track:
    """The largest thing of each frame that has one, of F frames.

    Attributes:
        time: `[n]` the frames that have one.
        blobs: The things, one for each.
        counts: `[F]` how many things a frame has.
        ground: `[F - 1]` how much the background changes to the next frame, on the mean over its pixels.
    """

    time: np.ndarray
    blobs: list[Blob]
    counts: np.ndarray
    ground: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """`[n, 2]` x and y of the middles, in shares of the side."""
        return np.array([(blob.x, blob.y) for blob in self.blobs])


class MovingShapesScorer:
    """Rule-based reading of a clip against its caption, "a red circle moves right"; 2 to 10 ms for 9 frames.

    In every frame, the largest coloured region is the thing, and is read as `shapes` reads it. The parts,
    each soft in [0, 1]:

    * `colour` and `shape`: the means over the frames, a frame without a thing counting 0;
    * `stays`: the mean of one over one more than the number of things too many or too few; 0 without any;
    * `moves`: how far the thing comes from the first frame to the last, whatever the direction, by the
      straight line of constant speed that fits its places best; 0.3 of the side is enough. A frozen clip
      has 0;
    * `direction`: the mean over the steps of the cosine of the angle to what the caption says, from 0.5 for
      0 on; short steps count less, steps back count against it, and a long one makes up for no other;
    * `smooth`: no jumps, halts, pulsing or flicker: the lesser of how constant its velocity is and how
      constant its size and light and those of the background are.

    A step is an eighth of the clip. `smooth` is multiplied by `moves`: standing still is no steady motion.
    `partial` is the mean of the six, `strict` 1 where all of them hold, else 0, and `value` the mean of
    the two: the dense half gives a gradient where nothing is right yet, the strict half keeps the optimum
    sharp. What is asked for stands in `metadata` as `colour`, `shape` and `direction`, or else in the text. A
    prompt that says nothing of the kind and a clip that is not finite or of one frame give an invalid score.

    What the rules do not see: pale detail that stands still, and what happens between the frames.
    """

    name = "moving_shapes"
    needs = ("video",)
    pointwise = True
    asks = staticmethod(require_moving_caption)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score `samples[i].video` (`[F, 3, H, W]` in [0, 1], any size) against the caption.

        Raises:
            ContractError: If a sample has no video `[F, 3, H, W]`, or a side more than 8 times the other.
        """
        columns = {key: np.full(len(samples), np.nan) for key in ("partial", "strict", *PARTS)}
        for i, (sample, prompt) in enumerate(zip(samples, prompts, strict=True)):
            video, caption = video_of(sample, self.name).cpu(), moving_caption_of(prompt)
            if caption is None or len(video) < 2 or not video.isfinite().all():
                continue
            parts, columns["strict"][i] = _judge(_read(video), caption)
            columns["partial"][i] = np.mean(list(parts.values()))
            for key, value in parts.items():
                columns[key][i] = value
        value = (columns["partial"] + columns["strict"]) / 2
        return Scores(torch.from_numpy(value), {k: torch.from_numpy(v) for k, v in columns.items()})


def _read(video: torch.Tensor) -> _Track:
    frames = reduced(video, SIDE).clamp(0, 1).numpy()
    found = [find_blobs(frame) for frame in frames]
    bare = np.linalg.norm(frames - frames.mean(axis=1, keepdims=True), axis=1) < GREY
    both = bare[1:] & bare[:-1]
    change = (np.abs(np.diff(frames, axis=0)).mean(axis=1) * both).sum(axis=(1, 2))
    pixels = both.sum(axis=(1, 2))
    time = np.array([t for t, blobs in enumerate(found) if blobs], dtype=np.int64)
    return _Track(
        time=time,
        blobs=[found[t][0] for t in time],
        counts=np.array([len(blobs) for blobs in found]),
        ground=np.where(pixels > 0, change / np.maximum(pixels, 1), 1.0),
    )


def _judge(track: _Track, caption: MovingCaption) -> tuple[dict[str, float], float]:
    """The parts in [0, 1], and whether all of them hold."""
    frames = len(track.counts)
    colours = [blob.colour(caption.colour) for blob in track.blobs]
    shapes = [blob.shape(caption.shape) for blob in track.blobs]
    single = np.where(track.counts > 0, 1.0 / (1 + np.abs(track.counts - 1)), 0.0)
    moves, direction, steady = _motion(track, np.array(DIRECTIONS[caption.direction]))
    smooth = min(steady, _constancy(track))
    parts = {
        "colour": sum(soft for soft, _ in colours) / frames,
        "shape": sum(soft for soft, _ in shapes) / frames,
        "stays": float(single.mean()),
        "direction": direction,
        "moves": moves,
        "smooth": smooth * moves,
    }
    right = all(sum(hard for _, hard in read) >= MOST * frames for read in (colours, shapes))
    # Angles of 30 degrees, half of the way that is enough, half of the speed astray.
    holds = right and bool((track.counts == 1).all())
    holds = holds and direction >= 0.73 and moves >= 0.5 and smooth >= 0.5
    return parts, float(holds)


def _motion(track: _Track, asked: np.ndarray) -> tuple[float, float, float]:
    """How far, which way and how steadily the thing moves, each in [0, 1]."""
    frames = len(track.counts)
    if len(track.time) < 2:
        return 0.0, 0.0, 0.0
    time, places = track.time - track.time.mean(), track.places
    velocity = (time @ places) / (time @ time)
    speed = float(np.linalg.norm(velocity))
    moves = min(speed * float(track.time[-1] - track.time[0]) / FAR, 1.0)
    # The places of blobs are known to a tenth of a pixel: of many frames, neighbours tell no direction.
    stride = max(1, round((frames - 1) / STEPS))
    known = np.full((frames, 2), np.nan)
    known[track.time] = places
    steps = (known[stride:] - known[:-stride]) / stride
    length = np.linalg.norm(steps, axis=1)
    along = (steps @ asked) / np.maximum(length, 1e-9)
    each = np.sign(along) * np.clip((np.abs(along) - 0.5) / 0.5, 0, 1)
    each *= np.clip(length * (frames - 1) / (FAR / 2), 0, 1)
    direction = max(float(np.nan_to_num(each).mean()), 0.0)
    if np.isnan(length).all() or speed * (frames - 1) < 1 / SIDE:
        return moves, direction, 0.0
    astray = float(np.nanmean(np.linalg.norm(steps - velocity, axis=1))) / speed
    return moves, direction, max(1.0 - astray, 0.0)


def _constancy(track: _Track) -> float:
    """How little size and light of the thing, and the background, change between neighbouring frames."""
    if len(track.blobs) < 2:
        return 0.0
    own = np.log([(blob.area, blob.strength) for blob in track.blobs])
    pulse = float(np.abs(np.diff(own, axis=0)).max(axis=1).mean())
    # Antialiasing and a decoder alone make changes of a few hundredths.
    return float(np.clip((0.35 - pulse) / 0.3, 0, 1) * np.clip((0.1 - track.ground.mean()) / 0.08, 0, 1))
