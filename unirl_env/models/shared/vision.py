"""What a vision tower makes of pictures that lie one after another, each distinct one seen once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unirl_env.errors import ContractError


class PictureFeatures(NamedTuple):
    """One vector per token of the pictures.

    Attributes:
        merged: `[M, D]`, what stands in the place of the tokens' embeddings.
        deeper: Each `[M, D]`, what the first layers add to these tokens; Qwen3-VL only.
        tokens: Of each picture.
    """

    merged: Tensor
    deeper: tuple[Tensor, ...]
    tokens: tuple[int, ...]


def picture_features(model: nn.Module, pixel_values: Tensor, grid: Tensor) -> PictureFeatures:
    """Run the vision tower.

    The samples of a group all carry the group's picture: it goes through the tower once, and its gradient
    is the sum over them.

    Args:
        model: A Qwen-VL base model of transformers.
        pixel_values: `[n_patches, D]`, the pictures' patches one after another.
        grid: `[n, 3]` int64, frames, rows and columns of patches of each.
    """
    pictures = pixel_values.split(grid.prod(1).tolist())
    first, which = distinct_pictures(pictures, grid.tolist())
    seen = model.get_image_features(torch.cat([pictures[i] for i in first]), grid[first], return_dict=True)
    merged = [seen.pooler_output[i] for i in which]
    deeper = [[level[i] for i in which] for level in getattr(seen, "deepstack_features", None) or ()]
    return PictureFeatures(
        torch.cat(merged), tuple(torch.cat(level) for level in deeper), tuple(map(len, merged))
    )


def distinct_pictures(pictures: Sequence[Tensor], grids: Sequence[Any]) -> tuple[list[int], list[int]]:
    """The first place of each distinct picture, and for every picture which of them it is."""
    # A sum finds candidates with one transfer from the device; only those are compared in full.
    sums = torch.stack([picture.sum(dtype=torch.float64) for picture in pictures]).tolist()
    known: dict[Any, list[int]] = {}
    first: list[int] = []
    which = []
    for i, (total, grid) in enumerate(zip(sums, grids, strict=True)):
        alike = known.setdefault((total, *grid), [])
        number = next((k for k in alike if torch.equal(pictures[first[k]], pictures[i])), len(first))
        if number == len(first):
            first.append(i)
            alike.append(number)
        which.append(number)
    return first, which


def picture_places(is_mark: Tensor, positions: Tensor, count: int) -> Tensor:
    """Where pictures stand, `[B, L]` bool.

    A policy may also *say* the token that marks pictures, and it then is a token like any other. In a
    picture, of two tokens at least, neighbours share their position in time; in text they never do.

    Args:
        is_mark: `[B, L]` bool, where that token stands.
        positions: `[3, B, L]`, rotary positions in time, height and width.
        count: Tokens of all pictures.

    Raises:
        ContractError: If tokens and pictures do not belong together.
    """
    if is_mark.sum() == count:
        return is_mark
    same = is_mark[:, 1:] & is_mark[:, :-1] & (positions[0, :, 1:] == positions[0, :, :-1])
    edge = torch.zeros_like(is_mark[:, :1])
    places = torch.cat([edge, same], 1) | torch.cat([same, edge], 1)
    if places.sum() != count:
        raise ContractError(
            f"The pictures must be those of the tokens, got {count} tokens of pictures for "
            f"{int(places.sum())} places."
        )
    return places


def widened(ids: Tensor, is_mark: Tensor, counts: Tensor) -> Tensor:
    """`ids` `[L]` in which each mark of a picture stands as often as the picture has tokens.

    Args:
        ids: `[L]` int64, with one mark for each picture.
        is_mark: `[L]` bool, where the n marks stand.
        counts: `[n]` int64, tokens of each picture.
    """
    return ids.repeat_interleave(torch.ones_like(ids).masked_scatter(is_mark, counts))
