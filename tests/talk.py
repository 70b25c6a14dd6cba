"""Language models of single characters, and worlds made of them."""

from collections import Counter

import numpy as np
import torch

from unirl_env.envs.token_rows import WAIT
from unirl_env.envs.writing import TokenVectorEnv
from unirl_env.models.words import Encoded, Words
from unirl_env.types import Scores
from unirl_env.wrappers.reward import RewardWrapper

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 +-*/=().:<>"
PAD, EOS, USER, MODEL = range(4)
QUESTIONS = ["1+1", "2*3+4", "7-5", "say hello"]


def spelled(text):
    """The tokens of a text."""
    return [4 + ALPHABET.index(letter) for letter in text]


class SpellingModel(Words):
    """Every character is a token; `encoded` counts the prompts that were encoded."""

    vocab_size = 4 + len(ALPHABET)
    eos_ids = (EOS,)
    pad_id = PAD
    max_context = 64
    pretrained, revision = "spelling", None
    input_spaces = {}

    def __init__(self):
        self.encoded = Counter()

    def encode(self, prompt):
        self.encoded[prompt.id] += 1
        return Encoded(torch.tensor([USER, *spelled(prompt.text), EOS, MODEL]))

    def decode(self, tokens):
        return "".join(ALPHABET[token - 4] for token in tokens if token > MODEL)

    def reply(self, text):
        return [USER, *spelled(text), EOS, MODEL]


class SeeingModel(SpellingModel):
    """As many patches as the prompt's first number says."""

    input_spaces = {
        "pixel_values": ((9, 2), "float32"),
        "image_grid_thw": ((2, 3), "int64"),
        "positions": ((3, 64), "int64"),
    }

    def encode(self, prompt):
        tokens = super().encode(prompt).tokens
        patches = int(prompt.text[0]) if prompt.text[0].isdigit() else 0
        inputs = {
            "pixel_values": torch.arange(2.0 * patches).reshape(patches, 2) + 1,
            "image_grid_thw": torch.tensor([[1, 1, patches]]),
            "positions": torch.arange(len(tokens)).repeat(3, 1),
        }
        return Encoded(tokens, inputs)


def length_score(samples, prompts):
    """How much was said."""
    return Scores(torch.tensor([float(len(sample.tokens)) for sample in samples]))


def talk(model=None, *, num_envs=4, scored=False, **options):
    """A token environment of the spelling model."""
    limits = {"max_new_tokens": 12, "max_prompt_tokens": 20, "info_objects": True}
    options = {"prompts": QUESTIONS, **limits, **options}
    env = TokenVectorEnv(model or SpellingModel(), num_envs=num_envs, **options)
    return RewardWrapper(env, length_score) if scored else env


def say(env, *texts):
    """Let each row spell its text; `~` is the end of a turn, `_` waits. The results of every step."""
    results = []
    for letters in zip(*texts, strict=True):
        tokens = [{"~": EOS, "_": WAIT}.get(c) if c in "~_" else 4 + ALPHABET.index(c) for c in letters]
        actions = np.array(tokens)
        results.append(
            env.step(torch.from_numpy(actions) if env.unwrapped.array_backend == "torch" else actions)
        )
    return results


def plain(value):
    return np.asarray(value).copy()


def token_numbers(samples, prompts):
    """Pays for the numbers of tokens, so that untrained models differ."""
    return Scores(torch.tensor([float(sample.tokens.float().mean()) / 300 for sample in samples]))
