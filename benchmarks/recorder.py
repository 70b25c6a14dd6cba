"""The first iterations of every embedded recipe, to the last bit: does a change of the code change numbers?

For each recipe, agent and number of learners it does three iterations, and as many with a stop and a resume
between them. What it keeps are the metrics (the clocks aside) and a hash of every tensor of the checkpoint.
Kernels differ between machines and releases of torch, so that records of one machine can be compared only:

    git worktree add ../before <commit>
    PYTHONPATH=../before python benchmarks/recorder.py --out before.json
    PYTHONPATH=. python benchmarks/recorder.py --against before.json

A case is a fork of this process, which has imported everything; `--only` takes those whose names hold a word.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

AGENTS = ("flow_dppo", "drpo", "grpo")
TEXTS = (*AGENTS, "gspo")
RECIPES = {
    "diffusion/tiny_sd3": AGENTS,
    "diffusion/gaussian_mixture": AGENTS,
    "ar/tiny_qwen3": TEXTS,
    "ar/tiny_qwen_vl": TEXTS,
    "pe/tiny_prompt_enhancer": TEXTS,
    "unified_model/tiny_unified": AGENTS,
    "unified_model/tiny_writer_and_painter": AGENTS,
}
"""By recipe, the agents that it is defined for."""
SMALL = ("rollout.num_prompts=4", "rollout.group_size=4", "prompts.heldout=null")
TWO = ("prompts.train=[left,right]", "rollout.num_prompts=2", "rollout.group_size=8")
SIZES = {"diffusion/gaussian_mixture": TWO}
"""What makes a recipe small where `SMALL` does not fit it."""
VARIANTS = {
    "reference": ("diffusion/tiny_sd3", ["agent.reference_kl=0.01"]),
    "replay": ("diffusion/tiny_sd3", ["agent.anchor=replay"]),
    "epochs": ("diffusion/tiny_sd3", ["agent.num_epochs=2", "agent.shuffle_batch_per_epoch=episode"]),
    "micro": ("diffusion/tiny_sd3", ["agent.micro_batch_size=3"]),
    "whole": ("diffusion/tiny_sd3", ["policy.lora_rank=null"]),
    "guided": ("diffusion/tiny_sd3", ["policy.guidance=3"]),
    "half": ("diffusion/tiny_sd3", ["model.dtype=bfloat16", "agent.self_check=false"]),
    "window": ("diffusion/tiny_sd3", ["steps.kind=window", "agent.advantage_scale=batch"]),
    "texts reference": ("ar/tiny_qwen3", ["agent.reference_kl=0.01"]),
    "texts replay": ("ar/tiny_qwen3", ["agent.anchor=replay"]),
    "horizon": (
        "ar/tiny_qwen3",
        ["agent.aggregate=horizon", "agent.horizon=8", "agent.advantage_scale=none"],
    ),
    "packed": ("ar/tiny_qwen3", ["agent.micro_batch_tokens=64", "agent.idle_episodes=leave_out"]),
    "picture alone": ("unified_model/tiny_unified", ["agent.train_phases=[image]"]),
    "text alone": ("unified_model/tiny_unified", ["agent.train_phases=[text]"]),
}
"""By name, a recipe and the settings that lead through other code."""
COMMON = (
    "iterations=3",
    "logging.checkpoint_every=1",
    "logging.keep_last=9",
    "logging.eval_every=0",
    "logging.eval_prompts=2",
    "logging.eval_samples=1",
    "logging.progress=false",
    "logging.tensorboard=false",
    "rollout.timeout_s=900",
)
CLOCKS = ("seconds", "episodes_per_second", "sync_bytes")


def cases() -> dict[str, list[str]]:
    """By name, the words of each run."""
    found = {}
    for learners in (0, 2):
        for recipe, agents in RECIPES.items():
            small = SIZES.get(recipe, SMALL)
            for agent in agents:
                words = [f"--config-name={recipe}", f"agent={agent}", f"rollout.num_learners={learners}"]
                found[f"{recipe} {agent} {learners} learners"] = [*words, *small]
    for name, (recipe, more) in VARIANTS.items():
        found[f"{recipe} {name}"] = [f"--config-name={recipe}", *SIZES.get(recipe, SMALL), *more]
    # Those with further processes last.
    return dict(sorted(found.items(), key=lambda entry: "rollout.num_learners=2" in entry[1]))


def run(words: list[str], folder: Path) -> int:
    """Fork one run of the command line into `folder`; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    code = 1
    try:
        from unirl_env.train import main

        code = main([*words[:1], *COMMON, *words[1:], "name=run", f"logging.folder={folder}"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def seen(folder: Path) -> dict[str, Any]:
    """The numbers of a run: rows by iteration, and each tensor's hash."""
    from safetensors import safe_open

    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: repr(v) for k, v in row.items() if k.split("/")[0] not in CLOCKS} for row in rows]
    newest = sorted(path for path in (folder / "run" / "checkpoints").iterdir() if path.name.isdigit())[-1]
    hashes = {}
    for path in sorted(newest.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name).contiguous()
                data = (
                    tensor.flatten().view(-1).numpy(force=True)
                    if tensor.dtype.itemsize != 2
                    else (tensor.float().numpy(force=True))
                )
                hashes[name] = hashlib.sha256(data.tobytes()).hexdigest()[:16]
    return {"rows": rows, "tensors": hashes}


def recorded(words: list[str], folder: Path) -> dict[str, Any]:
    """A run, and whether a resumed one comes to the same."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if code := run(words, folder / "straight"):
        return {"failed": code, "log": (folder / "straight.log").read_text()[-2000:]}
    found = seen(folder / "straight")
    if "rollout.num_learners=2" in words and "agent=flow_dppo" not in words:
        return found | {"resumed": "the same"}  # not tried: processes take long to start
    codes = [
        run([*words, "iterations=1"], folder / "resumed"),
        run([*words, "resume=auto"], folder / "resumed"),
    ]
    again = {} if any(codes) else seen(folder / "resumed")
    return found | {"resumed": [name for name in found if again.get(name) != found[name]] or "the same"}


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two records of a case do not share; numbers that only one of them has are named, too."""
    if "failed" in before or "failed" in now:
        return [] if before.get("failed") == now.get("failed") else [f"ended with {now.get('failed', 0)}"]
    found = [] if now["resumed"] == "the same" else [f"a resume changes {now['resumed']}"]
    if len(before["rows"]) != len(now["rows"]):
        found.append(f"{len(now['rows'])} rows for {len(before['rows'])}")
    pairs = [("tensors", before["tensors"], now["tensors"])]
    rows = zip(before["rows"], now["rows"], strict=False)
    pairs += [(f"row {i}", one, other) for i, (one, other) in enumerate(rows)]
    for where, one, other in pairs:
        found += [
            f"{where}: {name}"
            for name in sorted(one.keys() | other.keys())
            if one.get(name) != other.get(name)
        ]
    return found


def ray_cluster() -> subprocess.Popen:
    """A cluster that every case joins."""
    program = (
        "import sys, ray\n"
        "context = ray.init(include_dashboard=False, num_cpus=8, log_to_driver=False)\n"
        "print(context.address_info['gcs_address'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    os.environ["RAY_ADDRESS"] = process.stdout.readline().strip()
    return process


def main() -> int:
    """Record, or record and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path, help="an earlier record of this machine")
    parser.add_argument("--only", default="", help="a word in the names of cases")
    given = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    earlier = json.loads(given.against.read_text()) if given.against else {}
    cluster = ray_cluster()
    import diffusers
    import transformers

    import unirl_env
    import unirl_env.train
    from unirl_env.agents import AgentConfig  # noqa: F401, loads what every case needs, in any commit

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    print(f"Recording {Path(unirl_env.__file__).parent}", flush=True)
    records, wrong = {}, []
    with tempfile.TemporaryDirectory(prefix="recorder-") as place:
        for name, words in cases().items():
            if given.only not in name or (earlier and name not in earlier):
                continue
            began = time.time()
            records[name] = recorded(words, Path(place) / name.replace("/", "-").replace(" ", "-"))
            said = records[name].get("failed") and f"FAILED\n{records[name]['log']}"
            wrong += [name] if said else []
            if not said and earlier:
                different = differing(earlier[name], records[name])
                said = "; ".join(different[:8]) or "the same bits"
                wrong += [name] if different else []
            print(f"{name}: {said or records[name].get('resumed')} ({time.time() - began:.0f} s)", flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps(records, indent=1) + "\n")
    cluster.stdin.close()
    cluster.wait(60)
    print(f"{len(records)} cases, {len(wrong)} {'differ or ' if earlier else ''}failed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
