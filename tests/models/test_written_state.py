"""What a network's files hold, without writing them: by the same names, and of the network's own memory."""

import pytest
import torch
from language_cases import PACKED, write
from safetensors.torch import load_file

from pretraining.qwen_vl_build import build_tiny_qwen_vl
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.qwen_vl import QwenVL
from unirl_env.models.shared.exports import write_weights, written_state
from unirl_env.models.tiny import TinyQwen3

CASES = {
    "tied": lambda folder: TinyQwen3(),
    "untied": lambda folder: CausalLM(write(folder, "Llama", PACKED["Llama"])),
    "experts": lambda folder: CausalLM(write(folder, "Qwen3Moe", PACKED["Qwen3Moe"])),
    "experts of other names": lambda folder: CausalLM(write(folder, "Mixtral", PACKED["Mixtral"])),
    "pictures": lambda folder: QwenVL(str(build_tiny_qwen_vl(folder, seed=2))),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_files_hold(case, tmp_path, quiet_models):
    network = CASES[case](tmp_path / "model").network()
    found = written_state(network)
    write_weights(network, str(tmp_path / "written"))
    wanted = load_file(tmp_path / "written" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    copied = [name for name, tensor in found.items() if tensor.untyped_storage().data_ptr() not in own]
    assert all("expert" in name for name in copied), "nothing else is held twice"
