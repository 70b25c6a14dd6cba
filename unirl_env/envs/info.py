"""What `info` says: plain data in Gymnasium's own forms, or the library's objects where they are asked for.

Plain are numbers, arrays, texts, and mappings of them; what does not apply is absent, never NaN, so that an
`info` equals itself. In a batch each entry `name` has a mask `_name` `[B]` of the episodes that it is about;
texts are arrays of objects `[B]` that hold `str`, and None elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from unirl_env.arguments.indices import as_numpy
from unirl_env.envs.contract import env_attr
from unirl_env.types import Sample, Scores

NO_TOKEN = -1
"""What follows the last token of a sample."""
SAMPLE_FIELDS = tuple(field.name for field in fields(Sample))


def of_samples(env: gym.vector.VectorEnv, finished: Mapping[int, Sample]) -> dict[str, Any]:
    """The samples of the rows that have just finished: `sample`, or as objects `samples`; nothing of none.

    Args:
        env: Whose; it says whether objects are asked for, and how long a row of tokens can be.
        finished: By their rows.
    """
    if not finished:
        return {}
    mask = np.zeros(env.num_envs, dtype=bool)
    mask[list(finished)] = True
    if env_attr(env, "info_objects"):
        samples: list[Sample | None] = [None] * env.num_envs
        for row, sample in finished.items():
            samples[row] = sample
        return {"samples": samples, "_samples": mask}
    plain = _plain_samples(finished, env.num_envs, _width(env.single_observation_space))
    return {"sample": _in_backend(env, plain), "_sample": mask}


def of_scores(env: gym.vector.VectorEnv, scores: Any, judged: np.ndarray) -> dict[str, Any]:
    """The scores of the `judged` `[B]` rows; as plain data, nothing of what is not known yet."""
    if env_attr(env, "info_objects"):
        return {"scores": scores, "_scores": judged}
    if not isinstance(scores, Scores):
        return {}
    rows = {row: _plain_score(scores, row) for row in np.flatnonzero(judged).tolist()}
    return {"scores": _in_backend(env, folded(rows, len(judged))), "_scores": judged}


def folded(rows: Mapping[int, Mapping[str, Any]], count: int) -> dict[str, Any]:
    """Some rows' plain data as arrays `[count, ...]` with masks, in the form of Gymnasium's vector infos."""
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows.values() for name in row):
        values = {i: row[name] for i, row in rows.items() if name in row}
        mask = np.zeros(count, dtype=bool)
        mask[list(values)] = True
        batch[name], batch[f"_{name}"] = _column(values, count), mask
    return batch


def of_row(info: Mapping[str, Any], row: int) -> dict[str, Any]:
    """What a plain `info` of a batch says of one episode, numbers as Python's own."""
    single: dict[str, Any] = {}
    for name, value in info.items():
        mask = info.get(f"_{name}")
        if name.startswith("_") or (mask is not None and not mask[row]):
            continue
        if isinstance(value, Mapping):
            single[name] = of_row(value, row)
        else:
            own = value[row]
            single[name] = own.item() if isinstance(own, np.generic) else own
    return single


def teach_gymnasium_text() -> None:
    """Let text through Gymnasium's conversions of arrays, which take it for something to iterate over.

    As they are, they go down a text without end, and no other framework has arrays of text.
    """
    try:
        from gymnasium.wrappers.array_conversion import array_conversion
    except (ImportError, gym.error.DependencyNotInstalled):
        return
    convert = array_conversion.dispatch(np.ndarray)

    def pass_on(value: Any, xp: Any, device: Any = None) -> Any:
        return value

    def pass_on_text(value: np.ndarray, xp: Any, device: Any = None) -> Any:
        return value if value.dtype.kind in "OUS" else convert(value, xp, device)

    array_conversion.register(str)(pass_on)
    array_conversion.register(np.ndarray)(pass_on_text)


def _column(values: Mapping[int, Any], count: int) -> Any:
    first = next(iter(values.values()))
    if isinstance(first, Mapping):
        return folded(values, count)
    shapes = {np.shape(value) for value in values.values()}
    if isinstance(first, str) or len(shapes) > 1:
        column = np.full(count, None, dtype=object)
    else:
        column = np.zeros((count, *shapes.pop()), dtype=np.asarray(first).dtype)
    for row, value in values.items():
        column[row] = value
    return column


def _plain_samples(finished: Mapping[int, Sample], count: int, width: int | None) -> dict[str, Any]:
    """What `folded` would make of the samples' fields, a field at a time: an end may come at every step."""
    batch: dict[str, Any] = {}
    for name in SAMPLE_FIELDS:
        values = {row: getattr(sample, name) for row, sample in finished.items()}
        if name == "truncated":
            values = {row: value for row, value in values.items() if finished[row].text is not None}
        values = {row: value for row, value in values.items() if value is not None}
        if not values:
            continue
        mask = np.zeros(count, dtype=bool)
        mask[list(values)] = True
        if name == "tokens":
            batch["tokens"], batch["length"] = _padded(values, count, width or 0)
            batch["_tokens"], batch["_length"] = mask, mask.copy()
        else:
            batch[name], batch[f"_{name}"] = _field(values, count), mask
    return batch


def _field(values: Mapping[int, Any], count: int) -> Any:
    """A field of the samples by their rows as a column `[count, ...]`."""
    first = next(iter(values.values()))
    if not isinstance(first, Tensor):
        return _column(values, count)
    if len({value.shape for value in values.values()}) > 1:
        return _column({row: as_numpy(value).copy() for row, value in values.items()}, count)
    together = as_numpy(torch.stack(list(values.values())))
    if list(values) == list(range(count)):
        return together
    column = np.zeros((count, *together.shape[1:]), dtype=together.dtype)
    column[list(values)] = together
    return column


def _padded(tokens: Mapping[int, Tensor], count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[count, width]`, and how many there are `[count]`.

    Of one length, because a batch's array has one: texts that end at one step may differ in theirs.
    """
    width = max(width, *map(len, tokens.values()))
    padded, length = np.zeros((count, width), dtype=np.int64), np.zeros(count, dtype=np.int64)
    for row, said in tokens.items():
        length[row] = len(said)
        padded[row, : len(said)], padded[row, len(said) :] = as_numpy(said), NO_TOKEN
    return padded, length


def _plain_score(scores: Scores, row: int) -> dict[str, Any]:
    valid = bool(scores.valid[row])
    parts = {name: float(part[row]) for name, part in scores.parts.items()}
    parts = {name: part for name, part in parts.items() if part == part}
    return {
        **({"value": float(scores.value[row])} if valid else {}),
        "valid": valid,
        **({"parts": parts} if parts else {}),
    }


def _width(space: gym.Space) -> int | None:
    """How long a row of tokens can be."""
    if isinstance(space, gym.spaces.Dict) and "tokens" in space.spaces:
        shape = space["tokens"].shape
        return shape[0] if shape else None
    return None


def _in_backend(env: gym.vector.VectorEnv, batch: dict[str, Any]) -> dict[str, Any]:
    """Numbers as tensors where the environment's are; masks and texts stay."""
    if env_attr(env, "array_backend") != "torch":
        return batch
    return {
        name: _in_backend(env, value)
        if isinstance(value, dict)
        else value
        if name.startswith("_") or value.dtype == object
        else torch.from_numpy(value)
        for name, value in batch.items()
    }


teach_gymnasium_text()
