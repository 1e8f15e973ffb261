"""The decoder in one call: bit for bit the ops one after another."""

from dataclasses import dataclass

import pytest
import torch
from kernel_cases import random
from torch import Tensor

from kernels import native
from kernels.decoder import DecoderWeights, LayerWeights, PackedWeight, plan
from kernels.decoder.native import NativeDecoder
from kernels.errors import KernelError
from kernels.packed_linear import pack, packed_linear
from kernels.paged_attention import paged_attention
from kernels.quant_linear import copies, quant_linear
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rope import rope
from kernels.silu_mul import silu_mul
from kernels.store_kv import store_kv

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler here")

HEADS, KV_HEADS, DIM, HIDDEN, MIDDLE, LAYERS, VOCABULARY = 4, 2, 16, 48, 70, 2, 50
BLOCK, BLOCKS, EPS = 4, 40, 1e-5
TABLE_BLOCKS = 8

Linear = tuple[PackedWeight, Tensor | None]


@dataclass(frozen=True)
class Step:
    """One packed batch; the arguments of `forward`, in their order."""

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    query_start_lens: Tensor
    context_lens: Tensor


def _step(sequences: list[tuple[int, int, int]]) -> Step:
    """Sequences of (identity, queries, context): the identity owns cache blocks and tokens."""
    ids, positions, slots, starts = [], [], [], [0]
    tables = torch.full((len(sequences), TABLE_BLOCKS), -1, dtype=torch.int32)
    for row, (identity, queries, context) in enumerate(sequences):
        used = -(-context // BLOCK)
        tables[row, :used] = identity * TABLE_BLOCKS + torch.arange(used)
        for place in range(context - queries, context):
            ids.append((identity * 17 + place * 5) % VOCABULARY)
            positions.append(place)
            slots.append(int(tables[row, place // BLOCK]) * BLOCK + place % BLOCK)
        starts.append(len(ids))
    lengths = [context for _, _, context in sequences]
    return Step(
        *(torch.tensor(values) for values in (ids, positions, slots)),
        tables,
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32),
    )


class Model:
    """Small random weights, run in one call or op by op."""

    def __init__(self, *, int8: bool, biased: bool) -> None:
        self._int8, self._biased, self._seed = int8, biased, 0
        self._codes: dict[int, Tensor] = {}
        width = HEADS * DIM
        self.layers = [
            LayerWeights(
                self._random(HIDDEN).abs(),
                self._linear(width + 2 * KV_HEADS * DIM, HIDDEN),
                self._linear(HIDDEN, width),
                self._random(HIDDEN).abs(),
                self._linear(2 * MIDDLE, HIDDEN),
                self._linear(HIDDEN, MIDDLE),
            )
            for _ in range(LAYERS)
        ]
        angles = torch.arange(64)[:, None] / 10.0 ** torch.arange(DIM // 2)
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
        self.embedding = self._random(VOCABULARY, HIDDEN)
        self.norm, self.head = self._random(HIDDEN), self._linear(VOCABULARY, HIDDEN)
        planned = plan(
            DecoderWeights(
                embedding=self.embedding,
                layers=self.layers,
                norm=self.norm,
                head=self.head,
                cos_sin_cache=self.cos_sin,
                heads=HEADS,
                kv_heads=KV_HEADS,
                head_dim=DIM,
                eps=EPS,
                scale=DIM**-0.5,
            )
        )
        assert planned is not None
        self.decoder: NativeDecoder = planned

    def new_caches(self) -> list[tuple[Tensor, Tensor]]:
        """Poisoned: nothing may read a slot before it is written."""
        shape = (BLOCKS, BLOCK, KV_HEADS, DIM)
        return [(torch.full(shape, torch.nan), torch.full(shape, torch.nan)) for _ in range(LAYERS)]

    def in_one_call(self, step: Step, caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        assert self.decoder.can_use(caches)
        return self.decoder.forward(*vars(step).values())

    def op_by_op(self, step: Step, caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        residual, x = self.embedding[step.token_ids], None
        for layer, (keys, values) in zip(self.layers, caches, strict=True):
            if x is None:
                normed = rms_norm(residual, layer.input_norm, eps=EPS)
            else:
                normed, residual = add_rms_norm(x, residual, layer.input_norm, eps=EPS)
            qkv = self._apply(layer.qkv, normed).view(-1, HEADS + 2 * KV_HEADS, DIM)
            q, k, v = torch.split(qkv, [HEADS, KV_HEADS, KV_HEADS], dim=1)
            q, k = rope(q, k, self.cos_sin, step.positions)
            store_kv(k, v, keys, values, step.slot_mapping)
            mixed = paged_attention(
                q,
                keys,
                values,
                step.block_tables,
                step.query_start_lens,
                step.context_lens,
                scale=DIM**-0.5,
                max_query_len=int(step.query_start_lens.diff().max()),
                max_context_len=int(step.context_lens.max()),
            )
            out = self._apply(layer.output, mixed.view(-1, HEADS * DIM))
            normed, residual = add_rms_norm(out, residual, layer.post_norm, eps=EPS)
            x = self._apply(layer.down, silu_mul(self._apply(layer.gate_up, normed)))
        assert x is not None
        return residual + x

    def logits_op_by_op(self, hidden: Tensor) -> Tensor:
        return self._apply(self.head, rms_norm(hidden, self.norm, eps=EPS))

    def _apply(self, weight: PackedWeight, x: Tensor) -> Tensor:
        if weight.scale is None:
            return packed_linear(x, weight.packed, weight.bias, channels=weight.channels)
        codes = self._codes[id(weight.packed)]
        return quant_linear(x, codes, weight.scale, weight.bias, packed=weight.packed)

    def _linear(self, channels: int, inputs: int) -> PackedWeight:
        bias = self._random(channels) if self._biased else None
        weight = self._random(channels, inputs) / inputs**0.5
        if not self._int8:
            return PackedWeight(pack(weight), None, bias, channels, inputs)
        scale = weight.abs().amax(dim=1) / 127
        codes = (weight / scale[:, None]).round().to(torch.int8)
        packed = copies(codes, scale, torch.float32).packed
        assert packed is not None
        self._codes[id(packed)] = codes
        return PackedWeight(packed, scale, bias, channels, inputs)

    def _random(self, *shape: int) -> Tensor:
        self._seed += 1
        return random(*shape, seed=self._seed)


@pytest.fixture(params=["int8", "fp32", "int8 biased"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model(int8="int8" in request.param, biased="biased" in request.param)


@pytest.mark.parametrize("threads", [1, 3])
def test_decoder_equals_the_ops_bit_for_bit(model: Model, threads: int) -> None:
    """Prompts, decode steps and parts of prompts, mixed: the same cache, stream and logits."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = model.new_caches(), model.new_caches()
        for sequences in (
            [(0, 20, 20), (1, 1, 1), (2, 9, 9)],
            [(0, 1, 21), (1, 1, 2), (2, 5, 14), (3, 30, 30)],
            [(3, 1, 31)],
        ):
            step = _step(sequences)
            whole = model.in_one_call(step, ours)
            assert torch.equal(whole, model.op_by_op(step, theirs))
            assert torch.equal(model.decoder.logits(whole), model.logits_op_by_op(whole))
            assert not whole.isnan().any()
        for (keys, values), (other_keys, other_values) in zip(ours, theirs, strict=True):
            torch.testing.assert_close(keys, other_keys, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(values, other_values, rtol=0, atol=0, equal_nan=True)
    finally:
        torch.set_num_threads(before)


def test_decoder_answers_a_sequence_alike_in_any_batch(model: Model) -> None:
    """Bit for bit: alone or beside others, its prompt whole, in parts or token by token."""
    alone = model.new_caches()
    whole = model.in_one_call(_step([(1, 25, 25)]), alone)
    beside = model.new_caches()
    first = model.in_one_call(_step([(0, 7, 7), (1, 18, 18)]), beside)[7:]
    second = model.in_one_call(_step([(1, 6, 24), (0, 1, 8)]), beside)[:6]
    third = model.in_one_call(_step([(2, 3, 3), (1, 1, 25)]), beside)[3:]
    assert torch.equal(torch.cat((first, second, third)), whole)


def test_decoder_refuses_to_leave_its_tables(model: Model) -> None:
    """A token, position, slot or block outside its table is an error, not a wild read."""
    caches = model.new_caches()
    good = vars(_step([(0, 2, 2)]))
    for name, bad in (
        ("token_ids", VOCABULARY),
        ("positions", 64),
        ("slot_mapping", BLOCK * BLOCKS),
        ("block_tables", BLOCKS),
    ):
        broken = Step(**{**good, name: torch.full_like(good[name], bad)})
        with pytest.raises(KernelError, match="points outside"):
            model.in_one_call(broken, caches)


def test_decoder_leaves_other_caches_to_the_ops(model: Model) -> None:
    """A half-precision cache is not read as fp32."""
    half = [(keys.half(), values.half()) for keys, values in model.new_caches()]
    assert not model.decoder.can_use(half)
