"""One buffer of gradients: what autograd writes, what is clipped, what learners sum."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from unirl_env.agents.optimizer import FlatGradient, Masters


def parameters():
    torch.manual_seed(0)
    return list(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).parameters())


def backward(params, scale=1.0):
    weight, bias, weight2, bias2 = params
    x = torch.arange(6.0).view(2, 3)
    ((x @ weight.T + bias) @ weight2.T + bias2).square().sum().mul(scale).backward()


def test_backward_passes_add_up_in_the_buffer():
    params, reference = parameters(), parameters()
    gradient = FlatGradient(params)
    gradient.zero()
    backward(params)
    backward(params, 2.0)
    backward(reference, 3.0)
    for parameter, expected in zip(params, reference, strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
    gradient.zero()
    assert all((parameter.grad == 0).all() for parameter in params)


def test_clipping_is_torchs():
    params, reference = parameters(), parameters()
    gradient = FlatGradient(params)
    gradient.zero()
    backward(params)
    backward(reference)
    norm = gradient.clip(0.5)
    expected = nn.utils.clip_grad_norm_(reference, 0.5)
    torch.testing.assert_close(norm, expected)
    for parameter, other in zip(params, reference, strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_each_data_type_has_its_own_buffer():
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]
    gradient = FlatGradient(params)
    gradient.zero()
    sum((p.float() * 3).sum() for p in params).backward()
    assert params[1].grad.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.clip(float("inf")), torch.tensor(45.0).sqrt())


def two_learners(rank, path, results):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    params = [nn.Parameter(torch.zeros(2))]
    gradient = FlatGradient(params, distributed=True)
    for failing in (None, 1):
        gradient.zero()
        (params[0] * (rank + 1.0)).sum().backward()
        told = gradient.exchange(failed=rank == failing)
        results[rank, failing] = (told, params[0].grad.tolist())
    half = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    masters = Masters({"half": half})
    gradient = FlatGradient(masters.weights, distributed=True)
    gradient.zero()
    (half * [256.0, 1.0][rank]).sum().backward()
    gradient.exchange()
    results[rank, "half"] = masters.weights[0].grad.tolist()
    dist.destroy_process_group()


def test_learners_sum_and_hear_of_a_failure(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(two_learners, args=(tmp_path / "meet", results), nprocs=2)
        for rank in range(2):
            assert results[rank, None] == (False, [3.0, 3.0])
            assert results[rank, 1] == (True, [1.0, 1.0])
            assert results[rank, "half"] == [257.0, 257.0], "summed in float32: bfloat16 has no 257"
