"""Unified models of single characters and small latents, and hybrid worlds made of them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from talk import ALPHABET, EOS, MODEL, PAD, USER, SeeingModel, SpellingModel, spelled
from worlds import PlainDenoiser

from unirl_env.envs import HybridVectorEnv
from unirl_env.envs.token_rows import WAIT
from unirl_env.models.unified import PictureTokens, UnifiedModel
from unirl_env.types import Prompt, Sample, Scores
from unirl_env.wrappers.reward import RewardWrapper

OPEN = USER
"""The token that opens a picture; after it the world writes MODEL."""
QUESTIONS = ["1 cat", "2 dogs", "a house", "say hello"]


class Writer(SpellingModel):
    """Spells, and opens pictures."""

    eos_ids = (EOS, OPEN)


class SeeingWriter(SeeingModel):
    """Spells what it sees, and opens pictures."""

    eos_ids = (EOS, OPEN)


class TwoBackbones(UnifiedModel):
    """A writer and a painter that reads the finished text; `asked` counts what it read."""

    pretrained, lora_targets = None, ()
    opens = (OPEN,)
    context_keys = ("prompt_embeds", "pooled")

    def __init__(self, latent_shape=(3, 4, 4)):
        self.text, self.image = Writer(), PlainDenoiser(latent_shape)
        self.asked = Counter()

    def opening(self, ended_by):
        return [OPEN, MODEL] if ended_by is None else [MODEL]

    def context(self, prompt, text):
        self.asked[prompt.text, text] += 1
        return self.image.encode([prompt if text is None else replace(prompt, text=text)])

    def network(self):
        raise AssertionError("an environment needs no network")

    save_adapters = save_weights = network


class TokenReader(PlainDenoiser):
    """Reads the tokens of a prompt with the opening of its picture."""

    def encode(self, prompts, *, negative=False):
        texts = [prompt.negative if negative else prompt.text for prompt in prompts]
        self.encoded.update(texts)
        rows = [[USER, *spelled(text), EOS, MODEL, OPEN, MODEL] for text in texts]
        tokens = torch.full((len(rows), 24), PAD)
        for row, said in zip(tokens, rows, strict=True):
            row[: len(said)] = torch.tensor(said)
        return {"tokens": tokens, "length": torch.tensor([len(row) for row in rows])}


class OneBackbone(TwoBackbones):
    """One network for both: the painter reads the tokens."""

    context_keys = ("tokens", "length")

    def __init__(self, latent_shape=(3, 4, 4)):
        super().__init__(latent_shape)
        self.image = TokenReader(latent_shape)

    def context(self, prompt, text):
        return {}


class Sighted(OneBackbone):
    """One network that sees up to two pictures."""

    max_images = 2

    def __init__(self):
        super().__init__()
        self.text = SeeingWriter()
        self.context_keys = ("tokens", "length", *self.text.input_spaces)


class Mosaic(PictureTokens):
    """Pictures of four tokens out of five, each a shade of grey."""

    first_id, vocab_size, num_tokens, pad_id = 4 + len(ALPHABET), 5, 4, PAD

    def pictures(self, tokens):
        shades = (tokens - self.first_id).float().view(-1, 1, 2, 2) / 4
        return [Sample(image=shade.expand(3, 2, 2).clone()) for shade in shades]

    def network(self):
        raise AssertionError("an environment needs no network")

    hidden = head = network


class Discrete(OneBackbone):
    """One network whose pictures are tokens."""

    discrete = True

    def __init__(self):
        super().__init__()
        self.image = Mosaic()


def seen(samples, prompts):
    """How bright the picture is, 0 without one, and a hundredth for each token said."""
    made = [sample.image if sample.image is not None else sample.latent for sample in samples]
    said = [0 if sample.tokens is None else len(sample.tokens) for sample in samples]
    bright = [0.0 if picture is None else float(picture.float().mean()) for picture in made]
    return Scores(torch.tensor([b + n / 100 for b, n in zip(bright, said, strict=True)]))


def hybrid(model=None, *, num_envs=4, scored=False, **options):
    """A hybrid environment of a small model."""
    model = model or TwoBackbones()
    limits = {"max_new_tokens": 6, "max_prompt_tokens": 20, "info_objects": True}
    options = {"prompts": QUESTIONS, **limits, **options}
    if not model.discrete:
        options = {"num_steps": 3, **options}
    env = HybridVectorEnv(model, num_envs=num_envs, **options)
    return RewardWrapper(env, seen) if scored else env


def letters(step):
    """Tokens of one letter per row: `~` ends, `^` opens a picture, `_` waits, `.` means nothing."""
    special = {"~": EOS, "^": OPEN, "_": WAIT, ".": 4}
    return np.array([special[c] if c in special else spelled(c)[0] for c in step])


def step(env, obs, said, factor=0.5):
    """Let each row say its letter or go on drawing."""
    kind = torch.from_numpy if env.unwrapped.array_backend == "torch" else np.asarray
    actions = {"token": kind(letters(said))}
    if "latent" in obs:
        actions["latent"] = obs["latent"] * factor
    if "image_tokens" in obs:
        first = env.unwrapped.unified_model.image.first_id
        actions["image_token"] = first + (obs["length"] + obs["image_length"]) % 5
    return env.step(actions)


def play(env, *texts, seed=0, options=None):
    """Let each row spell its text and then draw; all results, the reset as the first."""
    obs, info = env.reset(seed=seed, options=options)
    results, done = [(obs, None, None, None, info)], np.zeros(env.num_envs, dtype=bool)
    for k in range(100):
        said = [text[k] if k < len(text) else "." for text in texts]
        results.append(step(env, obs, said))
        obs = results[-1][0]
        done |= np.asarray(results[-1][2]) | np.asarray(results[-1][3])
        if done.all():
            return results
    raise AssertionError("the episodes did not end")


def samples_of(results, count):
    """The sample of each row."""
    found = [None] * count
    for *_, info in results:
        for row, sample in enumerate(info.get("samples", ())):
            found[row] = sample or found[row]
    return found


def looking(count=1):
    """Prompts that bring pictures."""
    return [
        Prompt(f"{k + 1} cats", id=str(k), images=tuple([torch.zeros(3, 2, 2)] * count)) for k in range(4)
    ]
