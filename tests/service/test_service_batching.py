"""Who is merged with whom, and what that changes: nothing that a client can see."""

import asyncio
import threading

import pytest
import torch
from service_cases import PROMPT, Counting, asked, body, client, error, made, metric, until, values

from unirl_env.service.batching import Abandoned, Batcher, Busy, Unjudgeable
from unirl_env.types import Sample, Scores


def together(app, scorer, *requests, first="hold"):
    """Requests that all wait while `first` is scored; their replies."""

    async def action():
        scorer.gate.clear()
        async with client(app) as caller:
            held = asyncio.create_task(caller.post("/score", json=body([first])))
            await until(scorer.inside.is_set)
            rest = []
            for number, texts in enumerate(requests, 1):
                rest.append(asyncio.create_task(caller.post("/score", json=body(texts))))
                waiting = sum(map(len, requests[:number]))
                await until(lambda: metric(app, "waiting_samples", reward="count") == waiting)  # noqa: B023
            scorer.gate.set()
            return [await reply for reply in (held, *rest)][1:]

    return asyncio.run(action())


def test_pointwise_requests_of_all_clients_are_merged_and_split_again():
    app, scorer = made(max_wait_ms=0)
    replies = together(app, scorer, ["a", "bb"], ["ccc"], ["dddd", "e", "ff"])
    assert [values(reply) for reply in replies] == [[1, 2], [3], [4, 1, 2]]
    assert scorer.calls == [["hold"], ["a", "bb", "ccc", "dddd", "e", "ff"]]
    assert replies[0].json()["scores"]["parts"] == {"company": [6.0, 6.0]}


def test_batches_are_filled_to_the_brim_and_large_requests_are_cut():
    app, scorer = made(max_batch=4, max_wait_ms=0)
    replies = together(app, scorer, ["a"] * 3, ["bb"] * 6, ["ccc"])
    assert [values(reply) for reply in replies] == [[1] * 3, [2] * 6, [3]]
    assert [len(call) for call in scorer.calls] == [1, 4, 4, 2]


def test_others_get_each_request_as_it_is():
    app, scorer = made({"count": Counting(pointwise=False)}, max_batch=2, max_wait_ms=0)
    replies = together(app, scorer, ["a", "bb"], ["ccc"], ["d"] * 5)
    assert [values(reply) for reply in replies] == [[1, 2], [3], [1] * 5]
    assert scorer.calls == [["hold"], ["a", "bb"], ["ccc"], ["d"] * 5]


def test_one_thread_calls_a_scorer_even_under_two_names():
    scorer, most, now = Counting(), [], threading.Semaphore(0)

    def counted(samples, prompts):
        now.release()
        most.append(now._value)
        scores = scorer(samples, prompts)
        now.acquire()
        return scores

    app, _ = made({"count": counted, "again": counted})

    async def action():
        async with client(app) as caller:
            posts = [caller.post("/score", json=body(["a"], reward)) for reward in ("count", "again") * 10]
            return await asyncio.gather(*posts)

    assert all(values(reply) == [1] for reply in asyncio.run(action()))
    assert max(most) == 1 and len(scorer.threads) == 2
    app, scorer = made()
    for _ in range(3):
        asked(app, ["a"])
    assert len(scorer.threads) == 1


def test_one_who_asks_for_the_impossible_is_refused_alone():
    app, scorer = made(max_wait_ms=0)
    replies = together(app, scorer, ["a"], ["bb", None], ["ccc"])
    assert [reply.status_code for reply in replies] == [200, 422, 200]
    assert (values(replies[0]), values(replies[2])) == ([1], [3])
    assert error(replies[1])[1] == "cannot_judge"
    assert scorer.calls[2:] == [["a"], ["bb", None], ["ccc"]]


def test_one_whose_sample_breaks_the_scorer_is_invalid_alone():
    app, scorer = made(max_wait_ms=0)
    replies = together(app, scorer, ["a"], ["boom", "bb"], ["ccc"])
    assert [values(reply) for reply in replies] == [[1], [None, 2], [3]]


def test_a_large_request_that_is_refused_leaves_nothing_behind():
    app, scorer = made(max_batch=2, max_wait_ms=0)
    replies = together(app, scorer, [None, "a", "a", "a", "a"], ["bb"])
    assert replies[0].status_code == 422 and values(replies[1]) == [2]
    assert metric(app, "waiting_samples", reward="count") == 0
    assert sum(call.count("a") for call in scorer.calls) < 4


def test_the_first_waits_for_company_but_not_for_long():
    scorer = Counting()
    batcher = Batcher(scorer, max_batch=3, max_wait=20, max_waiting=9)
    one = batcher.submit([Sample(text="a")], [PROMPT])
    two = batcher.submit([Sample(text="bb")] * 2, [PROMPT] * 2)
    assert one.result(5).value.tolist() == [1] and two.result(5).value.tolist() == [2, 2]
    assert scorer.calls == [["a", "bb", "bb"]]  # full, so nobody waited on
    alone = Batcher(scorer, max_batch=3, max_wait=0.01, max_waiting=9)
    assert alone.submit([Sample(text="a")], [PROMPT]).result(5).value.tolist() == [1]


def test_more_than_may_wait_is_told_to_come_again():
    app, scorer = made(max_waiting=1024, max_wait_ms=0)
    scorer.gate.clear()

    async def action():
        async with client(app) as caller:
            first = asyncio.create_task(caller.post("/score", json=body(["a"])))
            await until(scorer.inside.is_set)
            full = asyncio.create_task(caller.post("/score", json=body(["a"] * 1024)))
            await until(lambda: metric(app, "waiting_samples", reward="count") == 1024)
            late = await caller.post("/score", json=body(["a"], id="late"))
            scorer.gate.set()
            await asyncio.gather(first, full)
            return late, await caller.post("/score", json=body(["a"], id="late"))

    late, again = asyncio.run(action())
    assert error(late)[:2] == (429, "busy") and int(late.headers["Retry-After"]) > 0
    assert "At most 1024 samples may wait at `count`" in error(late)[2]
    assert values(again) == [1]


def test_clients_that_leave_leave_nothing():
    app, scorer = made(max_wait_ms=0, max_batch=9)

    async def action():
        scorer.gate.clear()
        async with client(app) as caller:
            tasks = [asyncio.create_task(caller.post("/score", json=body(["a"] * 9))) for _ in range(5)]
            await until(lambda: metric(app, "waiting_samples", reward="count") == 36)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert app.state.service.in_flight == 0 and app.state.service.room.taken == 0
            scorer.gate.set()
            return await caller.post("/score", json=body(["bb"]))

    assert values(asyncio.run(action())) == [2]
    assert metric(app, "waiting_samples", reward="count") == 0


def test_the_end_finishes_or_tells():
    scorer = Counting()
    batcher = Batcher(scorer, max_batch=2, max_wait=0, max_waiting=9)
    scorer.gate.clear()
    futures = [batcher.submit([Sample(text="a")] * 3, [PROMPT] * 3) for _ in range(2)]
    scorer.inside.wait(5)
    batcher.close()
    with pytest.raises(Busy):
        batcher.submit([Sample(text="a")], [PROMPT])
    batcher.abandon()
    assert [future.result(0) for future in futures] == [Abandoned(), Abandoned()]
    scorer.gate.set()
    batcher.close(5)
    assert not batcher._thread.is_alive() and [future.result(0) for future in futures] == [Abandoned()] * 2

    batcher = Batcher(scorer, max_batch=2, max_wait=0, max_waiting=9)
    futures = [batcher.submit([Sample(text="a")] * 3, [PROMPT] * 3) for _ in range(2)]
    batcher.close(5)
    assert [len(future.result(0)) for future in futures] == [3, 3]


def test_a_scorer_that_gives_something_else_is_told_to_its_own():
    batcher = Batcher(lambda samples, prompts: Scores(torch.zeros(1)), max_batch=2, max_wait=0, max_waiting=9)
    outcome = batcher.submit([Sample(text="a")] * 2, [PROMPT] * 2).result(5)
    assert isinstance(outcome, Unjudgeable) and "one score per sample" in outcome.message
