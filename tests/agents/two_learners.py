"""Learners in processes of their own, by gloo and without Ray: iterations by hand."""

import io
import os
import socket
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from unirl_env.episode import EpisodeBatch


def together(job, learners, *arguments, patience=400):
    """What `job(*arguments)` returns in each of so many processes that form a group, in the order of ranks.

    Args:
        job: A function at the top of a module; what it returns may hold tensors.
        learners: How many.
        *arguments: What can be pickled.
        patience: Seconds.
    """
    context = mp.get_context("spawn")
    port = free_port()
    queue = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, learners, port, job, arguments, queue), daemon=True)
        for rank in range(learners)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=patience) for _ in processes)
    for process in processes:
        process.join(30)
    failed = {rank: told for rank, told in found.items() if isinstance(told, str)}
    assert not failed, "\n".join(f"learner {rank}:\n{told}" for rank, told in failed.items())
    return [torch.load(io.BytesIO(found[rank]), weights_only=False) for rank in range(learners)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _process(rank, learners, port, job, arguments, queue):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=learners)
    try:
        kept = io.BytesIO()
        torch.save(job(*arguments), kept)
        queue.put((rank, kept.getvalue()))
    except BaseException:
        queue.put((rank, traceback.format_exc()))
    finally:
        dist.destroy_process_group()


def learn(config, iterations=2, *, start=0, state=None, after=None):
    """A `OneLearner` of this process's share, and the numbers of its iterations.

    Args:
        config: Of an agent; who asks within a group is one of so many learners.
        iterations: How many.
        start: How many were done before.
        state: What `load_run_state` is given first; None for nothing.
        after: Called with the learner and the number of iterations that are done, after each.
    """
    from one_learner import OneLearner

    learners = dist.get_world_size() if dist.is_initialized() else 1
    config.num_learners = learners if learners > 1 else 0
    one, numbers = OneLearner(config), []
    if state is not None:
        one.learner.load_run_state(state)
    for iteration in range(start, start + iterations):
        batch = played(one, iteration, learners)
        shards = one.shards(batch, learners=config.num_shares, iteration=iteration)
        report = one.update(shards[one.learner.parallel.share])
        losses = [float(step.get("loss", 0.0)) for part in report.phases.values() for step in part.metrics]
        numbers.append({"reward": float(batch.rewards.mean()), "loss": sum(losses), "norm": report.grad_norm})
        if after is not None:
            after(one.learner, iteration + 1)
    return one, numbers


def played(one, iteration, learners, **options):
    """The episodes of an iteration; where learners hold parts of the policy, each plays some of them."""
    if learners == 1:
        with one.learner.policy.actor.under(one.config.rollout_weights):
            return one.play(iteration, **options)
    request, batches = one.request(iteration, **options), [None] * learners
    dist.all_gather_object(batches, one.learner.play(request.deal_alike(one.config.num_shares))[1])
    return EpisodeBatch.cat([batch for batch in batches if batch is not None])
