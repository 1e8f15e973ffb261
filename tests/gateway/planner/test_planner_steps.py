"""Shapes, catalogue and step times: what must hold of them on paper."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.planner.calibrate import calibrated
from gateway.planner.errors import PlanError
from gateway.planner.hardware import read_catalogue
from gateway.planner.shapes import shape_of
from gateway.planner.steps import Fitted, MeasuredStep, Roofline, features, fit

CATALOGUE = read_catalogue()
EIGHT = shape_of("8B")


def test_size_gives_a_model_of_that_many_weights() -> None:
    """Any size between the published models has its weights within a layer's."""
    for size, weights in (("8B", 8.03e9), ("70B", 70e9), ("1.5B", 1.5e9), ("500M", 0.5e9)):
        assert shape_of(size).params == pytest.approx(weights, rel=0.06)
    assert EIGHT.kv_bytes_per_token() == 2 * 32 * 8 * 128 * 2
    assert EIGHT.weight_bytes("bf16") == 2 * EIGHT.params
    assert EIGHT.weight_bytes("int4") < EIGHT.weight_bytes("int8") < EIGHT.weight_bytes("bf16")


def test_folder_gives_the_shape_of_its_config(tmp_path: Path) -> None:
    """A Hugging Face folder is read; what is no decoder is refused by name."""
    small = shape_of("bundled:small")
    assert (small.layers, small.hidden, small.vocab, small.tied) == (6, 256, 4096, True)
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(PlanError, match=r"config\.json"):
        shape_of(str(tmp_path))
    for bad in ("no-such-folder", "bundled:huge", "0.001B", "9000B"):
        with pytest.raises(PlanError, match=r"model|bundled|size"):
            shape_of(bad)


def test_users_catalogue_adds_and_replaces(tmp_path: Path) -> None:
    """An entry of the same name wins; impossible figures are refused with file and key."""
    mine = tmp_path / "mine.toml"
    entry = (
        '[[hardware]]\nname = "{}"\nmemory_gib = 10\nbandwidth_gb_s = {}\n'
        "tflops = {{ bf16 = 5 }}\nusd_per_hour = 0.5\n"
    )
    mine.write_text(entry.format("h100", 77) + entry.format("toaster", 1))
    found = read_catalogue(mine)
    assert found["h100"].bandwidth_gb_s == 77
    assert "toaster" in found
    assert "a10g" in found
    mine.write_text(entry.format("broken", 0))
    with pytest.raises(PlanError, match=r"mine\.toml.*bandwidth_gb_s is 0"):
        read_catalogue(mine)
    mine.write_text("[[hardware]]\nname = 3")
    with pytest.raises(PlanError, match=r"mine\.toml"):
        read_catalogue(mine)
    with pytest.raises(PlanError, match="nowhere"):
        read_catalogue(tmp_path / "nowhere.toml")


def test_decode_at_batch_one_is_the_time_to_read_the_weights() -> None:
    """The memory roofline: 8B in bf16 at an H200's rate, nothing else counted."""
    ideal = Roofline(
        shape=EIGHT,
        hardware=CATALOGUE["h200"],
        bandwidth_share=1.0,
        compute_share=1.0,
        overhead_s=0.0,
    )
    seconds = ideal.seconds(1, 1, 0)
    assert seconds == pytest.approx(EIGHT.read_bytes("bf16") / 4.8e12)
    assert 1 / seconds == pytest.approx(320, rel=0.05)
    prefill = ideal.seconds(2048, 1, 2048)
    assert prefill >= 2048 * EIGHT.flops_per_token() / 989e12


@given(
    tokens=st.integers(1, 4096),
    sequences=st.integers(1, 512),
    kv_tokens=st.integers(0, 10**6),
    devices=st.sampled_from([1, 2, 4, 8]),
)
def test_more_work_never_takes_less_time(
    tokens: int, sequences: int, kv_tokens: int, devices: int
) -> None:
    """Monotone in tokens and cache; devices pay for talking to each other."""
    step = Roofline(shape=EIGHT, hardware=CATALOGUE["l4"], devices=devices)
    base = step.seconds(tokens, sequences, kv_tokens)
    assert base > 0
    assert step.seconds(tokens + 1, sequences, kv_tokens) >= base
    assert step.seconds(tokens, sequences, kv_tokens + 10_000) >= base
    assert (step.all_reduce_s(tokens) > 0) == (devices > 1)


def test_fit_recovers_the_rates_that_made_the_times() -> None:
    """Times made of a step, its layers, operations and cache bytes are explained and predicted,
    also for a model that was not measured."""
    small, nano = shape_of("bundled:small"), shape_of("bundled:nano")
    rates = (2e-4, 3e-5, 1e-11, 4e-12, 2e-10, 1e-6)

    def true(shape: object, *step: int) -> float:
        units = features(shape, "int8", *step)  # type: ignore[arg-type]
        return sum(rate * unit for rate, unit in zip(rates, units, strict=True))

    measured = [
        MeasuredStep(
            shape=shape,
            precision="int8",
            tokens=tokens,
            sequences=sequences,
            kv_tokens=kv,
            seconds=true(shape, tokens, sequences, kv),
        )
        for shape in (small, nano)
        for tokens, sequences, kv in (
            (1, 1, 50),
            (16, 16, 3000),
            (512, 1, 512),
            (64, 64, 20_000),
            (900, 3, 1000),
        )
    ]
    model = fit(measured, small, "int8", "here")
    assert min(model.rates) >= 0
    assert model.seconds(32, 32, 8000) == pytest.approx(true(small, 32, 32, 8000), rel=0.02)
    other = Fitted(shape=nano, precision="int8", rates=model.rates, source="here")
    assert other.seconds(8, 8, 900) == pytest.approx(true(nano, 8, 8, 900), rel=0.02)
    with pytest.raises(PlanError, match="at least 2"):
        fit(measured[:1], small, "int8", "here")


def test_bench_file_calibrates(tmp_path: Path) -> None:
    """`headgate bench engine --json` gives the step times; anything else is refused by name."""
    rows = [
        {
            "batch": batch,
            "prompt_tokens": 128,
            "output_tokens": 64,
            "prefill_tokens_per_s": 20_000.0,
            "decode_tokens_per_s": rate,
        }
        for batch, rate in ((1, 500.0), (16, 3000.0))
    ]
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"model": "bundled:small", "quantization": "int8", "results": rows}))
    model = calibrated([file], shape_of("bundled:small"), "int8")
    assert model.source == "bench.json"
    assert model.seconds(1, 1, 160) == pytest.approx(1 / 500, rel=0.1)
    assert model.seconds(16, 16, 16 * 160) == pytest.approx(16 / 3000, rel=0.1)
    file.write_text("{}")
    with pytest.raises(PlanError, match=r"bench\.json.*no output of"):
        calibrated([file], EIGHT, "int8")
    with pytest.raises(PlanError, match="missing"):
        calibrated([tmp_path / "missing.json"], EIGHT, "int8")
