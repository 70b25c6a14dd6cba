"""Letters of multiple choice, in all the ways that models write them."""

# ruff: noqa: RUF001  (the signs of East Asian texts are what is tested)

import time

import pytest
import torch

from unirl_env.errors import ConfigError, ContractError
from unirl_env.rewards import ChoiceScorer
from unirl_env.rewards.texts.choice import chosen_letter
from unirl_env.types import Prompt, Sample


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b", "B"), ("b.", "B"), ("(B)", "B"), ("(b)", "B"), ("[B]", "B"), ("B.", "B"),
        ("B) red", "B"), ("**B**", "B"), ("answer: B", "B"), ("Answer: b", "B"), ("ANSWER B", "B"),
        ("The answer is B.", "B"), ("**Answer:** B", "B"), ("The answer is (B), not (C).", "B"),
        ("the correct option is b)", "B"), ("Answer: option B", "B"), ("Answer: $\\boxed{B}$", "B"),
        (r"\boxed{b}", "B"), (r"\boxed{\text{(B)}}", "B"), (r"\boxed{B. red}", "B"),
        (r"answer: A \boxed{B}", "B"), (r"\boxed{A} \boxed{B}", "B"),
        (r"\boxed{5} so the answer is B", "B"), (r"\boxed{A", "A"), ("Answer: A. No. Answer: B", "B"),
        ("(A) is wrong, (B) is right", "B"), ("A is wrong, so B", "B"), ("I think it is B", "B"),
        ("B. I am sure.", "B"), ("A dog barks", None), ("It is B, a dog", "B"),
        ("the answer is a dog", None), ("the answer is A dog", "A"), ("Answer: $B$", "B"),
        ("It's Bob's", None), ("", None),
        ("K", None), ("(K) or (B)", "B"), ("vitamin-C", None), ("ABC", None), ("\u0411", None),
        ("答案: B", "B"), ("答案是\uff08B\uff09", "B"), ("\uff22", "B"), ("I", "I"), ("A", "A"),
        ("answer is I.", "I"), ("x" * 99, None),
    ],
)  # fmt: skip
def test_the_letter_that_a_text_picks(text, letter):
    assert chosen_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # Full-width letters, letters in circles, brackets and marks of East Asian texts.
        ("\uff42", "B"),
        ("\uff08\uff22\uff09", "B"),
        ("\uff21\uff0e", "A"),
        ("\uff22\uff1a红色", "B"),
        ("\u24b7", "B"),
        ("The answer is \uff22\u3002", "B"),
        ("Answer\uff1a\uff22", "B"),
        ("\\boxed{\uff22}", "B"),
        ("【B】", "B"),
        # Chinese
        ("答案是B", "B"),
        ("选\uff22", "B"),
        ("答案為\uff22", "B"),
        ("正确答案为 B", "B"),
        ("【答案】B", "B"),
        ("故选：B．", "B"),
        ("应选择B项", "B"),
        ("選擇\uff08D\uff09", "D"),
        ("答：B", "B"),
        ("答案是b", "B"),
        ("所以是B。", "B"),
        ("答案为\\text{B}", "B"),
        ("B選項正確", "B"),
        ("B是正确答案", "B"),
        ("B项", "B"),
        ("选项\uff23", "C"),
        ("最终答案：**B**", "B"),
        ("选项A错误，选项B正确。", "B"),
        ("答案不是A，而是B", "B"),
        ("不选A，选B", "B"),
        ("选B，不选A", "B"),
        ("A是错误的，D才是正确的", "D"),
        ("B不正确，C正确", "C"),
        ("答案：A。解析：B选项错误，C项错误", "A"),
        ("答案是B，因为维生素C很重要", "B"),
        ("答案是A还是B？应该是B", "B"),
        ("Answer: A。最终答案：B", "B"),
        ("维生素C", None),
        ("B型", None),
        ("卡拉OK", None),
        ("这是一张A4纸", None),
        ("答案是ABC", None),
        # Japanese
        ("正解は\uff23です", "C"),
        ("答え：\uff08\uff22\uff09", "B"),
        ("選択肢A", "A"),
        ("B項", "B"),
        ("答えは「B」です", "B"),
        ("正しい選択肢はAです", "A"),
        ("Aが正解です", "A"),
        ("Dを選びます", "D"),
        ("Bです。", "B"),
        ("正解は選択肢\uff22", "B"),
        ("よって D が正しい。", "D"),
        ("正解はAではなくBです", "B"),
        ("正解はB。Cは不正解。", "B"),
        ("Aは間違い。正解はB。", "B"),
        ("\uff08A\uff09は誤り、\uff08B\uff09が正しい", "B"),
        ("答えは\uff42です", "B"),
        # Korean
        ("정답은 D입니다", "D"),
        ("정답: B", "B"),
        ("답은 (C)입니다", "C"),
        ("정답은 B번입니다", "B"),
        ("C가 정답입니다", "C"),
        ("B를 선택합니다", "B"),
        ("보기 A", "A"),
        ("B번", "B"),
        ("제 답은 A예요", "A"),
        ("정답은 A가 아니라 B입니다", "B"),
        ("A는 틀렸고 B가 옳다", "B"),
        ("따라서 정답은 C입니다.", "C"),
    ],
)
def test_the_letter_of_an_east_asian_text(text, letter):
    assert chosen_letter(text) == letter


def test_letters_in_thoughts_are_not_picked():
    assert score(
        ["<think>answer: A</think> B", "answer: B</think>", "答案是B</think>答案是A"], "B"
    ).value.tolist() == [1, 0, 0]


def score(texts, answer, **options):
    prompt = Prompt("p", metadata={"answer": answer})
    return ChoiceScorer(**options)([Sample(text=text) for text in texts], [prompt] * len(texts))


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B. red", "\uff22", "选项B", ["A", "B"]])
def test_the_expected_letter_may_be_written_in_many_ways(answer):
    scores = score(["(B)", "C", "none"], answer)
    assert scores.value.tolist() == [1.0, 0.0, 0.0]
    assert scores.parts["parsed"].tolist() == [1.0, 1.0, 0.0]


def test_no_letter_may_be_left_out():
    scores = score(["(B)", "none"], "B", unparsable="invalid")
    assert scores.valid.tolist() == [True, False] and scores.parts["parsed"].tolist() == [1.0, 0.0]


def test_only_the_letters_of_the_task_are_choices():
    assert score(["B or C"], "B", letters="AB").value.tolist() == [1.0]
    with pytest.raises(ContractError, match=r"must be one of the letters AB, got 'C' for the prompt 'p'"):
        score(["B"], "C", letters="AB")


def test_mistakes_are_named():
    for options, words in (({"letters": "abc"}, "`letters`"), ({"unparsable": "no"}, "`unparsable`")):
        with pytest.raises(ConfigError, match=words):
            ChoiceScorer(**options)
    with pytest.raises(ContractError, match="for the prompt 'p'"):
        score(["B"], "")
    with pytest.raises(ContractError, match="try the reward `exact`"):
        score(["B"], "seven")
    with pytest.raises(ContractError, match="for the reward `choice`, got None"):
        score([None], "B")


@pytest.mark.parametrize(
    "piece",
    [
        "answer",
        "answer ",
        "answer: ",
        "(",
        "( ",
        "A",
        "A ",
        "\\boxed{",
        "*",
        " ",
        "a ",
        "答案 ",
        "选",
        "正确的 ",
        "正解 は ",
        "정답은 ",
        "B是",
        "B ",
        "应该是",
        "答案 * : = ",
    ],
)
def test_long_texts_are_read_in_linear_time(piece):
    began = time.process_time()
    chosen_letter(piece * (200_000 // len(piece)))
    assert time.process_time() - began < 5


def test_scores_are_finite_for_any_text():
    texts = [chr(code) * 3 for code in range(0, 0x3000, 7)]
    assert torch.isfinite(score(texts, "B").value).all()
