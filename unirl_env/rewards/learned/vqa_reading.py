"""A vision-language model that is asked about pictures, and how probable it finds an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.errors.quiet import quiet_loading
from unirl_env.media.pixels import in_8_bits
from unirl_env.rewards.learned.placement import Placement

BLOCK = 16384
"""Tokens of the vocabulary at once."""
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass(frozen=True)
class Row:
    """One sequence that goes through the network.

    Attributes:
        inputs: What the processor makes of picture and question, up to where the answer begins.
        stem: `[s]`, the answer's first tokens, which follow.
        wanted: Pairs of how many tokens of the stem are read, and the token that would come next.
    """

    inputs: Mapping[str, Tensor]
    stem: tuple[int, ...]
    wanted: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows of the same shape go together without padding."""
        grid = self.inputs["image_grid_thw"].flatten().tolist()
        return (self.inputs["input_ids"].shape[1] + len(self.stem), len(self.stem), *grid)


def rows_for(inputs: Mapping[str, Tensor], answers: Sequence[tuple[int, ...]]) -> list[Row]:
    """The fewest rows that tell the probability of every token of every answer."""
    steps = dict.fromkeys((each[:i], each[i]) for each in answers for i in range(len(each)))
    prefixes = dict.fromkeys(prefix for prefix, _ in steps)
    stems = [
        stem
        for stem in prefixes
        if not any(stem == other[: len(stem)] for other in prefixes if other != stem)
    ]
    rows, left = [], dict(steps)
    for stem in stems:
        own = [step for step in left if step[0] == stem[: len(step[0])]]
        rows.append(Row(inputs, stem, tuple((len(prefix), token) for prefix, token in own)))
        left = {step: None for step in left if step not in own}
    return rows


class Reader:
    """A Qwen-VL of transformers with its processor.

    Args:
        model: A hub id or a directory.
        revision: Branch, tag or commit of the hub repository.
        device: Where it computes.
        dtype: Of its weights.
        min_pixels: Of a picture after resizing; None is the checkpoint's own.
        max_pixels: Of a picture after resizing; None is the checkpoint's own.

    Raises:
        ModelNotFound: If it cannot be loaded; names the id and the cause.
        ConfigError: If it is of another family, or the pixels are out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None,
        device: torch.device,
        dtype: torch.dtype,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ):
        self.device = device
        self._network, self._processor = _load(model, revision, dtype)
        self._network = self._network.to(device).eval().requires_grad_(False)
        self._limit(min_pixels, max_pixels)

    def tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of a text by itself."""
        return tuple(self._processor.tokenizer.encode(text, add_special_tokens=False))

    def look(self, picture: Tensor) -> dict[str, Tensor]:
        """A picture `[3, H, W]` in [0, 1] as patches: `pixel_values` and `image_grid_thw`."""
        return dict(self._processor.image_processor(images=[in_8_bits(picture)], return_tensors="pt"))

    def encode(self, seen: Mapping[str, Tensor], question: str) -> dict[str, Tensor]:
        """A chat of one question about a picture of `look`, up to where the answer begins.

        Raises:
            ValueError: If the question holds the mark of a picture.
        """
        words = [{"type": "image"}, {"type": "text", "text": question}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": words}], tokenize=False, add_generation_prompt=True
        )
        mark = self._processor.image_token
        if text.count(mark) != 1:
            raise ValueError(f"A question must not hold {mark!r}, got {question!r}.")
        # The mark stands for every token of the picture, as the processor has it; a picture that several
        # questions are about is cut into patches once.
        size = int(seen["image_grid_thw"].prod()) // self._processor.image_processor.merge_size**2
        read = self._processor.tokenizer(text.replace(mark, mark * size), return_tensors="pt")
        kinds = (read["input_ids"] == self._processor.image_token_id).long()
        tokens = {name: read[name] for name in ("input_ids", "attention_mask")}
        return {**tokens, "mm_token_type_ids": kinds, **seen}

    @torch.no_grad()
    def log_probs(self, rows: Sequence[Row], placement: Placement) -> list[Tensor]:
        """Of each row, the log-probabilities float32 of the tokens that it wants, `[len(wanted)]`.

        Args:
            rows: At least one.
            placement: How many go together: the most rows of a forward pass, padded on the left to the
                longest; or exactly so many, all of one shape and none of them padded.
        """
        groups: dict[Any, list[int]] = {}
        for index in sorted(range(len(rows)), key=lambda index: rows[index].shape):
            groups.setdefault(rows[index].shape if placement.rows_per_forward else None, []).append(index)
        found: dict[int, Tensor] = {}
        for group in groups.values():
            for block, count in placement.blocks(group):
                told = self._forward([rows[index] for index in block])
                found.update(zip(block[:count], told[:count], strict=True))
        return [found[index] for index in range(len(rows))]

    def _forward(self, rows: Sequence[Row]) -> list[Tensor]:
        inputs = {name: tensor.to(self.device) for name, tensor in self._joined(rows).items()}
        keep = 1 + max(len(row.stem) for row in rows)
        hidden = self._network.base_model(**inputs, use_cache=False).last_hidden_state[:, -keep:].float()
        head = self._network.get_output_embeddings().weight
        total = _normalisers(hidden.flatten(0, 1), head).view(hidden.shape[:2])
        told = []
        for row, states, sums in zip(rows, hidden, total, strict=True):
            # Padded on the left, all rows end together.
            place = torch.tensor([keep - 1 - len(row.stem) + read for read, _ in row.wanted])
            token = torch.tensor([token for _, token in row.wanted], device=head.device)
            place = place.to(head.device)
            told.append(((states[place] * head[token].float()).sum(dim=-1) - sums[place]).cpu())
        return told

    def _joined(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The keywords of one forward pass."""
        fill = {"input_ids": self._processor.tokenizer.pad_token_id, "attention_mask": 0}
        joined = {}
        for name in rows[0].inputs:
            if name not in PER_TOKEN:
                joined[name] = torch.cat([row.inputs[name] for row in rows])
                continue
            lines = [self._with_stem(row, name) for row in rows]
            length = max(len(line) for line in lines)
            empty = fill.get(name, 0)
            joined[name] = torch.stack(
                [nn.functional.pad(line, (length - len(line), 0), value=empty) for line in lines]
            )
        return joined

    @staticmethod
    def _with_stem(row: Row, name: str) -> Tensor:
        stem = torch.tensor(row.stem, dtype=torch.int64)
        after = {"input_ids": stem, "attention_mask": torch.ones_like(stem)}.get(name, torch.zeros_like(stem))
        return torch.cat([row.inputs[name][0], after])

    def _limit(self, least: int | None, most: int | None) -> None:
        vision = self._processor.image_processor
        least = vision.size["shortest_edge"] if least is None else least
        most = vision.size["longest_edge"] if most is None else most
        token = (vision.patch_size * vision.merge_size) ** 2
        if not token <= least <= most:
            raise ConfigError(
                f"`min_pixels` must be at least one token of {token} pixels and at most `max_pixels`, got "
                f"{least} and {most}; try `max_pixels={max(most, 4 * token)}` and `min_pixels={token}`."
            )
        vision.size = {"shortest_edge": least, "longest_edge": most}


def _normalisers(states: Tensor, head: Tensor) -> Tensor:
    """The log of the sum over the vocabulary, `[n]`, of the logits of `states` `[n, D]` in float32.

    Logits in bfloat16 lie an eighth apart where they are large: the odds of yes and no would come in steps.
    A part of the output layer at a time, its copy in float32 stays small.
    """
    sums = [(states @ block.float().T).logsumexp(dim=-1) for block in head.split(BLOCK)]
    return torch.stack(sums).logsumexp(dim=0)


@quiet_loading()
def _load(model: str, revision: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    options = {"revision": revision, "trust_remote_code": False}
    try:
        family = AutoConfig.from_pretrained(model, **options).model_type
        if family not in FAMILIES:
            raise ConfigError(
                f"`model` must be a vision-language model of one of {FAMILIES}, got {family!r} in {model!r}; "
                "try `Qwen/Qwen3-VL-8B-Instruct`."
            )
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        network, report = loaded
        if report["missing_keys"]:
            # Transformers would go on with random numbers in their place.
            raise ValueError(f"its weights lack {sorted(report['missing_keys'])[:3]}")
        return network, AutoProcessor.from_pretrained(model, **options)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelNotFound(
            f"`model` must be a hub id or directory of a Qwen-VL, got {model!r}: {said[0].rstrip('.')}; try "
            "a local directory, or the reward `shapes`, which needs no model."
        ) from error
