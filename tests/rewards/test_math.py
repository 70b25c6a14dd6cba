"""Mathematical equality of answers, and what hostile ones cost."""

import contextlib
import os
import pickle
import signal
import threading
import time

import pytest
import torch

from unirl_env.errors import ConfigError, ContractError, MissingExtra
from unirl_env.rewards import MathScorer
from unirl_env.rewards.texts.math_process import Comparison, MathProcess
from unirl_env.types import Prompt, Sample

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def scorer():
    return MathScorer(timeout=20.0)


def scored(scorer, texts, answer):
    texts, prompt = list(texts), Prompt("What is it?", metadata={"answer": answer})
    return scorer([Sample(text=text) for text in texts], [prompt] * len(texts))


def said(text):
    return rf"So it is \boxed{{{text}}}."


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("5", "5"), ("5", "5.0"), ("5", "+5"), ("5", "005"), ("5", "5."), ("5", "$5$"), ("5", r"\$5"),
        ("5", r"5\text{ cm}"), ("5 cm", "5"), ("5", r"\text{5}"), ("5", "\uff15"), ("5", "x = 5"),
        ("x=5", "5"), ("-5", "\u22125"), ("-5", "-5"), (5, "5"), (0.5, r"\frac12"), ("5", "**5**"),
        ("5", "  5\n"), ("1/2", "0.5"), (r"\frac{1}{2}", r"\dfrac{2}{4}"), ("1/2", "½"), ("50%", "0.5"),
        ("0.5", r"50\%"), (r"50\%", "50"), ("50 percent", "1/2"), ("1,234", "1234"), ("1234", "1{,}234"),
        ("1234", r"1\,234"), (r"\sqrt{8}", r"2\sqrt{2}"), ("1/3", "0.33333333"), (r"\pi", "π"),
        ("(x+1)^2", "x^2+2x+1"), ("x²", "x^2"), (r"\{1, 2\}", r"\{2, 1\}"), ("(1, 2)", "(1,2)"),
        (r"\text{Monday}", "Monday"), ("monday", "Monday"), ("2^{10}", "1024"),
        (r"3 \times 10^8", "3\u00d710^8"), (r"\frac{\frac{1}{2}}{3}", "1/6"), (r"\text{(B)}", "B"),
        ("9" * 250, "9" * 250), (["7", "5"], "5"),
    ],
)  # fmt: skip
def test_what_is_equal(scorer, answer, text):
    scores = scored(scorer, [said(text)], answer)
    assert scores.value.tolist() == [1.0]
    assert scores.parts["parsed"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("5", "6"), ("5", "-5"), ("5", "50"), ("5", "5, 6"), ("5", "5 or 6"), ("5", "1,2,3,4,5"),
        ("5", "x"), ("5", "x < 6"), ("5", "5x"), ("5", "(4,6)"), ("5", "5 = 6"), ("12", "1,2"),
        ("1/3", "0.33"), ("1000000", "1000000.4"), ("(2,3)", "[2,3]"), ("0.5", "5"), ("Monday", "Yadmon"),
        ("sunday", "monday"), ("1/0", "5"), ("1/3", "0.33334"), ("7/3", "-7/3"), (r"\sqrt{2}", "1.41"),
        ("9" * 250, "9" * 249 + "8"), (["7", "8"], "5"),
    ],
)  # fmt: skip
def test_what_is_not(scorer, answer, text):
    assert scored(scorer, [said(text)], answer).value.tolist() == [0.0]


def test_plain_numbers_need_no_algebra():
    scorer = MathScorer()
    scorer._process = None
    texts = ["5", "5.00", "10/2", r"\frac{10}{2}", "5,000", "-5", "+5", "2/5", "5.01", r"-\dfrac{5}{1}"]
    assert scored(scorer, map(said, texts), "5").value.tolist() == [1, 1, 1, 1, 0, 0, 1, 0, 0, 0]


def test_the_last_box_counts_then_the_last_number(scorer):
    texts = [
        r"\boxed{4}, no: \boxed{5}",
        r"\boxed{5}, no: \boxed{4}",
        "I think 4, no, 5",
        r"<think>\boxed{4}</think> \boxed{5}",
        r"<think>\boxed{5}</think> It is 4.",
        r"\boxed{5} of 7 people",
        r"\boxed{5",
    ]
    assert scored(scorer, texts, "5").value.tolist() == [1, 0, 1, 1, 0, 1, 1]


UNREADABLE = [
    "",
    " ",
    "no idea",
    r"\boxed{}",
    r"\boxed{\frac{7}}",
    "\x00\x01",
    "多少",
    "\\",
    "\U0001f600" * 99,
]


def test_what_cannot_be_read_is_counted(scorer):
    scores = scored(scorer, [*UNREADABLE, "5"], "5")
    assert scores.value.tolist() == [0.0] * len(UNREADABLE) + [1.0]
    assert scores.valid.all()
    assert scores.parts["parsed"].tolist() == [0.0] * len(UNREADABLE) + [1.0]


def test_what_cannot_be_read_may_be_left_out():
    scores = scored(MathScorer(unparsable="invalid"), [*UNREADABLE[:4], "5", "6"], "5")
    assert scores.valid.tolist() == [False] * 4 + [True, True]
    assert scores.value[4:].tolist() == [1.0, 0.0]
    assert scores.parts["parsed"].tolist() == [0, 0, 0, 0, 1, 1]


def test_an_expected_answer_that_cannot_be_read_is_not_the_samples_fault(scorer, caplog):
    scores = scored(scorer, [said("5"), said(r"\frac{7}"), said("6")], r"\frac{7}")
    assert scores.valid.tolist() == [False, True, False]
    assert scores.value[1] == 1.0
    assert caplog.text.count("The expected answer of 'What is it?' cannot be read") == 1


def test_a_missing_answer_or_text_breaks_the_contract(scorer):
    with pytest.raises(ContractError, match=r"metadata\['answer'\].*got None for the prompt 'Why\?'"):
        scorer([Sample(text="5")], [Prompt("Why?", metadata={"solution": "5"})])
    with pytest.raises(ContractError, match=r"`Sample.text` must be a text for the reward `math`, got None"):
        scored(scorer, [None], "5")
    other = MathScorer("solution")
    assert other([Sample(text="5")], [Prompt("Why?", metadata={"solution": 5})]).value.tolist() == [1.0]


HOSTILE = [
    "9^{9^{9^{9}}}",
    "99999999!",
    "{" * 140 + "1" + "}" * 140,
    "x^" * 140 + "x",
    r"\frac{" * 40,
    r"\int " * 50,
    "1+" * 140,
    "\\",
    "a" * 299,
    "1" * 100_000,
    "__import__('os').system('exit')",
    "%" * 290,
]


def test_hostile_answers_cost_bounded_time_and_no_process_of_ours():
    scorer = MathScorer(timeout=1.0)
    scorer._process.compare("5", "10/2")
    began = time.monotonic()
    scores = scored(scorer, [*map(said, HOSTILE), said("0.5")], "1/2")
    assert time.monotonic() - began < 90
    assert scores.value.tolist() == [0.0] * len(HOSTILE) + [1.0]
    assert scores.valid.all()


def test_512_towers_of_powers_cost_seconds(scorer):
    towers = [f"{base}^{{9^{{9^{{9}}}}}}" for base in range(2, 258)]
    towers += [rf"x + \sqrt{{{tower}}}" for tower in towers]
    scored(scorer, [said("x")], "5")
    began = time.monotonic()
    scores = scored(scorer, map(said, towers), "5")
    assert time.monotonic() - began < 100
    assert scores.value.tolist() == [0.0] * 512
    assert scores.parts["parsed"].sum() == 0


def child_of(process):
    return process._end.peek()[2][0]


def workers(child):
    with open(f"/proc/{child.pid}/task/{child.pid}/children") as file:
        return [int(number) for number in file.read().split()]


ENDLESS = r"\gcd(10^{10^9}, 5)"


def test_an_answer_that_spends_its_time_is_unreadable_and_the_next_worker_is_there():
    process = MathProcess(timeout=0.2)
    assert process.compare("5", "10/2") == Comparison(True, True, True)
    child, worker = child_of(process), workers(child_of(process))
    assert process.compare("5", ENDLESS) == Comparison(True, False, False)
    assert process.compare(ENDLESS, "5").expected is False
    assert process.compare("5", "10/2") == Comparison(True, True, True)
    assert child_of(process) is child
    assert child.poll() is None
    assert workers(child) != worker


def test_the_clock_ends_no_answer():
    process = MathProcess(timeout=0.5)
    process.compare("5", "10/2")
    worker = workers(child_of(process))[0]
    os.kill(worker, signal.SIGSTOP)
    awake = threading.Timer(2.0, os.kill, (worker, signal.SIGCONT))
    awake.start()
    assert process.compare("5", r"\sqrt{25}") == Comparison(True, True, True)
    awake.join()


def test_a_killed_process_costs_no_answer_its_point():
    process = MathProcess()
    process.compare("5", "10/2")
    os.kill(workers(child_of(process))[0], signal.SIGKILL)
    assert process.compare("5", r"\sqrt{25}") == Comparison(True, True, True)
    os.killpg(child_of(process).pid, signal.SIGKILL)
    assert process.compare("5", r"\sqrt{25}") == Comparison(True, True, True)


def test_an_answer_whose_process_is_killed_over_and_over_is_invalid():
    scorer = MathScorer(timeout=60.0)
    scored(scorer, [said("x")], "5")
    child, over = child_of(scorer._process), threading.Event()

    def kill():
        while not over.wait(0.05):
            with contextlib.suppress(OSError):
                for worker in workers(child):
                    os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        scores = scored(scorer, [said(ENDLESS), said("5")], "5")
    finally:
        over.set()
        killer.join()
    assert scores.valid.tolist() == [False, True]
    assert scores.parts["parsed"].isnan().tolist() == [True, False]
    assert scored(scorer, [said(r"\sqrt{25}")], "5").value.tolist() == [1.0]


def test_an_interrupted_wait_leaves_no_answer_behind_and_no_child(monkeypatch):
    process = MathProcess()
    process.compare("5", "10/2")
    child = process._end.peek()[2][0]

    def interrupted(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(process, "_received", interrupted)
        with pytest.raises(KeyboardInterrupt):
            process.compare("5", "5.0")
    assert child.poll() is not None
    assert not process.compare("5", "12/2").equal
    child = process._end.peek()[2][0]
    assert child.poll() is None
    del process
    assert child.poll() is not None


def test_it_works_in_threads_and_after_a_journey(scorer):
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy._process.timeout == 20.0
    found = {}

    def work(number):
        found[number] = scored(
            copy, [said(f"{number}x/3"), said(f"{number}x")], f"\\frac{{{number}x}}{{3}}"
        ).value

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert torch.stack([found[n] for n in range(1, 9)]).tolist() == [[1.0, 0.0]] * 8


def test_settings_are_checked(monkeypatch):
    for options, words in (
        ({"unparsable": "nan"}, "`unparsable` must be one of"),
        ({"timeout": 0}, "`timeout` must be positive"),
        ({"max_characters": -1}, "`max_characters` must be positive"),
    ):
        with pytest.raises(ConfigError, match=words):
            MathScorer(**options)
    monkeypatch.setattr("unirl_env.rewards.texts.math_answer.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"`math-verify` must be installed.*unirl-env\[math\]"):
        MathScorer()


@pytest.mark.ray
def test_it_works_in_a_ray_actor():
    import cluster
    import ray

    cluster.start()

    @ray.remote
    class Judge:
        def __init__(self, scorer):
            self.scorer = scorer

        def judge(self, text):
            return self.scorer([Sample(text=text)], [Prompt("p", metadata={"answer": "x/2"})]).value.tolist()

    judge = Judge.remote(MathScorer())
    assert ray.get([judge.judge.remote("$0.5x$"), judge.judge.remote("$x/3$")], timeout=300) == [[1.0], [0.0]]
    ray.kill(judge)
