"""How much of a scorer's speed the reward service keeps: 64 clients at once, 10 000 pictures of 512 x 512.

The service is the real one, a process of its own on a loopback port; the scorer is the image tower of an
architecture of open_clip on random weights, which resizes and judges each picture as a CLIP reward does. The
same pictures go through the same scorer without a service, in batches of the same size on the same number of
threads: half of them before, half of them after, so that a machine whose speed drifts slows both alike. Each
score that comes back is held to the bare one, bit by bit. Clients and service share the machine, and the
clients' share of the processor is told.

What the service itself costs is measured with a scorer that does nothing, on pictures as tensors and as PNG.

    python benchmarks/reward_service.py [--pictures 10000] [--clients 64] [--group 8] [--threads 1 2]

The numbers are written to benchmarks/results/reward_service.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import torch
from image_tower import ImageTower, pictures
from load_client import bodies, drive

from unirl_env.types import Prompt, Sample

HERE = Path(__file__).parent
RESULT = HERE / "results" / "reward_service.json"
BATCH = 32
"""Pictures of one forward, with and without the service."""
SPAWN = multiprocessing.get_context("spawn")


def bare(count: int, distinct: int, size: int, threads: int, model: str) -> tuple[float, float, list[float]]:
    """`count` pictures without a service: seconds, seconds of the processor, and scores of the `distinct`."""
    torch.set_num_threads(threads)
    samples = [Sample(image=picture) for picture in pictures(distinct, size)]
    prompts = [Prompt("a picture")] * BATCH
    scorer = ImageTower(model, batch_size=BATCH, rows_per_forward=BATCH)
    scorer(samples[:BATCH], prompts)
    scores: list[float] = []
    begin, cpu = time.perf_counter(), time.process_time()
    for start in range(0, count, BATCH):
        chosen = [samples[i % distinct] for i in range(start, min(start + BATCH, count))]
        scores += scorer(chosen, prompts[: len(chosen)]).value.tolist()
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    if count < distinct:
        scores = scorer(samples, [Prompt("a picture")] * distinct).value.tolist()
    return seconds, cpu, scores[:distinct]


@contextmanager
def service(reward: dict, threads: int):
    """The service in a process of its own: its address and the process."""
    settings = {"rewards": {"judge": reward}, "port": 0, "max_batch": BATCH, "max_wait_ms": 20.0}
    variables = {
        **{name: value for name, value in os.environ.items() if name != "UNIRL_SERVICE_TOKEN"},
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "service.yaml"
        config.write_text(json.dumps(settings))
        process = subprocess.Popen(
            [sys.executable, "-m", "unirl_env.service", "--config", str(config)],
            env=variables,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield _address(process), psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: subprocess.Popen) -> str:
    """What the service says when it is ready; the rest of its words is read and dropped."""
    for line in process.stdout:
        if found := re.search(r"Ready at (http://\S+)", line):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return found[1]
    raise RuntimeError("The service must start; its words are above.")


def clients(url, expected, group, size, png, count, most, seconds, started, answer) -> None:
    """A process that encodes its requests, warms the service up, and drives it."""
    torch.set_num_threads(1)
    requests = bodies(pictures(len(expected), size), expected, group, "judge", png)
    drive(url, requests, count, 4 * BATCH, None)
    started.set()
    cpu = time.process_time()
    tally = drive(url, requests, count, most, seconds)
    answer.put({**asdict(tally), "cpu": time.process_time() - cpu, "body": len(requests[0])})


def loaded(url: str, process: psutil.Process, expected: list[float], **options) -> dict:
    """What clients and service do under load."""
    started, answer = SPAWN.Event(), SPAWN.SimpleQueue()
    memory = [process.memory_info().rss]
    own = {"size": 512, "png": False, "count": 64, "most": 10_000, "seconds": None, "group": 8} | options
    child = SPAWN.Process(
        target=clients, args=(url, expected), kwargs={**own, "started": started, "answer": answer}
    )
    child.start()
    started.wait()
    cpu = sum(process.cpu_times()[:2])
    memory.append(process.memory_info().rss)
    while answer.empty() and child.is_alive():
        time.sleep(1.0)
        memory.append(process.memory_info().rss)
    tally = answer.get()
    cpu = sum(process.cpu_times()[:2]) - cpu
    child.join()
    metrics = metrics_of(url)
    latency = np.asarray(tally["latencies"] or [np.nan])
    rate = tally["pictures"] / tally["seconds"]
    return {
        "clients": own["count"],
        "pictures_per_request": own["group"],
        "form": "png" if own["png"] else "tensors",
        "bytes_per_request": tally["body"],
        "pictures": tally["pictures"],
        "seconds": tally["seconds"],
        "pictures_per_second": rate,
        "requests_per_second": rate / own["group"],
        "megabytes_per_second": tally["sent"] / tally["seconds"] / 1e6,
        "latency_seconds": {
            "p50": np.quantile(latency, 0.5),
            "p99": np.quantile(latency, 0.99),
            "max": latency.max(),
        },
        "errors": len(tally["errors"]),
        "first_errors": tally["errors"][:3],
        "asked_again": tally["asked_again"],
        "unequal_scores": tally["unequal"],
        "met_earlier_attempts": metrics["repeats_total"],
        "pictures_per_call": metrics["batch_samples_sum"] / max(metrics["batch_samples_count"], 1),
        "service": share(cpu, tally),
        "all_clients": share(tally["cpu"], tally),
        "memory_megabytes": memory_report(memory),
    }


def share(cpu: float, tally: dict) -> dict[str, float]:
    """What a process took of the processor, in cores and per picture."""
    each = cpu / max(tally["pictures"], 1) * 1000
    return {"cores": cpu / tally["seconds"], "cpu_milliseconds_per_picture": each}


def metrics_of(url: str) -> dict[str, float]:
    """What the service counts about the reward since it started."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        found = re.findall(r'^unirl_service_(\w+)\{reward="judge"\} (\S+)$', reply.read().decode(), re.M)
    return {name: float(value) for name, value in found}


def memory_report(samples: list[int]) -> dict:
    """Of the service, sampled each second; the first one is before its first request."""
    megabytes = np.asarray(samples) / 2**20
    half = megabytes[1 + (len(megabytes) - 1) // 2 :]
    slope = np.polyfit(np.arange(len(half)), half, 1)[0] * 60 if len(half) > 10 else float("nan")
    return {
        "start": megabytes[0],
        "after_warm_up": megabytes[1],
        "end": megabytes[-1],
        "max": megabytes.max(),
        "slope_of_second_half_per_minute": slope,
    }


def against_bare(args: argparse.Namespace, threads: int, group: int, count: int) -> dict:
    """The service on the scorer, between two halves of the bare scorer."""
    distinct = min(args.distinct, count)

    def half() -> tuple[float, float, list[float]]:
        with SPAWN.Pool(1) as pool:
            return pool.apply(bare, (count // 2, distinct, args.size, threads, args.model))

    first, first_cpu, expected = half()
    reward = {
        "name": "image_tower:ImageTower",
        "model": args.model,
        **{"batch_size": BATCH, "rows_per_forward": BATCH},
    }
    options = {"group": group, "size": args.size, "count": args.clients, "most": count}
    with service(reward, threads) as (url, process):
        found = loaded(url, process, expected, seconds=args.seconds, **options)
    second, second_cpu, again = half()
    if expected != again:
        raise RuntimeError("The bare scorer must give the same scores twice.")
    rate = 2 * (count // 2) / (first + second)
    return {
        "threads": threads,
        "ratio": found["pictures_per_second"] / rate,
        # Something else ran on the machine, and the ratio says nothing.
        "disturbed": not 0.9 < first / second < 1.1,
        "bare": {
            "pictures_per_second": rate,
            "halves": [count // 2 / first, count // 2 / second],
            "cpu_milliseconds_per_picture": (first_cpu + second_cpu) / (2 * (count // 2)) * 1000,
            "batch": BATCH,
        },
        "service": found,
    }


def overheads(args: argparse.Namespace) -> list[dict]:
    """The service on a scorer that costs nothing: reading, decoding, answering."""
    made = pictures(64, args.size)
    expected = [float(picture[0, 0, 0]) for picture in made]
    rows = []
    with service({"name": "image_tower:Corner"}, 1) as (url, process):
        for png, group in ((False, 8), (False, 1), (True, 8)):
            options = {"group": group, "size": args.size, "png": png, "count": 16, "most": 100_000}
            rows.append(loaded(url, process, expected, seconds=args.overhead_seconds, **options))
    return rows


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--group", type=int, default=8, help="pictures of one request")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of the scorer")
    parser.add_argument("--seconds", type=float, help="the most seconds of one load")
    parser.add_argument("--overhead-seconds", type=float, default=10.0)
    parser.add_argument("--distinct", type=int, default=256, help="different pictures among all of them")
    parser.add_argument("--model", default="ViT-S-32")
    parser.add_argument("--parts", nargs="+", default=["group", "single", "overheads"])
    parser.add_argument("--add", action="store_true", help="keep what the result file says of other parts")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    words = [word for word in sys.argv[1:] if word not in ("--result", str(args.result))]
    load = os.getloadavg()[0]
    report = json.loads(args.result.read_text()) if args.add else {}
    report |= {
        "machine": {"cores": os.cpu_count(), "kind": platform.machine(), "torch": torch.__version__},
        "scorer": f"image tower {args.model}, random weights, pictures {args.size} x {args.size}",
    }
    run = {"command": " ".join(["python benchmarks/reward_service.py", *words]), "load_before": load}
    if "group" in args.parts:
        old = [one for one in report.get("groups", ()) if one["threads"] not in args.threads]
        new = [run | against_bare(args, n, args.group, args.pictures) for n in args.threads]
        report["groups"] = sorted(old + new, key=lambda one: one["threads"])
    if "single" in args.parts:
        count = max(args.pictures // 5, 2 * BATCH)
        report["single"] = run | against_bare(args, args.threads[0], 1, count)
    if "overheads" in args.parts:
        report["overheads"] = run | {"rows": overheads(args)}
    args.result.write_text(json.dumps(rounded(report), indent=2) + "\n")
    print(json.dumps(rounded(report), indent=2))


if __name__ == "__main__":
    main()
