import csv
import datetime
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

from thumbnet.evaluation import report
from thumbnet.monitor.event_file import EventFile

NOW = datetime.datetime(2015, 11, 6, 8, 30, 44, 391206)


def test_json_has_the_agreed_fields(make_evaluation):
    evaluation = make_evaluation()
    values = json.loads(json.dumps(report.to_json(evaluation)))
    assert list(values) == ["run", "step", "split", "examples", "precision", "average", "raw"]
    assert (values["run"], values["step"], values["split"]) == (str(evaluation.run), 1000, "test")
    assert values["examples"] == 200
    for weights in ("average", "raw"):
        figures, metrics = values[weights], evaluation.metrics[weights]
        assert list(figures) == ["accuracy", "top5", "loss", "ece", "per_class", "confusion"]
        assert figures["accuracy"] == metrics.accuracy
        assert figures["loss"] == metrics.loss
        assert [list(entry) for entry in figures["per_class"]] == [
            ["name", "precision", "recall", "f1", "support"]
        ] * 10
        assert sum(entry["support"] for entry in figures["per_class"]) == 200
        assert sum(map(sum, figures["confusion"])) == 200


def test_json_of_raw_weights_alone(make_evaluation, make_metrics):
    values = report.to_json(make_evaluation(metrics={"raw": make_metrics()}))
    assert values["average"] is None
    assert values["raw"]["accuracy"] > 0


def test_json_of_many_classes_holds_the_pairs_that_there_are(make_evaluation, make_metrics):
    metrics = make_metrics(tuple(map(str, range(1000))))
    values = report.to_json(make_evaluation(metrics={"raw": metrics}))["raw"]
    assert "confusion" not in values
    again = np.zeros_like(metrics.confusion)
    for label, predicted, images in values["confusion_pairs"]:
        again[label, predicted] = images
    np.testing.assert_array_equal(again, metrics.confusion)
    assert len(json.dumps(values["confusion_pairs"])) < 5000


def test_csv_has_a_row_for_each_class_and_weights(make_evaluation, make_metrics):
    names = ('a "quoted", name', "b")
    text = report.to_csv(make_evaluation(metrics={"average": make_metrics(names), "raw": make_metrics(names)}))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["weights"], row["class"]) for row in rows] == [(w, n) for w in ("average", "raw") for n in names]
    assert list(rows[0]) == ["weights", "class", "images", "precision", "recall", "f1"]
    assert float(rows[3]["f1"]) == pytest.approx(make_metrics(names).per_class[1].f1, abs=1e-6)


def test_line_of_the_tutorial(make_evaluation):
    line = report.tutorial_line(make_evaluation(), NOW)
    assert re.fullmatch(r"2015-11-06 08:30:44\.391206: precision @ 1 = 0\.\d{3}", line)
    assert line.endswith(f"{make_evaluation().metrics['average'].accuracy:.3f}")


def test_line_of_a_watch_says_all_that_changes(make_evaluation, make_metrics):
    line = report.watch_line(make_evaluation(limited=True), NOW)
    assert line.startswith(report.tutorial_line(make_evaluation(), NOW))
    assert re.search(r"\(step 1000, test first 200: average .* %, loss .*; raw .* %, loss .*\)$", line)
    assert "average" not in report.watch_line(make_evaluation(metrics={"raw": make_metrics()}), NOW)


def test_tables_show_both_weights_and_their_difference(make_evaluation, capsys):
    evaluation = make_evaluation()
    report.print_tables(evaluation)
    text = capsys.readouterr().out
    average, raw = evaluation.metrics["average"], evaluation.metrics["raw"]
    assert text.splitlines()[0] == "trial, step 1,000: 200 test images, fp32"
    accuracy = next(line for line in text.splitlines() if line.startswith("accuracy"))
    assert accuracy.split() == [
        "accuracy",
        f"{100 * average.accuracy:.2f}",
        "%",
        f"{100 * raw.accuracy:.2f}",
        "%",
        f"{100 * (average.accuracy - raw.accuracy):+.2f}",
    ]
    frog = next(line for line in text.splitlines() if line.startswith("frog")).split()
    mine, other = average.per_class[6], raw.per_class[6]
    assert frog == [
        "frog",
        str(mine.support),
        *(f"{100 * getattr(entry, key):.1f}" for key in ("precision", "recall", "f1") for entry in (mine, other)),
        f"{100 * (mine.f1 - other.f1):+.1f}",
    ]
    assert "\x1b" not in text  # no colours where there is no terminal
    assert max(map(len, text.splitlines())) <= report.TABLE_COLUMNS


def test_tables_of_one_kind_of_weights_have_no_difference(make_evaluation, make_metrics, capsys):
    report.print_tables(make_evaluation(metrics={"raw": make_metrics()}))
    text = capsys.readouterr().out
    assert "raw weights" in text
    assert "average" not in text
    assert "difference" not in text


def test_tables_are_not_cut_in_a_narrow_terminal(make_evaluation, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    report.print_tables(make_evaluation())
    assert "\N{HORIZONTAL ELLIPSIS}" not in capsys.readouterr().out


def test_names_are_shown_as_they_are(make_evaluation, make_metrics, capsys):
    report.print_tables(make_evaluation(metrics={"raw": make_metrics(("[red]", ":cat:", "[/]"))}))
    text = capsys.readouterr().out
    assert all(name in text for name in ("[red]", ":cat:", "[/]"))


def test_names_that_are_no_text_break_nothing(make_evaluation, make_metrics, tmp_path, capsys):
    metrics = make_metrics((b"caf\xe9".decode(errors="surrogateescape"), "\x1b[31mred", "a\nb"))
    evaluation = make_evaluation(metrics={"average": metrics, "raw": metrics}, run=tmp_path / "r\udce9")
    report.print_tables(evaluation)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    for name in (r"caf\udce9", r"\x1b[31mred", r"a\nb", r"r\udce9, step"):
        assert name in text
    report.write_files(evaluation, tmp_path, report.draw_plots(evaluation))
    for name in ("step-00001000-test.csv", "step-00001000-test-mistakes.csv"):
        assert r"caf\udce9" in (tmp_path / name).read_text()


def test_files_are_written_and_replaced(make_evaluation, tmp_path):
    evaluation, folder = make_evaluation(), tmp_path / "run" / "evaluation"
    plots = report.draw_plots(evaluation)
    for _ in range(2):
        files = report.write_files(evaluation, folder, plots)
    stem = "step-00001000-test"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{stem}-classes.png",
        f"{stem}-confusion.png",
        f"{stem}-mistakes.csv",
        f"{stem}-mistakes.png",
        f"{stem}-reliability.png",
        f"{stem}.csv",
        f"{stem}.json",
    ]
    assert sorted(files) == sorted(folder.iterdir())
    assert json.loads((folder / f"{stem}.json").read_text()) == report.to_json(evaluation)
    for name in plots:
        Image.open(folder / f"{stem}-{name}.png").verify()


def test_partial_evaluations_do_not_replace_the_whole_one(make_evaluation, make_metrics, tmp_path):
    for changes in ({}, {"limited": True}, {"metrics": {"raw": make_metrics()}}, {"split": "val"}):
        report.write_files(make_evaluation(**changes), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        "step-00001000-test-first-200.json",
        "step-00001000-test-raw.json",
        "step-00001000-test.json",
        "step-00001000-val.json",
    ]


def test_summaries_are_at_the_step_of_the_checkpoint(make_evaluation, tmp_path):
    evaluation = make_evaluation()
    confusion = report.draw_plots(evaluation)["confusion"]
    events = EventFile(tmp_path)
    report.add_summaries(evaluation, events, confusion)
    report.add_summaries(make_evaluation(step=2000, limited=True), events)
    events.close()

    found = {}
    for event in EventFileLoader(str(events.path)).Load():
        for value in event.summary.value:
            found[event.step, value.tag] = make_ndarray(value.tensor)
    for weights, metrics in evaluation.metrics.items():
        for name in ("accuracy", "loss", "top5", "ece"):
            assert found[1000, f"{name}/test {weights}"] == pytest.approx(getattr(metrics, name), rel=1e-6)
            assert (2000, f"{name}/test first 200 {weights}") in found
    width, height, png = found[1000, "confusion/test"]
    assert png == confusion
    assert (int(width), int(height)) == Image.open(io.BytesIO(confusion)).size
