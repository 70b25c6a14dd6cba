"""The remote scorer with a service that works: what is sent, what comes back, who may ask."""

import copy
import logging
import multiprocessing
import pickle
import sys

import pytest
import torch
from faulty_service import REWARD, FaultyService

from unirl_env.errors import ConfigError, ContractError, MissingExtra, ServiceLost, WireError
from unirl_env.http import warn_of_plain_http
from unirl_env.modes import MODES
from unirl_env.rewards import RemoteScorer, build_scorer, for_mode, needs_of, score_safely
from unirl_env.rewards.secrets import secret
from unirl_env.types import Prompt, Sample

TOKEN = "a-token-for-tests-only"


def texts(count):
    return [Sample(text=str(i)) for i in range(count)], [Prompt(f"p{i}") for i in range(count)]


@pytest.fixture
def service():
    with FaultyService() as running:
        yield running


def test_samples_are_split_scored_and_put_back_in_order(service):
    scorer = RemoteScorer(service.url, "number", request_size=4, concurrency=3)
    scores = scorer(*texts(18))
    assert scores.value.tolist() == list(range(18)) and scores.valid.all()
    assert list(scores.parts) == ["half"] and scores.parts["half"].tolist() == [i / 2 for i in range(18)]
    assert sorted(service.sizes) == [2, 4, 4, 4, 4]
    assert len(set(service.asked)) == 5 and scorer.counts["attempts"] == 5


def test_requests_are_under_way_at_the_same_time_but_not_more_than_allowed():
    with FaultyService(delay=0.1) as service:
        RemoteScorer(service.url, "number", request_size=1, concurrency=3)(*texts(9))
        assert service.most_at_once == 3


def test_connections_are_used_again(service):
    scorer = RemoteScorer(service.url, "number", request_size=1, concurrency=2)
    for _ in range(5):
        scorer(*texts(4))
    assert service.connections <= 3
    scorer.close()
    assert scorer(*texts(2)).valid.all()


def test_what_the_service_says_of_the_reward_holds():
    whole = {**REWARD, "name": "whole", "needs": ["image", "text"], "pointwise": False}
    with FaultyService(rewards=[REWARD, whole]) as service:
        number, other = (RemoteScorer(service.url, name) for name in ("number", "whole"))
        assert (number.pointwise, number.needs, number.name) == (True, ("text",), "number")
        assert (other.pointwise, other.needs) == (False, ("image", "text"))
        other(*texts(40))
        assert service.sizes == [40]  # whose company counts is not parted


def test_it_is_built_from_words_and_asks_nobody_what_it_needs(service):
    spec = {"name": "remote", "urls": [service.url], "reward": "number", "request_size": 2}
    assert needs_of(spec) == {} and needs_of({"name": "remote"}) == {}
    scorer = build_scorer({"name": "weighted_sum", "parts": {"n": {**spec, "weight": 2.0}}})
    assert scorer.pointwise
    assert scorer(*texts(3)).value.tolist() == [0.0, 2.0, 4.0]


def test_words_say_what_it_looks_at_and_the_service_agrees():
    judged = [{**REWARD, "name": name, "needs": needs} for name, needs in
              {"drawn": ["image"], "silent": [], "both": ["text", "image"]}.items()]  # fmt: skip
    with FaultyService(rewards=judged) as service:

        def words(reward, looks_at):
            return {"name": "remote", "urls": service.url, "reward": reward, "looks_at": looks_at}

        assert needs_of(words("drawn", "image")) == {"image": True}
        assert for_mode(words("drawn", "image"), MODES.get("pe"))["name"] == "pictured"
        with pytest.raises(ConfigError, match="got one of image"):
            for_mode(words("drawn", "image"), MODES.get("ar"))
        assert build_scorer(words("drawn", "image")).needs == ("image",)
        assert build_scorer(words("silent", ["image"])).needs == ("image",)
        assert build_scorer(words("both", ["image", "text"])).needs == ("text", "image")
        for later in (False, True):
            with pytest.raises(ConfigError, match=r"`looks_at` must be .* of 'drawn', \['image'\], got"):
                build_scorer({**words("drawn", "text"), "check": not later})(*texts(1))


def test_no_samples_ask_nobody(service):
    assert len(RemoteScorer(service.url, "number")([], [])) == 0 and service.asked == []
    with pytest.raises(ContractError, match="one per sample, got 1 for 2"):
        RemoteScorer(service.url, "number")(texts(2)[0], texts(1)[1])


def test_nan_is_invalid_for_its_own_sample_only(service):
    samples = [Sample(text=word) for word in ("1", "nan", "3")]
    scores = RemoteScorer(service.url, "number")(samples, texts(3)[1])
    assert scores.valid.tolist() == [True, False, True] and scores.value.isnan().tolist() == [
        False,
        True,
        False,
    ]


def test_what_cannot_be_sent_is_said_before_anything_is(service):
    with pytest.raises(WireError, match="must be JSON"):
        RemoteScorer(service.url, "number")([Sample(text="1")], [Prompt("x", metadata={"t": torch.ones(1)})])
    assert service.asked == []


def test_copies_work_in_other_processes_and_share_no_connection(service):
    scorer = RemoteScorer(service.url, "number", request_size=1, concurrency=2)
    expected = scorer(*texts(4)).value.tolist()
    for twin in (pickle.loads(pickle.dumps(scorer)), copy.deepcopy(scorer)):
        assert twin.pointwise and twin.needs == ("text",)
        assert twin(*texts(4)).value.tolist() == expected
    before = service.connections
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put(scorer(*texts(4)).value.tolist()))
    child.start()
    assert results.get() == expected
    child.join(5)
    assert service.connections > before
    assert scorer(*texts(4)).value.tolist() == expected


# Who may ask.


def test_the_token_comes_from_the_environment_and_is_shown_nowhere(monkeypatch, caplog):
    with FaultyService(token=TOKEN) as service:
        monkeypatch.setenv("SOME_TOKEN", TOKEN)
        scorer = RemoteScorer(service.url, "number", token_env="SOME_TOKEN")
        assert scorer(*texts(2)).valid.all()
        seen = f"{scorer!r} {vars(scorer)} {vars(scorer._client)} {caplog.text}"
        assert TOKEN not in seen and TOKEN.encode() not in pickle.dumps(scorer)


def test_a_wrong_token_stops_before_hours_are_spent(monkeypatch):
    monkeypatch.setenv("UNIRL_SERVICE_TOKEN", "another-token-entirely")
    with FaultyService(token=TOKEN) as service:
        with pytest.raises(ConfigError, match=r"got 401: the token is wrong; .*UNIRL_SERVICE_TOKEN") as told:
            RemoteScorer(service.url, "number")
        assert "another-token" not in str(told.value)
        later = RemoteScorer(service.url, "number", check=False)
        with pytest.raises(ConfigError, match="got 401"):
            score_safely(later, *texts(2))


def test_a_token_that_changes_while_the_run_goes_on_stops_it(service):
    scorer = RemoteScorer(service.url, "number", request_size=1)
    service.token = TOKEN
    with pytest.raises(ConfigError, match="got 401"):
        scorer(*texts(4))
    assert scorer.counts["attempts"] <= 4  # nothing was asked twice


def test_secrets_are_read_or_refused_without_being_repeated(monkeypatch):
    monkeypatch.setenv("A_SECRET", " abc \n")
    assert secret("A_SECRET") == "abc"
    monkeypatch.setenv("A_SECRET", "")
    assert secret("A_SECRET") is None and secret("NOT_SET_ANYWHERE") is None and secret(None) is None
    monkeypatch.setenv("A_SECRET", "ab\ncd")
    with pytest.raises(ConfigError, match="A_SECRET must hold printable ASCII") as told:
        secret("A_SECRET")
    assert "cd" not in str(told.value).replace("A_SECRET", "")


def test_a_token_in_the_open_is_warned_of_once(monkeypatch, caplog):
    monkeypatch.setenv("UNIRL_SERVICE_TOKEN", TOKEN)
    warn_of_plain_http.cache_clear()
    with caplog.at_level(logging.WARNING), FaultyService(token=TOKEN) as service:
        for _ in range(2):
            RemoteScorer("http://judge.example:1", "number", check=False)._client.open()
            RemoteScorer("https://judge.example:1", "number", check=False)._client.open()
            RemoteScorer(service.url, "number")
    assert caplog.text.count("without encryption") == 1 and TOKEN not in caplog.text


# What is checked.


def test_a_service_that_is_not_there_is_named_with_a_remedy():
    with FaultyService() as gone:
        url = gone.url
    with pytest.raises(ConfigError, match=rf"{url} did not answer.*unirl_env.service --config.*check=False"):
        RemoteScorer(url, "number")
    later = RemoteScorer(url, "number", check=False, attempts=2, backoff=0.01)
    assert not later.pointwise and later.needs == ()
    with pytest.raises(ServiceLost, match=f"must say what it serves, got: {url}"):
        later(*texts(2))


def test_one_that_is_asked_later_learns_what_it_serves(service):
    scorer = RemoteScorer(service.url, "number", check=False, request_size=2)
    assert scorer(*texts(4)).valid.all()
    assert scorer.pointwise and scorer.needs == ("text",) and service.sizes == [2, 2]


def test_an_unknown_reward_and_another_protocol_are_named(service):
    with pytest.raises(ConfigError, match=rf"one that {service.url} serves, got 'nummer'; try .*'number'"):
        RemoteScorer(service.url, "nummer")
    with FaultyService(protocol=9) as newer:
        with pytest.raises(ConfigError, match="must speak protocol 1, got 9; try the same version"):
            RemoteScorer(newer.url, "number")


def test_replicas_must_judge_alike_and_one_may_come_later(service, caplog):
    with FaultyService(rewards=[{**REWARD, "scorer": "Other"}]) as other:
        with pytest.raises(ConfigError, match="replicas that serve the same 'number'"):
            RemoteScorer([service.url, other.url], "number")
    scorer = RemoteScorer([other.url, service.url], "number", request_size=1)
    assert "does not answer yet" in caplog.text
    assert scorer(*texts(6)).valid.all()


@pytest.mark.parametrize(
    "urls, words",
    [
        ([], "at least one URL"),
        ("", "at least one URL"),
        ({"a": "http://x"}, "at least one URL"),
        (["localhost:80"], "must be like http://host:port, got 'localhost:80'"),
        ("ftp://x", "must be like"),
        ("http://", "must be like"),
        ("http://x:99999", "must be like"),
        ("http://x/?a=1", "must be like"),
        ([7], "must be like"),
        ("http://me:hidden@x", "must carry no password"),
        ("ftp://me:hidden@x", "must carry no password"),
        ("me:hidden@x", "must carry no password"),
        ("http://x?a@b", "must be like"),
        ("http://me:hidden@x:99999", "must carry no password"),
        (["http://x:1", "http://x:1/"], "must be different replicas"),
    ],
)
def test_urls_are_checked(urls, words):
    with pytest.raises(ConfigError, match=words) as told:
        RemoteScorer(urls, "number")
    assert "hidden" not in str(told.value)


@pytest.mark.parametrize(
    "option, value",
    [
        ("attempts", 0), ("concurrency", 0), ("request_size", 1.5), ("failures", True), ("timeout", 0),
        ("connect_timeout", "5"), ("cooldown", -1), ("backoff", float("nan")), ("reward", ""),
        ("looks_at", "picture"), ("looks_at", 7), ("looks_at", [["image"]]), ("looks_at", None),
    ],
)  # fmt: skip
def test_options_are_checked(option, value):
    words = (
        "(a whole number of )?at least|positive|a (whole|finite) number|the service's name|one or several of"
    )
    with pytest.raises(ConfigError, match=f"`{option}` must be ({words})"):
        RemoteScorer(**{"urls": "http://x", "reward": "number", option: value})


@pytest.mark.parametrize("library", ["httpx", "tenacity"])
def test_a_missing_library_names_the_extra(service, monkeypatch, library):
    scorer = RemoteScorer(service.url, "number")
    scorer.close()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"{library}.*unirl-env\[remote\]"):
        scorer(*texts(1))
