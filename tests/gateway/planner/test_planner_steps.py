"""Shapes, catalogue and step times: what must hold of them on paper."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from backends.bundled import bundled_path
from gateway.planner.calibrate import calibrated
from gateway.planner.errors import PlanError
from gateway.planner.hardware import read_catalogue
from gateway.planner.shapes import Experts, ModelShape, shape_of
from gateway.planner.steps import PRIOR, Measured, Roofline, Work, fit, units
from tests.backends.gguf.writer import write_gguf

CATALOGUE = read_catalogue()
EIGHT = shape_of("8B")
BETWEEN = shape_of("bundled:small")


def test_size_gives_a_model_of_that_many_weights() -> None:
    """Any size between the published models has its weights within a layer's."""
    for size, weights in (("8B", 8.03e9), ("70B", 70e9), ("1.5B", 1.5e9), ("500M", 0.5e9)):
        assert shape_of(size).params == pytest.approx(weights, rel=0.06)
    assert EIGHT.kv_bytes_per_token() == 2 * 32 * 8 * 128 * 2
    assert EIGHT.weight_bytes("bf16") == 2 * EIGHT.params
    assert EIGHT.weight_bytes("int4") < EIGHT.weight_bytes("int8") < EIGHT.weight_bytes("bf16")


@pytest.mark.parametrize(
    ("name", "weights", "active"),
    [
        ("30B-A3B", 30.5e9, 3.35e9),
        ("235b-a22b", 235.1e9, 22.2e9),
        ("8x7B", 46.7e9, 12.9e9),
        ("8x22B", 140.6e9, 39.2e9),
    ],
)
def test_mixture_has_its_published_weights(name: str, weights: float, active: float) -> None:
    """A token meets few experts, and a large batch nearly all."""
    shape = shape_of(name)
    assert shape.params == pytest.approx(weights, rel=0.002)
    assert shape.active_params == pytest.approx(active, rel=0.005)
    assert shape.flops_per_token() < 2 * shape.active_params
    embedding = 2 * shape.hidden * shape.vocab
    assert shape.read_bytes("bf16") == pytest.approx(2 * shape.active_params - embedding)
    assert shape.read_bytes("bf16", 1e4) == pytest.approx(2 * shape.params - embedding)
    assert shape.read_bytes("bf16") < shape.read_bytes("bf16", 8) < shape.read_bytes("bf16", 64)


def test_experts_are_read_as_often_as_draws_find_new_ones() -> None:
    """The mean of so many tokens' draws of different experts each."""
    experts = Experts(layers=1, count=16, per_token=3, intermediate=8)
    draws = np.random.default_rng(0)
    for tokens in (1, 2, 5, 20):
        seen = [
            len({one for _ in range(tokens) for one in draws.choice(16, 3, replace=False)})
            for _ in range(2000)
        ]
        assert experts.read(tokens) == pytest.approx(np.mean(seen), abs=0.1)


def test_mixture_decodes_a_batch_dearer_than_one_and_alone_cheaper_than_dense() -> None:
    """What a step of a mixture reads grows with its batch; a dense model's does not."""
    mixture, dense = shape_of("8x7B"), shape_of("46.7B")
    alone, batch = Work(decode_tokens=1), Work(decode_tokens=16)
    machine = structs.replace(CATALOGUE["h200"], memory_gib=1000)
    steps = [Roofline(shape=shape, hardware=machine, overhead_s=0.0) for shape in (mixture, dense)]
    assert steps[0].seconds(alone) < 0.35 * steps[1].seconds(alone)
    assert steps[0].seconds(batch) > 3 * steps[0].seconds(alone)
    assert steps[0].seconds(batch) == pytest.approx(steps[1].seconds(batch), rel=0.05)


def test_mixture_is_calibrated_by_itself_only() -> None:
    """Another model's step says little of one that reads more the more tokens there are."""
    mixture = shape_of("8x7B")
    own = [
        Measured(
            shape=mixture,
            precision="int8",
            work=Work(steps=5, decode_tokens=5 * batch, decode_attended=500 * batch),
            seconds=0.1 + 0.01 * batch,
        )
        for batch in (1, 2, 8)
    ]
    assert fit(own, structs.replace(mixture, name="my copy"), "int8", "own").costs.steps > 0
    other = [structs.replace(one, shape=EIGHT) for one in own]
    for measured, shape in ((other, mixture), (own, EIGHT)):
        with pytest.raises(PlanError, match="measure the model itself"):
            fit(measured, shape, "int8", "bench.json")


def test_folder_of_a_mixture_gives_its_experts(tmp_path: Path) -> None:
    """Qwen3's layers without experts are dense ones."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 100,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "mlp_only_layers": [0],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shape_of(str(tmp_path))
    assert shape.experts == Experts(layers=3, count=8, per_token=2, intermediate=32)
    attention, dense, expert = 64 * 16 * 12, 3 * 64 * 96, 3 * 64 * 32
    assert shape.layer_params == 4 * attention + dense + 3 * (64 * 8 + 8 * expert)
    del config["num_experts_per_tok"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match="num_experts_per_tok"):
        shape_of(str(tmp_path))


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


def test_gguf_file_gives_the_shape_of_its_model(tmp_path: Path) -> None:
    """The same as the folder that it was made of; what is cut off is refused by name."""
    file = write_gguf(bundled_path("nano"), tmp_path / "nano.gguf", "Q4_0")
    folder = shape_of("bundled:nano")
    assert structs.replace(shape_of(str(file)), name=folder.name) == folder
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(PlanError, match=r"nano\.gguf"):
        shape_of(str(file))


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
    for text, said in (
        ("[[hardware]]\nname = 3", r"mine\.toml: hardware 3: "),
        ('[[hardware]]\nname = "foo"\nbandwith = 3', r"hardware 'foo': .*`bandwith`"),
        (
            "[hardware.foo]\nmemory_gib = 3",
            r"mine\.toml: 'hardware' .* begins with \[\[hardware\]\]",
        ),
        ("[[machine]]\nmemory_gib = 3", r"mine\.toml: 'machine' .* begins with \[\[hardware\]\]"),
        ("hardware", r"mine\.toml: "),
    ):
        mine.write_text(text)
        with pytest.raises(PlanError, match=said):
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
    seconds = ideal.seconds(Work(decode_tokens=1))
    assert seconds == pytest.approx(EIGHT.read_bytes("bf16") / 4.8e12)
    assert 1 / seconds == pytest.approx(320, rel=0.05)
    prefill = ideal.seconds(Work(prefill_tokens=2048, prefill_attended=2048 * 1024))
    assert prefill >= 2048 * EIGHT.flops_per_token() / 989e12


@given(
    decoded=st.integers(0, 512),
    prefilled=st.integers(0, 4096),
    attended=st.integers(0, 10**6),
    devices=st.sampled_from([1, 2, 4, 8]),
    stages=st.sampled_from([1, 2]),
)
def test_more_work_never_takes_less_time(
    decoded: int, prefilled: int, attended: int, devices: int, stages: int
) -> None:
    """Monotone in every part; devices pay for talking to each other; steps add up."""
    step = Roofline(shape=EIGHT, hardware=CATALOGUE["l4"], devices=devices, stages=stages)
    work = Work(1.0, decoded + 1, attended, prefilled, attended)
    base = step.seconds(work)
    assert base > 0
    for name in Work._fields:
        assert step.seconds(work._replace(**{name: getattr(work, name) + 10})) >= base
    tokens = decoded + 1 + prefilled
    assert (step.all_reduce_s(tokens) > 0) == (devices > 1)
    assert (step.hand_over_s(tokens) > 0) == (stages > 1)
    thrice = Work(*(3 * part for part in work))
    assert step.seconds(thrice) == pytest.approx(3 * base)


def _made(shape: ModelShape, rates: np.ndarray) -> list[Measured]:
    works = (
        Work(1, 1, 50),
        Work(10, 160, 30_000),
        Work(1, 0, 0, 512, 512 * 256, 1, 1),
        Work(5, 300, 60_000, 300, 300 * 90, 3),
        Work(3, 0, 0, 2900, 2900 * 500, 8),
        Work(40, 40, 4000),
    )
    made = units(shape, "int8") @ rates
    return [
        Measured(shape=shape, precision="int8", work=work, seconds=float(np.array(work) @ made))
        for work in works
    ]


def test_fit_recovers_the_times_that_it_was_given() -> None:
    """Times made of steps, layers, bytes, operations and requests are explained, and predicted for
    another load and for a model between those measured."""
    rates = np.array(PRIOR["cpu"]) * np.linspace(0.6, 1.6, len(PRIOR["cpu"]))
    nano, base = shape_of("bundled:nano"), shape_of("bundled:base")
    measured = [*_made(nano, rates), *_made(base, rates)]
    model = fit(measured, base, "int8", "here")
    assert min(model.rates) >= 0
    assert model.error < 0.04
    other = Work(20, 400, 90_000, 800, 800 * 100, 5)
    for shape, tolerance in ((base, 0.05), (BETWEEN, 0.12)):
        true = float(np.array(other) @ units(shape, "int8") @ rates)
        fitted = fit(measured, shape, "int8", "here")
        assert fitted.seconds(other) == pytest.approx(true, rel=tolerance)
    with pytest.raises(PlanError, match="at least 2"):
        fit(measured[:1], base, "int8", "here")


def test_fit_scales_the_prior_where_one_load_says_little() -> None:
    """A machine five times slower in the one thing measured is taken for slower in all."""
    small = shape_of("bundled:small")
    prior = units(small, "int8") @ np.array(PRIOR["cpu"])
    lone = Work(100, 100, 20_000)
    seconds = 5 * float(np.array(lone) @ prior)
    one = Measured(shape=small, precision="int8", work=lone, seconds=seconds)
    model = fit([one, one], small, "int8", "here")
    prompt = Work(1, 0, 0, 300, 300 * 150, 1, 1)
    assert model.seconds(lone) == pytest.approx(seconds, rel=0.05)
    assert model.seconds(prompt) == pytest.approx(5 * float(np.array(prompt) @ prior), rel=0.3)


def test_fit_is_the_mean_of_what_a_busy_machine_shows() -> None:
    """Half of the measurements half as long again: in between, not the faster ones; a stall of
    seconds counts as one measurement."""
    small = shape_of("bundled:small")
    rates = np.array(PRIOR["cpu"])
    calm, busy = _made(small, rates), _made(small, 1.5 * rates)
    model = fit([*calm, *busy], small, "int8", "here")
    other = Work(20, 100, 30_000, 200, 20_000, 1)
    true = float(np.array(other) @ units(small, "int8") @ rates)
    assert model.seconds(other) == pytest.approx(1.25 * true, rel=0.02)
    stalled = structs.replace(calm[0], seconds=10.0)
    assert fit([*calm, *calm, *calm, stalled], small, "int8", "here").seconds(
        other
    ) == pytest.approx(true, rel=0.25)


@pytest.mark.parametrize(
    ("prefill", "alone", "together", "tolerance"),
    [(22_000.0, 5330.0, 12_300.0, 0.1), (20_000.0, 500.0, 3000.0, 0.15)],
    ids=["steps in C++", "steps ten times as dear, unlike the prior's"],
)
def test_bench_file_calibrates(
    tmp_path: Path, prefill: float, alone: float, together: float, tolerance: float
) -> None:
    """`headgate bench engine --json` gives the step times; anything else is refused by name."""
    rows = [
        {
            "batch": batch,
            "prompt_tokens": 128,
            "output_tokens": 64,
            "prefill_tokens_per_s": prefill,
            "decode_tokens_per_s": rate,
        }
        for batch, rate in ((1, alone), (16, together))
    ]
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"model": "bundled:small", "quantization": "int8", "results": rows}))
    model = calibrated([file], shape_of("bundled:small"), "int8")
    assert model.source == "bench.json"
    assert model.seconds(Work(1, 1, 160)) == pytest.approx(1 / alone, rel=tolerance)
    assert model.seconds(Work(1, 16, 16 * 160)) == pytest.approx(16 / together, rel=0.1)
    work = {
        "columns": [*Work._fields, "seconds"],
        "rows": [[10, 10, 500, 0, 0, 0, 0, 0.01], [10, 160, 9000, 0, 0, 0, 0, 0.03]],
    }
    served = tmp_path / "served.json"
    served.write_text(
        json.dumps({"model": "bundled:small", "quantization": "int8", "results": [{"work": work}]})
    )
    model = calibrated([served], shape_of("bundled:small"), "int8")
    assert model.seconds(Work(10, 160, 9000)) == pytest.approx(0.03, rel=0.1)
    file.write_text("{}")
    with pytest.raises(PlanError, match=r"bench\.json.*no output of"):
        calibrated([file], EIGHT, "int8")
    with pytest.raises(PlanError, match="missing"):
        calibrated([tmp_path / "missing.json"], EIGHT, "int8")
