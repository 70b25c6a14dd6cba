"""A reward from a service in a process of its own: started, asked as if it were local, and ended in order.

The service answers to this machine only, so it needs no token. Left out: other machines, which need one, and
replicas (docs/service.md).

    python examples/10_reward_service.py
"""

import signal
import socket
import subprocess
import sys
import time
import urllib.request

import gymnasium as gym
import torch

REWARD = "{name: weighted_sum, parts: {shapes: 1.0, sharpness: 0.1}}"


def start(port):
    """The service, as one would start it in a terminal; it is ready when `/health` says so."""
    command = [sys.executable, "-m", "unirl_env.service", "--reward", f"drawing={REWARD}", f"port={port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return process
        except OSError:
            if process.poll() is not None:
                raise SystemExit(f"The service ended with {process.returncode}.") from None
            time.sleep(0.1)
    process.kill()
    raise SystemExit("The service did not become ready within a minute.")


def play(scorer, num_envs, num_steps):
    """One batch of episodes under random actions, and what the scorer said of its pictures."""
    env = gym.make_vec(
        "unirl_env:unirl/TinySD3-T2I-v0",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        scorer=scorer,
        num_steps=num_steps,
        autoreset_mode="disabled",
    )
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(num_steps):
        env.step(env.action_space.sample())
    env.close()
    return env.scores


def main(num_envs=8, num_steps=4):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parts = {"shapes": 1.0, "sharpness": {"name": "sharpness", "weight": 0.1}}
    local = play({"name": "weighted_sum", "parts": parts}, num_envs, num_steps)
    service = start(port)
    try:
        scorer = {"name": "remote", "urls": [f"http://127.0.0.1:{port}"], "reward": "drawing"}
        remote = play(scorer, num_envs, num_steps)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            lines = reply.read().decode().splitlines()
    finally:
        service.send_signal(signal.SIGTERM)  # it finishes what it has taken on
        code = service.wait(timeout=60)
    print("in this process", [round(x, 3) for x in local.value.tolist()])
    print("by the service ", [round(x, 3) for x in remote.value.tolist()])
    print("bitwise equal  ", torch.equal(local.value, remote.value), "- parts:", ", ".join(remote.parts))
    print(*(line for line in lines if line.startswith("unirl_service_samples_total")), sep="\n")
    return local, remote, code


if __name__ == "__main__":
    main()
