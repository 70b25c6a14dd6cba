"""Does the subject of a video stay the same?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.signatures import PassesOptions
from unirl_env.arguments.values import is_whole, require
from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.errors.quiet import quiet_loading
from unirl_env.media.pixels import in_8_bits
from unirl_env.rewards.inputs import video_of
from unirl_env.rewards.learned.placement import Placement
from unirl_env.rewards.scoring import place_scores
from unirl_env.rewards.videos.block_matching import require_no_strip
from unirl_env.rewards.videos.consistency import vbench_likeness
from unirl_env.types import Prompt, Sample, Scores

FAMILIES = ("vit", "dinov2")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, with which both families were trained."""


class SubjectConsistency(PassesOptions, FromArguments, passes_to=Placement):
    """How alike the frames of a video are to DINO, which looks at things and little at their places.

    As VBench has it, the mean over all frames but the first of
    `(max(0, cos(frame, frame before)) + max(0, cos(frame, first frame))) / 2`, of the class token of a DINO.
    Frames are rounded to 8 bits and resized to `side` on the shorter side, without antialiasing and uncut, as
    there. Its parts are `neighbours` and `first`.

    A frozen video is perfectly consistent: multiply it with `motion`. A video of one frame is invalid, as is
    one that is not finite.

    Args:
        model: A hub id or directory of a ViT (DINO) or DINOv2 of transformers.
        revision: Branch, tag or commit of the hub repository.
        side: The shorter side of the frames in pixels, a multiple of the model's patches.
        batch_size: The most frames that go through the model at once.
        **network: Where and how the model computes; see `Placement`.

    Raises:
        ConfigError: If a setting is out of range, or the model is of another family.
        ModelNotFound: If the model cannot be loaded.

    Reference:
        Huang et al. 2024 (VBench), arXiv:2311.17982, subject consistency, which takes DINO's ViT-B/16; Caron
        et al. 2021 (DINO), arXiv:2104.14294.
    """

    name = "subject_consistency"
    needs = ("video",)
    pointwise = True

    def __init__(
        self,
        model: str = "facebook/dino-vitb16",
        *,
        revision: str | None = None,
        side: int = 224,
        batch_size: int = 64,
        **network: Any,
    ):
        self.placement = Placement(batch_size=batch_size, **network)
        loaded = _load(str(model), revision, self.placement.dtype)
        self._network = loaded.to(self.placement.device).eval().requires_grad_(False)
        patch = self._network.config.patch_size
        require(
            "side",
            side,
            is_whole(side) and side >= patch and side % patch == 0,
            f"a multiple of {patch} pixels, the model's patches",
            f"try {max(224 // patch, 1) * patch}",
        )
        self.side = side

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Compare the frames of every sample.

        Raises:
            ContractError: If a sample has no video `[F, 3, H, W]`, or a side more than 8 times the other.
        """
        videos = [video_of(sample, self.name) for sample in samples]
        sound = torch.tensor([len(v) > 1 and bool(v.isfinite().all()) for v in videos], dtype=torch.bool)
        pairs = [self._pairs(video) for video, fine in zip(videos, sound, strict=True) if fine]
        if not pairs:
            return Scores.failed(len(samples))
        before, first = torch.tensor(pairs).unbind(dim=1)
        scores = Scores((before + first) / 2, {"neighbours": before, "first": first})
        return place_scores(scores, sound)

    def _pairs(self, video: Tensor) -> tuple[float, float]:
        # One video at a time: others have other sizes.
        rows = self.placement.in_blocks(self._vectors, list(self._prepared(video)))
        return vbench_likeness(nnf.normalize(rows, dim=-1))

    def _prepared(self, video: Tensor) -> Tensor:
        from torchvision.transforms.functional import normalize, resize

        require_no_strip(video)
        frames = resize(torch.stack([in_8_bits(frame) for frame in video]), [self.side], antialias=False)
        return normalize(frames.float() / 255, list(MEAN), list(STD))

    def _vectors(self, frames: Tensor) -> Tensor:
        frames = frames.to(self.placement.device, self.placement.dtype)
        options = {"interpolate_pos_encoding": True} if self._network.config.model_type == "vit" else {}
        return self._network(pixel_values=frames, **options).last_hidden_state[:, 0].float().cpu()


@quiet_loading()
def _load(model: str, revision: str | None, dtype: torch.dtype) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoConfig, Dinov2Model, ViTModel

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        family = AutoConfig.from_pretrained(model, **options).model_type
        if family not in FAMILIES:
            raise ConfigError(
                f"`model` must be a model of one of {FAMILIES}, got {family!r} in {model!r}; try "
                "`facebook/dino-vitb16`."
            )
        kind: Any = ViTModel if family == "vit" else Dinov2Model
        if family == "vit":
            options["add_pooling_layer"] = False
        network, report = kind.from_pretrained(model, dtype=dtype, output_loading_info=True, **options)
        if report["missing_keys"]:
            # Transformers would go on with random numbers in their place.
            raise ValueError(f"its weights lack {sorted(report['missing_keys'])[:3]}")
        return network
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelNotFound(
            f"`model` must be a hub id or directory of a DINO, got {model!r}: {said[0].rstrip('.')}; try a "
            "local directory, or the reward `temporal_consistency`, which needs no model."
        ) from error
