"""The model: any Llama-family decoder, with attention passed in."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from sps2.common.model.attend import Attend, Run, inline
from sps2.common.model.collectives import Collectives, Turn
from sps2.common.model.config import ModelConfig
from sps2.common.model.graph_steps import MOST_ROWS, Record, Recorded
from sps2.common.model.linear import Linear, embedded
from sps2.common.model.rope import Rotary
from sps2.common.model.share import WHOLE, Share
from sps2.common.model.stage import Stage
from sps2.common.model.tensor_names import EMBEDDING, FINAL_NORM, HEAD, NAMES
from sps2.kernels.native import MOST_DIM
from sps2.kernels.native import layer as native
from sps2.kernels.native.layer import Weight
from sps2.kernels.rows import add_norm, rotate, swiglu
from sps2.kernels.weight_forms import QuantisedWeight

QKV = tuple[Tensor, ...]
"""q, k and v; empty after the last layer."""
Table = tuple[Tensor, Tensor]

MOST_ROWS_AT_ONCE = 512, 8192
"""How many tokens pass through a layer at once, on the CPU and on a GPU: their temporaries are all
that it takes besides the states of all tokens, and one queries, keys and values of each."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of a layer; `q_norm` and `k_norm` are None if the family has none."""

    input_norm: Tensor
    qkv: Linear
    o: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None


class Llama:
    """A decoder of the Llama family: Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen2.5, Qwen3."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        collectives: Collectives | None = None,
        quantised: Mapping[str, QuantisedWeight] = MappingProxyType({}),
        stage: Stage | None = None,
    ) -> None:
        """Build the model from weights, which are named as in `shapes(config)`.

        Args:
            tensors: all weights but those in `quantised`.
            collectives: connects one share of a model to the others (as Megatron, arXiv
                1909.08053). `config` and weights are then those of the share.
            quantised: weights of products and the embedding, as far as they are quantised; also of
                a head that is tied to an embedding in `tensors`.
            stage: of a pipeline. `config` and weights are then those of the stage; only the first
                has an embedding and a head.
        """
        self.config = config
        self.stage = stage
        self._collectives = collectives
        self._embedding: Weight | None = quantised.get(EMBEDDING) or tensors.get(EMBEDDING)
        self._final_norm = tensors[FINAL_NORM]
        head = quantised.get(HEAD) or tensors.get(HEAD)
        if head is None and self._embedding is not None:
            head = _rows(self._embedding, *self.share.of(config.vocab_size))
        self._head = None if head is None else Linear([head], [None])
        self._rotary = Rotary(config.rope, config.head_dim)
        self._layers = [_layer(tensors, quantised, index) for index in range(config.layers)]
        self._native = self._fused()
        self._recorded: Recorded | None = None
        self.most_rows = MOST_ROWS_AT_ONCE[self.device.type == "cuda"]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, activations, keys and values."""
        return self._final_norm.dtype

    @property
    def device(self) -> torch.device:
        return self._final_norm.device

    @property
    def share(self) -> Share:
        """The share of the whole model that this is."""
        return WHOLE if self._collectives is None else self._collectives.share

    @property
    def leads(self) -> bool:
        """Whether this is a whole model, or the share or stage that has the results."""
        return not self.share.rank and (self.stage is None or self.stage.is_first)

    def shallow(self, layers: int) -> "Llama":
        """A model of the first layers, which shares their weights, and needs no other process."""
        few, layers = copy(self), min(layers, self.config.layers)
        few.config = replace(self.config, layers=layers, windows=self.config.windows[:layers])
        few._layers, few._collectives, few._recorded = self._layers[:layers], None, None
        few._native = few._fused()
        return few

    def turn(self, rows: int, gathers: int) -> Turn | None:
        """Reserve the collectives of a share's forward of `rows` tokens, and of `gathers` `scores`;
        None if this is a whole model."""
        if self._collectives is None:
            return None
        shape = (rows, self.config.hidden_size)
        return self._collectives.turn(2 * self.config.layers, gathers, shape, self.dtype)

    async def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Attend,
        run: Run = inline,
        turn: Turn | None = None,
        selected: Tensor | None = None,
    ) -> Tensor:
        """Run all layers over tokens at any positions of their sequences.

        Args:
            ids: [tokens] int64; there may be no tokens. Of a later stage of a pipeline: what the
                stage before returned.
            positions: [tokens] int64.
            attend: called once per layer, in order.
            run: runs the work between two calls of `attend`.
            turn: of `turn`, for a share.
            selected: [rows] int64, the tokens whose result is returned, None for all. The others
                are left out after the last attention.

        Returns:
            [rows or tokens, hidden_size], after the final norm. Of a stage before the last:
            [tokens, hidden_size], the sums that the next stage continues.
        """
        if not self._is_last:
            selected = None
        if turn is None and len(ids) > self.most_rows:
            return await self._many(ids, positions, attend, run, selected)
        if turn is None and (layers := self._native_for(len(ids))):
            hidden = await self._few(layers, ids, positions, attend, run)
            return hidden if selected is None else hidden[selected]
        x, table, qkv = await run(partial(self._begin, ids, positions))
        for index, layer in enumerate(self._layers):
            attended = await attend(index, *qkv)
            following = self._layers[index + 1] if index + 1 < len(self._layers) else None
            if turn is None:
                if following is None and selected is not None:
                    x, attended = x[selected], attended[selected]
                x, qkv = await run(partial(self._advance, layer, following, x, attended, table))
                continue
            mixed = await turn.sum(await run(partial(self._mix, layer, attended)))
            x, fed = await run(partial(self._feed_after, layer, x, mixed))
            fed = await turn.sum(fed)
            x, qkv = await run(partial(self._proceed, following, x, fed, table))
        return x if selected is None or turn is None else x[selected]

    async def step(
        self, ids: Tensor, positions: Tensor, attend: Attend, turn: Turn | None = None
    ) -> Tensor:
        """`forward` of a decode step for all rows; replays the recorded step if there is one. The
        next step overwrites the arguments of `attend`."""
        if self._recorded is None or turn is not None or len(ids) > MOST_ROWS:
            return await self.forward(ids, positions, attend, turn=turn)
        return await self._recorded.step(ids, positions, attend)

    def record(self, how: Record) -> None:
        """Record steps of few rows, to be replayed from now on: on GPUs, as CUDA graphs."""
        config = self.config
        row = self._final_norm.new_empty(config.heads, config.head_dim)
        following = [*self._layers[1:], None]
        pieces = [
            partial(self._advance, *each) for each in zip(self._layers, following, strict=True)
        ]
        self._recorded = Recorded(self._begin, pieces, row, how)

    async def _few(
        self, layers: native.Layers, ids: Tensor, positions: Tensor, attend: Attend, run: Run
    ) -> Tensor:
        """`forward` for a few tokens: the C++ kernels compute everything between two attentions."""
        x = self._entered(ids)
        table = self._rotary.table(positions, self.dtype)
        qkv = await run(partial(layers.queries, 0, x, None, table))
        for index in range(1, self.config.layers):
            attended = await attend(index - 1, *qkv)
            qkv = await run(partial(layers.queries, index, x, attended, table))
        attended = await attend(self.config.layers - 1, *qkv)
        return self._left(x, await run(partial(layers.finish, x, attended)))

    async def _many(
        self, ids: Tensor, positions: Tensor, attend: Attend, run: Run, selected: Tensor | None
    ) -> Tensor:
        """`forward` for many tokens, in blocks: temporaries do not grow with the tokens, and other
        work of the same thread can run between two blocks."""
        most, layers = self.most_rows, self._native_for(self.most_rows)
        blocks = [slice(first, first + most) for first in range(0, len(ids), most)]
        x = self._final_norm.new_empty(len(ids), self.config.hidden_size, dtype=torch.float32)
        tables: list[Table] = []
        qkv: QKV = ()

        def take(rows: slice, computed: QKV) -> None:
            nonlocal qkv
            qkv = qkv or tuple(part.new_empty(len(ids), *part.shape[1:]) for part in computed)
            for whole, part in zip(qkv, computed, strict=True):
                whole[rows] = part

        def begin(rows: slice) -> None:
            if layers is None:
                x[rows], table, computed = self._begin(ids[rows], positions[rows])
            else:
                x[rows] = self._entered(ids[rows])
                table = self._rotary.table(positions[rows], self.dtype)
                computed = layers.queries(0, x[rows], None, table)
            tables.append(table)
            take(rows, computed)

        def advance(index: int, rows: slice, attended: Tensor, table: Table) -> None:
            if layers is None:
                layer, following = self._layers[index], self._layers[index + 1]
                computed = self._advance(layer, following, x[rows], attended[rows], table)[1]
            else:
                computed = layers.queries(index + 1, x[rows], attended[rows], table)
            take(rows, computed)

        def finish(rows: Tensor, attended: Tensor) -> Tensor:
            last = x[rows]
            if layers is None:
                return self._advance(self._layers[-1], None, last, attended[rows], tables[0])[0]
            return self._left(last, layers.finish(last, attended[rows]))

        for rows in blocks:
            await run(partial(begin, rows))
        for index in range(self.config.layers - 1):
            attended = await attend(index, *qkv)
            qkv = ()  # `attend` may still send the old ones
            for rows, table in zip(blocks, tables, strict=True):
                await run(partial(advance, index, rows, attended, table))
        attended = await attend(self.config.layers - 1, *qkv)
        wanted = torch.arange(len(ids), device=ids.device) if selected is None else selected
        ends = [await run(partial(finish, rows, attended)) for rows in wanted.split(most)]
        return torch.cat(ends)

    def _native_for(self, rows: int) -> native.Layers | None:
        """The C++ layers, if they are faster than torch for so many rows."""
        layers = self._native
        return layers if layers is not None and 0 < rows <= layers.most_rows else None

    def _fused(self) -> native.Layers | None:
        """The layers for the C++ kernels; None if these do not support the weights."""
        config = self.config
        weights = [
            native.LayerWeights(
                each.input_norm,
                each.qkv.weights,
                each.o.weights[0],
                each.mlp_norm,
                each.gate_up.weights,
                each.down.weights[0],
                each.q_norm,
                each.k_norm,
            )
            for each in self._layers
        ]
        matrices = [weight for each in weights for weight, _ in each.products]
        if config.head_dim > MOST_DIM or not native.serves(self.dtype, *matrices):
            return None
        heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
        return native.Layers(weights, self._final_norm, heads, kv_heads, dim, config.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token. hidden: [tokens, hidden_size] -> [tokens, vocab] float32, or of
        a share its part of the vocabulary."""
        assert self._head is not None, "only the first stage has a head"
        return self._head.wide(hidden)

    async def scores(
        self, hidden: Tensor, run: Run = inline, turn: Turn | None = None
    ) -> Tensor | None:
        """`logits` for the whole vocabulary; None on shares and stages that do not lead."""
        if self._head is None:
            return None
        logits = await run(partial(self.logits, hidden))
        if turn is not None:
            logits = await turn.gather(logits)
        return logits if self.leads else None

    @property
    def _is_last(self) -> bool:
        return self.stage is None or self.stage.is_last

    def _entered(self, ids: Tensor) -> Tensor:
        """The sums that the first layer continues, which are updated in place."""
        return ids if self._embedding is None else embedded(ids, self._embedding)

    def _left(self, x: Tensor, normed: Tensor) -> Tensor:
        """What the last layer here returns: normed, or the sums if a stage follows."""
        return normed if self._is_last else x

    def _begin(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Table, QKV]:
        x = self._entered(ids)
        table = self._rotary.table(positions, self.dtype)
        return x, table, self._project(self._layers[0], x, table)

    def _advance(
        self, layer: Layer, following: Layer | None, x: Tensor, attended: Tensor, table: Table
    ) -> tuple[Tensor, QKV]:
        """Compute from a layer's attention to that of the following layer, or to the end."""
        x, fed = self._feed_after(layer, x, self._mix(layer, attended))
        return self._proceed(following, x, fed, table)

    def _mix(self, layer: Layer, attended: Tensor) -> Tensor:
        return layer.o.one(attended.flatten(1))

    def _feed_after(self, layer: Layer, x: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = layer.gate_up(self._norm(x, layer.mlp_norm, mixed))
        return x, layer.down.one(swiglu(gate, up))

    def _proceed(
        self, following: Layer | None, x: Tensor, fed: Tensor, table: Table
    ) -> tuple[Tensor, QKV]:
        if following is None:
            return self._left(x, self._norm(x, self._final_norm, fed)), ()
        return x, self._project(following, x, table, fed)

    def _project(self, layer: Layer, x: Tensor, table: Table, fed: Tensor | None = None) -> QKV:
        projected = layer.qkv(self._norm(x, layer.input_norm, fed))
        q, k, v = (y.unflatten(-1, (-1, self.config.head_dim)) for y in projected)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = (
                self._norm(y.flatten(0, 1), weight).view(y.shape)
                for y, weight in ((q, layer.q_norm), (k, layer.k_norm))
            )
        return rotate(q, table), rotate(k, table), v.contiguous()

    def _norm(self, x: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
        return add_norm(x, plus, weight, self.config.norm_eps)


def _rows(weight: Weight, start: int, stop: int) -> Weight:
    return weight.rows(start, stop) if isinstance(weight, QuantisedWeight) else weight[start:stop]


def _layer(
    tensors: Mapping[str, Tensor], quantised: Mapping[str, QuantisedWeight], index: int
) -> Layer:
    prefix = f"model.layers.{index}."

    def part(name: str) -> Tensor | None:
        return tensors.get(prefix + NAMES[name])

    def linear(*names: str) -> Linear:
        keys = [prefix + NAMES[name] for name in names]
        weights = [quantised.get(key) or tensors[key] for key in keys]
        return Linear(weights, [part(f"{name}_bias") for name in names])

    return Layer(
        input_norm=tensors[prefix + NAMES["input_norm"]],
        qkv=linear("q", "k", "v"),
        o=linear("o"),
        mlp_norm=tensors[prefix + NAMES["mlp_norm"]],
        gate_up=linear("gate", "up"),
        down=linear("down"),
        q_norm=part("q_norm"),
        k_norm=part("k_norm"),
    )
