"""The peers, in PyTorch: SAM's image encoder, and mSAM built of the peers' own modules.

mSAM here does what the MTSAM release does, in its order: tasks one after the other; in every layer
the dense update ΔW [d, k] of the task is built and applied as a second product beside the frozen
qkv; a task's decoder runs once per output channel, with the channel's no-mask row broadcast over
the image as the only prompt; maps go up to the square, are cropped, and go to the image's own size.
Parameters carry the names of that release (`td_U1`, `mask_decoder.0`, …).

Encoder and decoder are the packages' own classes, unchanged. The encoder is `segment_anything`'s or
`transformers`' (whose fused attention is faster); the decoder is `segment_anything`'s in both.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from benchmarks.harness import cores
from benchmarks.torchvision_stub import torchvision_or_stub

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

# The released NYUv2 recipe: its tasks in order, and their loss weights.
CHANNELS = {"semantic": 13, "depth": 1, "normals": 3}
TASK_WEIGHTS = {"semantic": 1.0, "depth": 1.0, "normals": 4.0}
RANKS, SCALE, DROPOUT = (32, 32, 4), 0.5, 0.1

Contender = tuple[Callable[[], int | None], dict[str, Any]]


def encoder(
    architecture: dict[str, Any], package: str, device: str = "cpu", dtype: str = "float32"
) -> Contender:
    """The image encoder of `transformers` or `segment_anything` on one padded square."""
    use_all_cores()
    model = make_encoder(architecture, package).eval().to(device, getattr(torch, dtype))
    side = architecture["encoder"]["image_size"]
    squares = torch.rand(1, 3, side, side).to(device, getattr(torch, dtype))

    @torch.inference_mode()
    def step():
        model(squares)

    return _finished(step, device), _facts(model, device)


def joint_forward(
    architecture: dict[str, Any],
    original: Sequence[int],
    package: str,
    device: str = "cpu",
    dtype: str = "float32",
) -> Contender:
    """All tasks' maps of one image, from its own size and back to it."""
    use_all_cores()
    model = MSam(architecture, package).eval().to(device)
    model.store(getattr(torch, dtype), all_parameters=True)
    images = torch.rand(1, 3, *original).to(device)

    @torch.no_grad()
    def step():
        model(images)

    return _finished(step, device), _facts(model, device)


def training(
    architecture: dict[str, Any],
    original: Sequence[int],
    package: str,
    by_task: bool,
    device: str = "cpu",
    dtype: str = "float32",
) -> Contender:
    """Forward, losses, backward and Adam on one image.

    In bfloat16 it is PyTorch's automatic mixed precision, with frozen weights in bfloat16.

    Args:
      by_task: backward after each task's forward pass, which holds the activations of one task;
        else one backward pass after all. The gradients are the same.
    """
    use_all_cores()
    model = MSam(architecture, package).to(device)
    model.store(getattr(torch, dtype), all_parameters=False)
    batch = {name: x.to(device) for name, x in random_batch(original).items()}
    train = train_step(model, batch, by_task=by_task)

    def step():
        with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            train()

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return _finished(step, device), _facts(model, device) | {"trained": trained}


def automatic_masks(
    architecture: dict[str, Any],
    checkpoint: str,
    image: str,
    options: dict[str, Any],
    found: str,
    **others: Any,
) -> Contender:
    """`segment_anything`'s generator on an image; its records are written once, to `found`."""
    del others
    use_all_cores()
    sam = _promptable(architecture, checkpoint)
    generate = _generator(sam, image, options)

    def step():
        records = generate()
        if not Path(found).exists():
            Path(found).write_text(json.dumps(records))

    return step, _facts(sam)


def float64_masks(
    architecture: dict[str, Any],
    checkpoint: str,
    image: str,
    options: dict[str, Any],
    found: str,
    **others: Any,
) -> tuple[None, dict[str, Any]]:
    """Writes to `found` what `segment_anything`'s generator finds computing in float64."""
    del others
    use_all_cores()
    sam = _promptable(architecture, checkpoint).double()
    # It gives points to its positions' matrix as float32, whatever the matrix is.
    positions = sam.prompt_encoder.pe_layer
    encode = positions._pe_encoding
    positions._pe_encoding = lambda points: encode(points.double())
    Path(found).write_text(json.dumps(_generator(sam, image, options)()))
    return None, {}


def _promptable(architecture: dict[str, Any], checkpoint: str) -> nn.Module:
    """`segment_anything`'s own model of a checkpoint."""
    with torchvision_or_stub():
        from segment_anything.modeling import PromptEncoder, Sam

    config, side = architecture["decoder"], architecture["encoder"]["image_size"]
    grid = side // architecture["encoder"]["patch_size"]
    sam = Sam(
        make_encoder(architecture, "segment_anything"),
        PromptEncoder(config["dim"], (grid, grid), (side, side), 16),
        make_decoder(config),
    ).eval()
    sam.load_state_dict(torch.load(checkpoint, weights_only=True))
    return sam


def _generator(sam: nn.Module, image: str, options: dict[str, Any]) -> Callable[[], list[dict]]:
    """Finds the masks of an image by `segment_anything`'s generator."""
    with torchvision_or_stub():
        from segment_anything import SamAutomaticMaskGenerator

    generator = SamAutomaticMaskGenerator(sam, output_mode="uncompressed_rle", **options)
    rgb = np.asarray(Image.open(image).convert("RGB"))
    return lambda: generator.generate(rgb)


def use_all_cores() -> None:
    """PyTorch's own default leaves out hyper-threads, which JAX uses."""
    torch.set_num_threads(cores())
    torch.manual_seed(0)


def make_encoder(architecture: dict[str, Any], package: str) -> nn.Module:
    """An image encoder with random weights, [B, 3, S, S] → [B, D, h, w]."""
    config = architecture["encoder"]
    per_stage = config["window_blocks"] + 1
    global_blocks = tuple(range(per_stage - 1, config["depth"], per_stage))
    if package == "transformers":
        from transformers import SamVisionConfig
        from transformers.models.sam.modeling_sam import SamVisionEncoder

        vision = SamVisionConfig(
            hidden_size=config["width"],
            output_channels=config["out_channels"],
            num_hidden_layers=config["depth"],
            num_attention_heads=config["heads"],
            image_size=config["image_size"],
            patch_size=config["patch_size"],
            window_size=config["window"],
            global_attn_indexes=global_blocks,
            initializer_range=0.02,
        )
        return _Tensor(SamVisionEncoder._from_config(vision, attn_implementation="sdpa"))
    with torchvision_or_stub():
        from segment_anything.modeling import ImageEncoderViT

    return ImageEncoderViT(
        img_size=config["image_size"],
        patch_size=config["patch_size"],
        embed_dim=config["width"],
        depth=config["depth"],
        num_heads=config["heads"],
        out_chans=config["out_channels"],
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        use_rel_pos=True,
        window_size=config["window"],
        global_attn_indexes=global_blocks,
    )


def make_decoder(config: dict[str, Any]) -> nn.Module:
    """SAM's mask decoder with random weights."""
    with torchvision_or_stub():
        from segment_anything.modeling import MaskDecoder, TwoWayTransformer

    dim = config["dim"]
    return MaskDecoder(
        transformer_dim=dim,
        transformer=TwoWayTransformer(config["depth"], dim, config["heads"], config["mlp_dim"]),
        num_multimask_outputs=config["mask_tokens"] - 1,
        iou_head_hidden_dim=dim,
    )


class _Tensor(nn.Module):
    """`transformers`' encoder, giving a tensor instead of an output object."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.blocks = encoder.layers

    def forward(self, squares: torch.Tensor) -> torch.Tensor:
        return self.encoder(squares).last_hidden_state


class TuckerQkv(nn.Linear):
    """A frozen qkv projection with the dense Tucker update of one task at a time.

    y = W x + b + ΔWᵀ dropout(x),  ΔW = s · U1 (G ×₃ U3[task]) U2ᵀ
    """

    def __init__(self, frozen: nn.Linear, num_tasks: int):
        super().__init__(frozen.in_features, frozen.out_features, device="meta")
        self.weight, self.bias = frozen.weight, frozen.bias
        p, q, v = RANKS
        self.td_G = nn.Parameter(torch.zeros(p, q, v))
        self.td_U1 = nn.Parameter(torch.randn(frozen.in_features, p))
        self.td_U2 = nn.Parameter(torch.randn(frozen.out_features, q))
        self.td_U3 = nn.Parameter(torch.randn(num_tasks, v))
        self.dropout = nn.Dropout(DROPOUT)
        self.task = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        core = torch.einsum("pqv,v->pq", self.td_G, self.td_U3[self.task])
        update = SCALE * (self.td_U1 @ core @ self.td_U2.T)
        return super().forward(x) + self.dropout(x) @ update


class MSam(nn.Module):
    """Multi-task SAM of the peers' modules; see the top of this file.

    Args:
      architecture: of `benchmarks.ours.describe`.
      package: whose image encoder.
      channels: output channels of every task.
    """

    def __init__(
        self,
        architecture: dict[str, Any],
        package: str = "segment_anything",
        channels: dict[str, int] = CHANNELS,
    ):
        super().__init__()
        with torchvision_or_stub():
            from segment_anything.modeling import PromptEncoder

        config = architecture["decoder"]
        dim, side = config["dim"], architecture["encoder"]["image_size"]
        grid = side // architecture["encoder"]["patch_size"]
        self.channels = channels
        self.side = side
        self.dtype = torch.float32  # of frozen parameters, and of what the encoder is given
        self.image_encoder = make_encoder(architecture, package)
        for block in self.image_encoder.blocks:
            block.attn.qkv = TuckerQkv(block.attn.qkv, len(channels))
        self.prompt_encoder = PromptEncoder(dim, (grid, grid), (side, side), 16)
        self.prompt_encoder.no_mask_embed = nn.Embedding(sum(channels.values()), dim)
        self.mask_decoder = nn.ModuleList(make_decoder(config) for _ in channels)
        for name, parameter in self.named_parameters():
            parameter.requires_grad = _trains(name)

    @property
    def qkvs(self) -> list[TuckerQkv]:
        """The adapted projection of every block."""
        return [block.attn.qkv for block in self.image_encoder.blocks]

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Raw maps of every task at the size of the image, [1, C, H, W]."""
        squares = self.to_square(images)
        return {task: self.maps(squares, task, images.shape[-2:]) for task in self.channels}

    def store(self, dtype: torch.dtype, *, all_parameters: bool) -> None:
        """Keeps frozen parameters, or all of them, in this type; positions stay in float32."""
        for parameter in self.parameters():
            if all_parameters or not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        self.dtype = dtype

    def maps(self, squares: torch.Tensor, task: str, original: Sequence[int]) -> torch.Tensor:
        """One task's maps of one padded square."""
        t = list(self.channels).index(task)
        for qkv in self.qkvs:
            qkv.task = t
        embedding = self.image_encoder(squares)
        first = sum(list(self.channels.values())[:t])
        rows = self.prompt_encoder.no_mask_embed.weight[first : first + self.channels[task]]
        low_res = torch.cat([self.decode(embedding, t, row) for row in rows], dim=1)
        return self.from_square(low_res.float(), original)

    def decode(self, embedding: torch.Tensor, t: int, no_mask: torch.Tensor) -> torch.Tensor:
        """One output channel: mask token 0, with the no-mask row as the only prompt."""
        masks, _ = self.mask_decoder[t](
            image_embeddings=embedding,
            image_pe=self.prompt_encoder.get_dense_pe().to(embedding.dtype),
            sparse_prompt_embeddings=embedding.new_empty(1, 0, len(no_mask)),
            dense_prompt_embeddings=no_mask.reshape(1, -1, 1, 1).expand(embedding.shape),
            multimask_output=False,
        )
        return masks

    def to_square(self, images: torch.Tensor) -> torch.Tensor:
        """Resizes the longest side to the square's, normalises, pads right and below."""
        height, width = self._resized(images.shape[-2:])
        x = F.interpolate(
            images, (height, width), mode="bilinear", align_corners=False, antialias=True
        )
        mean, std = (x.new_tensor(n).reshape(3, 1, 1) / 255 for n in (PIXEL_MEAN, PIXEL_STD))
        padded = F.pad((x - mean) / std, (0, self.side - width, 0, self.side - height))
        return padded.to(self.dtype)

    def from_square(self, low_res: torch.Tensor, original: Sequence[int]) -> torch.Tensor:
        """Up to the square, crop, to the image's own size."""
        height, width = self._resized(original)
        up = F.interpolate(low_res, (self.side,) * 2, mode="bilinear", align_corners=False)
        cropped = up[..., :height, :width]
        return F.interpolate(cropped, tuple(original), mode="bilinear", align_corners=False)

    def orthogonality(self) -> torch.Tensor:
        """The mean of ‖AᵀA − I‖_F over every U1, U2 and slice G[:, :, j]."""
        terms = []
        for qkv in self.qkvs:
            for a in (qkv.td_U1, qkv.td_U2, *qkv.td_G.unbind(-1)):
                identity = torch.eye(a.shape[1], device=a.device)
                terms.append(torch.linalg.norm(a.T @ a - identity))
        return torch.stack(terms).mean()

    def _resized(self, original: Sequence[int]) -> tuple[int, int]:
        scale = self.side / max(original)
        return tuple(int(n * scale + 0.5) for n in original)


def train_step(
    model: MSam, batch: dict[str, torch.Tensor], *, by_task: bool
) -> Callable[[], float]:
    """One step of the released recipe on this batch: the objective, its gradient, Adam."""
    trained = [p for p in model.parameters() if p.requires_grad]
    # `weight_decay` of Adam is the L2 kind. What no output reads has no gradient and is left out.
    optimizer = torch.optim.Adam(trained, lr=1e-3, weight_decay=1e-6)
    model.train()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = backward(model, batch, by_task=by_task)
        optimizer.step()
        return value

    return step


def backward(model: MSam, batch: dict[str, torch.Tensor], *, by_task: bool) -> float:
    """Σ_t w_t L_t / Σ_t w_t + R, whose gradient is left in the parameters' `grad`."""
    total = sum(TASK_WEIGHTS[task] for task in model.channels)
    squares = model.to_square(batch["image"])
    original = batch["image"].shape[-2:]
    parts = [model.orthogonality()]
    if by_task:
        parts[0].backward()
    for task in model.channels:
        maps = model.maps(squares, task, original)
        parts.append(TASK_WEIGHTS[task] / total * LOSSES[task](maps, batch[task]))
        if by_task:
            parts[-1].backward()
            parts[-1] = parts[-1].detach()
            del maps  # Its graph is spent; the next task's forward pass needs the memory.
    if not by_task:
        torch.stack(parts).sum().backward()
    return float(sum(part.detach() for part in parts))


def _cross_entropy(maps: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(maps, target, ignore_index=-1)


def _l1(maps: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (maps - target)[target > 0].abs().mean()


def _one_minus_cosine(maps: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    cosine = (F.normalize(maps, dim=1) * F.normalize(target, dim=1)).sum(1)
    return 1 - cosine[(target != 0).any(1)].mean()


LOSSES = {"semantic": _cross_entropy, "depth": _l1, "normals": _one_minus_cosine}


def random_batch(size: Sequence[int]) -> dict[str, torch.Tensor]:
    """An image and targets for it, of random classes, depths and directions."""
    return {
        "image": torch.rand(1, 3, *size),
        "semantic": torch.randint(-1, CHANNELS["semantic"], (1, *size)),
        "depth": 1 + 9 * torch.rand(1, 1, *size),
        "normals": F.normalize(torch.randn(1, 3, *size), dim=1),
    }


def _trains(name: str) -> bool:
    """Adapters, no-mask rows, decoders and the blocks' LayerNorms (not the neck's)."""
    in_block = name.startswith(("image_encoder.blocks.", "image_encoder.encoder.layers."))
    return (
        "td_" in name
        or "no_mask_embed" in name
        or name.startswith("mask_decoder.")
        or (in_block and "norm" in name)
    )


def _finished(call: Callable[[], Any], device: str) -> Callable[[], int | None]:
    """On a GPU PyTorch returns before the work is done; a step must not."""

    def step():
        call()
        if device != "cuda":
            return None
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    return step


def _facts(model: nn.Module, device: str = "cpu") -> dict[str, Any]:
    return {
        "parameters": sum(np.prod(p.shape, dtype=int).item() for p in model.parameters()),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
    }
