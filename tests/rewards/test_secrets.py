"""`env:NAME` in settings: read where a scorer or an engine is made, and nowhere before."""

import pytest

from unirl_env.errors import ConfigError, masks
from unirl_env.rewards import build_scorer
from unirl_env.rewards.secrets import remember_environment, resolved
from unirl_env.rollouts.engines.server_client import ServerClient
from unirl_env.types import Scores


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(masks, "_known", set())


class Asks:
    """A scorer with options of every form."""

    def __init__(self, token="", headers=None, url="", key="answer"):
        self.token, self.headers, self.url, self.key = token, headers, url, key

    def __call__(self, samples, prompts):
        return Scores.failed(len(samples))


def test_variables_become_what_they_hold(monkeypatch):
    monkeypatch.setenv("MY_KEY", "q1w2e3")
    given = {"a": ["env:MY_KEY", 1], "url": "https://env:MY_KEY@h/x?k=env:MY_KEY&n=env:MY_KEYS"}
    monkeypatch.setenv("MY_KEYS", "other9")
    assert resolved(given) == {"a": ["q1w2e3", 1], "url": "https://q1w2e3@h/x?k=q1w2e3&n=other9"}
    assert resolved("about env:MY_KEY") == "about env:MY_KEY", "a sentence is no reference"
    assert masks.hide("bad key q1w2e3") == "bad key ***"


def test_a_scorer_is_built_with_them(monkeypatch):
    monkeypatch.setenv("MY_KEY", "q1w2e3")
    spec = {"name": f"{__name__}:Asks", "token": "env:MY_KEY", "headers": {"X": "env:MY_KEY"}}
    inner = build_scorer({"name": "overlong", "scorer": spec, "mode": "zero"}).scorer
    assert inner.token == "q1w2e3" and inner.headers == {"X": "q1w2e3"} and inner.key == "answer"
    assert spec["token"] == "env:MY_KEY", "settings stay as they were written"


def test_one_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match=r"variable NOT_SET must hold the secret that `reward.token` names"):
        build_scorer({"name": f"{__name__}:Asks", "token": "env:NOT_SET"})


def test_secrets_of_the_environment_are_known_by_their_names(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "a1b2c3d4e5")
    monkeypatch.setenv("SOME_PLACE", "here-and-there")
    remember_environment()
    assert masks.hide("a1b2c3d4e5 here-and-there") == "*** here-and-there"
    assert masks.masked({"note": "a1b2c3d4e5"}) == {"note": "env:UNIRL_NOTE"}


def test_an_engines_key_is_hidden_in_what_its_server_says():
    server = ServerClient("vLLM", "http://127.0.0.1:9/x?key=k5k6k7k8", key="t1t2t3t4")
    lost = server._lost("ConnectError: t1t2t3t4", "/health")
    assert "t1t2t3t4" not in str(lost) and "k5k6k7k8" not in str(lost)
    server.close()
