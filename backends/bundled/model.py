"""The Llama shape as one plain module, for training and for checks; serving has its own engine.

Letters: B rows, T tokens in a row, V vocabulary; see `attention` for the rest.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.bundled.attention import attend
from backends.bundled.config import ModelSpec


def rope_tables(spec: ModelSpec, length: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [length, D] fp32, in Hugging Face's half-rotated layout."""
    exponent = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    angle = torch.outer(torch.arange(length, dtype=torch.float32), spec.rope_theta**-exponent)
    both = torch.cat((angle, angle), dim=-1)
    return both.cos(), both.sin()


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        queries = spec.num_attention_heads * spec.head_dim
        keys = spec.num_key_value_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(spec.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, spec.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor) -> Tensor:
        """Mix x [B, T, hidden]; positions see what their document [B, T] says up to there."""
        weights = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        mixed = attend(F.linear(x, weights), cos, sin, documents, self.spec)
        out: Tensor = self.o_proj(mixed)
        return out


class MLP(nn.Module):
    """The gated feed-forward block (SwiGLU)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, hidden] to the same shape."""
        weights = torch.cat((self.gate_proj.weight, self.up_proj.weight))
        gate, up = F.linear(x, weights).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class Block(nn.Module):
    """One decoder layer: attention, then feed-forward, each behind a norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = nn.RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        self.mlp = MLP(spec)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor) -> Tensor:
        """Add both blocks to x [B, T, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, documents)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """The whole model; its state keys are those of `LlamaForCausalLM` without the `model.`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.num_hidden_layers))
        self.norm = nn.RMSNorm(spec.hidden_size, eps=spec.rms_norm_eps)
        cos, sin = rope_tables(spec, spec.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Return logits [B, T, V] of ids [B, T]; see `hidden`."""
        return self.head(self.hidden(ids, documents))

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of hidden states; the head is the embedding, transposed."""
        return F.linear(hidden, self.embed_tokens.weight)

    def hidden(
        self, ids: Tensor, documents: Tensor | None, positions: Tensor | None = None
    ) -> Tensor:
        """Return the last hidden states [B, T, hidden], normed.

        Args:
            ids: [B, T] int64.
            documents: [B, T] int64, the same number for neighbours of one document; positions
                see only their own. None: one a row.
            positions: [T] int64, growing, the same for every row. None: from 0.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        if documents is None:
            documents = torch.zeros_like(ids)
        cos, sin = self.cos[positions], self.sin[positions]
        x = self.embed_tokens(ids)
        for block in self.layers:
            x = block(x, cos, sin, documents)
        out: Tensor = self.norm(x)
        return out


def weighted_loss(
    model: Llama,
    ids: Tensor,
    documents: Tensor,
    weights: Tensor,
    picked: Tensor | None,
    positions: Tensor | None = None,
    teacher: Llama | None = None,
    distilled: float = 0.0,
) -> Tensor:
    """Return the summed next-token loss, each target times its weight.

    Args:
        model: the model.
        ids: [B, T + 1].
        documents: [B, T], see `Llama.hidden`.
        weights: [B, T] of the targets ids[:, 1:].
        picked: [K] indices into B * T, the only targets to look at; None: all.
        positions: [T], see `Llama.hidden`.
        teacher: a model whose distribution is a target beside the next token.
        distilled: what share of the loss that target has.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network".
    """
    hidden = model.hidden(ids[:, :-1], documents, positions).flatten(0, 1)
    targets, weights = ids[:, 1:].reshape(-1), weights.reshape(-1)
    if picked is not None:
        hidden, targets, weights = hidden[picked], targets[picked], weights[picked]
    logits = model.head(hidden).float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    if teacher is not None:
        with torch.no_grad():
            wise = teacher.hidden(ids[:, :-1], documents, positions).flatten(0, 1)
            wanted = teacher.head(wise if picked is None else wise[picked]).float().softmax(-1)
        soft = F.cross_entropy(logits, wanted, reduction="none")
        losses = (1 - distilled) * losses + distilled * soft
    return (losses * weights).sum()


def init_weights(model: Llama, seed: int) -> None:
    """Fill the model with seeded normal weights; block outputs start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            elif name.startswith("embed_tokens"):
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                scale = parameter.shape[1] ** -0.5
                parameter.normal_(0.0, scale, generator=generator)


def num_parameters(model: nn.Module) -> int:
    """Count the parameters; the tied head counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
