"""An engine as low precision makes one: a second copy of the network, whose weights keep three bits."""

import copy

import torch

from unirl_env.rollouts.engines import Engine
from unirl_env.rollouts.engines.local import LocalEngine


def rounded(weight, bits=3):
    """`weight` with a mantissa of so many bits behind the leading one, as float8 e4m3 has three."""
    mantissa, exponent = torch.frexp(weight)
    return torch.ldexp(torch.round(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)


class RoundedEngine(Engine):
    """Answers with rounded weights, and reports the log-probs under them."""

    def __init__(self, pretrained, **settings):
        self.inner = None

    def load_weights(self, version, actor):
        """A copy of all weights, rounded."""
        if self.inner is None:
            self.inner = LocalEngine(copy.deepcopy(actor))
        self.inner.actor.load_trainable_state(actor.trainable_state())
        with torch.no_grad():
            for weight in self.inner.actor.network.parameters():
                weight.copy_(rounded(weight))
        self.weights_version = self.inner.weights_version = version

    def generate(self, requests, *, temperature=None, base=False):
        """As the local engine does."""
        return self.inner.generate(requests, temperature=temperature, base=base)
