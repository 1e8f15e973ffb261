"""The int8 copy of a float head: how far its products are off, and that no token changes by it."""

import pytest
import torch
from kernel_cases import random
from torch import Tensor

from kernels import native
from kernels.decoder import DecoderWeights, LayerWeights, PackedWeight, plan
from kernels.decoder.native import NativeDecoder
from kernels.decoder.sketch import sketch_of
from kernels.packed_linear import pack, packed_linear
from kernels.quant_linear import quant_linear

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler here")

VOCABULARY, HIDDEN, DIM, ROWS = 150, 48, 16, 23
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _near_ties() -> Tensor:
    """Channels that int8 can hardly tell apart, two of them the same."""
    weight: Tensor = random(1, HIDDEN, seed=1) + random(VOCABULARY, HIDDEN, seed=2) * 2e-3
    weight[-1] = weight[7]
    return weight


HEADS = {
    "random": random(VOCABULARY, HIDDEN, seed=3),
    "near ties": _near_ties(),
    "one large": random(VOCABULARY, HIDDEN, seed=4) * (1 + 99 * torch.eye(VOCABULARY, HIDDEN)),
    "some zeros": random(VOCABULARY, HIDDEN, seed=5) * (torch.arange(VOCABULARY) % 3 > 0)[:, None],
    "tiny": random(VOCABULARY, HIDDEN, seed=6) * 1e-6,
}


def _head(weight: Tensor) -> PackedWeight:
    return PackedWeight(pack(weight), None, None, *weight.shape)


def _decoder(weight: Tensor) -> NativeDecoder:
    """A layer that adds nothing to the embedding: the head sees its rows, normed."""
    nothing = _head(torch.zeros(HIDDEN, DIM)), _head(torch.zeros(HIDDEN, HIDDEN))
    layer = LayerWeights(
        torch.ones(HIDDEN),
        _head(random(3 * DIM, HIDDEN)),
        nothing[0],
        torch.ones(HIDDEN),
        _head(random(2 * HIDDEN, HIDDEN)),
        nothing[1],
    )
    embedding = random(ROWS, HIDDEN, seed=9)
    embedding[3], embedding[4, 5], embedding[5, 6] = 0, torch.nan, torch.inf
    planned = plan(
        DecoderWeights(
            embedding=embedding,
            layers=[layer],
            norm=torch.ones(HIDDEN),
            head=_head(weight),
            cos_sin_cache=torch.ones(ROWS, DIM),
            heads=1,
            kv_heads=1,
            head_dim=DIM,
            eps=1e-5,
            scale=1.0,
        )
    )
    assert planned is not None
    assert planned.can_use([(torch.zeros(ROWS, 1, 1, DIM), torch.zeros(ROWS, 1, 1, DIM))])
    return planned


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_sketch_says_how_far_its_products_may_be_off(name: str, dtype: torch.dtype) -> None:
    """The head's own products in fp32 lie within the errors that the copy states."""
    weight, x = HEADS[name].to(dtype), random(40, HIDDEN, seed=7)
    x[:20, 5] *= 1000
    sketch = sketch_of(_head(weight))
    assert sketch is not None
    codes, scale = torch.zeros(weight.shape, dtype=torch.int8), sketch.weight.scale
    assert scale is not None
    nearly = quant_linear(x, codes, scale, packed=sketch.weight.packed)
    exact = packed_linear(x, pack(weight), channels=VOCABULARY)
    assert ((nearly - exact).abs() <= x.norm(dim=1, keepdim=True) * sketch.errors).all()
    assert sketch.errors.max() < 0.1 * weight.float().norm(dim=1).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("threads", [1, 3])
def test_decoder_finds_the_largest_product_of_a_float_head(
    name: str, dtype: torch.dtype, threads: int
) -> None:
    """The first of each row's largest logits, near ties, zeros, NaN and infinity included."""
    decoder, before = _decoder(HEADS[name].to(dtype)), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ids = torch.arange(ROWS)
        step = (
            ids,
            ids * 0,
            ids,
            ids[:, None].int(),
            torch.arange(ROWS + 1).int(),
            ids.int() * 0 + 1,
        )
        logits = decoder.step(*step)
        tokens = decoder.likeliest(*step)
        finite = logits.isfinite().all(dim=1).nonzero().flatten().tolist()
        assert len(finite) == ROWS - 2
        assert [tokens[row] for row in finite] == [
            row.index(max(row)) for row in logits[finite].tolist()
        ]
        assert all(0 <= token < VOCABULARY for token in tokens)
    finally:
        torch.set_num_threads(before)


def test_sketch_is_made_of_float_heads_without_bias_only() -> None:
    """What has codes already, or a bias, is multiplied as it is."""
    head = _head(HEADS["random"])
    assert sketch_of(head._replace(bias=torch.zeros(VOCABULARY))) is None
    assert sketch_of(head._replace(scale=torch.ones(VOCABULARY))) is None
    assert sketch_of(head._replace(group=16)) is None
