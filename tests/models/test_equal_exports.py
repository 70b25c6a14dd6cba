"""Equal runs leave equal files, whatever order a process gives its sets and mappings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unirl_env.models.shared.exports import in_order, settle_header

WRITE = """
import sys, torch
from unirl_env.models.shared.exports import write_adapters
from peft import LoraConfig, inject_adapter_in_model
network = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in "abcdefgh"})
torch.manual_seed(0)
inject_adapter_in_model(LoraConfig(r=1, target_modules=list("abcdefgh")), network)
write_adapters(network, sys.argv[1], base="somewhere")
"""


def test_the_metadata_of_a_file_is_in_order_and_its_tensors_are_as_they_were(tmp_path):
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    metadata = {name: f'"{name}" ü\n' for name in ("format", "lora", "c", "z", "é")}
    written = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path, metadata=metadata)
        settle_header(path)
        written.add(path.read_bytes())
    assert len(written) == 1
    found = load_file(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata


def test_a_file_without_metadata_is_left_as_it_is(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    settle_header(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_sets_become_lists_in_order():
    assert in_order({"a": {"q", "k", "v"}, "b": 1}) == {"a": ["k", "q", "v"], "b": 1}


@pytest.mark.slow
def test_processes_that_order_sets_in_other_ways_write_the_same_adapters(tmp_path):
    contents = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / seed)], env=environment, check=True)
        contents.append({path.name: path.read_bytes() for path in Path(tmp_path / seed).iterdir()})
    assert contents[0] == contents[1]
    assert json.loads(contents[0]["adapter_config.json"])["target_modules"] == list("abcdefgh")
