"""`policy fit` end to end: files that users bring, the head they get, and what the card says."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gateway.cli import cli
from gateway.learning.__main__ import main
from gateway.learning.confounders import disguised
from gateway.learning.quality import FOLDS, fold_of
from gateway.learning.ridges import sigmoid_fit
from gateway.routing.classifier import Classifier
from tests.gateway.learning import made_up

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A head fitted on a file from elsewhere, with near-duplicates and frozen test rows."""
    folder = tmp_path_factory.mktemp("fit")
    lines = made_up.rows(500)
    lines += [{**line, "prompt": line["prompt"].upper() + " !"} for line in lines[:50]]
    for line in lines[100:150]:
        line["split"] = "test"
    file = made_up.write(folder / "outcomes.jsonl", lines)
    assert main(["--outcomes", str(file), "--out", str(folder / "head")]) == 0
    return folder / "head", json.loads((folder / "head" / "card.json").read_text())


def predictions(head: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (head / "predictions.jsonl").read_text().splitlines()]


def test_the_router_beats_chance_and_length(fitted: tuple[Path, dict[str, Any]]) -> None:
    """The rule stands in the topic: the lower bound is above the length router's upper one."""
    card = fitted[1]
    assert card["rows"] == 550
    assert card["auc"] > 0.6
    assert card["ece"] < 0.1
    assert card["apgr"]["low"] > card["baselines"]["length"]["apgr"]["high"]
    assert card["cpt50"]["high"] < min(0.5, card["baselines"]["length"]["cpt50"]["low"])
    assert card["apgr_above_length"]["low"] > 0
    assert 0.5 < card["area"]["value"] <= 1
    assert card["baselines"]["single"]["best"] == "dear-one"
    assert set(card["baselines"]) == {"shuffled", "length", "single", "oracle"}


def test_predictions_are_out_of_fold_and_near_duplicates_share_one(
    fitted: tuple[Path, dict[str, Any]],
) -> None:
    """Every row once, in order; copies in the fold of their original; test rows in the last."""
    rows = predictions(fitted[0])
    assert [row["row"] for row in rows] == list(range(550))
    assert all(rows[500 + i]["fold"] == rows[i]["fold"] for i in range(50))
    assert {row["fold"] for row in rows} == set(range(FOLDS + 1))
    assert {rows[i]["fold"] for i in range(100, 150)} == {FOLDS}
    for row in rows:
        assert set(row["p"]) == {"cheap-one", "dear-one"}
        assert row["gain"] == pytest.approx(row["p"]["dear-one"] - row["p"]["cheap-one"], abs=1e-5)


def test_the_gateway_loads_the_head_and_difficulty_keeps_its_meaning(
    fitted: tuple[Path, dict[str, Any]],
) -> None:
    """New backends get qualities; the reference's difficulty is still the base head's."""
    ours, base = Classifier.load(fitted[0]), Classifier.load()
    easy = ours.read_text("Tell me the colour of grass in Lima")
    hard = ours.read_text("Tell me the proof of Euclid in Lima")
    assert set(easy.quality) == {"nano", "small", "base", "cheap-one", "dear-one"}
    assert easy.quality["cheap-one"] > 0.7
    assert hard.quality["cheap-one"] < 0.4
    assert hard.quality["dear-one"] > 0.8
    before = base.read_text("Tell me the proof of Euclid in Lima")
    assert hard.difficulty == pytest.approx(before.difficulty, abs=0.02)
    assert (hard.task, hard.language) == (before.task, before.language)


def test_serving_says_what_was_measured(fitted: tuple[Path, dict[str, Any]]) -> None:
    """On frozen rows the loaded head gives the predictions of the file: nothing differs in use."""
    head, _ = fitted
    classifier = Classifier.load(head)
    lines = made_up.rows(500)
    said = [row["p"] for row in predictions(head)]
    # calibration of frozen rows is the head's own: all other rows
    for i in range(100, 110):
        quality = classifier.read_text(lines[i]["prompt"]).quality
        assert quality["cheap-one"] == pytest.approx(said[i]["cheap-one"], abs=0.02)
        assert quality["dear-one"] == pytest.approx(said[i]["dear-one"], abs=0.02)


def test_curves_come_as_points_and_picture(fitted: tuple[Path, dict[str, Any]]) -> None:
    """101 budgets, four lines with intervals, and a PNG."""
    curves = json.loads((fitted[0] / "curves.json").read_text())
    assert set(curves["lines"]) == {"router", "length", "oracle", "single"}
    assert all(len(line["quality"]) == 101 for line in curves["lines"].values())
    assert (fitted[0] / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_prefix_that_claims_difficulty_does_not_move_everything(
    fitted: tuple[Path, dict[str, Any]],
) -> None:
    """With words that no head was fitted with, easy stays easier than hard; the gate reports it."""
    head, card = fitted
    classifier = Classifier.load(head)
    easy, hard = "Tell me the colour of grass in Lima", "Tell me the proof of Euclid in Lima"
    for kind, (dressed_easy, dressed_hard) in disguised([easy, hard], gate=True).items():
        low = classifier.read_text(dressed_hard).quality["cheap-one"]
        assert classifier.read_text(dressed_easy).quality["cheap-one"] > low + 0.2, kind
    kinds = card["sensitivity"]["kinds"]
    assert set(kinds) == {"hard_prefix", "easy_prefix", "suffix", "padding"}
    assert card["sensitivity"]["passed"] == all(
        kind["mean_absolute_change"] <= card["sensitivity"]["limit"] for kind in kinds.values()
    )


def test_prompts_in_other_languages_are_fitted_alike(tmp_path: Path) -> None:
    """Nothing is English about the rule: German and Japanese topics are told apart."""
    lines = made_up.rows(300)
    words = {
        "the proof of Euclid": "ユークリッドの証明",
        "the colour of grass": "die Farbe des Grases",
    }
    for line in lines:
        for english, other in words.items():
            line["prompt"] = line["prompt"].replace(english, other)
    file = made_up.write(tmp_path / "o.jsonl", lines)
    assert main(["--outcomes", str(file), "--out", str(tmp_path / "head")]) == 0
    quality = Classifier.load(tmp_path / "head").read_text
    hard, easy = "Explain ユークリッドの証明 in Oslo", "Explain die Farbe des Grases in Oslo"
    assert quality(easy).quality["cheap-one"] > quality(hard).quality["cheap-one"] + 0.2


def test_noise_gives_no_gain_to_route_by(tmp_path: Path) -> None:
    """Where scores have nothing to do with prompts, the card's interval holds chance."""
    rng = np.random.default_rng(0)
    lines = made_up.rows(300)
    for line in lines:
        line["scores"] = {"a": float(rng.random() < 0.3), "b": float(rng.random() < 0.7)}
    file = made_up.write(tmp_path / "o.jsonl", lines)
    assert main(["--outcomes", str(file), "--out", str(tmp_path / "head")]) == 0
    card = json.loads((tmp_path / "head" / "card.json").read_text())
    assert card["apgr"]["low"] < 0.5 < card["apgr"]["high"]
    assert card["ece"] < 0.1


def test_three_backends_and_missing_scores_are_fitted(tmp_path: Path) -> None:
    """A third backend that only some prompts saw; figures stand on rows that all saw."""
    lines = made_up.rows(300)
    for index, line in enumerate(lines):
        line["cost_usd"] = {"cheap-one": 0.001, "dear-one": 0.02}
        if index % 3:
            line["scores"]["middle"] = line["scores"]["cheap-one"] or float(index % 2)
            line["cost_usd"]["middle"] = 0.004
    file = made_up.write(tmp_path / "o.jsonl", lines)
    assert main(["--outcomes", str(file), "--out", str(tmp_path / "head")]) == 0
    card = json.loads((tmp_path / "head" / "card.json").read_text())
    assert (card["weak"], card["strong"]) == ("cheap-one", "dear-one")
    assert card["quality"]["middle"]["rows"] == 200
    assert card["area"]["low"] > 0


def test_the_command_runs_a_child_and_passes_its_exit_code(tmp_path: Path) -> None:
    """--json prints the card; a spreadsheet does as well; a bad file exits 2."""
    file = made_up.write(tmp_path / "o.jsonl", made_up.rows(120))
    command = ["policy", "fit", "--no-second-stage", "--out", str(tmp_path / "head"), "--outcomes"]
    done = CliRunner().invoke(cli, [*command, str(file), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == 120
    with (tmp_path / "o.csv").open("w", newline="") as table:
        sheet = csv.writer(table)
        sheet.writerow(["prompt", "cheap-one", "dear-one"])
        for line in made_up.rows(120):
            sheet.writerow([line["prompt"], *line["scores"].values()])
    told = CliRunner().invoke(cli, [*command, str(tmp_path / "o.csv")]).stdout
    assert "from 120 rows, 119 of them unlike each other" in told
    assert "APGR above that of prompt length by 0." in told
    assert "do not use this head" not in told
    lines = made_up.rows(40)
    for line in lines:
        line["scores"] = {"cheap-one": 0.0, "dear-one": 1.0}
    file = made_up.write(tmp_path / "o.jsonl", lines)
    assert "do not use this head" in CliRunner().invoke(cli, [*command, str(file)]).stdout
    assert CliRunner().invoke(cli, [*command, str(tmp_path / "gone")]).exit_code == 2


def test_groups_are_never_split_over_folds() -> None:
    """Whole groups, folds of nearly equal size; a group with a test row is all test."""
    groups = np.repeat(np.arange(60), 5)
    test = np.zeros(300, dtype=bool)
    test[7] = True
    scores = np.repeat(np.arange(60) % 2, 5)[:, None].astype(float)
    folds = fold_of(groups, test, scores, 5)
    assert all(len(set(folds[groups == group])) == 1 for group in range(60))
    assert (folds == 5).sum() == 5
    assert sorted(np.bincount(folds)[:5].tolist()) == [55, 60, 60, 60, 60]
    assert all(abs(scores[folds == fold].mean() - 0.5) < 0.1 for fold in range(5))


def test_the_sigmoid_recovers_what_made_the_data_and_keeps_within_bounds() -> None:
    """Slope 3, offset -1 come back; a perfect split hits the bound, a reverse one is nil."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=20_000)
    y = (rng.random(20_000) < 1 / (1 + np.exp(1 - 3 * x))).astype(float)
    slope, offset = sigmoid_fit(x, y, steepest=5)
    assert slope == pytest.approx(3, abs=0.15)
    assert offset == pytest.approx(-1, abs=0.1)
    assert sigmoid_fit(x, (x > 0).astype(float), steepest=2)[0] == pytest.approx(8, rel=0.01)
    assert sigmoid_fit(x, (x < 0).astype(float), steepest=2)[0] == 0.0


def test_five_backends_of_a_user_stand_beside_those_of_the_base(tmp_path: Path) -> None:
    """More than fit into one group, scores in between and gaps: each gets its own calibrated view,
    and a second fit replaces only what it knows."""
    names = [f"model-{place}" for place in range(5)]
    lines = made_up.rows(300)
    for index, line in enumerate(lines):
        weak, strong = line["scores"].values()
        line["scores"] = dict(zip(names, (weak, weak, 0.75 * strong, strong, strong), strict=True))
        line["cost_usd"] = {name: 0.001 * (1 + place) for place, name in enumerate(names)}
        if index % 4 == 0:
            del line["scores"][names[index % 5]]
    file = made_up.write(tmp_path / "o.jsonl", lines)
    assert main(["--outcomes", str(file), "--out", str(tmp_path / "one")]) == 0
    ours = Classifier.load(tmp_path / "one")
    assert [len(group) for group in ours.card["fits"][-1]["groups"]] == [3, 2]
    hard = "Tell me the proof of Euclid in Lima"
    quality = ours.read_text(hard).quality
    assert set(quality) == {"nano", "small", "base", *names}
    assert max(quality[names[0]], quality[names[1]]) < 0.45
    assert quality[names[2]] == pytest.approx(0.72, abs=0.12)
    assert quality[names[4]] > 0.8
    again = [{**line, "scores": {names[0]: 1.0, names[1]: 0.0}} for line in lines]
    file = made_up.write(tmp_path / "p.jsonl", again)
    command = ["--head", str(tmp_path / "one"), "--outcomes", str(file), "--out"]
    assert main([*command, str(tmp_path / "two")]) == 0
    after = Classifier.load(tmp_path / "two").read_text(hard).quality
    assert (after[names[0]] > 0.9, after[names[1]] < 0.1) == (True, True)
    kept = {name: quality[name] for name in (*names[2:], "nano", "small", "base")}
    assert {name: after[name] for name in kept} == pytest.approx(kept, abs=0.02)


def test_prompts_that_one_backend_each_answered_give_a_head_without_curves(tmp_path: Path) -> None:
    """As logs of a gateway are: qualities can be fitted, what a choice gains cannot."""
    lines = made_up.rows(80)
    for place, line in enumerate(lines):
        name = ("cheap-one", "dear-one")[place % 2]
        line["scores"] = {name: line["scores"][name]}
    head = tmp_path / "head"
    head.mkdir()
    (head / "curves.json").write_text("of an earlier fit")
    file = made_up.write(tmp_path / "outcomes.jsonl", lines)
    assert main(["--outcomes", str(file), "--out", str(head), "--encoder", "none"]) == 0
    card = json.loads((head / "card.json").read_text())
    assert {name: entry["rows"] for name, entry in card["quality"].items()} == {
        "cheap-one": 40,
        "dear-one": 40,
    }
    assert (card["apgr"], card["second_stage"]) == (None, None)
    assert not (head / "curves.json").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split": "test"}, "0 rows are left to fit on beside the test rows"),
        ({"prompt": "What is 2 + 2?"}, "all prompts are nearly the same"),
    ],
)
def test_files_that_leave_nothing_to_fit_on_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], told: str
) -> None:
    """The message says what is missing and what to do, instead of a traceback."""
    file = made_up.write(tmp_path / "o.jsonl", [line | change for line in made_up.rows(40)])
    assert main(["--outcomes", str(file), "--out", str(tmp_path / "head")]) == 2
    assert told in capsys.readouterr().err


def test_a_backend_with_scores_of_test_rows_only_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing would be fitted on it."""
    lines = made_up.rows(80)
    for line in lines[:40]:
        line["split"] = "test"
    for line in lines[40:]:
        del line["scores"]["dear-one"]
    file = made_up.write(tmp_path / "o.jsonl", lines)
    assert main(["--outcomes", str(file), "--out", str(tmp_path / "head")]) == 2
    assert "no score of 'dear-one' is left to fit on" in capsys.readouterr().err


def test_marked_rows_are_counted_with_and_without_what_is_nearly_the_same(tmp_path: Path) -> None:
    """Copies of test rows are frozen, too; the card has figures of all, and of the marked alone."""
    lines = made_up.rows(300)
    for line in lines:
        line["logprob"] = {name: -0.1 if good else -2.0 for name, good in line["scores"].items()}
    for line in lines[:60]:
        line["split"] = "test"
    copies = [line | {"prompt": line["prompt"].upper() + " !"} for line in lines[:40]]
    for line in copies:
        del line["split"]
    file = made_up.write(tmp_path / "o.jsonl", lines + copies)
    assert main(["--outcomes", str(file), "--out", str(tmp_path / "head")]) == 0
    card = json.loads((tmp_path / "head" / "card.json").read_text())
    cascade = card["cascade"]
    assert cascade["rows"] == card["test_rows"] >= 100
    assert cascade["marked"]["rows"] == 60
    for area in (cascade["area"], cascade["marked"]["area"]):
        assert area["question_and_answer"]["value"] > area["question"]["value"]
