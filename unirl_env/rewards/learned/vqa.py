"""How surely a vision-language model gives the expected answers when asked about a picture.

Questions come with their answers, and with the ways in which a model may spell these.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unirl_env.arguments.copies import FromArguments
from unirl_env.arguments.signatures import PassesOptions
from unirl_env.arguments.values import require
from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards.asks import Ask
from unirl_env.rewards.inputs import picture_of
from unirl_env.rewards.learned.placement import Placement
from unirl_env.rewards.learned.vqa_reading import Reader, rows_for
from unirl_env.rewards.scoring import place_scores
from unirl_env.types import Prompt, Sample, Scores

NUMBERS = dict(
    zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True)
)
WORDS = {number: word for word, number in NUMBERS.items()}
OPPOSITE = {"yes": "no", "no": "yes"}
logger = logging.getLogger(__name__)
PICTURES = 64
"""So many are cut into patches at once: one of 512 x 512 is then 6 MB."""
Steps = dict[tuple[tuple[int, ...], int], Tensor]
"""Log-probabilities of tokens, by what stands before them."""
AGGREGATIONS = ("geometric", "arithmetic", "minimum")


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        text: As it is asked.
        answers: Any of them is right.
    """

    text: str
    answers: tuple[str, ...]

    @property
    def opposite(self) -> str | None:
        """The wrong answer of a question of yes or no; None of any other."""
        return OPPOSITE.get(self.answers[0].lower()) if len(self.answers) == 1 else None


def questions_of(prompt: Prompt, field: str) -> tuple[Question, ...]:
    """The questions of a prompt; none where its metadata hold none.

    Args:
        prompt: Whose `metadata[field]` is a list of `{"question": ..., "answer": ...}` or of
            `[question, answer]`. An answer is a text, a number, a truth value for yes or no, or a list of
            answers any of which is right.
        field: The entry of the metadata.

    Raises:
        ContractError: If the entry is something else.
    """
    listed = prompt.metadata.get(field)
    if listed is None:
        return ()
    if isinstance(listed, str | Mapping) or not isinstance(listed, Sequence):
        raise _malformed(prompt, field, listed)
    return tuple(_question(prompt, field, entry) for entry in listed)


def spellings(answer: str) -> tuple[str, ...]:
    """An answer as it stands, in lower case and with a capital; a number up to ten in digits and letters."""
    other = NUMBERS.get(answer.lower()) or WORDS.get(answer)
    plain = [answer] if other is None else [answer, other]
    return tuple(
        dict.fromkeys(word for each in plain for word in (each, each.lower(), each[0].upper() + each[1:]))
    )


def token_sequences(
    answers: Sequence[str], encode: Callable[[str], Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """The tokens by which a model may say one of `answers`, no sequence the beginning of another.

    So they exclude each other, and their probabilities add up. A leading space is tried where it makes one
    token with the word.
    """
    found: dict[tuple[int, ...], None] = {}
    for answer in answers:
        for word in spellings(answer):
            found[tuple(encode(word))] = None
            spaced = tuple(encode(f" {word}"))
            if len(spaced) == 1:
                found[spaced] = None
    return tuple(
        each
        for each in found
        if each and not any(each[: len(other)] == other for other in found if other and other != each)
    )


def _question(prompt: Prompt, field: str, entry: Any) -> Question:
    answer: Any
    if isinstance(entry, Mapping):
        text, answer = entry.get("question"), entry.get("answer")
    elif isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2:
        text, answer = entry
    else:
        raise _malformed(prompt, field, entry)
    listed = isinstance(answer, Sequence) and not isinstance(answer, str)
    answers = tuple(_answer(each) for each in (answer if listed else [answer]))
    if not isinstance(text, str) or not text.strip() or not answers or not all(answers):
        raise _malformed(prompt, field, entry)
    return Question(text.strip(), answers)


def _answer(answer: Any) -> str:
    if isinstance(answer, bool):  # what YAML makes of an unquoted yes
        return "yes" if answer else "no"
    return str(answer).strip() if isinstance(answer, str | int) else ""


def _malformed(prompt: Prompt, field: str, got: Any) -> ContractError:
    return ContractError(
        f"`Prompt.metadata[{field!r}]` must be a list of questions with their answers, got "
        f"{str(got)[:120]!r} in the prompt {prompt.id[:80]!r}; try "
        '[{"question": "How many cows are there?", "answer": "three"}].'
    )


class VQAScore(PassesOptions, FromArguments, passes_to=Placement):
    """The mean probability in [0, 1] of the expected answers to a prompt's questions.

    The questions stand in `Prompt.metadata["questions"]`, as `{"question": ..., "answer": ...}` or
    `[question, answer]`. Each is asked by itself, as a chat of one turn with the picture, and the model's
    probabilities of the tokens that would begin its reply are read; nothing is generated. An answer counts in
    lower case, with a capital, with a leading space where that is one token, and numbers to ten in digits and
    letters: these exclude each other, and their probabilities are added. The probability of an answer of
    several tokens is the product of theirs, not divided by the length: so it is a probability, and comparable
    with that of other answers. A question of yes or no scores `P(right) / (P(yes) + P(no))`.

    Without questions a score is invalid, unless `from_prompt`; so is one of a picture that is not finite.

    Parts: `questions`, how many were asked; `mean` and `minimum` over them; `answered`, the mean of
    `P(yes) + P(no)` over the questions of yes or no, which is small where the model would say something else.

    Args:
        model: A hub id or directory of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL that answers without thinking.
        revision: Branch, tag or commit of the hub repository.
        field: The entry of `Prompt.metadata` with the questions; `"vqa_list"` in the data of GenEval 2.
        from_prompt: Ask `template` where a prompt has no questions.
        template: A question that is answered by yes, with `{prompt}` in it for the prompt's text.
        suffix: What follows each question of the metadata.
        aggregation: Over the questions of a picture: `"geometric"`, `"arithmetic"` or `"minimum"`.
        relative: Divide by `P(yes) + P(no)` as above; False is `P(right)` as in VQAScore and GenEval 2.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`, of the weights; probabilities are made in float32.
        batch_size: The most questions that go through the model at once, padded on the left to the longest.
        min_pixels: Of a picture after resizing; None is the checkpoint's own.
        max_pixels: Of a picture after resizing, which bounds memory; None is the checkpoint's own.
        **network: Where and how the model computes; see `Placement`. Rows that go together by
            `rows_per_forward` are of one length and one size of picture, without any padding.

    Raises:
        ConfigError: If a setting is out of range.
        ModelNotFound: If the model cannot be loaded.

    Reference:
        Lin et al. 2024 (VQAScore), arXiv:2404.01291, equation 1; Kamath et al. 2025 (GenEval 2, Soft-TIFA),
        arXiv:2512.16853, whose geometric mean is the default. That reads only the first token of an answer,
        which is the same for answers of one token; VQAScore's code takes the geometric mean over the tokens.
    """

    name = "vqa"
    needs = ("image",)
    pointwise = True

    @staticmethod
    def asks_with(field: str = "questions", from_prompt: bool = False, **options: Any) -> Ask:
        """What a prompt must have: questions, unless one is made of its text."""
        return partial(_require_questions, field=field, from_prompt=from_prompt)

    def __init__(
        self,
        model: str = "Qwen/Qwen2.5-VL-3B-Instruct",
        *,
        revision: str | None = None,
        field: str = "questions",
        from_prompt: bool = False,
        template: str = 'Does this figure show "{prompt}"? Please answer yes or no.',
        suffix: str = " Answer in one word.",
        aggregation: str = "geometric",
        relative: bool = True,
        dtype: str = "bfloat16",
        batch_size: int = 8,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **network: Any,
    ):
        require("aggregation", aggregation, aggregation in AGGREGATIONS, f"one of {list(AGGREGATIONS)}")
        if not isinstance(template, str) or "{prompt}" not in template:
            raise ConfigError(
                f"`template` must hold {{prompt}}, got {template!r}; try "
                "'Does this figure show \"{prompt}\"? Please answer yes or no.'."
            )
        self.asks = self.asks_with(field, from_prompt)
        self.field, self.from_prompt, self.template, self.suffix = field, from_prompt, template, suffix
        self.aggregation, self.relative = aggregation, relative
        self.placement = Placement(dtype=dtype, batch_size=batch_size, **network)
        self._reader = Reader(
            str(model),
            revision=revision,
            device=self.placement.device,
            dtype=self.placement.dtype,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        self._warned = False

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Ask about the picture of every sample.

        Raises:
            ContractError: If a sample has no picture `[3, H, W]`, or questions are malformed.
        """
        pictures = [picture_of(sample, self.name) for sample in samples]
        asked = [self._questions(prompt) for prompt in prompts]
        pairs = zip(pictures, asked, strict=True)
        sound = torch.tensor([bool(q) and bool(p.isfinite().all()) for p, q in pairs], dtype=torch.bool)
        chosen = sound.nonzero().flatten().tolist()
        if not chosen:
            return Scores.failed(len(samples))
        told = []
        for start in range(0, len(chosen), PICTURES):
            block = chosen[start : start + PICTURES]
            seen = {i: self._reader.look(pictures[i]) for i in block}
            told.append(self._told([(seen[i], question) for i in block for question in asked[i]]))
        right, known = map(torch.cat, zip(*told, strict=True))
        counts = [len(asked[i]) for i in chosen]
        each, answered = right.split(counts), known.split(counts)
        means = {
            "geometric": torch.stack([logs.mean().exp() for logs in each]),
            "arithmetic": torch.stack([logs.exp().mean() for logs in each]),
            "minimum": torch.stack([logs.min().exp() for logs in each]),
        }
        parts = {
            "questions": torch.tensor(counts),
            "mean": means["arithmetic"],
            "minimum": means["minimum"],
            "answered": torch.stack([share.nanmean() for share in answered]),
        }
        return place_scores(Scores(means[self.aggregation], parts), sound)

    def _questions(self, prompt: Prompt) -> tuple[Question, ...]:
        found = questions_of(prompt, self.field)
        if found:
            return tuple(Question(each.text + self.suffix, each.answers) for each in found)
        if self.from_prompt and prompt.text.strip():
            return (Question(self.template.replace("{prompt}", prompt.text), ("yes",)),)
        if not self._warned:
            self._warned = True
            logger.warning(
                "Scorer `%s` finds no `metadata[%r]` in the prompt %r, whose score is invalid; try "
                "`from_prompt: true`. Other prompts without questions are not reported.",
                self.name,
                self.field,
                prompt.id[:80],
            )
        return ()

    def _told(self, pairs: Sequence[tuple[Mapping[str, Tensor], Question]]) -> tuple[Tensor, Tensor]:
        """Of every pair the log-probability of the right answer, and `P(yes) + P(no)` or NaN, each `[n]`."""
        plans, rows = [], []
        for seen, question in pairs:
            right = token_sequences(question.answers, self._reader.tokens)
            opposite = [question.opposite] if question.opposite else []
            wrong = token_sequences(opposite, self._reader.tokens)
            own = rows_for(self._reader.encode(seen, question.text), [*right, *wrong])
            plans.append((right, wrong, len(own)))
            rows += own
        told = self._reader.log_probs(rows, self.placement)
        log_right, known, start = [], [], 0
        for right, wrong, count in plans:
            steps: Steps = {}
            for row, found in zip(rows[start : start + count], told[start : start + count], strict=True):
                steps |= {
                    (row.stem[:read], token): p for (read, token), p in zip(row.wanted, found, strict=True)
                }
            start += count
            yes, no = _log_sum(right, steps), _log_sum(wrong, steps)
            log_right.append(yes - torch.logaddexp(yes, no) if wrong and self.relative else yes)
            known.append(torch.logaddexp(yes, no).exp() if wrong else torch.tensor(torch.nan))
        return torch.stack(log_right), torch.stack(known)


def _require_questions(prompt: Prompt, field: str, from_prompt: bool) -> None:
    if not questions_of(prompt, field) and not (from_prompt and prompt.text.strip()):
        raise ValueError(f"it has no questions as `metadata[{field!r}]`; try `from_prompt: true`")


def _log_sum(sequences: Sequence[tuple[int, ...]], steps: Steps) -> Tensor:
    """The log of the probability that one of `sequences` is said."""
    if not sequences:
        return torch.tensor(-torch.inf)
    said: list[Any] = [sum(steps[each[:i], each[i]] for i in range(len(each))) for each in sequences]
    return torch.stack(said).logsumexp(dim=0)
