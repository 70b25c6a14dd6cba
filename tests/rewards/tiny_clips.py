"""CLIP models of random weights, of the real classes, and pictures for them."""

import json

import torch
import torch.nn.functional as nnf

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def tiny_open_clip(folder, seed=0):
    """A model of open_clip in a directory, as `local-dir:` finds it, and its checkpoint."""
    import open_clip

    (folder / "Tiny-Test.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / "Tiny-Test.json")
    torch.manual_seed(seed)
    weights = open_clip.create_model("Tiny-Test").state_dict()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    torch.save(weights, folder / "open_clip_model.pth")
    return f"local-dir:{folder}", folder / "open_clip_model.pth"


def picture(seed, height=32, width=32):
    """A smooth random picture in 8 bits, with fine detail on it, which shows a missing antialias filter."""
    random = torch.Generator().manual_seed(seed)
    coarse = nnf.interpolate(torch.rand(1, 3, 4, 4, generator=random), (height, width), mode="bilinear")[0]
    mixed = 0.7 * coarse + 0.3 * torch.rand(3, height, width, generator=random)
    return (mixed * 255).round() / 255


def counted(monkeypatch, owner, method):
    """The number of rows of every call of a method from now on."""
    calls, real = [], getattr(owner, method)

    def spy(*args, **options):
        first = args[0] if args else next(iter(options.values()))
        calls.append(len(first))
        return real(*args, **options)

    monkeypatch.setattr(owner, method, spy)
    return calls
