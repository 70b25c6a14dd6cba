"""States that learners write in parts: read by any number of them, divided in any way."""

import errno
import os
import signal
import time
from functools import partial

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_sharded import config_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from toy import toy_config
from two_learners import free_port, learn, together

from unirl_env.agents import GRPOConfig
from unirl_env.agents.parallel import stored
from unirl_env.agents.parallel.stored import PartsWriter, read
from unirl_env.agents.parallel.storing import LARGE, Storing, stores_parts
from unirl_env.errors import CheckpointError, ConfigError

STATE = {
    "policy/a.weight": torch.arange(15.0).view(5, 3),
    "policy/ema:a.weight": -torch.arange(15.0).view(5, 3),
    "optimizer/step/actor.network.a.weight": torch.tensor(3.0),
    "numbers/x/actor.network.a.weight": torch.tensor(0.1, dtype=torch.float64),
    "policy/half": torch.randn(7).bfloat16(),
}


def size(path):
    return path.stat().st_size


def written(tensors, folder):
    folder.mkdir(parents=True, exist_ok=True)
    writer = PartsWriter()
    writer.begin(lambda: tensors, folder, size)
    return writer.end()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def test_one_process_writes_and_reads_without_a_group_and_pickles_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FILE_BYTES", 100)
    facts = written(STATE, tmp_path)
    assert facts == {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sorted(facts) == [f"shard-00001-model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert_same(read(tmp_path, {}), STATE)


def test_what_is_written_is_what_was_there_when_it_began(tmp_path):
    writer, weight = PartsWriter(), torch.zeros(1000, 1000)
    writer.begin(lambda: {"policy/a": weight}, tmp_path, size)
    weight.fill_(1.0)
    writer.end()
    assert not read(tmp_path, {})["policy/a"].any()


@pytest.mark.parametrize(
    ("error", "told"), [(OSError(errno.ENOSPC, "full"), OSError), (KeyError("x"), CheckpointError)]
)
def test_a_failure_to_write_is_told_at_the_end(tmp_path, monkeypatch, error, told):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("safetensors.torch.save", fails)
    writer = PartsWriter()
    writer.begin(lambda: STATE, tmp_path, size)
    with pytest.raises(told):
        writer.end()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"`logging\.folder`"):
        read(tmp_path / "elsewhere", {})


def test_learners_write_themselves_what_is_large_and_divided():
    config = config_of("points", "sharded").learners(num_learners=2)
    assert not stores_parts(config, LARGE)
    assert stores_parts(config, LARGE + 1)
    config.learner.checkpoint = "divided"
    assert stores_parts(config, 1)
    config.learner.checkpoint = "whole"
    assert not stores_parts(config, LARGE + 1)
    alone = config_of("points", "sharded")
    assert not stores_parts(alone, LARGE + 1)


def test_a_folder_that_learners_do_not_share_is_refused(tmp_path):
    Storing(lambda function: [function(None)]).require_shared(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"does not see what learner 0 writes.*learner\.checkpoint=whole"):
        Storing(lambda function: [(0, None)]).require_shared(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        Storing(lambda function: [function(None)]).require_shared(tmp_path / "elsewhere")


def half(case, parallel):
    """Weights in bfloat16, and masters of them in float32."""
    return toy_config(GRPOConfig, "HalfPoints", policy={"lora_rank": None}, learner={"parallel": parallel})


@pytest.mark.parametrize(
    ("case", "make"),
    [
        ("points, copies", config_of),
        ("points, adapters", config_of),
        ("points, reference, replay, epochs", config_of),
        ("half", half),
    ],
)
def test_one_learner_goes_on_from_parts_bit_for_bit(tmp_path, case, make):
    straight, numbers = learn(make(case, "replicated"), 2, after=partial(store, tmp_path))
    assert all(norm > 0 for number in numbers for norm in number["norm"])
    resumed, _ = learn(make(case, "replicated"), 1, start=1, state=tmp_path / "1")
    assert_same(resumed.learner.run_state(), straight.learner.run_state())
    assert_same(resumed.learner.policy.get_state(), straight.learner.policy.get_state())
    with pytest.raises(CheckpointError, match="must fit this policy"):
        learn(config_of("sd3, adapters", "replicated"), 0, state=tmp_path / "1")


CASES = ("points, copies", "sd3, adapters")
"""All weights with their average, and adapters."""


def store(folder, learner, iteration):
    if dist.is_initialized():
        dist.barrier()
    place = folder / str(iteration)
    place.mkdir(parents=True, exist_ok=True)
    learner.begin_storing(place, size)
    learner.end_storing()


def legs(parallel, folder, cases, *wanted):
    """By case: the numbers and the final state of each leg, `(name, start, iterations, from whom)`."""
    found = {}
    for case in cases:
        for name, start, iterations, whose in wanted:
            place = folder / case
            one, numbers = learn(
                config_of(case, parallel),
                iterations,
                start=start,
                state=place / whose / str(start) if whose else None,
                after=partial(store, place / name),
            )
            found[case, name] = numbers, one.learner.run_state()
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_curve_is_one_across_numbers_of_learners_and_kinds_of_parallelism(tmp_path):
    straight = together(legs, 2, "sharded", tmp_path, CASES, ("straight", 0, 3, None), patience=900)
    alone = legs("replicated", tmp_path, CASES, ("alone", 1, 1, "straight"))
    wanted = ("again", 2, 1, "straight"), ("after one", 2, 1, "alone")
    later = together(legs, 2, "sharded", tmp_path, CASES, *wanted, patience=900)
    for case in CASES:
        # The same arithmetic: the very bits.
        again = [leg[case, "again"][0][0] for leg in later]
        assert again == [leg[case, "straight"][0][2] for leg in straight]
        assert_same(later[0][case, "again"][1], straight[0][case, "straight"][1])
        assert_on_the_curve(straight, [alone], case, "alone", 1)
        assert_on_the_curve(straight, later, case, "after one", 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_groups_of_learners_and_whole_copies_go_on_from_parts(tmp_path):
    cases = CASES[:1]
    straight = together(legs, 2, "sharded", tmp_path, cases, ("straight", 0, 2, None), patience=900)
    four = together(legs, 4, "hybrid", tmp_path, cases, ("four", 1, 1, "straight"), patience=900)
    copies = together(legs, 2, "replicated", tmp_path, cases, ("copies", 1, 1, "straight"), patience=900)
    for found, name in ((four, "four"), (copies, "copies")):
        assert_on_the_curve(straight, found, cases[0], name, 1)
        # What they have written in parts is what they have.
        assert_same(read(tmp_path / cases[0] / name / "2", {}), found[0][cases[0], name][1])


def assert_on_the_curve(straight, found, case, name, step):
    """The first numbers of a leg are those of a step of the uninterrupted run."""
    expected = [leg[case, "straight"][0][step] for leg in straight]
    numbers = [leg[case, name][0][0] for leg in found]
    losses = [sum(each["loss"] for each in run) for run in (numbers, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5), (case, name)
    assert numbers[0]["reward"] == pytest.approx(expected[0]["reward"], abs=1e-5), (case, name)
    assert numbers[0]["norm"] == pytest.approx(expected[0]["norm"], rel=2e-4), (case, name)


def writes(rank, port, folder, victim):
    """Write twice; the victim dies between two files of the second time."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    stored.FILE_BYTES = 100
    mesh = init_device_mesh("cpu", (2,))
    original, calls = safetensors.torch.save, []
    for number in (1, 2):
        writer = PartsWriter()
        (folder / str(number)).mkdir(exist_ok=True)

        def save(*arguments, number=number, **options):
            calls.append(number)
            if rank == victim and calls.count(2) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        safetensors.torch.save = save
        mine = torch.arange(100.0) + rank
        state = {f"policy/{n}": DTensor.from_local(mine, mesh, [Shard(0)]) for n in "abc"}
        writer.begin(lambda state=state: state, folder / str(number), size)
        began = time.monotonic()
        try:
            writer.end()
            (folder / f"ended-{rank}-{number}").touch()
        except CheckpointError as error:
            waited = time.monotonic() - began
            (folder / f"failed-{rank}-{number}").write_text(f"{waited}\n{error}")


@pytest.mark.slow
def test_learners_that_wait_for_one_that_was_killed_hear_of_it_at_once(tmp_path):
    context, port = mp.get_context("spawn"), free_port()
    processes = [context.Process(target=writes, args=(rank, port, tmp_path, 1)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(400)
    assert processes[1].exitcode == -signal.SIGKILL
    assert {path.name for path in tmp_path.glob("ended-*")} == {"ended-0-1", "ended-1-1"}
    waited, told = (tmp_path / "failed-0-2").read_text().split("\n", 1)
    assert float(waited) < 30
    assert "Learners must write their parts" in told
    whole = read(tmp_path / "1", {})
    expected = torch.cat([torch.arange(100.0), torch.arange(100.0) + 1])
    assert all(torch.equal(tensor, expected) for tensor in whole.values())
    assert len(whole) == 3
