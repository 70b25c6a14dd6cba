"""A scorer that says in which process it works."""

import os
import time

import torch

from unirl_env.types import Scores


class PidScorer:
    name = "pid"
    needs = ("image",)
    pointwise = True

    def __init__(self, seconds=0.0):
        self._seconds = seconds

    def __call__(self, samples, prompts):
        time.sleep(self._seconds)
        value = torch.stack([sample.image.mean() for sample in samples])
        return Scores(value, {"process": torch.full((len(samples),), float(os.getpid()))})
