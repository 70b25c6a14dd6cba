"""One buffer of gradients: what autograd writes, what is clipped, what learners sum."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from unirl_env.agents.optimizer import Masters
from unirl_env.agents.parallel.flat_gradient import FlatGradient


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


def test_the_norms_of_parts_are_those_of_each_alone():
    params = [*parameters(), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    gradient = FlatGradient(params, parts=3)
    scales, alone = (1.0, -2.5, 0.5), []
    for scale in scales:
        gradient.zero()
        backward(params[:4], scale)
        (scale * params[4]).sum().backward()
        alone.append(float(gradient.clip(float("inf"))))
    for _ in range(2):  # nothing is left of an earlier step
        gradient.zero()
        for number, scale in enumerate(scales):
            if number:
                gradient.mark()
            backward(params[:4], scale)
            (scale * params[4]).sum().backward()
        total = [parameter.grad.clone() for parameter in params]
        torch.testing.assert_close(gradient.part_norms(), alone)
        assert all(torch.equal(parameter.grad, each) for parameter, each in zip(params, total, strict=True))
    gradient.zero()
    backward(params[:4])
    gradient.mark()
    found = gradient.part_norms()
    assert len(found) == 2 and found[0] > 0 == found[1], "a part may have nothing to add"


def two_learners(rank, path, results):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    params = [nn.Parameter(torch.zeros(2))]
    gradient = FlatGradient(params, distributed=True)
    for failing in (None, 1):
        gradient.zero()
        (params[0] * (rank + 1.0)).sum().backward()
        told = gradient.exchange(failed=rank == failing)
        results[rank, failing] = (told, params[0].grad.tolist())
    whole = nn.Parameter(torch.zeros(2))
    gradient = FlatGradient([whole], distributed=True, parts=2, told=3)
    for _ in range(2):
        gradient.zero()
        (whole * torch.tensor([3.0, 0.0])).sum().backward()
        gradient.mark()
        (whole * torch.tensor([0.0, 1.0 + rank])).sum().backward()
        gradient.told += torch.tensor([1.0, rank, 10.0])
        told = gradient.exchange()
        results[rank, "parts"] = (told, gradient.told.tolist(), gradient.part_norms(), whole.grad.tolist())
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
            assert results[rank, "parts"] == (False, [2.0, 1.0, 20.0], [6.0, 3.0], [6.0, 3.0])
            assert results[rank, "half"] == [257.0, 257.0], "summed in float32: bfloat16 has no 257"
