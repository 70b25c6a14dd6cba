"""How people would rate a video's looks, its motion, and how it fits the prompt, by VideoReward."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.values import is_number, require
from unirl_env.errors import ConfigError
from unirl_env.errors.quiet import unheard
from unirl_env.media.pixels import in_8_bits
from unirl_env.rewards.inputs import video_of
from unirl_env.rewards.learned.placement import device_of, dtype_of
from unirl_env.rewards.scoring import place_scores
from unirl_env.rewards.videos.video_align_question import MARKS, PICTURES, PLACE, read_question
from unirl_env.rewards.videos.video_align_weights import ASPECTS, load
from unirl_env.types import Prompt, Sample, Scores

SAYS = "transformers.models.qwen2_vl.video_processing_qwen2_vl"
"""The logger of the video processor."""
LEAST_FRAMES = 4
"""Of a video that is shorter than two seconds, if it has so many."""
LEAST_TOKENS = 128
"""Of a frame, in squares of a patch and a merge; a smaller frame is enlarged."""


class VideoAlignScore(FromArguments):
    """The sum of three ratings of a video for its prompt: visual quality, motion quality, text alignment.

    A Qwen2-VL reads frames of the video and a long question with the prompt in it; at three marks of the
    question, a linear head regresses a rating from the last hidden state, and each is normalised by its mean
    and deviation as the checkpoint's settings say. As in the published code, frames are taken evenly at 2 per
    second and at least 4, rounded to 8 bits and resized, bicubically, to multiples of 28 pixels within 128
    and 256 squares of that side; the language model counts positions along the sequence, whereas a Qwen2-VL
    that answers counts rows, columns and frames. The head is computed in float32. One video goes through the
    network at a time, so that no score depends on its company.

    A video that is not finite or has less than two frames is invalid, as is a prompt that holds a mark of the
    question or of a picture. Parts: `visual`, `motion` and `alignment`.

    Args:
        model: A hub id or directory with `model_config.json` and `checkpoint-<step>/model.pth`, whose last
            step counts.
        question: The path of a text file with the question that the model was trained to answer. It must be
            named; the text is `DETAILED_PROMPT_WITH_SPECIAL_TOKEN` of `prompt_template.py` in the repository
            that publishes the checkpoint, https://github.com/KwaiVGI/VideoAlign, to the letter: the marks
            `<|VQ_reward|>`, `<|MQ_reward|>` and `<|TA_reward|>` stand in it once each, and `{text_prompt}`
            where the prompt goes.
        revision: Branch, tag or commit of the hub repository.
        base: The Qwen2-VL whose sizes and processor are read, without its weights; None is what the
            settings name, `Qwen/Qwen2-VL-2B-Instruct`.
        fps: Frames per second of the videos that are judged.
        weights: What the ratings are multiplied by before they are added, by their names `VQ`, `MQ`, `TA`;
            one that is not named counts 0. None is all three.
        normalise: Whether ratings are normalised.
        device: Where it computes; `"auto"` is a GPU if there is one.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`, of the weights.

    Raises:
        ConfigError: If a setting is out of range, or `question` is not such a file.
        ModelNotFound: If the model cannot be loaded, or is of another kind.

    Reference:
        Liu et al. 2025 (VideoAlign), arXiv:2501.13918, section 3.
    """

    name = "video_align"
    needs = ("video",)
    pointwise = True

    @staticmethod
    def asks(prompt: Prompt) -> None:
        """Refuse a prompt in which the marks could not be told from those of the question.

        Raises:
            ValueError: Naming the mark.
        """
        for mark in (*MARKS, *PICTURES):
            if mark in prompt.text:
                raise ValueError(f"it must not hold {mark!r}, at which `video_align` reads its ratings")

    @staticmethod
    def check_with(question: str | os.PathLike[str] | None = None, **options: Any) -> None:
        """Refuse a question that is none.

        Raises:
            ConfigError: Saying where to get it.
        """
        read_question(question)

    def __init__(
        self,
        model: str = "KwaiVGI/VideoReward",
        *,
        question: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        base: str | None = None,
        fps: float = 16.0,
        weights: Mapping[str, float] | None = None,
        normalise: bool = True,
        device: str | torch.device = "cpu",
        dtype: str = "bfloat16",
    ):
        require("fps", fps, is_number(fps) and fps > 0, "a number above 0", "try 16")
        weights = dict.fromkeys(ASPECTS, 1.0) if weights is None else dict(weights)
        if not weights or not set(weights) <= set(ASPECTS) or not all(map(is_number, weights.values())):
            raise ConfigError(
                f"`weights` must be numbers by names of {ASPECTS}, got {weights}; try {{'MQ': 1}}."
            )
        self.fps = float(fps)
        self._weights = torch.tensor([float(weights.get(aspect, 0)) for aspect in ASPECTS])
        self._device = device_of(device)
        self._question = read_question(question)
        network, head, self._processor, self._published = load(str(model), revision, base, dtype_of(dtype))
        self._network, self._head = network.to(self._device), head.to(self._device)
        spread = self._published.spread if normalise else None
        self._spread = torch.tensor([spread[aspect] if spread else (0.0, 1.0) for aspect in ASPECTS])

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Rate the video of every sample for the text of its prompt.

        Raises:
            ContractError: If a sample has no video `[F, 3, H, W]`.
        """
        videos = [video_of(sample, self.name) for sample in samples]
        sound = torch.tensor(
            [
                len(video) > 1 and bool(video.isfinite().all()) and _is_plain(prompt)
                for video, prompt in zip(videos, prompts, strict=True)
            ],
            dtype=torch.bool,
        )
        rows = sound.nonzero().flatten().tolist()
        if not rows:
            return Scores.failed(len(samples))
        ratings = torch.stack([self._ratings(videos[row], prompts[row].text) for row in rows])
        ratings = (ratings - self._spread[:, 0]) / self._spread[:, 1]
        names = ("visual", "motion", "alignment")
        scores = Scores(ratings @ self._weights, dict(zip(names, ratings.unbind(dim=1), strict=True)))
        return place_scores(scores, sound)

    def _ratings(self, video: Tensor, text: str) -> Tensor:
        """The three numbers of the head, as they are."""
        # It speaks of sizes that it would choose, were it asked to.
        with unheard((SAYS,), ("per-frame pixel cap",)):
            seen = self._processor.video_processor(
                videos=[self._frames(video)], do_resize=False, do_sample_frames=False, return_tensors="pt"
            )
        tokens = self._tokens(text, seen["video_grid_thw"])
        hidden = self._network(
            input_ids=tokens[None].to(self._device),
            # The published network was trained, and judges, by plain positions.
            position_ids=torch.arange(len(tokens), device=self._device).expand(3, 1, -1),
            pixel_values_videos=seen["pixel_values_videos"].to(self._device, self._network.dtype),
            video_grid_thw=seen["video_grid_thw"].to(self._device),
            use_cache=False,
        ).last_hidden_state[0]
        marks = self._processor.tokenizer.convert_tokens_to_ids(list(MARKS))
        places = [(tokens == mark).nonzero().item() for mark in marks]
        # One output is read at each mark; of three, the first at the first, and so on.
        heads = self._head.expand(len(ASPECTS), -1)
        return (hidden[places].float() * heads).sum(dim=-1).cpu()

    def _tokens(self, text: str, grid: Tensor) -> Tensor:
        words = [{"type": "video"}, {"type": "text", "text": self._question.replace(PLACE, text)}]
        chat = self._processor.apply_chat_template(
            [{"role": "user", "content": words}], tokenize=False, add_generation_prompt=True
        )
        mark = self._processor.video_token
        size = int(grid.prod()) // self._processor.video_processor.merge_size**2
        return torch.tensor(self._processor.tokenizer(chat.replace(mark, mark * size))["input_ids"])

    def _frames(self, video: Tensor) -> Tensor:
        """The frames that are looked at, `[f, 3, h, w]` in 8 bits."""
        from torchvision.transforms.functional import InterpolationMode, resize
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        chosen = video[frames_of(len(video), self.fps, self._published.fps, self._published.frames)]
        vision = self._processor.video_processor
        factor = vision.patch_size * vision.merge_size
        most = self._published.max_pixels
        height, width = video.shape[2:]
        height, width = smart_resize(
            height, width, factor=factor, min_pixels=min(LEAST_TOKENS * factor**2, most), max_pixels=most
        )
        frames = torch.stack([in_8_bits(frame) for frame in chosen])
        return resize(frames, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)


def frames_of(count: int, fps: float, wanted_fps: float, wanted: int | None) -> list[int]:
    """The frames of a video that are looked at, evenly spread with the first and the last, an even number.

    Args:
        count: How many the video has, at least two.
        fps: Of the video.
        wanted_fps: So many per second, but at least four.
        wanted: So many, whatever the seconds.
    """
    if wanted is None:
        most = count // 2 * 2
        wanted = 2 * round(min(max(count / fps * wanted_fps, LEAST_FRAMES), most) / 2)
    else:
        wanted = min(2 * round(wanted / 2), count)
    return torch.linspace(0, count - 1, wanted).round().long().tolist()


def _is_plain(prompt: Prompt) -> bool:
    try:
        VideoAlignScore.asks(prompt)
    except ValueError:
        return False
    return True
