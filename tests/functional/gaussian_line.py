"""The one-dimensional Gaussian oracle: data N(M, K^2), in closed form and as quadrature over (x_0, e)."""

import math

import numpy as np
import torch
from torch import Tensor

M, K = 0.3, 0.8


def variance(s):
    """Of x_s."""
    return (1 - s) ** 2 * K**2 + s**2


def velocity(x, s):
    """E[u | x_s = x], the perfect velocity."""
    return (s - (1 - s) * K**2) / variance(s) * (x - (1 - s) * M) - M


def normal_nodes(count=40) -> tuple[Tensor, Tensor]:
    """Nodes and weights `[count]` float64 of expectations under a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))


def joint(count=40) -> tuple[Tensor, Tensor, Tensor]:
    """`x_0`, `e` `[N, 1]` and weights `[N]`, float64: expectations over data and noise."""
    nodes, weights = normal_nodes(count)
    x0, e = torch.meshgrid(M + K * nodes, nodes, indexing="ij")
    return x0.reshape(-1, 1), e.reshape(-1, 1), (weights[:, None] * weights).reshape(-1)


def posterior(x: float, s: float, count=40) -> tuple[Tensor, Tensor, Tensor]:
    """`x_0`, `u` `[N, 1]` and weights `[N]`, float64: expectations given x_s = x, for 0 < s < 1."""
    nodes, weights = normal_nodes(count)
    mean = M + (1 - s) * K**2 / variance(s) * (x - (1 - s) * M)
    x0 = mean + K * s / math.sqrt(variance(s)) * nodes
    e = (x - (1 - s) * x0) / s
    return x0[:, None], (e - x0)[:, None], weights
