"""What a service is told, by a file and the command line, and what is refused before anything is loaded."""

import pytest

from unirl_env.errors import ConfigError
from unirl_env.http import is_loopback
from unirl_env.rewards.wire import Limits
from unirl_env.service import __main__ as door
from unirl_env.service.service_settings import ServiceSettings, check_door, read_settings

TOKEN = "a-token-of-the-tests-0123456789"


def test_a_file_mirrors_the_dataclass_and_is_overridden(tmp_path):
    path = tmp_path / "my_service.yaml"
    path.write_text(
        "rewards:\n  point: {name: linear, weights: [1.0]}\n  shapes: shapes\n"
        "port: 9000\nmax_wait_ms: 2\nlimits: {samples: 8}\n"
    )
    settings = read_settings(
        path,
        ["port=9001", "limits.body=1000", "rewards.point.weights=[2.0]"],
        ["template", "a={name: shapes}"],
    )
    assert settings == ServiceSettings(
        rewards={
            "point": {"name": "linear", "weights": [2.0]},
            "shapes": "shapes",
            "template": "template",
            "a": {"name": "shapes"},
        },
        port=9001,
        max_wait_ms=2.0,
        limits=Limits(samples=8, body=1000),
    )
    assert isinstance(settings.limits, Limits) and type(settings.rewards["point"]) is dict


def test_a_number_in_quotes_is_one(tmp_path):
    path = tmp_path / "my_service.yaml"
    path.write_text("port: '9000'\nlimits: {samples: '8'}\nhost: '127.0.0.1'\n")
    settings = read_settings(path)
    assert (settings.port, settings.limits.samples, settings.host) == (9000, 8, "127.0.0.1")


def test_a_reward_that_is_typed_takes_the_place_of_the_files(tmp_path):
    path = tmp_path / "my_service.yaml"
    path.write_text("rewards: {a: {name: linear, weights: [1.0]}}")
    overrides = ["rewards.a={name: jpeg}", "rewards.a.small=false"]
    assert read_settings(path, overrides).rewards == {"a": {"name": "jpeg", "small": False}}


@pytest.mark.parametrize(
    "text, words",
    [
        ("prot: 3", "`prot` of .*my.yaml must be a setting of a service.*did you mean `port`"),
        ("token: abc", "`token` of"),
        ("limits: {sample: 3}", "did you mean `limits.samples`"),
        ("port: abc", "`port` must be a whole number, got 'abc'"),
        ("rewards: [shapes]", "`rewards` must be a mapping, got"),
        ("rewards: {x: nope}", "`reward` must be one of .*got 'nope'"),
        ("rewards: {x: shaeps}", "try 'shapes'"),
        ("rewards: {x: 3}", "`rewards.x` must be a name or a mapping"),
        ("stuck_seconds: 0", "`stuck_seconds` must be positive"),
        ("rewards: {x: {}}", "."),
        ("rewards: {a b: shapes}", "must be named by letters"),
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "must be YAML"),
        ("max_waiting: 10", "`max_waiting` must be at least `limits.samples`"),
        ("max_bytes: 10", "`max_bytes` must be at least `limits.body`"),
        ("max_batch: 0", "`max_batch` must be at least 1"),
        ("max_wait_ms: -1", "`max_wait_ms` must be at least 0"),
        ("drain_seconds: .inf", "`drain_seconds` must be a finite number"),
        ("read_seconds: 0", "`read_seconds` must be positive"),
        ("limits: {pixels: 0}", "`limits.pixels` must be at least 1"),
        ("port: 70000", r"`port` must lie in \[0, 65535\], got 70000; try 8191"),
    ],
)
def test_what_cannot_work_is_named(tmp_path, text, words):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_settings(path)


@pytest.mark.parametrize("item", ["port", "=3", "port=[", "rewards.x.y=[1"])
def test_overrides_must_be_name_and_value(item):
    with pytest.raises(ConfigError, match="must"):
        read_settings(None, [item], ["x=shapes"])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"`--config` must be a YAML file.*No such file"):
        read_settings(tmp_path / "nowhere.yaml")


def test_the_settings_that_ship_can_work():
    ServiceSettings().check()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_a_door_to_the_network_needs_a_token(host):
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match=r"`UNIRL_SERVICE_TOKEN` must hold a token.*openssl rand"):
        check_door(ServiceSettings(host=host), None)
    check_door(ServiceSettings(host=host), TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_a_door_to_this_machine_needs_none(host):
    check_door(ServiceSettings(host=host), None)


@pytest.mark.parametrize("token", ["short", "with a space in the middle", "größe" * 5, ""])
def test_a_token_that_is_guessed_or_cannot_be_sent_is_refused_unseen(token):
    with pytest.raises(ConfigError, match="at least 16 printable ASCII") as caught:
        check_door(ServiceSettings(), token)
    assert not token or token not in str(caught.value)


class Broken:
    def __init__(self):
        raise ZeroDivisionError("of my own")


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "`rewards` must hold at least one reward"),
        (["--reward", "shapes", "host=0.0.0.0"], "must hold a token"),
        (["--reward", "shapes", "host=203.0.113.7", "token_env=OTHER"], "`OTHER` must hold a token"),
        (
            ["--reward", "x={name: linear, wights: 3}", "port=0"],
            "got an unexpected keyword argument 'wights'",
        ),
        (
            ["--reward", "x=test_service_settings.Broken", "port=0"],
            "Reward `x` must be built, got ZeroDivision",
        ),
    ],
)
def test_a_start_that_cannot_be_is_one_message_and_code_2(monkeypatch, capfd, words, said):
    monkeypatch.delenv("UNIRL_SERVICE_TOKEN", raising=False)
    assert door.main(words) == 2
    assert said in capfd.readouterr().err


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(capfd):
    from unirl_env.service.server import bound_socket

    taken = bound_socket("127.0.0.1", 0)
    taken.listen()
    try:
        assert door.main(["--reward", "shapes", f"port={taken.getsockname()[1]}"]) == 2
    finally:
        taken.close()
    heard = capfd.readouterr()
    assert "a free port" in heard.err and "loading" not in heard.out


def test_the_example_of_the_docs_reads():
    from pathlib import Path

    examples = (Path(door.__file__).parents[1] / "configs" / "service").glob("*.yaml")
    assert [read_settings(path).rewards for path in examples]
