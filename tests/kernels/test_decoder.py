"""The decoder in one call: bit for bit the ops one after another."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest
import torch
from kernel_cases import random
from torch import Tensor

from kernels import native
from kernels.decoder import DecoderWeights, LayerWeights, PackedWeight, plan
from kernels.decoder.native import NativeDecoder
from kernels.errors import KernelError
from kernels.gated_mul import gelu_mul, silu_mul
from kernels.group_quant_linear import group_quant_linear
from kernels.group_quant_linear import pack as pack_groups
from kernels.packed_linear import pack, packed_linear
from kernels.paged_attention import paged_attention
from kernels.quant_linear import copies, quant_linear
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rope import rope
from kernels.store_kv import store_kv

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler here")

HEADS, KV_HEADS, DIM, HIDDEN, MIDDLE, LAYERS, VOCABULARY = 4, 2, 16, 48, 70, 2, 50
BLOCK, BLOCKS, EPS = 4, 40, 1e-5
TABLE_BLOCKS = 8
GROUP = 16

Caches = tuple[Tensor, Tensor, *tuple[Tensor, ...]]


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

    def __init__(self, kind: str) -> None:
        """`kind` names what the weights are and what else the layers have."""
        self._kind, self._biased, self._seed = kind, "biased" in kind, 0
        self._codes: dict[int, tuple[Tensor | None, ...]] = {}
        width = HEADS * DIM
        more: dict[str, Any] = {}
        self.soft_cap = None
        if "more" in kind:
            norms = {"query_norm": self._random(DIM).abs(), "key_norm": self._random(DIM).abs()}
            more = {**norms, "sinks": self._random(HEADS), "window": 7}
            self.soft_cap = 5.0
        self.gelu = "sandwich" in kind
        if self.gelu:
            turned = torch.arange(64)[:, None] / 3.0 ** torch.arange(DIM // 2)
            more = {
                "output_norm": self._random(HIDDEN).abs(),
                "down_norm": self._random(HIDDEN).abs(),
                "cos_sin_cache": torch.cat((turned.cos(), turned.sin()), dim=1),
            }
        self.layers = [
            LayerWeights(
                self._random(HIDDEN).abs(),
                self._linear(width + 2 * KV_HEADS * DIM, HIDDEN),
                self._linear(HIDDEN, width),
                self._random(HIDDEN).abs(),
                self._linear(2 * MIDDLE, HIDDEN),
                self._linear(HIDDEN, MIDDLE),
                **more,
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
                soft_cap=self.soft_cap,
                gelu=self.gelu,
            )
        )
        assert planned is not None
        self.decoder: NativeDecoder = planned

    def new_caches(self, dtype: torch.dtype = torch.float32) -> list[Caches]:
        """Poisoned: nothing may read a slot before it is written."""
        shape = (BLOCKS, BLOCK, KV_HEADS, DIM)
        shapes = [shape, shape] if dtype.itemsize > 1 else [shape, shape, shape[:3], shape[:3]]
        kinds = [dtype, dtype, torch.float32, torch.float32]
        return [
            tuple(torch.full(s, torch.nan).to(d) for s, d in zip(shapes, kinds, strict=False))
            for _ in range(LAYERS)
        ]

    def in_one_call(self, step: Step, caches: list[Caches]) -> Tensor:
        assert self.decoder.can_use(caches)
        return self.decoder.forward(*vars(step).values())

    def op_by_op(self, step: Step, caches: list[Caches]) -> Tensor:
        residual, x = self.embedding[step.token_ids], None
        for layer, (keys, values, *scales) in zip(self.layers, caches, strict=True):
            k_scale, v_scale = scales or (None, None)
            if x is None:
                normed = rms_norm(residual, layer.input_norm, eps=EPS)
            else:
                normed, residual = add_rms_norm(x, residual, layer.input_norm, eps=EPS)
            qkv = self._apply(layer.qkv, normed).view(-1, HEADS + 2 * KV_HEADS, DIM)
            q, k, v = torch.split(qkv, [HEADS, KV_HEADS, KV_HEADS], dim=1)
            if layer.query_norm is not None and layer.key_norm is not None:
                q = rms_norm(q.contiguous(), layer.query_norm, eps=EPS)
                k = rms_norm(k.contiguous(), layer.key_norm, eps=EPS)
            own = layer.cos_sin_cache
            q, k = rope(q, k, self.cos_sin if own is None else own, step.positions)
            store_kv(k, v, keys, values, step.slot_mapping, k_scale=k_scale, v_scale=v_scale)
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
                window=layer.window,
                soft_cap=self.soft_cap,
                sinks=layer.sinks,
                k_scale=k_scale,
                v_scale=v_scale,
            )
            out = self._apply(layer.output, mixed.view(-1, HEADS * DIM))
            if layer.output_norm is not None:
                out = rms_norm(out, layer.output_norm, eps=EPS)
            normed, residual = add_rms_norm(out, residual, layer.post_norm, eps=EPS)
            gate = gelu_mul if self.gelu else silu_mul
            x = self._apply(layer.down, gate(self._apply(layer.gate_up, normed)))
            if layer.down_norm is not None:
                x = rms_norm(x, layer.down_norm, eps=EPS)
        assert x is not None
        return residual + x

    def logits_op_by_op(self, hidden: Tensor) -> Tensor:
        return self._apply(self.head, rms_norm(hidden, self.norm, eps=EPS))

    def _apply(self, weight: PackedWeight, x: Tensor) -> Tensor:
        codes = self._codes.get(id(weight.packed))
        if codes is None:
            return packed_linear(x, weight.packed, weight.bias, channels=weight.channels)
        if weight.group is not None:
            return group_quant_linear(x, *codes, weight.bias, packed=weight.packed)
        return quant_linear(x, *codes, weight.bias, packed=weight.packed)

    def _linear(self, channels: int, inputs: int) -> PackedWeight:
        bias = self._random(channels) if self._biased else None
        weight = self._random(channels, inputs) / inputs**0.5
        if "twice" in self._kind and channels == VOCABULARY:
            weight = weight[: channels // 2].repeat(2, 1)
        if "fp32" in self._kind:
            return PackedWeight(pack(weight), None, bias, channels, inputs)
        if "bf16" in self._kind:
            return PackedWeight(pack(weight.bfloat16()), None, bias, channels, inputs)
        if "groups" in self._kind and inputs % GROUP == 0:
            return self._in_groups(weight, bias)
        scale = weight.abs().amax(dim=1) / 127
        codes = (weight / scale[:, None]).round().to(torch.int8)
        coded = copies(codes, scale, torch.float32).packed
        assert coded is not None
        self._codes[id(coded)] = (codes, scale)
        return PackedWeight(coded, scale, bias, channels, inputs)

    def _in_groups(self, weight: Tensor, bias: Tensor | None) -> PackedWeight:
        channels, inputs = weight.shape
        most = weight.view(channels, -1, GROUP).abs().amax(dim=-1)
        zero: Tensor | None = None
        if "int4" not in self._kind:
            scale = most / 127
            codes = (weight / scale.repeat_interleave(GROUP, 1)).round().to(torch.int8)
        else:
            scale = most / 7
            wide = (weight / scale.repeat_interleave(GROUP, 1)).round().to(torch.uint8) + 8
            codes = (wide[:, ::2] & 15) | wide[:, 1::2] << 4
            zero = torch.randint(6, 10, scale.shape, dtype=torch.uint8)
        if "floats" in self._kind:
            zero = torch.randint(6, 10, scale.shape) + 0.3
        packed = pack_groups(codes, scale, zero)
        self._codes[id(packed)] = (codes, scale, zero)
        floats = zero is not None and zero.is_floating_point()
        return PackedWeight(packed, None, bias, channels, inputs, GROUP, floats)

    def _random(self, *shape: int) -> Tensor:
        self._seed += 1
        return random(*shape, seed=self._seed)


@pytest.fixture(
    params=[
        "int8",
        "fp32",
        "bf16",
        "int4 groups and int8 biased",
        "int4 groups, floats",
        "int8 groups",
        "int8 groups, floats",
        "int8 and more",
        "int8 in a sandwich",
        "bf16 in a sandwich",
    ]
)
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


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
        _assert_same_bits(ours, theirs)
    finally:
        torch.set_num_threads(before)


def _assert_same_bits(ours: list[Caches], theirs: list[Caches]) -> None:
    for one, other in zip(chain(*ours), chain(*theirs), strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=str
)
def test_decoder_keeps_caches_of_every_dtype(dtype: torch.dtype) -> None:
    """Keys and values in 16 or 8 bits: what is stored and what is read are the ops' own."""
    model = Model("int8")
    ours, theirs = model.new_caches(dtype), model.new_caches(dtype)
    for sequences in ([(0, 20, 20), (1, 1, 1)], [(0, 1, 21), (1, 2, 3)]):
        step = _step(sequences)
        whole = model.in_one_call(step, ours)
        assert torch.equal(whole, model.op_by_op(step, theirs))
        assert not whole.isnan().any()
    _assert_same_bits(ours, theirs)


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


def test_decoder_leaves_scattered_caches_to_the_ops(model: Model) -> None:
    """What is not contiguous is not read as if it were."""
    scattered = [(keys.transpose(0, 1), values) for keys, values, *_ in model.new_caches()]
    assert not model.decoder.can_use(scattered)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["bf16 twice", "bf16 twice biased", "int8 twice"])
def test_decoder_takes_the_first_of_equals(kind: str, threads: int) -> None:
    """Where every token has a twin: the first, however many rows there are and threads look."""
    model, before = Model(kind), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for sequences in ([(0, 20, 20), (2, 21, 21)], [(1, 1, 1)]):
            step = _step(sequences)
            assert model.decoder.can_use(model.new_caches())
            logits = model.decoder.step(*vars(step).values()).tolist()
            tokens = model.decoder.likeliest(*vars(step).values())
            assert tokens == [row.index(max(row)) for row in logits]
            assert "biased" in kind or max(tokens) < VOCABULARY // 2
    finally:
        torch.set_num_threads(before)


def test_decoder_samples_what_its_logits_say(model: Model) -> None:
    """A step in one call gives the chosen rows' logits, and the likeliest of each."""
    step = _step([(0, 5, 5), (1, 9, 9), (2, 1, 1)])
    stream = model.in_one_call(step, model.new_caches())
    rows = torch.tensor([4, 12, 13, 14])
    assert model.decoder.can_use(model.new_caches())
    logits = model.decoder.step(*vars(step).values(), rows=rows)
    assert torch.equal(logits, model.decoder.logits(stream[rows]))
    tokens = model.decoder.likeliest(*vars(step).values(), rows=rows)
    assert tokens == logits.argmax(dim=-1).tolist()
    everyone = model.decoder.likeliest(*vars(step).values())
    assert everyone == model.decoder.logits(stream).argmax(dim=-1).tolist()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [[14], [0, 13], [3, 20, 34], [34, 3], [5, 5, 6], []], ids=str)
def test_decoder_computes_the_rows_asked_for_as_beside_all(
    model: Model, rows: list[int], threads: int
) -> None:
    """Whichever rows are asked for, in any order, also twice: the bits of all, and their cache."""
    step, before = _step([(0, 20, 20), (1, 1, 9), (2, 14, 30)]), torch.get_num_threads()
    ours, theirs = model.new_caches(), model.new_caches()
    for caches in (ours, theirs):
        model.in_one_call(_step([(1, 8, 8), (2, 16, 16)]), caches)
    torch.set_num_threads(threads)
    try:
        stream = model.in_one_call(step, theirs)
        assert model.decoder.can_use(ours)
        logits = model.decoder.step(*vars(step).values(), rows=torch.tensor(rows).long())
        assert torch.equal(logits, model.decoder.logits(stream[rows]))
        _assert_same_bits(ours, theirs)
    finally:
        torch.set_num_threads(before)
