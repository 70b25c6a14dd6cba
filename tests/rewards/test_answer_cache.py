"""Answers on the disk: kept, shared, and never in the way."""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading

import pytest
from chat_stand_in import ChatStandIn, chat, verdict

from unirl_env.rewards.external.answer_cache import AnswerCache, answer_key
from unirl_env.rewards.external.judge_scorer import JudgeScorer
from unirl_env.types import Prompt, Sample

PROMPTS = [Prompt("a sum")] * 6
SAMPLES = [Sample(text=f"it is {n}") for n in range(6)]


def judge(server, cache, **options):
    settings = {"rubric": "Good? {prompt} {answer}", "cache": cache, "attempts": 1}
    return JudgeScorer(server.url, "judge-1", **{**settings, **options})


@pytest.fixture
def server():
    with ChatStandIn() as made:
        yield made


def warnings(caplog):
    return [record for record in caplog.records if "cache of answers" in record.getMessage()]


def test_what_is_kept_is_found_by_another_one(tmp_path):
    path = tmp_path / "folder" / "answers.sqlite"
    first = AnswerCache(path)
    assert first.find(["a"]) == {}
    first.keep("a", {"score": 0.1 + 0.2})
    first.keep("b", [1, None])
    first.keep("a", "the first one stays")
    second = AnswerCache(str(path))
    assert second.find(["b", "c", "a", "a"]) == {"a": {"score": 0.1 + 0.2}, "b": [1, None]}
    assert len(second.find(f"key {n}" for n in range(3000))) == 0
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    first.close()
    assert first.find(["a"]) and AnswerCache(None).find(["a"]) == {}


def test_a_key_is_a_digest_of_everything_and_of_no_order():
    assert answer_key(a=1, b="x") == answer_key(b="x", a=1) != answer_key(a=1, b="y")
    assert answer_key(a={"p": 1, "q": 2}) == answer_key(a={"q": 2, "p": 1})
    assert len(answer_key(a="\ud800")) == 64


def test_a_hit_asks_for_nothing_and_says_the_same(server, tmp_path):
    server.answer = lambda body: chat(verdict(round(len(server.seen) * 1.1, 3)))
    first = judge(server, tmp_path / "c")(SAMPLES[:3], PROMPTS[:3])
    asked = len(server.seen)
    later = judge(server, tmp_path / "c")
    both = later(SAMPLES, PROMPTS)
    assert asked == 3 and len(server.seen) == 6 and later.spending.requests == 3
    assert both.value[:3].tolist() == first.value.tolist()
    assert both.parts["raw"][:3].tolist() == first.parts["raw"].tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0, 20)},
        {"rubric": "Is it good? {prompt} {answer}"},
        {"temperature": 0.5},
        {"seed": 1},
        {"max_tokens": 99},
        {"structured": "json_object"},
        {"extra": {"top_p": 0.5}},
        {"aspects": {"score_of_style": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_an_answer_decides_the_key(server, tmp_path, change):
    judge(server, tmp_path / "c")(SAMPLES[:1], PROMPTS[:1])
    judge(server, tmp_path / "c", repeats=0, **change)(SAMPLES[:1], PROMPTS[:1])
    assert len(server.seen) == 2


def test_weights_of_aspects_and_the_address_do_not(server, tmp_path):
    server.answer = lambda body: chat(json.dumps({"truth": 10, "style": 0}))
    settings = {"reason": False, "cache": tmp_path / "c"}
    first = judge(server, **settings, aspects={"truth": 1, "style": 1})(SAMPLES[:1], PROMPTS[:1])
    with ChatStandIn() as elsewhere:
        second = judge(elsewhere, **settings, aspects={"truth": 3, "style": 1})(SAMPLES[:1], PROMPTS[:1])
        assert elsewhere.seen == [] and len(server.seen) == 1
    assert (first.value.item(), second.value.item()) == (0.5, 0.75)


def test_only_sound_verdicts_are_kept(server, tmp_path):
    server.answer = lambda body: chat(verdict(99))
    assert not judge(server, tmp_path / "c")(SAMPLES[:1], PROMPTS[:1]).valid.any()
    server.answer = lambda body: chat(verdict(9))
    assert judge(server, tmp_path / "c")(SAMPLES[:1], PROMPTS[:1]).valid.all()
    with sqlite3.connect(tmp_path / "c") as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (1,)
        connection.execute("UPDATE answers SET value = '{\"score\": 99}'")
    asked = len(server.seen)
    assert judge(server, tmp_path / "c")(SAMPLES[:1], PROMPTS[:1]).value.item() == pytest.approx(0.9)
    assert len(server.seen) == asked + 1


WRITE = """
    import sys
    from unirl_env.rewards.external.answer_cache import AnswerCache
    cache = AnswerCache(sys.argv[1])
    for n in range(100):
        cache.keep(f"{sys.argv[2]} {n}", n)
        cache.keep(f"shared {n}", n)
"""


def python(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_and_threads_share_one_file(tmp_path, caplog):
    path = tmp_path / "c"
    processes = [python(WRITE, path, name) for name in "abc"]
    cache = AnswerCache(path)
    threads = [threading.Thread(target=lambda n=n: cache.keep(f"thread {n}", n)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [process.communicate(timeout=120) for process in processes] == [("", "")] * 3
    keys = [f"{name} {n}" for name in ("a", "b", "c", "shared") for n in range(100)]
    assert AnswerCache(path).find(keys) == {key: int(key.split()[1]) for key in keys}
    assert len(cache.find(f"thread {n}" for n in range(20))) == 20 and not warnings(caplog)


def test_a_forked_process_opens_its_own(tmp_path):
    cache = AnswerCache(tmp_path / "c")
    cache.keep("a", 1)
    connection = cache._connection
    child = os.fork()
    if child == 0:
        sound = cache.find(["a"]) == {"a": 1} and cache._connection is not connection
        os._exit(0 if sound else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.find(["a"]) == {"a": 1} and cache._connection is connection


def damaged(path):
    path.write_bytes(b"This is no database. " * 500)


def of_another_kind(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE answers (other TEXT)")


def folder(path):
    path.mkdir()


def below_a_file(path):
    path.parent.joinpath("file").write_text("")
    return path.parent / "file" / "c"


@pytest.mark.parametrize("spoil", [damaged, of_another_kind, folder, below_a_file])
def test_a_file_that_cannot_be_used_loses_no_score(server, tmp_path, caplog, spoil):
    path = spoil(tmp_path / "c") or tmp_path / "c"
    scorer = judge(server, path)
    for _ in range(2):
        assert scorer(SAMPLES, PROMPTS).valid.all()
    assert len(warnings(caplog)) == 1 and "scores are not lost" in caplog.text
    assert len(server.seen) == 12


def test_a_damaged_row_loses_no_score(server, tmp_path, caplog):
    judge(server, tmp_path / "c")(SAMPLES, PROMPTS)
    with sqlite3.connect(tmp_path / "c") as connection:
        connection.execute("UPDATE answers SET value = '{'")
    assert judge(server, tmp_path / "c")(SAMPLES, PROMPTS).valid.all()
    assert len(warnings(caplog)) == 1 and len(server.seen) == 12


def test_a_file_that_another_process_keeps_to_itself_loses_no_score(server, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("unirl_env.rewards.external.answer_cache.BUSY_SECONDS", 0.1)
    judge(server, tmp_path / "c")(SAMPLES[:3], PROMPTS[:3])
    with sqlite3.connect(tmp_path / "c", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        scorer = judge(server, tmp_path / "c")
        assert scorer(SAMPLES, PROMPTS).valid.all()
        assert len(warnings(caplog)) == 1 and "locked" in caplog.text
        other.execute("ROLLBACK")


def test_a_disk_that_is_full_loses_no_score_and_leaves_what_is_there(server, tmp_path, caplog):
    judge(server, tmp_path / "c")(SAMPLES[:3], PROMPTS[:3])
    scorer = judge(server, tmp_path / "c")
    connection = scorer.cache._open()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    connection.execute("CREATE TEMP TRIGGER IF NOT EXISTS full BEFORE INSERT ON main.answers "
                       "BEGIN SELECT raise(ABORT, 'database or disk is full'); END")  # fmt: skip
    for _ in range(2):
        assert scorer(SAMPLES, PROMPTS).valid.all()
    assert len(warnings(caplog)) == 1 and "disk is full" in caplog.text
    assert len(server.seen) == 3 + 3 + 3  # the first three were found both times


FULL = """
    import logging, resource, signal, sys
    from unirl_env.rewards.external.judge_scorer import JudgeScorer
    from unirl_env.types import Prompt, Sample
    logging.basicConfig()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writes fail as they do on a full disk
    scorer = JudgeScorer(sys.argv[1], "m", rubric="{answer}", cache=sys.argv[2], attempts=1)
    samples = [Sample(text=str(n)) for n in range(400)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    scores = scorer(samples, [Prompt("x")] * 400)
    print(int(scores.valid.sum()), scorer.spending.requests)
"""


def test_files_that_may_not_grow_lose_no_score(server, tmp_path):
    path = tmp_path / "c"
    said, warned = python(FULL, server.url, path).communicate(timeout=300)
    assert said.split() == ["400", "400"], warned
    assert warned.count("cache of answers") == 1
    with sqlite3.connect(path) as connection:
        kept = connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    assert 0 < kept < 400


READ_ONLY = """
    import logging, os, sys
    from unirl_env.rewards.external.answer_cache import AnswerCache
    logging.basicConfig()
    if os.geteuid() == 0:
        os.setuid(65534)  # the superuser may write everywhere
    for name in ("old", "new"):
        cache = AnswerCache(os.path.join(sys.argv[1], name))
        for _ in range(2):
            cache.keep("b", 2)
            print(cache.find(["a", "b"]))
"""


def test_a_folder_that_is_read_only_loses_no_score():
    with tempfile.TemporaryDirectory() as folder:
        old = AnswerCache(f"{folder}/old")
        old.keep("a", 1)
        os.chmod(folder, 0o555)
        said, warned = python(READ_ONLY, folder).communicate(timeout=120)
        os.chmod(folder, 0o700)
    assert said.splitlines() == ["{'a': 1}"] * 2 + ["{}"] * 2, warned
    assert warned.count("cache of answers") == 2 and warned.count("WARNING") == 2
