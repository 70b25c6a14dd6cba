"""Whether a network, read as the library reads it, says what transformers' own eager forward pass says.

Both ways are compared where a network is loaded: several texts packed into a row, as they are scored, and
generated with a cache behind padding, as they are sampled. A third one, texts that share their beginning in a
row, is taken where it is right, too. The rollout cannot tell: it shares the kernel with
the learner. Where a network cannot be read packed, its texts stand alone (`models.shared.alone`), which is
compared likewise; what is right in no way is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.models.backbone import BRANCHES
from unirl_env.models.shared.alone import mark_alone, reads_alone, why_alone
from unirl_env.models.shared.outline import when_filled
from unirl_env.models.words import LanguageModel

logger = logging.getLogger(__name__)

LENGTHS = (5, 12, 9)
"""Of the texts that are compared: unequal, and short enough for milliseconds."""
ANSWER = 3
"""The last tokens of each, which are read one by one with a cache."""
TOLERANCES = {torch.float16: (0.03, 0.5), torch.bfloat16: (0.1, 1.0)}
"""Nats by which log-probabilities may differ, on average and at the worst token. In half precision they
differ by rounding, most where a router stands between two experts; what is forgotten is off everywhere."""
PRECISE, TENSOR_FLOAT = (2e-4, 2e-3), (0.005, 0.05)
"""The same in float32, and where its matrix products may be of lower precision."""
KEPT = 256
"""The last tokens of a text, which are compared: logits of long texts are large."""


_HELD: WeakKeyDictionary[LanguageModel, Way] = WeakKeyDictionary()


class Gap(NamedTuple):
    """How far log-probabilities lie from transformers' own, in nats.

    Each token counts with the mean over the vocabulary of the absolute difference, by the probability that
    transformers gives.

    Attributes:
        mean: Over the tokens.
        largest: Of a token.
    """

    mean: float
    largest: float

    def within(self, dtype: torch.dtype) -> bool:
        """Whether it is rounding, for a network of this dtype."""
        exact = torch.get_float32_matmul_precision() == "highest"
        mean, largest = TOLERANCES.get(dtype, PRECISE if exact else TENSOR_FLOAT)
        return self.mean <= mean and self.largest <= largest

    def __str__(self) -> str:
        return f"{self.mean:.2g} nats a token ({self.largest:.2g} at the worst)"


class Way(NamedTuple):
    """How a network is read.

    Attributes:
        alone: Each text alone; else packed.
        attention: What transformers calls the attention of its layers.
        branches: Whether texts that begin alike can share that beginning in a packed row.
    """

    alone: bool
    attention: str
    branches: bool = False

    def take(self, network: nn.Module) -> None:
        """Let a network be read so."""
        mark_alone(network, self.alone)
        setattr(network, BRANCHES, self.branches)
        for module in network.modules():
            config = getattr(module, "config", None)
            # Only where it changes: the parts of a model may differ in their attention.
            if config is not None and self.alone and config._attn_implementation != self.attention:
                config._attn_implementation_internal = self.attention


def settle(model: LanguageModel, network: nn.Module, *, packed_only: bool = False) -> Way:
    """Find a way to read a network that has just been loaded, and hold it against transformers' own.

    Packed if that is right, else, unless `packed_only`, each text alone. It draws no random numbers, and
    leaves the network as it is but for the way.

    Args:
        model: The adapter that loaded it.
        network: Transformers' model, in evaluation mode.
        packed_only: Whether the adapter reads packed texts only.

    Returns:
        The way, which the network takes.

    Raises:
        ConfigError: If there is no right way.
    """
    rows = probes(model, [min(length, model.max_context) for length in LENGTHS])
    own = network.config.get_text_config()._attn_implementation
    reason = None if packed_only else why_alone(network)
    ways = [(False, own)] if reason is None else []
    if not packed_only:
        ways += [(True, own), (True, "eager")]
    said = reason
    for alone, kind in ways:
        way = Way(alone, kind)
        way.take(network)
        found = _wrong(model, network, rows)
        if found is None:
            if alone:
                logger.warning(
                    "%s in %r is read one text at a time, which is slower than packed texts, because of %s.",
                    *(type(network).__name__, model.pretrained, reason or said),
                )
            return way if alone else _branching(way, model, network, rows)
        said = said or found
    last = "" if packed_only else f"; texts alone: {found}"
    raise ConfigError(
        f"`pretrained` must be a model that is scored and sampled as transformers' own eager forward pass "
        f"does it, got {type(network).__name__} in {model.pretrained!r} with {said}{last}. "
        "Try a newer transformers, or a model of another family, such as Qwen3."
    )


def hold(model: LanguageModel, network: nn.Module) -> nn.Module:
    """`network` itself, the first one of an adapter that reads packed texts only held against transformers'.

    Raises:
        ConfigError: See `settle`.
    """

    def check(filled: nn.Module) -> None:
        if model not in _HELD:
            _HELD[model] = settle(model, filled, packed_only=True)
        _HELD[model].take(filled)

    when_filled(network, check)
    return network


def compare(
    model: LanguageModel, network: nn.Module, rows: Sequence[Tensor], only: Collection[str] = ()
) -> dict[str, Gap]:
    """The gaps of packed texts (`scored`), of those generated with a cache (`generated`), of `branched` ones.

    Args:
        model: The network's adapter.
        network: What `model.network()` returned.
        rows: Texts `[L]` int64, each longer than the answer that is read one by one.
        only: Which of the gaps; without, all that the network's way has.
    """
    with torch.no_grad():
        with _eager(network):
            truth = [network(input_ids=row[None], use_cache=False).logits[0] for row in rows]
        truth = [logits[-KEPT:].float().log_softmax(-1) for logits in truth]
        ways = {"scored": _scored, "generated": _generated}
        if getattr(network, BRANCHES, False):
            ways["branched"] = _branched
        wanted = {name: read for name, read in ways.items() if not only or name in only}
        return {name: _gap(read(model, network, rows), truth) for name, read in wanted.items()}


def probes(model: LanguageModel, lengths: Sequence[int]) -> list[Tensor]:
    """Texts of these lengths on the model's device, drawn from nothing: byte tokens in most vocabularies."""
    ids = min(model.vocab_size, 256)
    return [
        ((torch.arange(length) + 3 * i) * 7919 % ids).to(model.device) for i, length in enumerate(lengths)
    ]


@contextmanager
def _eager(network: nn.Module) -> Iterator[None]:
    """Within it, all layers attend as transformers wrote it down.

    It is set on the very configurations: transformers' own way warns of each part that has none.
    """
    configs = {id(m.config): m.config for m in network.modules() if hasattr(m, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, own in before:
            config._attn_implementation_internal = own


def _wrong(
    model: LanguageModel, network: nn.Module, rows: Sequence[Tensor], only: Collection[str] = ()
) -> str | None:
    """What is wrong with the present way; None if nothing is."""
    try:
        gaps = compare(model, network, rows, only)
    except Exception as error:  # any architecture may fail in a way of its own
        return f"{type(error).__name__}: {error}".rstrip(".")
    far = [f"{gap} off when {name}" for name, gap in gaps.items() if not gap.within(model.dtype)]
    return "log-probabilities " + " and ".join(far) if far else None


Read = Callable[[LanguageModel, nn.Module, Sequence[Tensor]], list[Tensor]]


def _scored(model: LanguageModel, network: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """Log-probabilities `[L, V]` of each text's last tokens, all texts packed into one row."""
    lengths = torch.tensor([len(row) for row in rows])
    positions = torch.cat([torch.arange(len(row), device=row.device) for row in rows])
    positions = positions.expand(model.position_axes, 1, -1)
    hidden = model.hidden(network, torch.cat(list(rows))[None], positions, lengths=lengths)[0]
    return [_log_probs(model, network, text) for text in hidden.split(lengths.tolist())]


def _branched(model: LanguageModel, network: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """Log-probabilities `[L, V]` of each text, whose end and another one go on from its beginning."""
    stems = [row[: len(row) // 2] for row in rows]
    ends = [row[len(row) // 2 :] for row in rows]
    parts, count = [*stems, *ends, *reversed(ends)], len(rows)
    number = torch.arange(count)
    follows = torch.cat([torch.full((count,), -1), number, number])
    lengths = torch.tensor([len(part) for part in parts])
    begins = [0] * count + [len(stem) for stem in stems] * 2
    positions = torch.cat(
        [begin + torch.arange(len(part)) for begin, part in zip(begins, parts, strict=True)]
    )
    positions = positions.to(rows[0].device).expand(model.position_axes, 1, -1)
    hidden = model.hidden(
        network, torch.cat(parts)[None], positions, lengths=lengths, follows=follows.to(positions.device)
    )[0].split(lengths.tolist())
    return [_log_probs(model, network, torch.cat([hidden[i], hidden[count + i]])) for i in range(count)]


def _branching(way: Way, model: LanguageModel, network: nn.Module, rows: Sequence[Tensor]) -> Way:
    """`way`, with branches where they are right."""
    branching = way._replace(branches=True)
    branching.take(network)
    if _wrong(model, network, rows, ("branched",)) is None:
        return branching
    way.take(network)
    return way


def _generated(model: LanguageModel, network: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """Log-probabilities `[L, V]` of each text, its last tokens read one by one with a cache."""
    if reads_alone(network):
        return [_continued(model, network, [row, row])[1] for row in rows]
    return _continued(model, network, rows)


def _continued(model: LanguageModel, network: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """The same for texts that are generated together, padded on the left; the rows change their order."""
    from unirl_env.models.shared.cache import roomy_cache, select_rows

    device, count = rows[0].device, len(rows)
    steps = min(ANSWER, *(len(row) - 1 for row in rows))
    lengths = torch.tensor([len(row) - steps for row in rows], device=device)
    width = int(lengths.max())
    tokens = torch.stack([nn.functional.pad(row[: len(row) - steps], (width - n, 0))
                          for row, n in zip(rows, lengths.tolist(), strict=True)])  # fmt: skip
    mask = torch.arange(width, device=device) >= (width - lengths)[:, None]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, padded = roomy_cache(network.config), not bool(mask.all())
    axes = model.position_axes
    hidden = model.hidden(
        network, tokens, positions.expand(axes, -1, -1), mask=mask if padded else None, cache=cache
    )
    order = torch.arange(count - 1, -1, -1, device=device)
    select_rows(cache, order)
    parts, mask = [hidden[order]], mask[order]
    last = torch.stack([row[len(row) - steps :] for row in rows])[order]
    for t in range(steps):
        mask = torch.cat([mask, mask.new_ones(count, 1)], 1)
        places = (mask.sum(1, keepdim=True) - 1).expand(axes, -1, -1)
        seen = mask if padded else None
        parts.append(model.hidden(network, last[:, t : t + 1], places, mask=seen, cache=cache))
    said = torch.cat(parts, 1)[order]
    return [_log_probs(model, network, said[i, -len(row) :]) for i, row in enumerate(rows)]


def _log_probs(model: LanguageModel, network: nn.Module, hidden: Tensor) -> Tensor:
    return (hidden[-KEPT:] @ model.head(network).T).float().log_softmax(-1)


def _gap(got: Sequence[Tensor], truth: Sequence[Tensor]) -> Gap:
    far = []
    for mine, theirs in zip(got, truth, strict=True):
        apart = torch.where(mine == theirs, 0.0, (mine - theirs).abs())
        far.append((theirs.exp() * apart).sum(-1))
    tokens = torch.cat(far).nan_to_num(nan=torch.inf)
    return Gap(float(tokens.mean()), float(tokens.max()))
