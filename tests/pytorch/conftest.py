"""The reference implementations with random weights, and this project's model with the same."""

import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.torchvision_stub import torchvision_or_stub
from talora_jax.inference.prompts import SamPredictor
from talora_jax.weights.build import load_sam
from weights_convert.__main__ import main

# Square, and not: at 1024 pixels a 333×500 image leaves padding below.
SIZES = ((1024, 1024), (333, 500))


@dataclasses.dataclass(eq=False)
class Peers:
    """One set of weights in three implementations, and the images they see.

    Attributes:
      official: `segment_anything`'s model, on whose state dict the others stand.
      huggingface: `transformers.SamModel`, from the folder that the converter wrote.
      ours: a predictor on the base that the converter wrote, with `images` set.
    """

    official: object
    huggingface: object
    loading: dict
    ours: SamPredictor
    images: list[np.ndarray]


def make_official(
    width: int,
    heads: int,
    depth: int,
    global_blocks: tuple[int, ...],
    *,
    grid: int = 64,
    patch: int = 16,
    window: int = 14,
    tables: bool = True,
    biases: bool = True,
    decoder: tuple[int, int, int, int] = (256, 2, 8, 2048),
    mask_tokens: int = 4,
):
    """SAM of `segment_anything`, every parameter drawn so that outputs are of order one.

    Args:
      tables: whether there are relative positions.
      biases: whether q, k and v have any.
      decoder: width, layers, heads, and width inside its MLPs.
    """
    import torch

    with torchvision_or_stub():
        from segment_anything.modeling import (
            ImageEncoderViT,
            MaskDecoder,
            PromptEncoder,
            Sam,
            TwoWayTransformer,
        )

    dim, layers, decoder_heads, inside = decoder
    side = grid * patch
    sam = Sam(
        ImageEncoderViT(
            img_size=side,
            patch_size=patch,
            depth=depth,
            embed_dim=width,
            num_heads=heads,
            mlp_ratio=4,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=tables,
            qkv_bias=biases,
            global_attn_indexes=global_blocks,
            window_size=window,
            out_chans=dim,
        ),
        PromptEncoder(dim, (grid, grid), (side, side), 16),
        MaskDecoder(
            transformer_dim=dim,
            transformer=TwoWayTransformer(layers, dim, decoder_heads, inside),
            num_multimask_outputs=mask_tokens - 1,
            iou_head_hidden_dim=dim,
        ),
    ).eval()
    generator = torch.Generator().manual_seed(0)
    for name, x in sam.state_dict().items():
        noise = torch.randn(x.shape, generator=generator)
        if x.ndim == 1:
            # The scales of normalisations lie around one, biases around zero.
            x.copy_(0.1 * noise + (1 if name.endswith("weight") else 0))
        elif "rel_pos" in name:
            x.copy_(0.1 * noise)
        elif name.endswith(("embed", "embed.weight", "token.weight", "tokens.weight", "matrix")):
            x.copy_(noise)
        elif "point_embeddings" in name:
            x.copy_(noise)
        else:
            fan_in = x.shape[0] if "output_upscaling" in name else x[0].numel()
            x.copy_(noise / fan_in**0.5)
    return sam


def photo(size: tuple[int, int], seed: int) -> np.ndarray:
    """Coloured patches with noise."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    image = np.asarray(patches.resize(size[::-1], Image.Resampling.BICUBIC), int)
    return np.clip(image + rng.integers(-20, 21, image.shape), 0, 255).astype(np.uint8)


def convert(*args, max_file_size: int = -1) -> subprocess.CompletedProcess:
    """Runs the command in its own process; a limit on the size of files stands in for a disk."""
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({max_file_size},) * 2); "
        "from talora_jax.errors import run_command; "
        "from weights_convert.__main__ import main; run_command(main)"
    )
    command = [sys.executable, "-c", program, *map(str, args)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, cwd=root)


def make_peers(folder: Path, *sizes, images: tuple[tuple[int, int], ...]) -> Peers:
    import torch
    from transformers import SamModel

    official = make_official(*sizes)
    torch.save(official.state_dict(), folder / "sam.pth")
    for output in ("base.safetensors", "huggingface"):
        main([str(folder / "sam.pth"), str(folder / output)])
    huggingface, loading = SamModel.from_pretrained(
        folder / "huggingface", output_loading_info=True
    )
    ours = SamPredictor(load_sam(folder / "base.safetensors"))
    photos = [photo(size, seed) for seed, size in enumerate(images)]
    ours.set_images(photos)
    return Peers(official, huggingface.eval(), loading, ours, photos)


@pytest.fixture(scope="session")
def official_sam():
    """Makes a `segment_anything` model with random weights of a width, heads, depth and so on."""
    return make_official


@pytest.fixture(scope="session")
def converter():
    """`convert`."""
    return convert


@pytest.fixture(scope="session")
def vit_b(tmp_path_factory) -> Peers:
    """All of it, on one image: a second one takes as long as everything else here."""
    folder = tmp_path_factory.mktemp("vit_b")
    return make_peers(folder, 768, 12, 12, (2, 5, 8, 11), images=SIZES[1:])


@pytest.fixture(scope="session")
def vit_l(tmp_path_factory) -> Peers:
    """ViT-L's width and heads, two blocks deep."""
    return make_peers(tmp_path_factory.mktemp("vit_l"), 1024, 16, 2, (1,), images=SIZES)


@pytest.fixture(scope="session")
def vit_h(tmp_path_factory) -> Peers:
    """ViT-H's width and heads, two blocks deep."""
    return make_peers(tmp_path_factory.mktemp("vit_h"), 1280, 16, 2, (1,), images=SIZES[1:])


@pytest.fixture(scope="session", params=["vit_l", "vit_h"])
def shallow(request) -> Peers:
    return request.getfixturevalue(request.param)
