"""Any scorer that takes JSON over HTTP and answers with numbers, by configuration alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch

from unirl_env.arguments.copies import MadeAnew
from unirl_env.arguments.signatures import PassesOptions
from unirl_env.arguments.values import require, require_number
from unirl_env.errors import ConfigError, ContractError, WireError
from unirl_env.http import CallFailed, Deadline
from unirl_env.media.pixels import png_uri
from unirl_env.rewards.asks import Ask
from unirl_env.rewards.external.endpoint import Endpoint, warn_of_failures
from unirl_env.rewards.inputs import picture_of
from unirl_env.rewards.texts.text_answers import answer_text
from unirl_env.types import Prompt, Sample, Scores

BODIES = ("batch", "columns", "each")
OF_SAMPLE = ("text", "image")
OF_PROMPT = ("prompt", "id", "negative", "metadata")
LARGEST = torch.finfo(torch.float32).max
Row = Mapping[str, Any]


class HTTPScorer(PassesOptions, MadeAnew, passes_to=Endpoint):
    """What a server of somebody else's says of a sample.

    What is sent and what is read is said by names:

    - `body="batch"`: `{"samples": [{"prompt": ..., "text": ...}, ...]}`, answered by as many numbers;
    - `body="columns"`: `{"prompt": [...], "text": [...]}`, answered by as many numbers;
    - `body="each"`: `{"prompt": ..., "text": ...}` for each sample, answered by one number.

    A path into the reply is made of keys and of places in lists, with dots between: `scores`, `data.0.score`,
    and `results.*.score` for something of every member of a list; `.` is the reply itself. A number that is
    null or not finite, and requests that fail in the end, make their samples invalid, with one warning that
    counts them. A reply of another form or length than asked for is such a failure, and a `ConfigError` as
    long as the server has never answered as it should.

    Args:
        url: Where requests go.
        body: What a request holds.
        value: The path of the number, or numbers; by default `score` for `"each"`, else `scores`.
        parts: Names of parts to their paths.
        fields: What is sent of a sample: `prompt`, `text`, `image` (a `data:` URI of a PNG), `metadata` or
            `metadata.key`, `id` and `negative`; as a mapping, each under a name of the server's.
        items: The server's name for the list of samples of a batch.
        constants: Further members of every request.
        batch_size: The most samples of one request; None sends all in one.
        pointwise: Whether each score depends on its own sample alone, although several go at once; a service
            may then merge batches of several clients.
        **connection: Those of `Endpoint`: tokens, limits and time-outs.

    Raises:
        ConfigError: If a setting cannot be used; while scoring, if the server refuses us.
        ContractError: While scoring, if a sample or prompt lacks what is sent of it.
    """

    name = "http"

    @staticmethod
    def asks_with(fields: Any = ("prompt", "text"), **options: Any) -> Ask:
        """What a prompt must have: what is sent of it, as JSON."""
        sent = [field for field in _checked_fields(fields).values() if field not in OF_SAMPLE]
        return partial(_require_sendable, fields=tuple(sent))

    @staticmethod
    def needs_with(fields: Any = ("prompt", "text"), **options: Any) -> tuple[str, ...]:
        """The fields of a sample that are sent."""
        sent = fields.values() if isinstance(fields, Mapping) else fields
        return tuple(name for name in OF_SAMPLE if name in sent)

    def __init__(
        self,
        url: str,
        *,
        body: Literal["batch", "columns", "each"] = "batch",
        value: str | None = None,
        parts: Mapping[str, str] | None = None,
        fields: Sequence[str] | Mapping[str, str] = ("prompt", "text"),
        items: str = "samples",
        constants: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        pointwise: bool = False,
        **connection: Any,
    ):
        require("body", body, body in BODIES, f"one of {list(BODIES)}")
        if batch_size is not None:
            require_number("batch_size", batch_size, 1, whole=True)
        self.body, self.batch_size = body, 1 if body == "each" else batch_size
        self.pointwise = pointwise or body == "each"
        self._fields = _checked_fields(fields)
        self.asks = self.asks_with(fields)
        self._items, self._constants = items, dict(constants or {})
        taken = {items} if body == "batch" else set(self._fields)
        require("constants", constants, not taken & set(self._constants), f"names other than {sorted(taken)}")
        self._paths = {"": value or ("score" if body == "each" else "scores"), **(parts or {})}
        for path in self._paths.values():
            require("value", path, isinstance(path, str) and bool(path), "a path, as are those of `parts`")
        self._endpoint = Endpoint(url, **connection)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score every sample by what the server says of it."""
        rows = [self._row(sample, prompt) for sample, prompt in zip(samples, prompts, strict=True)]
        found: list[Any] = [CallFailed("no finite picture")] * len(rows)
        for places, result in self._asked(rows):
            for order, place in enumerate(places):
                found[place] = result if isinstance(result, CallFailed) else result[order]
        failures = [_failure(one) for one in found]
        warn_of_failures(self.name, [failure for failure in failures if failure is not None], len(rows))
        columns = {
            name: torch.tensor([math.nan if isinstance(one, CallFailed) else one[name] for one in found])
            for name in self._paths
        }
        return Scores(columns.pop(""), columns)

    def close(self) -> None:
        """Close connections."""
        self._endpoint.close()

    def _asked(self, rows: Sequence[Row | None]) -> list[tuple[list[int], Any]]:
        """For every request, the places of the rows that it answers, and their numbers or its failure."""
        known = {place: row for place, row in enumerate(rows) if row is not None}
        sound = list(known)
        if self.body == "each":
            same: dict[str, list[int]] = {}
            for place in sound:
                same.setdefault(json.dumps(known[place], sort_keys=True), []).append(place)
            blocks = list(same.values())
            sent = [[known[places[0]]] for places in blocks]
        else:
            size = self.batch_size or len(sound) or 1
            blocks = [sound[start : start + size] for start in range(0, len(sound), size)]
            sent = [[known[place] for place in places] for places in blocks]
        results = self._endpoint.together(self._ask, sent)
        if self.body == "each":
            results = [
                result if isinstance(result, CallFailed) else result * len(places)
                for places, result in zip(blocks, results, strict=True)
            ]
        return list(zip(blocks, results, strict=True))

    def _ask(self, rows: Sequence[Row], deadline: Deadline) -> list[dict[str, float]]:
        """The numbers of every row, by the names of the parts."""
        if self.body == "each":
            body: dict[str, Any] = dict(rows[0])
        elif self.body == "columns":
            body = {name: [row[name] for row in rows] for name in self._fields}
        else:
            body = {self._items: list(rows)}
        return self._endpoint.post(
            {**body, **self._constants}, deadline, lambda reply: self._read(reply, len(rows))
        )

    def _read(self, reply: Any, count: int) -> list[dict[str, float]]:
        columns = {}
        for name, path in self._paths.items():
            found = _at(reply, path.split(".") if path != "." else [], path)
            if self.body == "each":
                found = [found]
            if not isinstance(found, list) or len(found) != count:
                raise WireError(f"A reply must have {count} numbers at {path!r}, got {found!r:.80}.")
            columns[name] = [_number(one, path) for one in found]
        return [{name: column[row] for name, column in columns.items()} for row in range(count)]

    def _row(self, sample: Sample, prompt: Prompt) -> Row | None:
        """What is sent of a sample; None of one whose picture is not finite."""
        row = {}
        for name, field in self._fields.items():
            if field == "image" and not bool(picture_of(sample, self.name).isfinite().all()):
                return None
            row[name] = self._sent(field, sample, prompt)
        return _as_json(row)

    def _sent(self, field: str, sample: Sample, prompt: Prompt) -> Any:
        if field == "text":
            return answer_text(sample, self.name)
        if field == "image":
            return png_uri(picture_of(sample, self.name))
        return _of_prompt(field, prompt)


def _of_prompt(field: str, prompt: Prompt) -> Any:
    if field == "metadata":
        return dict(prompt.metadata)
    if field.startswith("metadata."):
        key = field.partition(".")[2]
        if key not in prompt.metadata:
            raise ContractError(
                f"`Prompt.{field}` must be there to be sent, got {sorted(prompt.metadata)} for the prompt "
                f"{prompt.id[:80]!r}."
            )
        return prompt.metadata[key]
    return {"prompt": prompt.text, "id": prompt.id, "negative": prompt.negative}[field]


def _as_json(row: dict[str, Any]) -> Row:
    try:
        json.dumps(row, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ContractError(
            f"`Prompt.metadata` must be JSON to be sent, got {error}; try texts, numbers and lists."
        ) from error
    return row


def _require_sendable(prompt: Prompt, fields: Sequence[str]) -> None:
    _as_json({field: _of_prompt(field, prompt) for field in fields})


def _checked_fields(fields: Any) -> dict[str, str]:
    named: dict[str, Any] = {}
    if isinstance(fields, Mapping):
        named = dict(fields)
    elif isinstance(fields, Sequence) and not isinstance(fields, str):
        named = {name: name for name in fields}
    for field in named.values():
        if field not in (*OF_SAMPLE, *OF_PROMPT) and not str(field).startswith("metadata."):
            known = [*OF_PROMPT, *OF_SAMPLE, "metadata.KEY"]
            raise ConfigError(f"A field must be one of {known}, got {field!r}; try `fields: [prompt, text]`.")
    require("fields", fields, named, "a list or a mapping of what is sent")
    return named


def _at(found: Any, keys: Sequence[str], path: str) -> Any:
    for order, key in enumerate(keys):
        if key == "*" and isinstance(found, list):
            return [_at(one, keys[order + 1 :], path) for one in found]
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            there = sorted(found) if isinstance(found, Mapping) else type(found).__name__
            raise WireError(f"A reply must have {path!r}, got no {key!r} in {there!s:.200}.")
    return found


def _number(value: Any, path: str) -> float:
    """A number; what is null or too large for a float is not finite."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"What a reply has at {path!r} must be numbers, got {value!r:.80}.")
    return float(value) if abs(value) <= LARGEST else math.inf


def _failure(one: Any) -> CallFailed | None:
    if isinstance(one, CallFailed):
        return one
    return None if math.isfinite(one[""]) else CallFailed("no finite number")
