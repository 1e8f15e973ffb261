"""The C++ attention of training against plain torch."""

import pytest
import torch
from torch import Tensor

from backends.bundled.attention import attend, attend_reference, library
from backends.bundled.config import ModelSpec
from backends.bundled.model import rope_tables


def spec_of(heads: int, kv_heads: int, head_dim: int) -> ModelSpec:
    """A shape of which attention reads only the heads."""
    return ModelSpec(
        name="heads",
        hidden_size=heads * head_dim,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
    )


def cut(length: int, *ends: int) -> Tensor:
    """Number the documents of a row [T] that end before `ends`."""
    return torch.bucketize(torch.arange(length), torch.tensor(ends), right=True)


@pytest.mark.skipif(library() is None, reason="no C++ compiler on this machine")
@pytest.mark.parametrize(
    ("spec", "length"),
    [(spec_of(6, 2, 64), 70), (spec_of(4, 4, 32), 33), (spec_of(2, 1, 16), 1)],
)
def test_native_attention_equals_plain_torch(spec: ModelSpec, length: int) -> None:
    """Values and gradients differ from fp32 by the rounding of bf16 only, on ragged documents."""
    torch.manual_seed(1)
    documents = torch.stack(
        (cut(length, 5, 6, 40), torch.zeros(length, dtype=torch.int64), cut(length, 1, 17, 33))
    )
    heads = spec.num_attention_heads + 2 * spec.num_key_value_heads
    fast = torch.randn(3, length, heads * spec.head_dim).bfloat16().requires_grad_()
    plain = fast.detach().float().requires_grad_()
    angles = rope_tables(spec, length)
    got = attend(fast, *angles, documents, spec)
    want = attend_reference(plain, *angles, documents, spec)
    torch.testing.assert_close(got.float(), want, rtol=0.01, atol=0.01)
    slope = torch.randn_like(want).bfloat16()
    got.backward(slope)
    want.backward(slope.float())
    assert fast.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(fast.grad.float(), plain.grad, rtol=0.01, atol=0.02)


@pytest.mark.skipif(library() is None, reason="no C++ compiler on this machine")
def test_native_attention_never_sees_another_document() -> None:
    """Poison in one document leaves the others' values and gradients alone."""
    spec, length = spec_of(2, 2, 32), 24
    documents = cut(length, 8, 16).expand(1, -1)
    angles = rope_tables(spec, length)
    clean = torch.randn(1, length, 192).bfloat16()
    poisoned = clean.clone()
    poisoned[:, 8:16] = float("nan")
    outside = [*range(8), *range(16, length)]
    found = []
    for qkv in (clean.requires_grad_(), poisoned.requires_grad_()):
        out = attend(qkv, *angles, documents, spec)
        out[:, outside].sum().backward()
        assert qkv.grad is not None
        found.append((out[:, outside], qkv.grad[:, outside]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
