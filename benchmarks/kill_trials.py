"""Runs that are killed at random lines, and what is left of them after `resume=auto`.

For each mode and number of processes, one run is left in peace. Others are killed (SIGKILL) at a line of the
library that is drawn at random, continued by `resume=auto`, perhaps killed again, and compared with the
first: all tensors of the last checkpoint, every metric but the clocks, every evaluation, the exported files
and the steps that TensorBoard shows must be the same to the last bit. In trials of the kind `lost`, a runner
or learner process is killed instead; the run must end by itself, with an error that names the loss.

    python benchmarks/kill_trials.py --trials 60 --lost 20 --out benchmarks/results/kill_trials.json

A trial is a fork of this process, which has imported everything; a cluster of Ray is started once, and every
trial joins it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

RECIPES = {
    "diffusion": (
        "diffusion/gaussian_mixture",
        ["prompts.train=[left,right]", "rollout.num_prompts=2", "rollout.group_size=8"],
    ),
    "ar": ("ar/tiny_qwen3", ["rollout.num_prompts=4", "rollout.group_size=4", "model.max_new_tokens=4"]),
    "pe": (
        "pe/tiny_prompt_enhancer",
        ["rollout.num_prompts=2", "rollout.group_size=4", "model.max_new_tokens=6"],
    ),
    "unified": (
        "unified_model/tiny_unified",
        ["rollout.num_prompts=2", "rollout.group_size=4", "model.max_new_tokens=4", "model.num_steps=4"],
    ),
}
"""By mode, a recipe and what makes it small."""
COMMON = [
    "iterations=3",
    "agent.num_minibatches=2",
    "logging.checkpoint_every=1",
    "logging.eval_every=2",
    "logging.eval_prompts=2",
    "logging.eval_samples=2",
    "logging.progress=false",
    "rollout.timeout_s=600",
]
MODULES = {"checkpoint", "files", "launch", "logbook", "loop", "folder", "samples"}
"""Modules that write; every second kill falls into one of them, where most can go wrong."""
CLOCKS = ("seconds", "episodes_per_second")


class Lines:
    """Counts the lines of the library that the main thread runs, and acts at one of them."""

    def __init__(self, root: str, writing: bool, target: int | None, act):
        self.root, self.writing, self.target, self.act = root, writing, target, act
        self.count = 0

    def install(self):
        """Begin to count."""
        sys.settrace(self._call)

    def _call(self, frame, event, argument):
        name = frame.f_code.co_filename
        if not name.startswith(self.root):
            return None
        if self.writing and Path(name).stem not in MODULES:
            return None
        return self._line

    def _line(self, frame, event, argument):
        if event == "line":
            self.count += 1
            if self.count == self.target:
                self.act()
        return self._line


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def begin(
    folder: Path, mode: str, processes: int, *, resume=False, writing=False, target=None, act=kill_myself
):
    """Fork one run; (exit code, or minus the signal; lines that it counted, if it lived)."""
    told, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        with os.fdopen(told) as stream:
            text = stream.read()
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), int(text or 0)
    os.close(told)
    os.setsid()
    log = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    code = 1
    try:
        import unirl_env
        from unirl_env.train import main

        recipe, small = RECIPES[mode]
        lines = Lines(str(Path(unirl_env.__file__).parent), writing, target, act)
        arguments = [
            f"--config-name={recipe}", *COMMON, *small, "name=run", f"logging.folder={folder}",
            f"rollout.num_env_runners={processes}", f"rollout.num_learners={processes}",
            *(["resume=auto"] if resume else []),
        ]  # fmt: skip
        lines.install()
        code = main(arguments)
        sys.settrace(None)
        os.write(tell, str(lines.count).encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def seen(folder: Path) -> dict:
    """Everything that must not depend on kills."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from unirl_env.run.record import checkpoint as checkpoints
    from unirl_env.run.record.logbook import read_rows

    run = folder / "run"
    newest, warnings = checkpoints.newest(run / "checkpoints")
    tensors, meta = checkpoints.read(newest.path)

    def rows(name):
        found = read_rows(run / name)
        return [
            {k: v for k, v in row.items() if k.split("/")[0] not in CLOCKS and k != "sync_bytes"}
            for row in found
        ]

    events = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0}).Reload()
    steps = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    values = {tag: [e.value for e in events.Scalars(tag)] for tag in steps if tag.split("/")[0] not in CLOCKS}
    exports = {
        str(path.relative_to(run)): path.read_bytes()
        for place in ("adapters", "weights")
        for path in sorted((run / place).rglob("*"))
        if path.is_file()
    }
    pictures = {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted((run / "pictures").rglob("*"))
        if path.is_file()
    }
    return {
        "iteration": newest.iteration,
        "warnings": warnings,
        "tensors": {name: (str(t.dtype), tuple(t.shape), t.double().tolist()) for name, t in tensors.items()},
        "meta": meta,
        "checkpoints": [(c.iteration, c.score) for c in checkpoints.listing(run / "checkpoints")],
        "names": sorted(path.name for path in (run / "checkpoints").iterdir()),
        "metrics": rows("metrics.jsonl"),
        "evaluation": rows("evaluation.jsonl"),
        "tensorboard steps": steps,
        "tensorboard values": values,
        "exports": exports,
        "pictures": pictures,
    }  # fmt: skip


def descendants(pid: int) -> list[tuple[int, str]]:
    """Processes below `pid`, with their titles."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children[int(fields[1])].append(int(stat.parent.name))
    found, queue = [], [pid]
    while queue:
        for child in children[queue.pop()]:
            queue.append(child)
            with contextlib.suppress(OSError):
                found.append((child, Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")))
    return found


def kill_one(kind: str, root: int, draw: random.Random):
    """Kill a runner or a learner of the run under way, at any moment of it."""
    word = {"runner": "EnvRunner", "learner": "Learner"}[kind]
    found = [pid for pid, title in descendants(root) if title.startswith("ray::") and word in title]
    if not found:
        # The line came before the processes: wait until they are there.
        threading.Timer(0.5, kill_one, (kind, root, draw)).start()
        return
    os.kill(draw.choice(sorted(found)), signal.SIGKILL)


def differing(one: dict, other: dict) -> list[str]:
    return [name for name in one if one[name] != other[name]]


def trial(folder: Path, mode: str, processes: int, lines: dict, expected: dict, draw: random.Random) -> dict:
    """One run, killed once or twice, and continued."""
    writing = draw.random() < 0.5
    kills, codes, resume = draw.choice((1, 1, 2)), [], False
    targets = []
    while True:
        target = draw.randrange(1, lines[writing]) if len(targets) < kills else None
        code, _ = begin(folder, mode, processes, resume=resume, writing=writing, target=target)
        codes.append(code)
        resume = True
        if target is None:
            break
        targets.append(target)
    return {"writing": writing, "lines": targets, "codes": codes, **judged(folder, expected, codes)}


def lost(folder, mode, processes, lines, expected, draw, root) -> dict:
    """One run that loses a process, and is continued."""
    kind, target = draw.choice(("runner", "learner")), draw.randrange(1, lines[False])

    def act():
        kill_one(kind, root, draw)

    first, _ = begin(folder, mode, processes, target=target, act=act)
    second, _ = begin(folder, mode, processes, resume=True)
    log = (folder.parent / f"{folder.name}.log").read_text(errors="replace")
    named = "RunnerLost" in log or "LearnerLost" in log
    row = {"lost": kind, "lines": [target], "codes": [first, second]}
    # A process that is not needed any more may go unnoticed.
    return row | judged(folder, expected, [second]) | {"named": named or first == 0}


def judged(folder: Path, expected: dict, codes: list[int]) -> dict:
    found = seen(folder) if codes[-1] == 0 else {}
    wrong = differing(expected, found) if found else ["it did not finish"]
    return {"wrong": wrong}


CLUSTER = """
import sys, ray
for left in reversed(range(5)):
    try:
        context = ray.init(include_dashboard=False, num_cpus=8, log_to_driver=False, logging_level="ERROR")
        break
    except Exception:  # On a busy machine, its patience of half a minute is soon over.
        ray.shutdown()
        if not left:
            raise
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


def start_ray():
    """A cluster that every trial joins, and its address; it ends when its standard input does."""
    # Processes that nobody asked for yet would take their time from the others.
    environment = {**os.environ, "RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    address = process.stdout.readline().decode().strip()
    if not address:
        sys.exit("Ray did not start; try again when the machine is less busy.")
    return process, address


def write(path: Path, seed: int, rows: list[dict]):
    """The table so far."""
    cells = {}
    for row in rows:
        kind = "process lost" if "lost" in row else "killed"
        cell = cells.setdefault(f"{row['mode']}, {row['runners']} + {row['learners']}, {kind}", [0, 0])
        cell[0] += 1
        cell[1] += not row["wrong"] and row.get("named", True)
    table = {name: {"trials": n, "to the last bit": same} for name, (n, same) in cells.items()}
    path.write_text(json.dumps({"seed": seed, "table": table, "trials": rows}, indent=1) + "\n")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--lost", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", default="diffusion,ar,pe")
    parser.add_argument("--processes", default="0,2", help="numbers of runners, and of learners")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary folder without")
    return parser.parse_args()


def main():
    options = parse()
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_AUTH_MODE": "disabled",  # A token would be known to the process that begins the cluster only.
    }
    modes, processes = options.modes.split(","), [int(n) for n in options.processes.split(",")]
    cluster, address = start_ray()
    root, os.environ["RAY_ADDRESS"] = cluster.pid, address
    import diffusers
    import transformers

    import unirl_env.run.launch  # noqa: F401

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    place = options.folder or Path(tempfile.mkdtemp(prefix="kill-trials-"))
    place.mkdir(parents=True, exist_ok=True)
    cells = [(mode, n) for n in processes for mode in modes]
    known, rows = {}, []
    lost_cells = [cell for cell in cells if cell[1]]
    plan = [(cells[i % len(cells)], False) for i in range(options.trials)]
    plan += [(lost_cells[i % len(lost_cells)], True) for i in range(options.lost if lost_cells else 0)]
    plan.sort(key=lambda entry: entry[0][1])
    try:
        for number, ((mode, n), loses) in enumerate(plan):
            began, draw = time.time(), random.Random(f"{options.seed}/{number}")
            if (mode, n) not in known:
                whole = place / f"{mode}-{n}-whole"
                shutil.rmtree(whole, ignore_errors=True)
                code, every = begin(whole, mode, n)
                if code:
                    sys.exit(f"The undisturbed run of {mode} with {n} processes failed; see {whole}.log")
                again = place / f"{mode}-{n}-again"
                shutil.rmtree(again, ignore_errors=True)
                _, writing = begin(again, mode, n, writing=True)
                known[mode, n] = ({False: every, True: writing}, seen(whole))
                base = differing(known[mode, n][1], seen(again))
                print(
                    f"{mode} {n}: {every} lines, {writing} that write; a second run differs in {base}",
                    flush=True,
                )
                began = time.time()
            lines, expected = known[mode, n]
            folder = place / f"{mode}-{n}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            row = {"number": number, "mode": mode, "runners": n, "learners": n}
            if loses:
                row |= lost(folder, mode, n, lines, expected, draw, root)
            else:
                row |= trial(folder, mode, n, lines, expected, draw)
            row["seconds"] = round(time.time() - began, 1)
            rows.append(row)
            print(json.dumps(row), flush=True)
            if not row["wrong"]:
                shutil.rmtree(folder)
            if options.out is not None:
                write(options.out, options.seed, rows)
    finally:
        cluster.stdin.close()
        cluster.wait(60)
    bad = [row["number"] for row in rows if row["wrong"] or not row.get("named", True)]
    print(f"{len(rows)} trials, {len(rows) - len(bad)} to the last bit" + (f"; not so: {bad}" if bad else ""))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
