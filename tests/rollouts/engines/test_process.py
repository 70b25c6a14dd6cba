"""Servers of our own: what they say when they fail, and that nothing of them is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from unirl_env.errors import EngineError
from unirl_env.rollouts.engines.process import ServerProcess, free_port

TREE = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    time.sleep(600)
"""
"""A server with a process of its own."""


def python(code):
    return [sys.executable, "-c", textwrap.dedent(code)]


def alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def child_of(server):
    server.wait_until(lambda: "child" in server.last_lines(), 30)
    return int(server.last_lines().split("child")[1])


def gone(pid, seconds=15):
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_a_command_that_ends_shows_its_last_lines_and_no_secret():
    command = [*python("import sys; print('no such model: x'); sys.exit(3)"), "--key", "hush-hush"]
    server = ServerProcess("Server", command, secret="hush-hush")
    with pytest.raises(EngineError, match=r"must start, got exit status 3(.|\n)*no such model: x") as caught:
        server.wait_until(lambda: False, 30)
    assert "hush" not in str(caught.value)
    assert not server.log.exists()


def test_a_command_that_is_not_ready_in_time_is_ended():
    server = ServerProcess("Server", python(TREE))
    child = child_of(server)
    with pytest.raises(EngineError, match="must be ready within 1 s"):
        server.wait_until(lambda: False, 1)
    assert gone(child) and not server.running


def test_stopping_ends_the_whole_tree_and_twice_is_no_harm():
    server = ServerProcess("Server", python(TREE))
    child = child_of(server)
    assert server.running and alive(child)
    server.stop()
    server.stop()
    assert gone(child) and not server.running and not server.log.exists()


def test_a_server_that_ignores_requests_to_end_is_killed(monkeypatch):
    monkeypatch.setattr("unirl_env.rollouts.engines.process.GRACE", 0.5)
    code = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("child", os.getpid(), flush=True)
        time.sleep(600)
    """
    server = ServerProcess("Server", python(code))
    child = child_of(server)
    server.stop()
    assert gone(child)


@pytest.mark.parametrize("end", ["normal", "killed"])
def test_the_tree_ends_with_the_process_that_started_it(end):
    code = f"""
        import os, signal, sys
        from unirl_env.rollouts.engines.process import ServerProcess
        server = ServerProcess("Server", [sys.executable, "-c", {textwrap.dedent(TREE)!r}])
        server.wait_until(lambda: "child" in server.last_lines(), 30)
        print(server.last_lines().split()[1], server.log, flush=True)
        if {end == "killed"}:
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(python(code), capture_output=True, text=True, timeout=120)
    assert done.returncode == (-signal.SIGKILL if end == "killed" else 0), done.stderr
    child, log = done.stdout.split()
    assert gone(int(child))
    if end == "normal":
        assert not os.path.exists(log)
    else:
        os.unlink(log)


def test_required_variables_win_and_defaults_give_way(monkeypatch):
    monkeypatch.setenv("UNIRL_A", "outside")
    monkeypatch.setenv("UNIRL_B", "outside")
    code = "import os, time; print('child', *(os.environ[n] for n in ('UNIRL_A', 'UNIRL_B')), flush=True)"
    server = ServerProcess("Server", python(code), required={"UNIRL_A": "ours"}, defaults={"UNIRL_B": "ours"})
    while server.running:
        time.sleep(0.05)
    assert server.last_lines().split() == ["child", "ours", "outside"]
    server.stop()


def test_free_ports_are_free():
    assert 1024 < free_port() < 65536
