"""A language model held against transformers' own forward pass, also on texts as long as its windows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from unirl_env.errors import ConfigError, ContractError
from unirl_env.models.shared.alone import reads_alone
from unirl_env.models.shared.borders import borders, changing_rotary
from unirl_env.models.shared.faithful import LENGTHS, Gap, compare, probes
from unirl_env.models.words import LanguageModel


@dataclass(frozen=True)
class LanguageModelReport:
    """What `check_language_model` found.

    Attributes:
        network: The class of the network.
        dtype: Of its weights.
        alone: Whether its texts are read one at a time, because they cannot be packed.
        max_context: The most tokens of a text.
        gaps: By what the texts cross (`short texts`: nothing), the gaps of `scored` and of `generated` texts.
        not_crossed: Borders that were left out, and the tokens at which they lie.
    """

    network: str
    dtype: torch.dtype
    alone: bool
    max_context: int
    gaps: dict[str, dict[str, Gap]] = field(default_factory=dict)
    not_crossed: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        how = "one text at a time" if self.alone else "packed"
        kind = str(self.dtype).removeprefix("torch.")
        lines = [f"{self.network} in {kind}: read {how}, texts of at most {self.max_context} tokens."]
        for crossed, gaps in self.gaps.items():
            said = ", ".join(f"{name} {gap}" for name, gap in gaps.items())
            lines.append(f"  {crossed}: off by {said}")
        for name, tokens in self.not_crossed.items():
            lines.append(f"  `{name}` of {tokens} tokens was not crossed: no text that is tried is so long.")
        return "\n".join(lines)


def check_language_model(
    pretrained: str | LanguageModel, *, max_tokens: int = 8192, **options: Any
) -> LanguageModelReport:
    """Compare packed scoring and cached generation with transformers' own eager forward pass.

    Every policy does so on short texts when it loads. Here the texts also cross each sliding window, chunk
    and step of position-dependent attention that the configuration declares; their last 256 tokens are
    compared. That takes as much time as reading them, and the memory of eager attention, which grows with
    the square of their length.

    Args:
        pretrained: A hub id or a directory; or the adapter of a language model.
        max_tokens: The longest text to try; longer borders are left out, and reported.
        **options: Of `CausalLM`: `dtype`, `device`, `revision`, `trust_remote_code`.

    Returns:
        The gaps, and what was not crossed; `print` it.

    Raises:
        ModelNotFound: If the model cannot be loaded.
        ConfigError: If it is neither scored nor sampled rightly on short texts, or `max_tokens` is too small.
        ContractError: If it is wrong behind a border; names that and the gap.
    """
    if max_tokens < max(LENGTHS):
        raise ConfigError(f"`max_tokens` must be at least {max(LENGTHS)}, got {max_tokens}; try 8192.")
    model = pretrained if isinstance(pretrained, LanguageModel) else _adapter(pretrained, options)
    network = model.network()
    config = network.config.get_text_config()
    most, short = min(max_tokens, model.max_context), min(max(LENGTHS), model.max_context)
    gaps = {"short texts": compare(model, network, probes(model, [min(n, short) for n in LENGTHS]))}
    left_out = {}
    for name, border in borders(config).items():
        if border + 1 > most:
            left_out[name] = border
            continue
        # One far behind, one that crosses it while it is generated, one that stays before it.
        lengths = [min(2 * border + 3, most), border + 1, max(2, border // 2)]
        gaps[f"`{name}` of {border} tokens"] = compare(model, network, probes(model, lengths))
    changing = changing_rotary(config)
    if changing is not None and changing < getattr(config, "max_position_embeddings", 0):
        left_out["rotary frequencies"] = changing
    report = LanguageModelReport(
        *(type(network).__name__, model.dtype, reads_alone(network), model.max_context), gaps, left_out
    )
    for crossed, found in gaps.items():
        for name, gap in found.items():
            if not gap.within(model.dtype):
                raise ContractError(
                    f"Log-probabilities must be those of transformers' own forward pass, got {gap} off when "
                    f"{name} behind {crossed}; try shorter texts, or another model.\n{report}"
                )
    return report


def _adapter(pretrained: str, options: dict[str, Any]) -> LanguageModel:
    from unirl_env.models.causal_lm import CausalLM

    return CausalLM(pretrained, chat=False, **options)
