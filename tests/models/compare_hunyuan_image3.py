"""Compare the adapter with the public implementation of HunyuanImage 3 on one tiny checkpoint.

    python tests/models/compare_hunyuan_image3.py --reference DIR [--golden FILE]

DIR holds the package `hunyuan_image_3` of github.com/Tencent-Hunyuan/HunyuanImage-3.0, which needs `einops`.
It is run on the CPU in float32, whole sequences at once; what it asks of a GPU is replaced by nothing.
`--golden` writes what it said, for the test that holds this adapter to it.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from hunyuan_cases import write_tiny_checkpoint

TEXT, SIZE, TIMES = "a red cat", (40, 24), (900.0, 250.0)


def public(folder, directory):
    """The public model with the weights of `directory`, and its names and shapes."""
    sys.path.insert(0, str(folder))
    torch.cuda.set_device = lambda *_: None
    torch.cuda.nvtx.range = lambda *_, **__: contextlib.nullcontext()
    import hunyuan_image_3.hunyuan as module
    from hunyuan_image_3.configuration_hunyuan import HunyuanImage3Config
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    module.nvtx.range = torch.cuda.nvtx.range
    import json

    settings = json.loads((directory / "config.json").read_text())
    config = HunyuanImage3Config(**settings)
    config.rope_scaling, config._attn_implementation = settings["rope_scaling"], "sdpa"
    model = module.HunyuanImage3ForCausalMM(config).eval()
    state = {}
    for shard in directory.glob("*.safetensors"):
        state |= load_file(shard)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    model.generation_config = GenerationConfig(
        **json.loads((directory / "generation_config.json").read_text())
    )
    return model, shapes


def public_sequence(model, tokenizer, *, template, negative, thought=None):
    """Tokens up to the picture and behind it, as the public template makes them."""
    model.load_tokenizer(tokenizer)
    info = model.image_processor.build_image_info(SIZE)
    made = model.tokenizer.apply_chat_template(
        batch_prompt=[TEXT],
        batch_cot_text=None if thought is None else [thought],
        mode="gen_image",
        batch_gen_image_info=[info],
        image_base_size=model.config.image_base_size,
        sequence_template=template,
        cfg_factor=2,
    )
    output, row = made["output"], int(negative)
    sections = made["sections"][row : row + 1] if len(made["sections"]) > 1 else made["sections"]
    return output, row, model.build_batch_rope_image_info(output, sections * len(output.tokens))[row]


@torch.no_grad()
def public_answers(model, tokenizer, latent):
    """Logits of a text and predictions for pictures."""
    from hunyuan_image_3.hunyuan import build_batch_2d_rope

    config, answers = model.config, {}
    words = torch.tensor(tokenizer.encode("what is it <think> 1", add_special_tokens=False))[None]
    place = torch.arange(words.shape[1])[None]
    turn = build_batch_2d_rope(words.shape[1], config.attention_head_dim, base=config.rope_theta)
    mask = torch.ones(1, 1, words.shape[1], words.shape[1], dtype=torch.bool).tril()
    said = model(
        input_ids=words, position_ids=place, attention_mask=mask, custom_pos_emb=turn, mode="gen_text",
        use_cache=False, return_dict=True,
    )  # fmt: skip
    answers |= {"words": words, "logits": said.logits}
    for template in ("pretrain", "instruct"):
        for negative in (False, True):
            output, row, images = public_sequence(model, tokenizer, template=template, negative=negative)
            tokens = output.tokens[row : row + 1]
            length = tokens.shape[1]
            turn = build_batch_2d_rope(
                length, config.attention_head_dim, image_infos=[images], base=config.rope_theta
            )
            mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
            part = output.gen_image_slices[row][0]
            mask[..., part, part] = True
            for time in TIMES:
                predicted = model(
                    input_ids=tokens, position_ids=torch.arange(length)[None], attention_mask=mask,
                    custom_pos_emb=turn, mode="gen_image", first_step=True, images=latent,
                    image_mask=output.gen_image_mask[row : row + 1], timestep=torch.tensor([time]),
                    gen_timestep_scatter_index=output.gen_timestep_scatter_index[row : row + 1],
                    use_cache=False, return_dict=True,
                ).diffusion_prediction  # fmt: skip
                name = f"{template}/{'negative' if negative else 'positive'}"
                answers[f"{name}/{int(time)}"] = predicted
            answers[f"{name}/tokens"] = tokens[
                :, : part.start - 1
            ]  # the time token stands before the picture
    output, row, _ = public_sequence(
        model, tokenizer, template="instruct", negative=False, thought="<recaption>a dog</recaption>"
    )
    answers["thought/tokens"] = output.tokens[row : row + 1, : output.gen_image_slices[row][0].start - 1]
    scale = config.vae["scaling_factor"]
    film = model.vae.decode((latent / scale).unsqueeze(2), return_dict=False)[0]
    answers["picture"] = (film[:, :, 0] / 2 + 0.5).clamp(0, 1)
    answers["moments"] = model.vae.encoder(answers["picture"][:, :, None].expand(-1, -1, 4, -1, -1) * 2 - 1)
    return {"latent": latent, **answers}


@torch.no_grad()
def own_answers(directory, latent):
    """The same by the adapter, under the same names."""
    from unirl_env.models.hunyuan_image3 import HunyuanImage3
    from unirl_env.models.hunyuan_image3.autoencoder import Autoencoder
    from unirl_env.types import Prompt

    answers = {}
    for template in ("pretrain", "instruct"):
        path = directory.parent / template
        write_tiny_checkpoint(path, seed=5, generation_changes={"sequence_template": template})
        model = HunyuanImage3(str(path), height=SIZE[0], width=SIZE[1], task="recaption")
        network = model.network()
        for negative in (False, True):
            name = f"{template}/{'negative' if negative else 'positive'}"
            context = model.image.encode([Prompt(TEXT)], negative=negative)
            answers[f"{name}/tokens"] = context["tokens"][:, : int(context["length"])]
            prefix = model.image.read(network, context)
            for time in TIMES:
                sigma = torch.tensor([time / 1000])
                answers[f"{name}/{int(time)}"] = model.image.velocity(network, latent, sigma, prefix)
    thought = model._template.tokenizer.encode("a dog</recaption>", add_special_tokens=False)
    begun = [*model.text.encode(Prompt(TEXT)).tokens.tolist(), *thought, *model.opening(thought[-1])]
    answers["thought/tokens"] = torch.tensor(begun)[None]
    words = torch.tensor(model._template.tokenizer.encode("what is it <think> 1", add_special_tokens=False))
    places = torch.arange(len(words))[None, None]
    hidden = model.text.hidden(network, words[None], places, lengths=torch.tensor([len(words)]))
    answers |= {"words": words[None], "logits": hidden @ model.text.head(network).T}
    answers["picture"] = torch.stack([sample.image for sample in model.image.decode(latent)])
    vae = Autoencoder(model.whole.settings.vae)
    vae.load_state_dict({name.removeprefix("vae."): tensor for name, tensor in model.whole.tensors("vae.")})
    answers["moments"] = vae.encoder(answers["picture"][:, :, None].expand(-1, -1, 4, -1, -1) * 2 - 1)
    return {"latent": latent, **answers}


def main():
    """Print the largest difference of each answer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reference", required=True, type=Path)
    parser.add_argument("--golden", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from transformers import PreTrainedTokenizerFast

        directory = write_tiny_checkpoint(Path(folder) / "model", seed=5)
        latent = torch.randn(1, 8, 5, 3, generator=torch.Generator().manual_seed(1))
        model, shapes = public(chosen.reference, directory)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        theirs, ours = public_answers(model, tokenizer, latent), own_answers(directory, latent)
        print(f"{len(shapes)} names and shapes are the public model's own; its weights were loaded strictly")
        for name, expected in theirs.items():
            same = expected.shape == ours[name].shape
            far = (expected.float() - ours[name].float()).abs().max().item() if same else float("nan")
            print(f"{name:28s} {tuple(expected.shape)!s:22s} largest difference {far:.2e}, "
                  f"scale {expected.float().abs().max().item():.2f}")  # fmt: skip
    if chosen.golden:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, chosen.golden)


if __name__ == "__main__":
    main()
