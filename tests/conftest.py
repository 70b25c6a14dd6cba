"""Shared by all tests: this folder is on the import path, so that any test can `import fakes`."""

import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # the second for `pretraining`
# What the doors set as well: within Ray Serve's own 5 seconds a busy machine starts no proxy.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets what it starts in the background ignore Ctrl-C, and runs keep to that, as with `nohup`.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny tensors are slower on many threads, and other processes want the cores, too."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_key(tmp_path_factory):
    """Runs are signed by a key of the tests', and not by that of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch):
    """What one test takes for a secret is a word in the next."""
    from unirl_env.errors import masks

    monkeypatch.setattr(masks, "_known", set(masks._known))


@pytest.fixture(scope="session")
def cluster():
    """RLlib keeps its configuration in Ray's object store, even where everything runs in one process."""
    import cluster as one_cluster

    one_cluster.start()


@pytest.fixture(scope="session")
def quiet_models():
    """No progress bars of model libraries among the dots."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory, quiet_models):
    """An untrained tiny Stable Diffusion 3 on the disk."""
    from pretraining.sd3_build import build_tiny_sd3

    directory = build_tiny_sd3(tmp_path_factory.mktemp("models") / "tiny_sd3", seed=1)
    config = directory / "vae" / "config.json"
    # The neutral values of an untrained decoder would hide their absence.
    scaled = json.loads(config.read_text()) | {"scaling_factor": 1.3, "shift_factor": 0.2}
    config.write_text(json.dumps(scaled))
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_dir):
    """Its adapter; tests share the frozen half and must not change it."""
    from unirl_env.models.tiny import TinySD3Denoiser

    return TinySD3Denoiser(tiny_dir)


@pytest.fixture(scope="session")
def tiny_unified_dir(tmp_path_factory, quiet_models):
    """An untrained tiny unified model on the disk."""
    from pretraining.unified_build import build_tiny_unified

    return build_tiny_unified(tmp_path_factory.mktemp("models") / "tiny_unified", seed=1, hidden_size=64)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, quiet_models):
    """`checkpoint(family)`: where the tiny checkpoint of a `Family` is; tests must not change it.

    Families that are built alike share one, and each is built when it is asked for first.
    """
    built = {}

    def of(family):
        if family.build not in built:
            folder = tmp_path_factory.mktemp(family.name)
            family.build(folder)
            built[family.build] = folder
        return built[family.build]

    return of


@pytest.fixture(scope="session")
def offline(tiny_dir, tmp_path_factory, checkpoint):
    """`offline(id)`: arguments with which an id needs no download, and few steps."""
    import torch
    from janus_cases import write_tiny_janus
    from models.hunyuan_cases import write_tiny_checkpoint

    from pretraining.qwen_vl_build import build_tiny_qwen_vl
    from unirl_env.models.tiny import tiny_path
    from unirl_env.types import Prompt

    seeing = build_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "tiny_qwen_vl", seed=1)
    pictures = [torch.full((3, 32, 32), i / 10) for i in range(10)]
    question, answer = "what is it?", {"answer": "grey"}
    questions = [Prompt(question, str(i), metadata=answer, images=(p,)) for i, p in enumerate(pictures)]
    tiny_sd3 = {"pretrained": str(tiny_dir), "max_sequence_length": 10}
    draws = {"pretrained": str(tiny_dir), "num_steps": 3}
    writes = {"pretrained": str(tiny_path("qwen3")), "max_new_tokens": 5, "max_prompt_tokens": 32}
    looks = {"pretrained": str(seeing), "max_new_tokens": 5, "max_prompt_tokens": 96, "prompts": questions}
    asks = {"max_new_tokens": 5, "generator": {"denoiser": "tiny_sd3", **draws}}
    short = {"language_model": "tiny_enhancer", "pretrained": None, "system": None}
    drawn = {"name": "pictured", "scorer": "shapes"}
    small = {"height": 32, "width": 32, "max_sequence_length": 10}
    thinks = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny_hunyuan")
    from models.bagel_cases import build as build_bagel

    bagel = {"pretrained": build_bagel(tmp_path_factory.mktemp("models") / "tiny_bagel"), "dtype": "float32"}
    bagel |= {"height": 32, "width": 32, "num_steps": 2, "scorer": {"name": "pictured", "scorer": "shapes"}}
    tokens = write_tiny_janus(tmp_path_factory.mktemp("models") / "tiny_janus")
    both = {"writer": {"language_model": "tiny_enhancer"}, "painter": {"denoiser": "sd3", **tiny_sd3}}
    arguments = {
        "unirl/Janus-T2I-v0": {
            **{"pretrained": tokens, "max_prompt_tokens": 96, "prompts": "shapes_train", "scorer": drawn},
        },
        "unirl/EnhancerAndSD3-T2I-v0": {
            **{"model_options": both, "max_new_tokens": 5, "max_prompt_tokens": 32, "num_steps": 3},
            **{"prompts": "requests_train", "scorer": drawn},
        },
        "unirl/Bagel-T2I-v0": {
            **bagel,
            **{"max_new_tokens": 4, "max_prompt_tokens": 256, "prompts": "shapes_train"},
        },
        "unirl/Bagel-Edit-v0": {**bagel, "max_prompt_tokens": 384},
        "unirl/HunyuanImage3-T2I-v0": {
            **{"pretrained": str(thinks), "height": 32, "width": 32, "dtype": "float32", "num_steps": 2},
            **{"max_new_tokens": 4, "max_prompt_tokens": 64, "model_options": {"task": "auto"}},
            **{"prompts": "shapes_train", "scorer": {"name": "pictured", "scorer": "shapes"}},
        },
        "unirl/TinySD3-T2I-v0": draws,
        "unirl/TinyVideo-T2V-v0": {"num_steps": 3},
        "unirl/SD3-T2I-v0": {**draws, **small, "scorer": "shapes", "prompts": "shapes_train"},
        "unirl/TinyQwen3-Math-v0": writes,
        "unirl/Qwen3-Math-v0": {**writes, "prompts": "sums_train"},
        "unirl/TinyQwenVL-VQA-v0": looks,
        "unirl/TinyPromptEnhancer-T2I-v0": asks,
        "unirl/PromptEnhancer-T2I-v0": {**asks, **short, "prompts": "requests_train", "scorer": drawn},
        "unirl/QwenVL-VQA-v0": {**looks, "max_pixels": 32 * 32},
    }

    def of(name):
        from families import FAMILIES

        if name in FAMILIES and name not in arguments:
            family = import_module(FAMILIES[name]).CASES[name]
            arguments[name] = family.arguments(checkpoint(family))
        return arguments.get(name, {})

    return of
