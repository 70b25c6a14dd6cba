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

from unirl_env.envs.roster import Roster
from unirl_env.errors import ContractError
from unirl_env.types import Sample, Scores

__all__ = ["folded", "identity", "of_row", "of_samples", "of_scores", "teach_gymnasium_text", "told"]

NO_TOKEN = -1
"""What follows the last token of a sample."""
_MISSING = object()


def told(env: gym.vector.VectorEnv, name: str, default: Any = _MISSING) -> Any:
    """What the outermost environment that knows `name` says, whatever wrappers are around it.

    `finished` and `playing` are samples by their rows and prompts, `scores` and `judged` what was said of the
    samples; wrappers that change one of them say it in place of the environment that they wrap.

    Raises:
        ContractError: If none knows it, and there is no default.
    """
    inner: Any = env
    while inner is not None:
        if hasattr(inner, name):
            return getattr(inner, name)
        inner = getattr(inner, "env", None)
    if default is not _MISSING:
        return default
    raise ContractError(
        f"A generative environment must have `{name}`, got none in {env}; try a `GenerativeVectorEnv`."
    )


def identity(roster: Roster, *, objects: bool) -> dict[str, Any]:
    """Who plays: group, prompt and seed of each episode."""
    if objects:
        return {
            "group": roster.group.copy(),
            "prompt": roster.prompt_array.copy(),
            "episode_seed": roster.episode_seed.copy(),
        }
    everyone = np.ones(len(roster), dtype=bool)
    texts, ids = roster.prompt_texts
    return {
        "group": roster.group.copy(),
        "_group": everyone,
        "prompt": texts.copy(),
        "_prompt": everyone,
        "prompt_id": ids.copy(),
        "_prompt_id": everyone,
        "episode_seed": roster.episode_seed.copy(),
        "_episode_seed": everyone,
    }


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
    if told(env, "info_objects", False):
        return {"samples": [finished.get(row) for row in range(env.num_envs)], "_samples": mask}
    width = _width(env.single_observation_space)
    rows = {row: _plain_sample(sample, width) for row, sample in finished.items()}
    return {"sample": _in_backend(env, folded(rows, env.num_envs)), "_sample": mask}


def of_scores(env: gym.vector.VectorEnv, scores: Any, judged: np.ndarray) -> dict[str, Any]:
    """The scores of the `judged` `[B]` rows; as plain data, nothing of what is not known yet."""
    if told(env, "info_objects", False):
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
        if name.startswith("_") or not info.get(f"_{name}", _ALL)[row]:
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


class _All:
    """The mask of what is about every episode."""

    def __getitem__(self, row: int) -> bool:
        return True


_ALL = _All()


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


def _plain_sample(sample: Sample, width: int | None) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for field in fields(sample):
        value = getattr(sample, field.name)
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()
        if value is not None and (field.name != "truncated" or sample.text is not None):
            plain[field.name] = value
    if "tokens" in plain:
        # Of one length, because a batch's array has one: texts that end at one step may differ in theirs.
        tokens = plain["tokens"]
        plain["length"] = len(tokens)
        room = max(0, (width or 0) - len(tokens))
        plain["tokens"] = np.pad(tokens, (0, room), constant_values=NO_TOKEN)
    return plain


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
        return space["tokens"].shape[0]
    return None


def _in_backend(env: gym.vector.VectorEnv, batch: dict[str, Any]) -> dict[str, Any]:
    """Numbers as tensors where the environment's are; masks and texts stay."""
    if getattr(env.unwrapped, "array_backend", "numpy") != "torch":
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
