"""Secrets are found by where they stand and how they look, and nothing else is taken for one."""

import pickle
import traceback

import pytest

from unirl_env.errors import ConfigError, MissingExtra, ModelNotFound, ServiceLost, masks
from unirl_env.errors.masks import hide, is_secret_name, masked, remember, same_secrets


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(masks, "_known", set())


@pytest.mark.parametrize(
    "name",
    """token api_key apiKey API-KEY OPENAI_API_KEY hf_token password client_secret Authorization
    AWS_SECRET_ACCESS_KEY private_key x-api-key proxy_auth DB_PASSWORD MYSQL_PWD""".split(),
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    """key keys max_tokens tokens_per_minute pad_token eos_token token_env tokenizer keyboard SSH_AUTH_SOCK
    PWD OLDPWD monkey author secretary token_mean num_steps -""".split(),
)
def test_names_of_other_things(name):
    assert not is_secret_name(name)


def test_what_goes_to_a_server_as_it_is_has_more_names():
    assert is_secret_name("key", ["rollout", "engine_options"]) and is_secret_name("X-Session", ["headers"])
    assert not is_secret_name("Content-Type", ["headers"])
    assert not is_secret_name("X-Api-Key", ["reward", "headers_env"]), "there stands the name of a variable"


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"api_key": "abc"}, {"api_key": "env:UNIRL_R_API_KEY"}),
        ({"api_key": "env:MINE"}, {"api_key": "env:MINE"}),
        ({"parts": [{"token": "tttt"}]}, {"parts": [{"token": "env:UNIRL_R_PARTS_0_TOKEN"}]}),
        ({"note": "sk-proj-0123456789abcdef"}, {"note": "env:UNIRL_R_NOTE"}),
        ({"note": "Bearer abcdef"}, {"note": "env:UNIRL_R_NOTE"}),
        (
            {"headers": {"X-Key": "q", "Accept": "json"}},
            {"headers": {"X-Key": "env:UNIRL_R_HEADERS_X_KEY", "Accept": "json"}},
        ),
        (
            {"url": "https://me:pw@host/a?n=2&key=q1w2#x"},
            {"url": "https://env:UNIRL_R_URL_USER@host/a?n=2&key=env:UNIRL_R_URL_KEY#x"},
        ),
        ({"url": "http://host/a?n=2"}, {"url": "http://host/a?n=2"}),
        ({"key": "answer", "max_tokens": 8, "pad_token": "<pad>", "token": "<image>", "password": None},) * 2,
        ({"system": "the key: sk-ate or swim, ask-me"},) * 2,
    ],
)
def test_what_is_written_down(given, written):
    assert masked(given, ("r",)) == written


def test_settings_that_differ_in_secrets_are_the_same():
    one = {"url": "http://h?key=aaaa", "token": "tttt", "n": 1}
    other = {"url": "http://h?key=env:HERE", "token": "env:UNIRL_TOKEN", "n": 1}
    assert same_secrets(one) == same_secrets(other) == same_secrets(masked(one))
    assert same_secrets(one) != same_secrets({**other, "n": 2})


def test_what_was_masked_is_hidden_everywhere():
    masked({"password": 'p"w/ d', "url": "http://h?key=q1w2e3"})
    said = hide('got p"w/ d, "p\\"w/ d", p%22w%2F%20d and q1w2e3')
    assert said == 'got ***, "***", *** and ***'
    remember("ab", None, "")
    assert hide("a tab") == "a tab", "what is so short stands in too many words"


@pytest.mark.parametrize("kind", [ConfigError, ModelNotFound, ServiceLost])
def test_no_error_of_ours_repeats_a_secret(kind):
    remember("q1w2e3r4")
    error = kind("got status 401: bad key q1w2e3r4")
    assert str(error) == "got status 401: bad key ***"
    assert "q1w2" not in "".join(traceback.format_exception(pickle.loads(pickle.dumps(error))))


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(MissingExtra("httpx", "remote")))
    assert isinstance(error, MissingExtra) and "unirl-env[remote]" in str(error)
