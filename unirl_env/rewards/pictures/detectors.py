"""What finds the objects of pictures: rules for the shapes world, and detection models of transformers.

A detector is any callable `(pictures) -> list of detections per picture`, where pictures are `[3, H, W]` in
[0, 1]. It may say which `labels` it knows, which `colours` it names by itself, and that it is `pointwise`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.signatures import PassesOptions
from unirl_env.arguments.values import is_number
from unirl_env.errors import ConfigError
from unirl_env.errors.quiet import quiet_loading
from unirl_env.media.pixels import in_8_bits
from unirl_env.prompts.shapes import COLOURS, SHAPES
from unirl_env.registry import Registry
from unirl_env.rewards.learned.placement import Placement, not_found
from unirl_env.rewards.pictures.detections import Detection
from unirl_env.rewards.pictures.shapes_scorers import find_blobs, read_picture

DETECTORS = Registry(
    "detector",
    {
        "shapes": "unirl_env.rewards.pictures.detectors:ShapesDetector",
        "transformers": "unirl_env.rewards.pictures.detectors:TransformersDetector",
    },
)
"""The names by which configurations call detectors."""

MASK_SIDE = 1024
GENEVAL_NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""Classes of COCO that have other names in GenEval's prompts."""


class ShapesDetector:
    """The coloured shapes of the embedded world, by the rules of the reward `shapes`; needs no model.

    Its labels are circle, square and triangle, and "irregular" for what is none of them; the colour is "" for
    one that is none of the six. The largest object comes first.
    """

    labels = frozenset(SHAPES)
    colours = frozenset(COLOURS)
    pointwise = True

    def __call__(self, pictures: Sequence[Tensor]) -> list[list[Detection]]:
        """The objects of every picture."""
        return [self._of(picture) for picture in pictures]

    def _of(self, picture: Tensor) -> list[Detection]:
        height, width = picture.shape[1:]
        found = []
        for blob in find_blobs(read_picture(picture)):
            x, y, w, h = blob.x * width, blob.y * height, blob.width * width, blob.height * height
            found.append(
                Detection(
                    label=next((name for name in SHAPES if blob.shape(name)[1]), "irregular"),
                    score=1.0,
                    box=(x - w / 2, y - h / 2, x + w / 2, y + h / 2),
                    colour=next((name for name in COLOURS if blob.colour(name)[1]), ""),
                )
            )
        return found


class TransformersDetector(PassesOptions, FromArguments, passes_to=Placement):
    """A detection or instance-segmentation model of transformers (DETR, RT-DETR, YOLOS, Mask2Former, ...).

    GenEval's is a Mask2Former on COCO; its masks let colours be told without the background.

    Args:
        model: A name on the hub or a directory.
        threshold: The least score of an object.
        batch_size: The most pictures of one size that go through the model at once.
        names: The model's class to the prompts'; by default COCO's to GenEval's.
        processor: Options of the model's image processor, such as `{size: {shortest_edge: 800}}`.
        **network: Where and how the model computes; see `unirl_env.rewards.learned.placement.Placement`.

    Raises:
        ConfigError: If a setting is out of range.
        ModelNotFound: If the model cannot be loaded, or detects no objects.
    """

    pointwise = True

    def __init__(
        self,
        model: str | os.PathLike[str] = "facebook/mask2former-swin-small-coco-instance",
        *,
        threshold: float = 0.3,
        batch_size: int = 8,
        names: Mapping[str, str] | None = None,
        processor: Mapping[str, Any] | None = None,
        **network: Any,
    ):
        if not is_number(threshold) or not 0 <= threshold < 1:
            raise ConfigError(f"`threshold` must be a number in [0, 1), got {threshold!r}; try 0.3.")
        self.threshold, self.placement = float(threshold), Placement(batch_size=batch_size, **network)
        self._model, self._processor, self._masked = _load(model, self.placement.dtype, dict(processor or {}))
        self._model = self._model.to(self.placement.device).eval().requires_grad_(False)
        self._accepted = set(inspect.signature(self._model.forward).parameters)
        other = GENEVAL_NAMES if names is None else names
        self._names = {int(i): other.get(name, name) for i, name in self._model.config.id2label.items()}
        self.labels = frozenset(self._names.values())

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Tensor]) -> list[list[Detection]]:
        """The objects of every picture, the surest first."""
        prepared = [self._prepared(picture) for picture in pictures]
        alike: dict[Any, list[int]] = {}
        for i, row in enumerate(prepared):
            # Pictures of one size go together, so that none is padded.
            alike.setdefault(tuple((name, tensor.shape) for name, tensor in row.items()), []).append(i)
        found: list[list[Detection]] = [[] for _ in pictures]
        for indices in alike.values():
            for block, count in self.placement.blocks(indices):
                rows = {name: torch.cat([prepared[i][name] for i in block]) for name in prepared[block[0]]}
                outputs = self._model(**{name: rows[name].to(self.placement.device) for name in rows})
                results = self._results(outputs, [tuple(pictures[i].shape[1:]) for i in block])
                for i, result in zip(block[:count], results[:count], strict=True):
                    found[i] = sorted(result, key=lambda one: -one.score)
        return found

    def _prepared(self, picture: Tensor) -> dict[str, Tensor]:
        made = self._processor(
            images=[in_8_bits(picture)], return_tensors="pt", input_data_format="channels_first"
        )
        rows = {k: v for k, v in made.items() if k in self._accepted and isinstance(v, Tensor)}
        return {k: v.to(self.placement.dtype) if v.is_floating_point() else v for k, v in rows.items()}

    def _results(self, outputs: Any, sizes: list[tuple[int, int]]) -> list[list[Detection]]:
        if self._masked:
            fields = ("class_queries_logits", "masks_queries_logits")
            plain = SimpleNamespace(**{name: getattr(outputs, name).float().cpu() for name in fields})
            made = self._processor.post_process_instance_segmentation(
                plain,
                threshold=self.threshold,
                target_sizes=[_bounded(size) for size in sizes],
                return_binary_maps=True,
            )
            return [self._of_masks(one, size) for one, size in zip(made, sizes, strict=True)]
        plain = SimpleNamespace(
            logits=outputs.logits.float().cpu(), pred_boxes=outputs.pred_boxes.float().cpu()
        )
        made = self._processor.post_process_object_detection(
            plain, threshold=self.threshold, target_sizes=torch.tensor(sizes)
        )
        return [self._of_boxes(one, size) for one, size in zip(made, sizes, strict=True)]

    def _of_boxes(self, found: Mapping[str, Tensor], size: tuple[int, int]) -> list[Detection]:
        height, width = size
        boxes = found["boxes"].clamp_min(0).minimum(torch.tensor([width, height, width, height])).tolist()
        rows = zip(found["scores"].tolist(), found["labels"].tolist(), boxes, strict=True)
        return [Detection(self._names[label], score, tuple(box)) for score, label, box in rows]

    def _of_masks(self, found: Mapping[str, Any], size: tuple[int, int]) -> list[Detection]:
        detections = []
        for segment in found["segments_info"]:
            mask = found["segmentation"][segment["id"]]
            if mask.shape != size:
                mask = nnf.interpolate(mask[None, None].float(), size, mode="nearest")[0, 0]
            mask = mask.bool()
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            box = float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1
            label = self._names[segment["label_id"]]
            detections.append(Detection(label, segment["score"], box, mask))
        return detections


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    """At most `MASK_SIDE` pixels a side: a mask for every query at full size would take gigabytes."""
    factor = min(1.0, MASK_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


@quiet_loading()
def _load(
    model: str | os.PathLike[str], dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, Any, bool]:
    """The model, its image processor, and whether it gives masks."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(model)
        masked = type(config) not in transformers.MODEL_FOR_OBJECT_DETECTION_MAPPING
        known = transformers.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
        if masked and type(config) not in known:
            raise TypeError(f"a {type(config).__name__}, which detects no objects")
        home = (
            transformers.AutoModelForUniversalSegmentation
            if masked
            else transformers.AutoModelForObjectDetection
        )
        network = home.from_pretrained(model, dtype=dtype)
        processor = transformers.AutoImageProcessor.from_pretrained(model, **options)
    except Exception as error:
        raise not_found(
            "TransformersDetector", repr(os.fspath(model)), error, "a local directory, `detector: shapes`"
        ) from error
    return network, processor, masked
