"""Shapes of the bundled models, and the plan each is trained by."""

from typing import Any, Final, Literal

import msgspec

VOCAB_SIZE: Final = 4096


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of one model, in the names of Hugging Face's Llama config."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int = VOCAB_SIZE
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def shape(self) -> tuple[Any, ...]:
        """All but the name."""
        return msgspec.structs.astuple(self)[1:]


class TrainPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one model is trained: warm-up, schedule, optimizer; the last part is chat tuning."""

    tokens: int
    """Token budget of the whole run, padding included."""
    long_tokens: int = 2048
    """Tokens of one step in long rows: running text and longer chats."""
    short_tokens: int = 6144
    """Tokens of one step in short rows: single questions."""
    long_row: int = 256
    """Length of a long row while learning; attention costs its square."""
    tune_long_row: int = 1024
    """Length of a long row while tuning."""
    context: int = 2048
    """How far positions reach while tuning, by leaps within a long row."""
    short_row: int = 128
    warmup_steps: int = 60
    schedule: Literal["stable", "cosine"] = "stable"
    """stable: the learning rate stays at its peak until it decays; cosine: half a wave."""
    decay_fraction: float = 0.47
    """Last part of the run, over which the learning rate of `stable` falls to zero."""
    tune_fraction: float = 0.2
    """Last part of the run, in which only answers are learned and text is rare."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """What trains the matrices of the layers; the rest has AdamW."""
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    matrix_adam_lr: float = 0.002
    """Of the layers' matrices where AdamW trains them too."""
    weight_decay: float = 0.01
    distilled: float = 0.5
    """Share of the loss that a teacher's distribution has, where there is a teacher."""
    clip_norm: float = 1.0

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.long_tokens + self.short_tokens

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return max(1, self.tokens // self.tokens_per_step)


NANO: Final = ModelSpec(
    name="nano",
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)
SMALL: Final = ModelSpec(
    name="small",
    hidden_size=256,
    intermediate_size=448,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
BASE: Final = ModelSpec(
    name="base",
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=8,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
)
SPECS: Final = {spec.name: spec for spec in (NANO, SMALL, BASE)}
PLANS: Final = {
    "nano": TrainPlan(tokens=11_000_000, decay_fraction=0.35),
    "small": TrainPlan(tokens=25_000_000),
    "base": TrainPlan(tokens=40_000_000, decay_fraction=0.45),
}
"""For a CPU, where a core makes some thousand tokens a second."""
GPU_BUDGET: Final = 20
"""How many times more tokens a run has on a GPU, in steps four times as large."""


def plan_for(name: str, device: str) -> TrainPlan:
    """Return the plan of a model, with a budget of which the device makes good use."""
    plan = PLANS[name]
    if not device.startswith("cuda"):
        return plan
    return msgspec.structs.replace(
        plan,
        tokens=GPU_BUDGET * plan.tokens,
        long_tokens=4 * plan.long_tokens,
        short_tokens=4 * plan.short_tokens,
    )
