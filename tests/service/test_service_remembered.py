"""An attempt that is repeated does no work twice, and an id stands for one thing."""

import asyncio
import gc
import weakref
from concurrent.futures import Future

import pytest
from service_cases import Counting, asked, body, called, client, error, made, metric, tensors, until, values

from unirl_env.service.idempotency import OtherBody, Remembered
from unirl_env.types import Sample


def test_a_finished_request_is_answered_from_memory():
    app, scorer = made()
    first, second = asked(app, ["a"], id="1"), asked(app, ["a"], id="1")
    assert first.text == second.text and scorer.calls == [["a"]]
    assert metric(app, "samples_total", reward="count") == 1
    assert metric(app, "requests_total", reward="count", status="200") == 1
    assert metric(app, "repeats_total", reward="count") == 1


def test_one_that_is_under_way_is_joined_even_if_the_first_client_left():
    app, scorer = made()

    async def action():
        scorer.gate.clear()
        async with client(app) as caller:
            tasks = [asyncio.create_task(caller.post("/score", json=body(["a"], id="1"))) for _ in range(3)]
            await until(lambda: app.state.service.in_flight == 3 and scorer.inside.is_set())
            tasks[0].cancel()
            await asyncio.gather(tasks[0], return_exceptions=True)
            scorer.gate.set()
            return await asyncio.gather(*tasks[1:])

    assert [values(reply) for reply in asyncio.run(action())] == [[1], [1]]
    assert scorer.calls == [["a"]]


def test_samples_that_cannot_be_judged_are_remembered_as_that():
    app, scorer = made()
    assert error(asked(app, [None], id="1")) == error(asked(app, [None], id="1"))
    assert len(scorer.calls) == 1


def test_an_id_with_another_body_is_refused():
    app, scorer = made()
    asked(app, ["a"], id="1")
    for reply in (
        asked(app, ["b"], id="1"),
        asked(app, ["a"], id="1", metadata={"x": 1}),
        called(app, "POST", "/score", **tensors([Sample(text="a")], id="1")),
    ):
        assert error(reply)[:2] == (409, "other_body") and "try uuid4()" in error(reply)[2]
    assert values(asked(app, ["b"], id="2")) == [1] and len(scorer.calls) == 2


def test_without_an_id_nothing_is_remembered():
    app, scorer = made()
    asked(app, ["a"]), asked(app, ["a"]), asked(app, ["b"])
    assert len(scorer.calls) == 3 and len(app.state.service._remembered) == 0


def test_a_mistake_is_not_remembered():
    app, _ = made()
    asked(app, ["a"], id="1", reward="other")
    assert values(asked(app, ["a"], id="1")) == [1]


def done(value):
    future = Future()
    future.set_result(value)
    return future


def test_memory_is_bounded_in_number_and_time():
    now = [0.0]
    remembered = Remembered(2, 10, clock=lambda: now[0])
    ask = lambda id, value: remembered.ask(id, b"", lambda: done(value))[0].result(0)  # noqa: E731
    assert [ask("a", 1), ask("b", 2), ask("a", 9)] == [1, 2, 1]
    ask("c", 3)
    assert len(remembered) == 2 and ask("b", 9) == 2 and ask("a", 4) == 4
    now[0] = 11
    assert ask("c", 5) == 5 and len(remembered) == 1
    assert Remembered(0, 10).ask("a", b"", lambda: done(1))[0].result(0) == 1


def test_what_is_under_way_is_never_forgotten_and_failures_are():
    remembered = Remembered(1, 0)
    future = Future()
    remembered.ask("a", b"1", lambda: future)
    remembered.ask("b", b"", lambda: done(1))
    assert remembered.ask("a", b"1", Future) == (future, True)
    with pytest.raises(OtherBody):
        remembered.ask("a", b"2", Future)
    future.set_exception(RuntimeError())
    assert remembered.ask("a", b"2", lambda: done(2))[1] is False
    with pytest.raises(ZeroDivisionError):
        remembered.ask("c", b"", lambda: 1 / 0)
    assert remembered.ask("c", b"", lambda: done(3))[1] is False


def test_memory_holds_no_pictures():
    kept = []

    class Watching(Counting):
        def __call__(self, samples, prompts):
            kept.extend(weakref.ref(sample) for sample in samples)
            return super().__call__(samples, prompts)

    app, _ = made({"count": Watching()})
    asked(app, ["a", "b"], id="1")
    asked(app, [None], id="2")
    gc.collect()
    assert len(kept) == 3 and [ref() for ref in kept] == [None] * len(kept)
