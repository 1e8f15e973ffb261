"""Growing: a larger model that begins as the smaller one, and can learn from there."""

from pathlib import Path

import msgspec
import pytest
import torch

from backends.bundled.batches import Batcher
from backends.bundled.config import ModelSpec, TrainPlan
from backends.bundled.errors import CheckpointError
from backends.bundled.grow import grow, layer_sources
from backends.bundled.model import Llama
from backends.bundled.shelves import Library
from backends.bundled.trainer import Trainer


@pytest.fixture
def wide_spec(tiny_spec: ModelSpec) -> ModelSpec:
    """A shape larger than the tiny one in every direction that can grow."""
    return msgspec.structs.replace(
        tiny_spec,
        name="wide",
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=5,
        num_attention_heads=3,
    )


@pytest.fixture
def shaken(tiny_spec: ModelSpec) -> Llama:
    """A tiny model with no weight at zero or one."""
    torch.manual_seed(7)
    model = Llama(tiny_spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_grown_model_computes_what_the_smaller_one_does(
    shaken: Llama, wide_spec: ModelSpec
) -> None:
    """Wider, deeper and with more heads, the logits stay the same."""
    grown = grow(shaken.state_dict(), shaken.spec, wide_spec, seed=1)
    ids = torch.randint(5, 200, (3, 40))
    torch.testing.assert_close(grown(ids), shaken(ids), rtol=1e-4, atol=1e-5)


def test_grown_model_can_move_every_fresh_weight(shaken: Llama, wide_spec: ModelSpec) -> None:
    """Whatever begins at zero gets a gradient, so that nothing new stays dead."""
    grown = grow(shaken.state_dict(), shaken.spec, wide_spec, seed=1)
    grown(torch.randint(5, 200, (3, 40))).square().mean().backward()
    old = shaken.spec
    attention = grown.layers[0].self_attn
    for weight, fresh in (
        (attention.o_proj.weight, slice(2 * old.head_dim, None)),
        (grown.layers[0].mlp.down_proj.weight, slice(old.intermediate_size, None)),
        (grown.embed_tokens.weight, slice(old.hidden_size, None)),
    ):
        assert weight[:, fresh].count_nonzero() == 0
        assert weight.grad[:, fresh].abs().sum() > 0


def test_layers_are_added_evenly_and_begin_silent() -> None:
    """Every old layer speaks once, in order; its copies follow it and write nothing yet."""
    sources = layer_sources(6, 8)
    assert [source.layer for source in sources] == [0, 1, 2, 2, 3, 4, 5, 5]
    assert [source.layer for source in sources if not source.silent] == list(range(6))
    assert [source.silent for source in sources[2:4]] == [False, True]


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 16}, {"num_hidden_layers": 1}, {"head_dim": 8}, {"rope_theta": 500.0}],
)
def test_growing_refuses_a_shape_that_does_not_fit(
    shaken: Llama, wide_spec: ModelSpec, change: dict[str, float]
) -> None:
    """What would have to shrink, or cannot be kept, is named in the error."""
    wrong = msgspec.structs.replace(wide_spec, **change)
    with pytest.raises(CheckpointError, match="cannot be grown from 'tiny'"):
        grow(shaken.state_dict(), shaken.spec, wrong, seed=1)


def test_training_grows_from_a_checkpoint(
    tiny_spec: ModelSpec,
    wide_spec: ModelSpec,
    tiny_plan: TrainPlan,
    tiny_library: Library,
    tmp_path: Path,
) -> None:
    """A run of the wider model begins at the loss at which the smaller one stood."""
    batcher = Batcher(tiny_library, tiny_plan, seed=3)
    small = Trainer(tiny_spec, tiny_plan, batcher, seed=3)
    small.run(4)
    small.save(tmp_path / "checkpoint.pt")
    wide = Trainer(wide_spec, tiny_plan, batcher, seed=3)
    wide.grow_from(tmp_path / "checkpoint.pt")
    wide.progress.step = small.progress.step
    assert wide.step() == pytest.approx(small.step(), rel=0.01)
