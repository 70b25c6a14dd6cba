"""Shared by all tests: this folder is on the import path, so that any test can `import fakes`."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny tensors are slower on many threads, and other processes want the cores, too."""
    import torch

    torch.set_num_threads(1)


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
    from unirl_env.models.tiny.sd3_build import build_tiny_sd3

    directory = build_tiny_sd3(tmp_path_factory.mktemp("models") / "tiny_sd3", seed=1)
    config = directory / "vae" / "config.json"
    # The neutral values of an untrained decoder would hide their absence.
    scaled = json.loads(config.read_text()) | {"scaling_factor": 1.3, "shift_factor": 0.2}
    config.write_text(json.dumps(scaled))
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_dir):
    """Its adapter; tests share the frozen half and must not change it."""
    from unirl_env.models.tiny.sd3 import TinySD3Denoiser

    return TinySD3Denoiser(tiny_dir)
