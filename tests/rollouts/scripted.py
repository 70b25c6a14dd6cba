"""An engine that says what a script says, and rollouts that play it."""

import torch
from talk import EOS, SpellingModel, spelled, talk

from unirl_env.errors import EngineLost
from unirl_env.rollouts.drivers.tokens import TextDriver
from unirl_env.rollouts.engines import Answer, Engine
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt

ONE, TWO = Prompt("1+1"), Prompt("2*3+4")
CHAT = {"1+1": ["say <2>$", "two$"], "2*3+4": "ten$"}
"""With `echo` as the tool: a first turn that is answered, and a second; the other has no question."""


def echo(text, prompt):
    """A tool that answers with what stands in brackets."""
    return text[text.index("<") + 1 : text.index(">")] if "<" in text else None


class Script(Engine):
    """Says what stands in `lines` by prompt and turn; its log-probabilities count the tokens said."""

    def __init__(self, lines, losses=()):
        self.lines, self.losses = lines, list(losses)
        self.asked, self.log, self.closed = [], [], False

    def generate(self, requests, *, temperature=None, base=False):
        self.asked.append(list(requests))
        self.log.append(("generate", temperature, base))
        if self.losses and self.losses.pop(0):
            raise EngineLost("the engine fell over")
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        turn = request.tokens.count(EOS) - 1  # the prompt has one
        line = self.lines[request.prompt.id]
        tokens = self._said(line if isinstance(line, str) else line[turn // 2])[: request.max_new_tokens]
        return Answer(tuple(tokens), tuple(-1.0 - request.position - i for i in range(len(tokens))))

    def _said(self, line):
        return [*spelled(line.removesuffix("$")), *([EOS] if line.endswith("$") else [])]

    def load_weights(self, version, actor):
        self.weights_version = version
        self.log.append(("load", version, actor))

    def restart(self):
        self.weights_version = None
        self.log.append(("restart",))

    def close(self):
        self.closed = True


def player(lines, model=None, *, losses=(), actor=None, batch_size=None, **options):
    model = model or SpellingModel()

    def make_env(num_envs):
        return talk(
            model,
            num_envs=num_envs,
            array_backend="torch",
            autoreset_mode="disabled",
            **{"scored": True, **options},
        )

    return Rollout(make_env, {"text": TextDriver(Script(lines, losses), actor)}, batch_size=batch_size)


def assert_same(one, other):
    """Two batches agree in everything that is trained on."""
    assert one.prompts == other.prompts and torch.equal(one.episode_seed, other.episode_seed)
    assert torch.equal(one.rewards, other.rewards) and torch.equal(one.group, other.group)
    assert torch.equal(one.truncated, other.truncated)
    mine, expected = one.phases["text"], other.phases["text"]
    for name in ("action", "log_prob", "mask"):
        assert torch.equal(getattr(mine, name), getattr(expected, name))
    for name, tensor in expected.context.items():
        assert torch.equal(mine.context[name][mine.context_row], tensor[expected.context_row])
