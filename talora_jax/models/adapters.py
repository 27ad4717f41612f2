"""TA-LoRA's update of a frozen linear layer, and the adapters it is compared with.

Source: TA-LoRA (arXiv 2403.10971): one update tensor over all tasks in Tucker form,

    ΔW[t] = s · U1 (G ×₃ U3[t]) U2ᵀ        U1 [d,p]  U2 [k,q]  G [p,q,v]  U3 [T,v]

What differs from the official code: the update trains factored, applied left to right, and never as
a dense matrix (that form exists only in `merge`); switched-off parts of the fused qkv get zero rows
of U2 instead of a scattered copy.

An adapter maps the layer's input x [n, ..., d], whose leading axis runs over the chosen tasks, to
the update [n, ..., 3D] that is added to the layer's output. Parameters may carry leading stack axes
(one per block); `merge` and `orthogonality` work on both forms.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from talora_jax.errors import UserError, short
from talora_jax.models.keys import Rngs

ORTHOGONAL_PARTS = ("U1", "U2", "G")  # what the orthogonal regulariser looks at
INITS = ("published", "orthonormal", "scaled", "lora")  # how the factors start, see `Tucker`
TaskIds = tuple[int, ...] | Int[Array, "n"]


class TaskParam(nnx.Param):
    """A parameter that TA-LoRA adds to SAM."""


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Which update every block's qkv projection gets.

    >>> import talora_jax
    >>> talora_jax.AdapterConfig("lora_per_task", ranks=(8, 8, 1)).task_axes
    {'A': -3, 'B': -3}

    Attributes:
      kind: `talora` (Tucker), `lora_shared` (one LoRA for all tasks, LoRA-HPS), `lora_per_task`
        (one LoRA a task, LoRA-STL), `none` (the decoders, no-mask rows and LayerNorms train alone),
        `full` (no adapter: the whole encoder trains).
      ranks: Tucker ranks (p, q, v). The LoRA kinds have rank p.
      scale: s, the factor on the update.
      dropout: rate on the adapter's input while training.
      qkv: which of q, k and v are adapted.
      init: how TA-LoRA's factors start: `published`, `orthonormal`, `scaled` or `lora`.
      blocks: which blocks are adapted, as Python's slices have it: (first, end), or (first,) for
        all from there on, also without brackets; negative numbers count from the end, so -6 is the
        last 6. None: all. The others are the base's, with their LayerNorms; those before the first
        adapted one, the trunk, are computed once for all tasks, and no gradient goes through them.

    Raises:
      UserError: no such kind, no such init, or blocks of a kind that trains the whole encoder.
    """

    kind: str = "talora"
    ranks: tuple[int, int, int] = (32, 32, 4)
    scale: float = 0.5
    dropout: float = 0.1
    qkv: tuple[bool, bool, bool] = (True, True, True)
    init: str = "published"
    blocks: int | Sequence[int] | None = None

    def __post_init__(self):
        if self.blocks is not None:
            blocks = self.blocks if isinstance(self.blocks, Sequence) else (self.blocks,)
            object.__setattr__(self, "blocks", tuple(blocks))  # which `adapted` looks at
        if self.kind not in KINDS:
            raise UserError(f"no adapter kind {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self.init not in INITS:
            raise UserError(f"no init {self.init!r}; expected one of {', '.join(INITS)}")
        if self.kind == "full" and self.blocks is not None:
            raise UserError(
                f"adapter.blocks is {self.blocks}, but adapter.kind=full has no adapter and trains "
                "the whole encoder: leave blocks out, or choose another kind"
            )

    @classmethod
    def of(cls, fields: Mapping[str, Any] | ml_collections.ConfigDict) -> "AdapterConfig":
        """From fields of these names, of a run's config or an adapter file; others are left."""
        return cls(
            fields["kind"],
            tuple(fields["ranks"]),
            fields["scale"],
            fields["dropout"],
            tuple(fields["qkv"]),
            # Files of before there was a choice.
            fields.get("init", "published"),
            tuple(fields.get("blocks") or ()) or None,
        )

    def adapted(self, depth: int) -> range:
        """The numbers of the adapted blocks in an encoder of so many.

        Raises:
          UserError: it has no such blocks.
        """
        if self.blocks is None:
            return range(depth)
        ends = (*self.blocks, depth)[:2] if len(self.blocks) in (1, 2) else (depth, depth)
        found = range(0)
        if all(type(i) is int and -depth <= i <= depth for i in ends):
            found = range(*(i + depth if i < 0 else i for i in ends))
        if not found:
            last = max(1, depth // 4)
            raise UserError(
                f"adapter.blocks is {short(self.blocks, 80)}, and the encoder has {depth} blocks: "
                f"expected the number of the first adapted one (-{last} for the last {last}), or "
                f"that and the number behind the last one's, as ({depth // 2}, {depth})"
            )
        return found

    @property
    def task_axes(self) -> Mapping[str, int]:
        """The axis along which a parameter of the adapter has entries for each task, by name."""
        adapter = KINDS[self.kind]
        return {} if adapter is None else adapter.task_axes

    @property
    def adapts(self) -> bool:
        """Whether kernels get an update."""
        return KINDS[self.kind] is not None

    @property
    def per_task(self) -> bool:
        """Whether tasks see different encoders."""
        return bool(self.task_axes)


class Adapter(nnx.Module):
    """What all kinds share: scale, dropout and the q, k, v switches.

    Attributes:
      task_axes: the parameters with entries for each task, and the axis of these; counted from the
        end, for blocks are stacked in front.
    """

    task_axes: ClassVar[Mapping[str, int]] = {}

    def __init__(self, config: AdapterConfig, width: int):
        self.config = config
        self.width = width

    def __call__(
        self,
        x: Float[Array, "n *b d"],
        task_ids: Int[Array, "n"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "n *b k"]:
        """The update of the layer's output, scaled; k = 3D.

        Args:
          x: the layer's input, one leading entry per task of `task_ids`.
          task_ids: which tasks, as rows of U3.
          key: for dropout; None switches dropout off.
        """
        if key is not None and self.config.dropout > 0:
            # A task's mask is its own, whatever tasks it is computed with.
            keys = jax.vmap(functools.partial(jax.random.fold_in, key))(task_ids)
            drop = functools.partial(_drop, rate=self.config.dropout)
            x = jax.vmap(drop)(keys, x)
        return self.config.scale * self.apply(x, task_ids)

    def out_rows(self, enabled: Float[Array, "*s k r"]) -> Float[Array, "*s k3 r"]:
        """Rows for all of q, k and v from rows for the enabled ones: the others are zero."""
        if all(self.config.qkv):
            return enabled
        parts = iter(jnp.split(enabled, sum(self.config.qkv), axis=-2))
        zeros = jnp.zeros((*enabled.shape[:-2], self.width, enabled.shape[-1]), enabled.dtype)
        return jnp.concatenate([next(parts) if on else zeros for on in self.config.qkv], axis=-2)

    def orthogonality(
        self, parts: Sequence[str] = ORTHOGONAL_PARTS
    ) -> tuple[Float[Array, ""], int]:
        """Sum and count of the regulariser's terms: none for a kind without Tucker factors."""
        del parts
        return jnp.zeros(()), 0

    def norm(self) -> Float[Array, "*s n"]:
        """‖ΔW‖_F, of every task or of the one update that serves all; makes the dense form."""
        return jnp.linalg.norm(self.merge(), axis=(-2, -1))


class Tucker(Adapter):
    """TA-LoRA: U1, U2 and G shared by the tasks, one row of U3 each.

    Initial values: ΔW = 0, for G is zero, or U2. With `init`

      published    U1, U2, U3 ~ N(0, 1), as the authors' code: a step of size r on all entries of G
                   moves each entry of ΔW by about s √(p q v) r, however wide the layer is.
      orthonormal  U1 and U2 have orthonormal columns, what the regulariser asks for, and U3 rows of
                   length 1.
      scaled       U1 ~ N(0, 1/d), U2 ~ N(0, 1/q): as LoRA's A, a layer's output moves by as much
                   as G does, whatever the widths and ranks. U3 has orthonormal rows (of length 1
                   where there are more tasks than v), so that no task's update is small, or
                   another's, by the luck of the draw.
      lora         U1 and U3 as `scaled`, G ~ N(0, 1/p) and U2 = 0, as LoRA's B: the first steps
                   move a layer's output in any direction, where with G = 0 it is one of the q
                   that U2 was drawn with.
    """

    task_axes = {"U3": -2}

    def __init__(self, config: AdapterConfig, width: int, num_tasks: int, *, rngs: Rngs):
        super().__init__(config, width)
        p, q, v = config.ranks
        shapes = ((width, p), (width * sum(config.qkv), q), (num_tasks, v))
        u1, u2, u3 = (jax.random.normal(rngs.params(), shape) for shape in shapes)
        g = jnp.zeros((p, q, v))
        match config.init:
            case "orthonormal":
                u1, u2 = (jnp.linalg.qr(factor)[0] for factor in (u1, u2))
                u3 = _unit_rows(u3)
            case "scaled" | "lora":
                u1, u2 = u1 / width**0.5, u2 / q**0.5
                u3 = jnp.linalg.qr(u3.T)[0].T if num_tasks <= v else _unit_rows(u3)
        if config.init == "lora":
            u2 = jnp.zeros_like(u2)
            g = jax.random.normal(rngs.params(), g.shape) / p**0.5
        self.U1, self.U2, self.U3, self.G = map(TaskParam, (u1, u2, u3, g))

    def apply(self, x, task_ids):
        core = jnp.einsum("pqv,tv->tpq", self.G[...], self.U3[task_ids])
        z = jnp.einsum("t...d,dp->t...p", x, self.U1[...].astype(x.dtype))
        z = jnp.einsum("t...p,tpq->t...q", z, core.astype(x.dtype))
        return jnp.einsum("t...q,kq->t...k", z, self.out_rows(self.U2[...]).astype(x.dtype))

    def merge(self, task_ids: TaskIds | None = None) -> Float[Array, "*s n d k"]:
        """ΔW as dense matrices, of the chosen tasks or of all."""
        rows = self.U3[..., _chosen(task_ids), :]
        core = jnp.einsum("...pqv,...tv->...tpq", self.G[...], rows)
        return self.config.scale * jnp.einsum(
            "...dp,...tpq,...kq->...tdk", self.U1[...], core, self.out_rows(self.U2[...])
        )

    def orthogonality(self, parts=ORTHOGONAL_PARTS):
        """Terms ‖AᵀA − I‖_F for A in U1, U2 and every slice G[:, :, j], as `parts` names them."""
        slices = jnp.moveaxis(self.G[...], -1, 0)
        factors = {"U1": self.U1[...], "U2": self.U2[...], "G": slices}
        norms = [_distance_to_orthonormal(factors[part]) for part in parts]
        return sum(n.sum() for n in norms), sum(n.size for n in norms)


def _unit_rows(x: Float[Array, "n v"]) -> Float[Array, "n v"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class LoRA(Adapter):
    """A plain low-rank update x A B, shared by the tasks.

    Initial values: A ~ N(0, 1/d), B = 0.
    """

    def __init__(self, config: AdapterConfig, width: int, num_tasks: int, *, rngs: Rngs):
        super().__init__(config, width)
        tasks = (num_tasks,) if self.task_axes else ()
        rank = config.ranks[0]
        self.A = TaskParam(jax.random.normal(rngs.params(), (*tasks, width, rank)) / width**0.5)
        self.B = TaskParam(jnp.zeros((*tasks, width * sum(config.qkv), rank)))

    def apply(self, x, task_ids):
        z = jnp.einsum("t...d,dp->t...p", x, self.A[...].astype(x.dtype))
        return jnp.einsum("t...p,kp->t...k", z, self.out_rows(self.B[...]).astype(x.dtype))

    def merge(self, task_ids: TaskIds | None = None) -> Float[Array, "*s n d k"]:
        """The update as a dense matrix, the same for each of the chosen tasks: n = 1."""
        del task_ids
        dense = jnp.einsum("...dp,...kp->...dk", self.A[...], self.out_rows(self.B[...]))
        return self.config.scale * jnp.expand_dims(dense, -3)


class LoRAPerTask(LoRA):
    """As many separate low-rank updates as there are tasks."""

    task_axes = {"A": -3, "B": -3}

    def apply(self, x, task_ids):
        z = jnp.einsum("t...d,tdp->t...p", x, self.A[task_ids].astype(x.dtype))
        return jnp.einsum("t...p,tkp->t...k", z, self.out_rows(self.B[task_ids]).astype(x.dtype))

    def merge(self, task_ids: TaskIds | None = None) -> Float[Array, "*s n d k"]:
        """The updates as dense matrices, of the chosen tasks or of all."""
        rows = (..., _chosen(task_ids), slice(None), slice(None))
        out = self.out_rows(self.B[rows])
        return self.config.scale * jnp.einsum("...tdp,...tkp->...tdk", self.A[rows], out)


# `none` and `full` add no parameters; they differ in what trains, see `msam.trainable`.
KINDS: dict[str, type[Adapter] | None] = {
    "talora": Tucker,
    "lora_shared": LoRA,
    "lora_per_task": LoRAPerTask,
    "none": None,
    "full": None,
}


def make_adapter(
    config: AdapterConfig, width: int, num_tasks: int, *, rngs: Rngs
) -> Adapter | None:
    """The adapter of one block; None for the kinds without one."""
    adapter = KINDS[config.kind]
    return None if adapter is None else adapter(config, width, num_tasks, rngs=rngs)


def _drop(key: PRNGKeyArray, x: Float[Array, "*b d"], *, rate: float) -> Float[Array, "*b d"]:
    """Dropout: zero with probability `rate`, to 2⁻¹⁷, else divided by the probability of not.

    An entry takes 16 random bits, half a word of what the generator gives: on a CPU the numbers in
    [0, 1) of `jax.random.bernoulli` take seven times as long.
    """
    *leading, width = x.shape
    words = jax.random.bits(key, (*leading, -(-width // 2)), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*leading, -1)[..., :width]
    dropped = min(round(rate * 2**16), 2**16 - 1)
    return jnp.where(bits >= dropped, x / (1 - dropped / 2**16), 0).astype(x.dtype)


def _chosen(task_ids: TaskIds | None) -> slice | Array:
    return slice(None) if task_ids is None else jnp.array(task_ids)


def _distance_to_orthonormal(a: Float[Array, "*s n m"]) -> Float[Array, "*s"]:
    """‖AᵀA − I‖_F, with gradient zero where the distance is zero."""
    gram = jnp.einsum("...nm,...nl->...ml", a, a)
    squared = jnp.sum((gram - jnp.eye(a.shape[-1])) ** 2, axis=(-2, -1))
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
