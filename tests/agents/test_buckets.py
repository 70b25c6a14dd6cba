"""Weights in buckets: every byte arrives, no bucket is too large, and parts meet at the process of rank 0."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from two_learners import together

from unirl_env.policies.buckets import ALIGNED, filled, in_buckets


def weights():
    """Of several data types and sizes, some of which two or three processes cannot divide evenly."""
    made, generator = {}, torch.Generator().manual_seed(0)
    for number, shape in enumerate([(7, 3), (1, 5), (4, 6), (5,), (2, 3, 5), (0, 4), (3, 1)]):
        dtype = (torch.float32, torch.bfloat16, torch.float64)[number % 3]
        made[f"layer.{number}"] = torch.randn(shape, generator=generator).to(dtype)
    return made | {"scale": torch.tensor(1.5), "turned": torch.randn(4, 3, generator=generator).T}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("limit", [1, 100, 160, 1 << 20])
def test_buckets_are_bounded_and_hold_every_weight_once(limit):
    state = weights()
    buckets = in_buckets(state, limit)
    assert [name for names in buckets for name in names] == list(state)
    for names in buckets:
        bucket = filled({name: state[name] for name in names})
        assert bucket.memory.nbytes <= limit or len(names) == 1
        assert all(place.begin % ALIGNED == 0 for place in bucket.places)
        assert_equal(bucket.tensors(), {name: state[name] for name in names})
    assert len(buckets) == (1 if limit > 1000 else len(buckets)) and (limit > 200 or len(buckets) > 3)


def test_nothing_to_pass_on_is_one_empty_bucket():
    assert in_buckets({}) == [[]] and filled({}).tensors() == {}


def test_a_bucket_is_a_copy_and_may_be_read_only():
    state = weights()
    bucket = filled(state)
    bucket.memory.flags.writeable = False  # as it comes out of Ray's store
    wanted = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in state.values():
        tensor += 1
    assert_equal(bucket.tensors(), wanted)


def divided_weights():
    """`weights`, divided along the first dimension, along others, along two axes, and not at all."""
    count = dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))
    state, whole = {}, weights()
    for number, (name, tensor) in enumerate(whole.items()):
        placement = Shard(number % tensor.dim()) if tensor.dim() else Replicate()
        state[name] = distribute_tensor(tensor, mesh, [placement], src_data_rank=None)
    if count == 4:
        square = init_device_mesh("cpu", (2, 2))
        some = torch.arange(30.0).reshape(5, 6)
        for name, placements in {
            "hybrid": (Replicate(), Shard(0)),
            "other": (Shard(0), Replicate()),
            "both": (Shard(0), Shard(1)),
        }.items():
            whole[name] = some.clone()
            state[name] = distribute_tensor(some, square, placements, src_data_rank=None)
    plain = torch.ones(3)
    return state | {"plain": plain}, whole | {"plain": plain}


def gather(*limits):
    """Of each limit: how many weights this process got, in how many exchanges, and the largest bucket."""
    state, whole = divided_weights()
    exchanges, gather, told = [], dist.gather, []
    dist.gather = lambda own, *rest, **more: exchanges.append(own.nbytes) or gather(own, *rest, **more)
    for limit in limits:
        exchanges.clear()
        found, sizes = {}, [0]
        for names in in_buckets(state, limit):
            bucket = filled({name: state[name] for name in names})
            if bucket is not None:
                sizes.append(bucket.memory.nbytes)
                found |= {name: tensor.clone() for name, tensor in bucket.tensors().items()}
        if dist.get_rank() == 0:
            assert_equal(found, whole)
        told.append((len(found), len(exchanges), max(sizes)))
    return told


def test_parts_meet_in_the_process_of_rank_0():
    first, second = together(gather, 2, 1 << 20, 200)
    # One exchange for each dimension that is divided, and not one for each weight.
    assert first[0][:2] == (10, 2) and second[0] == (0, 2, 0)
    assert first[1][0] == 10 and first[1][2] <= 200 and second[1][2] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "weights", "exchanges"), [(3, 10, 2), (4, 13, 4)])
def test_parts_of_uneven_sizes_and_of_several_axes(processes, weights, exchanges):
    told = together(gather, processes, 1 << 20)
    assert told[0][0][:2] == (weights, exchanges) and all(each[0][0] == 0 for each in told[1:])
