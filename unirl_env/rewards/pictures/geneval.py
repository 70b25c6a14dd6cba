"""Does the picture show the objects that were asked for, so many, so coloured, and so placed?"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unirl_env.arguments.values import is_number, is_whole, require
from unirl_env.errors import ConfigError, ContractError
from unirl_env.registry import Registry, instance
from unirl_env.rewards.asks import Ask
from unirl_env.rewards.captions import caption_of
from unirl_env.rewards.inputs import picture_of
from unirl_env.rewards.pictures.detections import (
    ASPECTS,
    Detection,
    Wish,
    checks,
    wish_from_caption,
    wish_from_metadata,
)
from unirl_env.rewards.pictures.detectors import DETECTORS
from unirl_env.rewards.pictures.named_colours import COLOUR_NAMERS
from unirl_env.rewards.scoring import PromptFaults, is_pointwise
from unirl_env.types import Prompt, Sample, Scores

VALUES = ("strict", "soft")


class GenEvalScorer:
    """GenEval: what an object detector finds, compared with what the prompt asks for.

    A prompt's wish stands in its metadata, in GenEval's own format (`tag`, `include`, `exclude`; see
    `detections.wish_from_metadata`). A prompt without one that is a caption of the shapes world, or brings
    one as `metadata["caption"]`, is judged by that.

    * `object`: something of the class is there (or nothing of it, where it is excluded).
    * `count`: there are at least as many as asked for, and fewer than the number excluded.
    * `colour`: all of them have the colour.
    * `position`: all of them lie as they should to those of the other clause (or in the picture).

    `strict` is 1 where everything holds, else 0, as in the paper. `soft` is the mean over everything that is
    asked for, where something that holds for some of the objects counts by their share. Both are parts, and
    so are the four aspects (NaN where not asked for).

    A wish that is missing or malformed, or that names a class or a colour which the detector does not know,
    is invalid with a warning that names it, and so is a picture that is not finite.

    Args:
        detector: `"shapes"`, which needs no model; `{name: transformers, model: ...}`; or the dotted path of
            your own, `(pictures) -> list of detections per picture`.
        colours: What names colours where the detector does not: `"lab"`, by rules; `{name: clip, ...}`, as
            the original; or the dotted path of your own, `(picture, detections, label) -> names`.
        value: `"strict"` or `"soft"`.
        counting_threshold: The least score of an object where the tag is "counting"; elsewhere the detector's
            own threshold holds.
        max_objects: Of one class, the surest; the others are not there.
        dead_zone: The share of their sizes by which objects must be apart to lie left, right, above or below.

    Raises:
        ConfigError: If a setting is out of range.
        ModelNotFound: If a model cannot be loaded.

    Reference:
        Ghosh et al. 2023 (GenEval), arXiv:2310.11513, section 3 and its published evaluation, whose numbers
        are the defaults.
    """

    name = "geneval"
    needs = ("image",)

    @staticmethod
    def asks_with(**options: Any) -> Ask:
        """What a prompt must have: a wish; whether the detector knows it, is told once that is there."""
        return _wish

    def __init__(
        self,
        detector: Any = "shapes",
        *,
        colours: Any = "lab",
        value: str = "strict",
        counting_threshold: float = 0.9,
        max_objects: int = 16,
        dead_zone: float = 0.1,
    ):
        require("value", value, value in VALUES, f"one of {list(VALUES)}")
        for label, number in (("counting_threshold", counting_threshold), ("dead_zone", dead_zone)):
            require(label, number, is_number(number) and 0 <= number < 1, "a number in [0, 1)")
        if not is_whole(max_objects) or max_objects < 1:
            raise ConfigError(f"`max_objects` must be a whole number from 1 on, got {max_objects!r}.")
        self.value, self.max_objects = value, max_objects
        self.counting_threshold, self.dead_zone = float(counting_threshold), float(dead_zone)
        self._detect = _made(DETECTORS, detector)
        self._name_colours = _made(COLOUR_NAMERS, colours)
        self.pointwise = is_pointwise(self._detect, self._name_colours)
        self._cannot_judge = PromptFaults(self.name)

    def asks(self, prompt: Prompt) -> Wish:
        """The wish of a prompt.

        Raises:
            ValueError: If it has none, or one that the detector can never find.
        """
        wish = _wish(prompt)
        self._check_known(wish)
        return wish

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the picture of every sample against the wish of its prompt.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`, or the detector does not answer each.
        """
        pictures = [picture_of(sample, self.name).detach().to("cpu", torch.float32) for sample in samples]
        wishes = [self._wish(prompt) for prompt in prompts]
        rows = {
            i: wish
            for i, (picture, wish) in enumerate(zip(pictures, wishes, strict=True))
            if wish is not None and bool(picture.isfinite().all())
        }
        found = self._detect([pictures[i].clamp(0, 1) for i in rows]) if rows else []
        if len(found) != len(rows):
            raise ContractError(f"A detector must answer {len(rows)} pictures, got {len(found)} answers.")
        columns = torch.full((len(samples), 2 + len(ASPECTS)), math.nan)
        for (i, wish), detections in zip(rows.items(), found, strict=True):
            columns[i] = torch.tensor(self._judged(pictures[i].clamp(0, 1), detections, wish))
        parts = dict(zip((*VALUES, *ASPECTS), columns.T, strict=True))
        return Scores(value=parts[self.value], parts=parts)

    def _judged(self, picture: Tensor, detections: Sequence[Detection], wish: Wish) -> list[float]:
        """Strict, soft, and the aspects."""
        by_label: dict[str, list[Detection]] = {}
        for one in sorted(detections, key=lambda one: -one.score):
            own = by_label.setdefault(one.label, [])
            if len(own) < self.max_objects and not (wish.counting and one.score <= self.counting_threshold):
                own.append(one)

        def colours_of(objects: Sequence[Detection], label: str) -> list[str]:
            known = [one.colour for one in objects if one.colour is not None]
            return known if len(known) == len(objects) else self._name_colours(picture, objects, label)

        height, width = picture.shape[1:]
        made = checks(wish, by_label, colours_of, (height, width), self.dead_zone)
        every = [share for shares in made.values() for share in shares]
        aspects = [sum(shares) / len(shares) if shares else math.nan for shares in made.values()]
        return [float(all(share == 1 for share in every)), sum(every) / len(every), *aspects]

    def _wish(self, prompt: Prompt) -> Wish | None:
        try:
            return self.asks(prompt)
        except ValueError as error:
            self._cannot_judge(prompt, str(error))
            return None

    def _check_known(self, wish: Wish) -> None:
        """Refuse what could never be found: a zero for it would be a lie."""
        labels = getattr(self._detect, "labels", None)
        colours = getattr(self._detect, "colours", None) or getattr(self._name_colours, "names", None)
        for clause in (*wish.include, *wish.exclude):
            if labels is not None and clause.label not in labels:
                raise ValueError(f"the detector knows no class {clause.label!r}")
            if clause.colour and colours is not None and clause.colour not in colours:
                raise ValueError(f"no colour is called {clause.colour!r}, of {sorted(colours)}")


def _wish(prompt: Prompt) -> Wish:
    wish = wish_from_metadata(prompt.metadata)
    if wish is not None:
        return wish
    caption = caption_of(prompt)
    if caption is None:
        raise ValueError("`metadata` has neither `include` nor `exclude`")
    return wish_from_caption(caption)


def _made(registry: Registry, spec: Any) -> Any:
    """What a name, a mapping with `name` and options, or a callable stands for."""
    if not isinstance(spec, str | Mapping):
        if not callable(spec) or inspect.isclass(spec):
            raise ConfigError(
                f"`{registry.kind}` must be a name, a mapping or a callable, got {type(spec).__name__}."
            )
        return spec
    options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    return instance(registry.get(options.pop("name", "")), options, f"`{registry.kind}`")
