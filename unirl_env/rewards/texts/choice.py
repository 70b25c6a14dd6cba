"""Whether the right letter of a multiple choice was picked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from unirl_env.arguments.values import require
from unirl_env.errors import ContractError
from unirl_env.rewards.asks import Ask
from unirl_env.rewards.texts.text_answers import (
    answer_part,
    checked_rule,
    expected_answers,
    last_boxed,
)
from unirl_env.rewards.texts.thoughts import Thinking
from unirl_env.types import Prompt, Sample, Scores

_SIGNS = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width forms
        **{chr(0x24B6 + i): chr(65 + i) for i in range(26)},  # letters in circles
        **{chr(0x24D0 + i): chr(97 + i) for i in range(26)},
        "\u3000": " ", "\u3001": ",", "\u3002": ". ",
        **dict.fromkeys("\u3010\u300c\u300e\u3014\u3008\u300a", "("),
        **dict.fromkeys("\u3011\u300d\u300f\u3015\u3009\u300b", ")"),
    }
)  # fmt: skip
"""Letters, marks and brackets of East Asian texts, as those of ASCII."""
_EAST = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
"""Kana, ideographs and hangul: they stand beside a letter without a blank, and still end its word."""
_WORD = rf"[^\W{_EAST}]"
_GAP = r"[\s*_:=\"'(\[{$.]{0,9}"
_ANSWER = re.compile(
    rf"(?i:\b(?:answer|choice|option)\b){_GAP}(?i:is\b|would be\b)?{_GAP}"
    r"(?i:(?:option|choice|letter)\b)?" + _GAP + r"(?:\\(?:text|mathrm|mathbf)\{\s?\(?)?"
    # A small letter is a choice only where no word can follow: "the answer is a dog".
    rf"(?P<letter>[A-Z](?!{_WORD}|['\u2019])|[a-z](?=\s{{0,3}}(?:[).:,;\]}}*]|$)))"
)
# What follows must not take the answer back: "正解はAではなく", "정답은 A가 아니라", "答案是A吗".
_TAKEN_BACK = (
    r"(?!\s?[)\]}\"'*$]{0,3}\s?(?:では|じゃ|でな|[가이은는]\s?아니|[吗嗎]|(?:选?项|選?項)?\s?是?(?:不|错|錯)"
    r"|[はが]\s?(?:誤|間違|正しくな|不)))"
)
_LETTER = rf"(?<!\\)(?P<letter>[A-Za-z])(?!{_WORD}|['\u2019]|\s[a-z])"
_SPACE = r"[\s*_:=\"'()\[\]{}$.,>-]{0,9}"
_EASTERN_ANSWER = re.compile(
    # Chinese: 答案是B, 正确的选项为B, 故选B, 应该选择(B); Japanese: 答えはB, 正解：B; Korean: 정답은 B.
    r"(?:答案|(?<![不别別未没沒非无無勿])(?:[选選][择擇]?|填)|正[确確](?:的?(?:[选選][项項]|一[项項])|的)|答え?|[回解正]答"
    r"|[应應][该該当當](?=[是为為])|正解|正しい(?:もの|選択肢|答え)?|정답|해답|답안?|정확한\s?선택지|올바른\s?(?:선택지|보기))"
    + _SPACE
    + r"(?:[应應][该該当當]?|就|只|即|便|也|当然|明らかに|やはり|もちろん|역시|바로|당연히){0,2}\s?"
    r"(?:[是为為即選选][择擇]?|は|が|も|[은는이가])?"
    + _SPACE
    + r"(?:第|[选選][项項择擇]|選択肢|선택지|보기|옵션)?"
    + _SPACE
    + r"(?:\\(?:text|mathrm|mathbf)\{\s?\(?)?"
    + _LETTER
    + _TAKEN_BACK
    # The letter first: B是正确答案, B項正確, Bが正解, Bを選ぶ, B가 정답, B를 선택.
    + rf"|(?<!{_WORD})(?<![\\'\u2019.-])(?P<first>[A-Z])[)\]}}\"'*$]{{0,3}}\s?(?:[选選]?[项項]|번)?\s?(?:"
    r"(?:才|就|也)?(?:[是为為]|が|は|も|[가이은는]|이야말로|こそ(?:が)?)?\s?(?:唯一|最)?(?:的)?"
    r"(?:正[确確]|正解|正しい|正答|答え|答案|[对對]的|정답|답(?=[이입])|맞|옳)"
    r"(?!\s?(?:では|じゃ|でな|[이가은는]?\s?(?:아니|않)|지\s?않|[吗嗎]|[与與][否]))"
    r"|を\s?(?:選(?!ば)|回答)|[을를]\s?(?:선택|고른|고르|골라|택))"
)
_EASTERN_OPTION = re.compile(
    # 选项B, 選択肢A, 보기 C, B項, B选项, B번; behind a sentence's subject, and as the predicate of one.
    rf"(?:[选選][项項]|選択肢|선택지|보기|옵션){_SPACE}{_LETTER}{_TAKEN_BACK}"
    rf"|(?<!{_WORD})(?<![\\'\u2019.-])(?P<first>[A-Z])\s?(?:(?:[选選]?[项項]|[选選]择?|번){_TAKEN_BACK}"
    r"|です|だ(?![けがと])|である|でしょう|と思|입니다|이다|이에요|예요|이야|임(?![가-힣])|일\s?것)"
)
_BRACKETS = re.compile(r"[(\[]\s?(?P<letter>[A-Za-z])\s?[)\]]")
# "A" and "I" before a small letter are words of a sentence; 维生素C and B型 are words as well.
_ALONE = re.compile(
    r"(?:(?<![\w'\u2019.\\-])|(?<=[是为為即选選填は은는]))"
    r"(?P<letter>[A-Z])(?![\w'\u2019-])(?!(?<=[AI])\s[a-z])"
)
_BOXED = re.compile(r"(?:\\(?:text|mathrm|mathbf|textbf)\s?\{)?\s*[(\[]?\s?(?P<letter>[A-Za-z])(?![A-Za-z])")


class ChoiceScorer:
    r"""1 where the text picks the expected letter, else 0.

    After the thoughts, the letter is looked for in this order: in the last `\boxed{B}`; in the last
    "answer: B" or "the answer is (B)", also in Chinese, Japanese and Korean ("答案是B", "正解はBです", "B가
    정답입니다"); in the last option that is named there ("選択肢B", "B項"); in the last "(B)"; in the last
    capital letter that stands alone. Full-width letters and marks are those of ASCII. The part `parsed` is 1
    where a letter was found.

    Args:
        key: Where `Prompt.metadata` holds the expected letter, written in any of these ways.
        letters: The letters that are choices.
        unparsable: What a text without a letter counts: `"zero"`, or `"invalid"`, which leaves the sample
            out of its group.

    Raises:
        ConfigError: If a setting is out of range.
    """

    name = "choice"
    needs = ("text",)
    pointwise = True

    @staticmethod
    def asks_with(key: str = "answer", letters: str = "ABCDEFGHIJ", **options: Any) -> Ask:
        """What a prompt must have: a letter that is a choice."""
        return partial(expected_letters, key=key, letters=letters)

    def __init__(
        self,
        key: str = "answer",
        *,
        letters: str = "ABCDEFGHIJ",
        unparsable: str = "zero",
        thinking: Mapping[str, Any] | None = None,
    ):
        require("letters", letters, re.fullmatch("[A-Z]+", letters), "capital letters A to Z")
        self.key, self.letters, self.unparsable = key, letters, checked_rule(unparsable)
        self.thinking = Thinking.of(thinking)
        self.asks = self.asks_with(key, letters)

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> Scores:
        """Score the text of every sample against the letter of its prompt.

        Raises:
            ContractError: If a prompt's answer is no letter, or a sample has no text.
        """
        value, parsed = [], []
        for sample, prompt in zip(samples, prompts, strict=True):
            expected = expected_letters(prompt, self.key, self.letters)
            given = chosen_letter(answer_part(sample, self.name, self.thinking), self.letters)
            parsed.append(float(given is not None))
            nothing = torch.nan if self.unparsable == "invalid" else 0.0
            value.append(nothing if given is None else float(given in expected))
        return Scores(torch.tensor(value), {"parsed": torch.tensor(parsed)})


def expected_letters(prompt: Prompt, key: str, letters: str) -> set[str]:
    """The letters that a prompt accepts.

    Raises:
        ContractError: If it has none, or something else.
    """
    found = set()
    for answer in expected_answers(prompt, key):
        letter = chosen_letter(answer, letters)
        if letter is None:
            raise ContractError(
                f"`Prompt.metadata[{key!r}]` must be one of the letters {letters}, got {answer!r} for the "
                f"prompt {prompt.id[:80]!r}; try the reward `exact` for answers in words."
            )
        found.add(letter)
    return found


def chosen_letter(answer: str, letters: str = "ABCDEFGHIJ") -> str | None:
    """The letter that an answer picks, as a capital; None if there is none of `letters`."""
    text = answer.translate(_SIGNS).strip(" \n\t*.,$")
    if len(text) == 1 and text.isascii() and text.upper() in letters:
        return text.upper()
    boxed = last_boxed(text)
    if boxed is not None and (found := _BOXED.match(boxed)) and found["letter"].upper() in letters:
        return found["letter"].upper()
    for patterns in ((_ANSWER, _EASTERN_ANSWER), (_EASTERN_OPTION,), (_BRACKETS,), (_ALONE,)):
        picks = [(match.end(), _letter(match)) for pattern in patterns for match in pattern.finditer(text)]
        picks = [(end, letter) for end, letter in picks if letter in letters]
        if picks:
            return max(picks)[1]
    return None


def _letter(match: re.Match[str]) -> str:
    return next(filter(None, match.groups())).upper()
