"""Training: resumable exactly, seeded, and clear about what it cannot use."""

import gzip
import shutil
import signal
from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import Tokenizer, models

from backends.bundled.average import main as average_command
from backends.bundled.batches import PICKED_SHARE, Batcher
from backends.bundled.config import SPECS, ModelSpec, TrainPlan, plan_for
from backends.bundled.errors import CheckpointError, ExportError
from backends.bundled.export import write_model
from backends.bundled.load import read_source
from backends.bundled.model import Llama, init_weights, weighted_loss
from backends.bundled.optim import lr_factor, orthogonalize
from backends.bundled.shelves import Library
from backends.bundled.tokenizer import train_tokenizer
from backends.bundled.train import fresh_tasks, main, run
from backends.bundled.trainer import Trainer

pytestmark = pytest.mark.long


@pytest.fixture
def trainer(tiny_spec: ModelSpec, tiny_plan: TrainPlan, tiny_library: Library) -> Trainer:
    """A fresh run of the tiny model."""
    return Trainer(tiny_spec, tiny_plan, Batcher(tiny_library, tiny_plan, seed=3), seed=3)


def test_training_ends_with_the_same_weights_when_interrupted(
    trainer: Trainer, tiny_library: Library, tmp_path: Path
) -> None:
    """A run that stops and resumes equals one that does not, bit for bit."""
    plan, spec, path = trainer.plan, trainer.spec, tmp_path / "checkpoint.pt"
    trainer.run(plan.steps)
    first = Trainer(spec, plan, Batcher(tiny_library, plan, seed=3), seed=3)
    first.run(3)
    first.save(path)
    second = Trainer(spec, plan, Batcher(tiny_library, plan, seed=3), seed=3)
    second.resume(path)
    second.run(plan.steps)
    assert second.progress.step == plan.steps
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


def test_training_lowers_the_loss(trainer: Trainer) -> None:
    """Six steps on a tiny corpus bring the loss down."""
    losses = [trainer.step() for _ in range(trainer.plan.steps)]
    assert losses[-1] < losses[0]


def test_resume_refuses_another_seed_or_shape(
    trainer: Trainer, tiny_plan: TrainPlan, tiny_library: Library, tmp_path: Path
) -> None:
    """A checkpoint of another run is refused, and the message says what differs."""
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(CheckpointError, match="train without --resume"):
        trainer.resume(path)
    trainer.save(path)
    batcher = Batcher(tiny_library, tiny_plan, seed=4)
    with pytest.raises(CheckpointError, match="seed 3, not 4"):
        Trainer(trainer.spec, tiny_plan, batcher, seed=4).resume(path)
    other = ModelSpec(
        name="other",
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
    )
    with pytest.raises(CheckpointError, match="another shape"):
        Trainer(other, tiny_plan, batcher, seed=3).resume(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainer.resume(path)


def test_runs_begin_with_another_models_weights(
    trainer: Trainer, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A checkpoint's or a folder's, and nothing else of it; only of the same shape."""
    trainer.run(2)
    trainer.save(tmp_path / "checkpoint.pt")
    write_model(
        trainer.spec, trainer.model.state_dict(), tiny_tokenizer, tmp_path / "m", dtype="float32"
    )
    for source in (tmp_path / "checkpoint.pt", tmp_path / "m"):
        other = Trainer(trainer.spec, trainer.plan, trainer.batcher, seed=9)
        other.start_from(source)
        assert other.progress.step == 0
        for name, weight in trainer.model.state_dict().items():
            assert torch.equal(weight, other.model.state_dict()[name]), name
    wider = msgspec.structs.replace(trainer.spec, intermediate_size=96)
    with pytest.raises(CheckpointError, match="another shape"):
        Trainer(wider, trainer.plan, trainer.batcher, seed=9).start_from(tmp_path / "checkpoint.pt")


def test_models_of_one_shape_are_averaged(
    trainer: Trainer,
    tiny_library: Library,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The mean of two runs, with what both did; it can be exported and begun from, not resumed."""
    paths = []
    for seed in (3, 4):
        batcher = Batcher(tiny_library, trainer.plan, seed=seed)
        branch = Trainer(trainer.spec, trainer.plan, batcher, seed=seed)
        branch.run(seed)
        paths.append(tmp_path / f"{seed}.pt")
        branch.save(paths[-1])
    out = tmp_path / "mean.pt"
    assert average_command([*map(str, paths), "--out", str(out)]) == 0
    (one, first), (two, second), (mean, both) = (read_source(p) for p in (*paths, out))
    assert first is not None
    assert second is not None
    assert both is not None
    assert (both.step, both.tokens) == (7, first.tokens + second.tokens)
    for name, weight in mean.state_dict().items():
        torch.testing.assert_close(weight, (one.state_dict()[name] + two.state_dict()[name]) / 2)
    with pytest.raises(CheckpointError, match="begin another run with --start-from"):
        trainer.resume(out)
    assert average_command([str(paths[0]), str(tmp_path / "none.pt"), "--out", str(out)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_batches_depend_on_seed_and_step_alone(tiny_library: Library, tiny_plan: TrainPlan) -> None:
    """The same step of the same seed gives the same rows; another seed gives others."""
    one, same = (Batcher(tiny_library, tiny_plan, seed=1).batch(5) for _ in range(2))
    other = Batcher(tiny_library, tiny_plan, seed=2).batch(5)
    for rows, again, differs in zip(one, same, other, strict=True):
        assert torch.equal(rows.ids, again.ids)
        assert not torch.equal(rows.ids, differs.ids)


def test_batches_count_answers_and_never_questions(
    tiny_library: Library, tiny_plan: TrainPlan
) -> None:
    """In rows of chats every target that counts belongs to an answer, and the head looks at it."""
    batcher = Batcher(tiny_library, tiny_plan, seed=1)
    for step in (0, tiny_plan.steps - 1):
        rows = batcher.batch(step)[1]
        assert 0.0 <= rows.weights.min() < rows.weights.max() <= 8.0
        assert rows.picked is not None
        counted = rows.weights.reshape(-1).nonzero().flatten()
        assert len(rows.picked) == int(rows.weights.numel() * PICKED_SHARE)
        assert min(len(counted), len(rows.picked)) == len(
            set(counted.tolist()) & set(rows.picked.tolist())
        )


def test_long_rows_grow_in_the_tuning_phase(tiny_library: Library, tiny_plan: TrainPlan) -> None:
    """The last part of a run trains on the longer context, with as many tokens a step."""
    batcher = Batcher(tiny_library, tiny_plan, seed=1)
    learn, tune = batcher.batch(0)[0].ids, batcher.batch(tiny_plan.steps - 1)[0].ids
    assert learn.shape == (4, tiny_plan.long_row + 1)
    assert tune.shape == (2, tiny_plan.tune_long_row + 1)


def test_tuning_reaches_the_whole_context_by_leaps(
    tiny_library: Library, tiny_plan: TrainPlan
) -> None:
    """While learning, positions count up; while tuning, some rows leap, none past the context."""
    batcher = Batcher(tiny_library, tiny_plan, seed=1)
    counted = torch.arange(tiny_plan.long_row)
    assert torch.equal(batcher.batch(0)[0].positions, counted)
    last = tiny_plan.steps - 1
    ends = []
    for seed in range(40):
        positions = Batcher(tiny_library, tiny_plan, seed=seed).batch(last)[0].positions
        assert (positions.diff() > 0).all()
        assert int((positions.diff() > 1).sum()) <= 1
        ends.append(int(positions[-1]))
    assert min(ends) == tiny_plan.tune_long_row - 1
    assert tiny_plan.tune_long_row + 64 < max(ends) < tiny_plan.context


def test_only_distances_between_positions_matter(tiny_spec: ModelSpec) -> None:
    """Positions moved together leave the logits alone; a leap between two tokens does not."""
    model = Llama(tiny_spec)
    init_weights(model, 1)
    for name, weight in model.named_parameters():
        if name.endswith("o_proj.weight"):
            torch.nn.init.normal_(weight)
    ids, counted = torch.randint(5, 200, (1, 12)), torch.arange(12)
    plain = model.hidden(ids, None)
    torch.testing.assert_close(model.hidden(ids, None, counted + 50), plain, rtol=1e-3, atol=1e-4)
    leap = counted + 50 * (counted > 6)
    assert not torch.allclose(model.hidden(ids, None, leap), plain, atol=1e-2)


def test_a_gpu_gets_a_larger_budget() -> None:
    """The plan of a model depends on the device: many more tokens, in larger steps."""
    for name in SPECS:
        cpu, gpu = plan_for(name, "cpu"), plan_for(name, "cuda:0")
        assert gpu.tokens > 10 * cpu.tokens
        assert gpu.tokens_per_step > cpu.tokens_per_step
        assert gpu.steps > cpu.steps
        assert fresh_tasks(gpu) > fresh_tasks(cpu)


def test_documents_in_a_row_do_not_see_each_other(tiny_spec: ModelSpec) -> None:
    """Logits of a document are the same whatever stands before it in its row."""
    model = Llama(tiny_spec)
    init_weights(model, 1)
    for name, weight in model.named_parameters():
        if name.endswith("o_proj.weight"):
            torch.nn.init.normal_(weight)
    document, before = torch.randint(5, 200, (1, 6)), torch.randint(5, 200, (2, 4))
    documents = torch.tensor([[0] * 4 + [1] * 6] * 2)
    logits = model(torch.cat((before, document.expand(2, -1)), dim=1), documents)
    torch.testing.assert_close(logits[0, 4:], logits[1, 4:])
    assert not torch.allclose(logits[0, :4], logits[1, :4])


def test_orthogonalize_brings_singular_values_near_one() -> None:
    """Newton-Schulz maps matrices of any shape near an orthogonal one."""
    for shape in ((2, 24, 40), (3, 40, 24)):
        generator = torch.Generator().manual_seed(1)
        values = torch.linalg.svdvals(
            orthogonalize(torch.randn(shape, generator=generator)).float()
        )
        assert values.min() > 0.4
        assert values.max() < 1.5


def test_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    """The schedule starts low, holds its peak, and ends near zero."""
    plan = TrainPlan(tokens=8192 * 1000, warmup_steps=10, decay_fraction=0.3)
    factors = [lr_factor(step, plan) for step in range(plan.steps)]
    assert factors[0] == pytest.approx(0.1)
    assert set(factors[10:699]) == {1.0}
    assert factors[-1] < 0.01


def test_cosine_schedule_falls_in_half_a_wave() -> None:
    """After the warm-up a cosine never rises, is at half its peak half-way, and ends near zero."""
    plan = TrainPlan(tokens=8192 * 1000, warmup_steps=10, schedule="cosine")
    factors = [lr_factor(step, plan) for step in range(plan.steps)]
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[500] == pytest.approx(0.5)
    assert factors[-1] < 0.001


def test_adamw_can_train_the_matrices_too(
    tiny_spec: ModelSpec, tiny_plan: TrainPlan, tiny_library: Library
) -> None:
    """With that optimizer the matrices follow their own rate, and the loss falls."""
    plan = msgspec.structs.replace(tiny_plan, optimizer="adamw", matrix_adam_lr=0.003)
    trainer = Trainer(tiny_spec, plan, Batcher(tiny_library, plan, seed=3), seed=3)
    losses = [trainer.step() for _ in range(plan.steps)]
    assert losses[-1] < losses[0]
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates[0] / rates[1] == pytest.approx(plan.matrix_adam_lr / plan.adam_lr)


def test_distilling_pulls_a_model_to_its_teacher(tiny_spec: ModelSpec) -> None:
    """Wholly distilled, the loss is least at the teacher's own weights, whatever the answers."""
    teacher, other = Llama(tiny_spec), Llama(tiny_spec)
    init_weights(teacher, 1)
    init_weights(other, 2)
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(1))
    rest = (torch.zeros(2, 8, dtype=torch.int64), torch.ones(2, 8), None, None)
    at_teacher, elsewhere = (weighted_loss(m, ids, *rest, teacher, 1.0) for m in (teacher, other))
    assert at_teacher < elsewhere
    at_teacher.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.abs().max() for p in teacher.parameters() if p.grad is not None]
    assert max(gradients) < 1e-5
    plain = weighted_loss(other, ids, *rest)
    torch.testing.assert_close(weighted_loss(other, ids, *rest, teacher, 0.0), plain)


def test_a_teacher_must_write_the_same_tokens(
    trainer: Trainer, tiny_spec: ModelSpec, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A folder of this tokenizer teaches; one of another is refused and named."""
    folder = tmp_path / "teacher"
    write_model(tiny_spec, Llama(tiny_spec).state_dict(), tiny_tokenizer, folder)
    trainer.learn_from(folder, tiny_tokenizer)
    assert trainer.teacher is not None
    assert trainer.step() > 0
    other = train_tokenizer(["quite another text, many times over"] * 3)
    with pytest.raises(ExportError, match="another tokenizer"):
        trainer.learn_from(folder, other)


def test_training_refuses_a_missing_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing corpus ends with exit code 2 and names the file and the option."""
    args = ["--model", "nano", "--corpus", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    assert main(args) == 2
    assert "text_stories" in (error := capsys.readouterr().err)
    assert "--corpus" in error


def test_training_refuses_a_cut_corpus_file(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gzip file that was cut short ends with exit code 2, not with half of its rows."""
    broken = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, broken)
    path = broken / "chat.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    args = ["--model", "nano", "--corpus", str(broken), "--out", str(tmp_path / "run")]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert "chat.jsonl.gz" in error
    assert "cut short" in error
    with gzip.open(path, "wt") as out:
        out.write('{"prompt": 3}\n')
    assert main(args) == 2
    assert "row 1" in capsys.readouterr().err


def test_training_refuses_a_foreign_tokenizer(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer of another family ends with exit code 2 and says which one is needed."""
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.BPE()).save(str(path))
    args = ["--model", "nano", "--corpus", str(tiny_corpus), "--out", str(tmp_path / "run")]
    assert main([*args, "--tokenizer", str(path)]) == 2
    assert "another family" in capsys.readouterr().err


def test_a_stop_signal_saves_and_loses_no_step(trainer: Trainer, tmp_path: Path) -> None:
    """SIGTERM in mid-run ends it after the step under way, with everything saved."""
    path = tmp_path / "checkpoint.pt"
    backward, steps = trainer.loss, 0

    def loss_with_a_signal(*args: object) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal.SIGTERM)
        return backward(*args)

    trainer.loss = loss_with_a_signal
    handler = signal.getsignal(signal.SIGTERM)
    assert not run(trainer, path, save_every=1e9)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert trainer.progress.step == 2
    again = Trainer(trainer.spec, trainer.plan, trainer.batcher, seed=3)
    again.resume(path)
    assert run(again, path, save_every=1e9)
    assert again.progress.step == trainer.plan.steps


def test_recipe_runs_from_corpus_to_folder(tiny_corpus: Path, tmp_path: Path) -> None:
    """The whole command trains, resumes at the end and exports a folder with its record."""
    run = tmp_path / "run"
    args = ["--model", "nano", "--corpus", str(tiny_corpus), "--out", str(run)]
    args += ["--tokens", "8192", "--tasks", "50"]
    assert main(args) == 0
    assert main([*args, "--resume"]) == 0
    names = {path.name for path in (run / "export").iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "training.json"}
