"""What people would pick: PickScore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.signatures import PassesOptions
from unirl_env.errors.quiet import quiet_loading
from unirl_env.media.pixels import in_8_bits
from unirl_env.rewards.inputs import picture_of
from unirl_env.rewards.learned.placement import Placement, not_found
from unirl_env.types import Prompt, Sample, Scores

CONTEXT = 77


class PickScore(PassesOptions, FromArguments, passes_to=Placement):
    """`scale * exp(logit_scale) * cos(image embedding, text embedding)`, of a CLIP trained on people's picks.

    With the published weights `exp(logit_scale)` is 100, and pictures score about 20, give or take 2; the
    difference of two pictures is the logit of one being picked over the other. `scale: 0.0385`, a 26th,
    brings that close to 1, which some trainers do.

    A picture is rounded to 8 bits and goes through the processor's own preprocessing, so that it scores what
    its PNG file scores. A picture that is not finite everywhere is invalid. Texts are cut at 77 tokens, and
    one that comes twice is encoded once. Cosines are taken in float32. The gradient does not flow.

    Args:
        model: A hub id or a directory of a `CLIPModel` of transformers.
        processor: A hub id or a directory of its `CLIPProcessor`.
        revision: The commit, tag or branch of `model`.
        scale: What the score is multiplied by.
        **network: Where and how the model computes; see `Placement`.

    Raises:
        ConfigError: If a setting is out of range.
        ModelNotFound: If the model or its processor cannot be loaded, or its weights are not whole.

    Reference:
        Kirstain et al. 2023, arXiv:2305.01569, equation 1.
    """

    name = "pickscore"
    needs = ("image",)
    pointwise = True

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        *,
        revision: str | None = None,
        scale: float = 1.0,
        **network: Any,
    ):
        self.placement = Placement(**network)
        self._processor = _loaded_processor(processor)
        clip = _loaded_model(model, revision)
        # Before the weights lose bits: the scale multiplies every score.
        self.scale = float(scale) * float(clip.logit_scale.detach().double().exp())
        self._context = min(CONTEXT, clip.config.text_config.max_position_embeddings)
        self._model = clip.to(self.placement.device, self.placement.dtype).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the picture of every sample against the text of its prompt.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`.
        """
        pictures = [picture_of(sample, self.name) for sample in samples]
        row = {text: i for i, text in enumerate(dict.fromkeys(prompt.text for prompt in prompts))}
        image = self._embedded(self._of_pictures, [self._pixels(picture) for picture in pictures])
        text = self._embedded(self._of_texts, self._tokens(list(row)))
        chosen = text[[row[prompt.text] for prompt in prompts]]
        return Scores(value=self.scale * (image * chosen).sum(dim=-1))

    def _pixels(self, picture: Tensor) -> Tensor:
        """The picture as the model wants it, `[3, h, w]`."""
        whole = bool(picture.isfinite().all())
        made = self._processor.image_processor(
            images=[in_8_bits(picture.nan_to_num())], input_data_format="channels_first", return_tensors="pt"
        )
        pixels = made["pixel_values"][0]
        return pixels if whole else torch.full_like(pixels, torch.nan)

    def _tokens(self, texts: list[str]) -> list[Tensor]:
        """`[2, length]` for each text: ids and the mask, of one length whatever the company."""
        made = self._processor.tokenizer(
            texts, padding="max_length", max_length=self._context, truncation=True, return_tensors="pt"
        )
        return list(torch.stack([made["input_ids"], made["attention_mask"]], dim=1))

    def _of_pictures(self, pixels: Tensor) -> Any:
        return self._model.get_image_features(
            pixel_values=pixels.to(self.placement.device, self.placement.dtype)
        )

    def _of_texts(self, tokens: Tensor) -> Any:
        ids, mask = tokens.to(self.placement.device).unbind(dim=1)
        return self._model.get_text_features(input_ids=ids, attention_mask=mask)

    def _embedded(self, encode: Any, rows: list[Tensor]) -> Tensor:
        """Unit vectors `[len(rows), D]` float32."""

        def compute(block: Tensor) -> Tensor:
            return nnf.normalize(encode(block).pooler_output.float(), dim=-1)

        return self.placement.in_blocks(compute, rows)


@quiet_loading()
def _loaded_processor(processor: str) -> Any:
    from transformers import CLIPProcessor

    try:
        return CLIPProcessor.from_pretrained(processor)
    except Exception as error:
        remedy = "`processor` with the directory of a local copy"
        raise not_found("PickScore", f"the processor {processor!r}", error, remedy) from error


@quiet_loading()
def _loaded_model(model: str, revision: str | None) -> Any:
    from transformers import CLIPModel

    try:
        load: Any = CLIPModel.from_pretrained  # its signature knows no `output_loading_info`
        network, report = load(model, revision=revision, dtype=torch.float32, output_loading_info=True)
        absent = sorted(report["missing_keys"])
        if absent:
            # Transformers fills them with random numbers, and only warns.
            raise ValueError(f"it lacks {len(absent)} weights, such as {absent[0]!r}")
    except Exception as error:
        remedy = "`model` with the directory of a local copy"
        raise not_found("PickScore", repr(model), error, remedy) from error
    return network
