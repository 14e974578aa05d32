"""Templates are notebooks that run as they are, and keep what they promise."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from scalekit.bundle import Bundle
from scalekit.signature import BadParameter, read_signature
from scalekit.store import Store
from scalekit.template import list_templates

TEMPLATES = {template.name: template.path for template in list_templates()}


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "An empty folder to run in, with a stock kernel on one core and no run around it"
    for name in ("SCALEKIT_BUNDLE", "SCALEKIT_STORE", "JUPYTER_DEFAULT_PROVISIONER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def _execute(name: str, folder: Path, **parameters: Any) -> list[dict[str, Any]]:
    "Outputs of a template in a stock kernel"
    notebook = nbformat.read(TEMPLATES[name], 4)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    given = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def _printed(outputs: list[dict[str, Any]], stream: str = "stdout") -> str:
    return "".join(out["text"] for out in outputs if out.get("name") == stream)


def _n_figures(outputs: list[dict[str, Any]]) -> int:
    return sum("image/png" in out.get("data", {}) for out in outputs)


def _run_in_bundle(store: Store, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> Bundle:
    "A finished run of train.ipynb, without the engine"
    bundle = store.create_run({"notebook": "train.ipynb", "parameters": parameters})
    bundle.set_state("running")
    with monkeypatch.context() as patch:
        patch.setenv("SCALEKIT_BUNDLE", str(bundle.path))
        _execute("train", store.folder, **parameters)
    return _finish(bundle)


def _finish(bundle: Bundle) -> Bundle:
    bundle.set_state("succeeded")
    bundle.seal()
    return bundle


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_says_what_it_is_for_and_carries_no_outputs(name):
    notebook = json.loads(TEMPLATES[name].read_text())
    first, *others = notebook["cells"]
    title, sentence = [line for line in "".join(first["source"]).splitlines() if line]
    assert title.startswith("# ") and sentence.endswith(".")
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in notebook["cells"]}) == len(others) + 1
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in others)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_parameter_has_a_type_a_default_and_a_word_of_help(name):
    parameters = read_signature(TEMPLATES[name]).parameters.values()
    assert [p.name for p in parameters if not p.annotation or not p.help or p.required] == []
    numbers = [p for p in parameters if type(p.default) in (int, float)]
    assert [p.name for p in numbers if not re.match(r"Annotated\[(int|float), G[te]\(", p.annotation)] == []
    assert read_signature(TEMPLATES[name]).check({"smoke": True}) == {"smoke": True}


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("train", "lr=0"),
        ("train", "model=tree"),
        ("train_tabular", "dropout=1"),
        ("eval", "metric=auc"),
        ("predict", "format=csv"),
        ("compress", "share=1"),
        ("finetune", "n_layers=7"),
        ("scaling_study", "seconds=0"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(name, word):
    with pytest.raises(BadParameter, match=word.partition("=")[0]):
        read_signature(TEMPLATES[name]).parse([word])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "n_figures"),
    [
        ("train", {"model": "mlp"}, 4),
        ("train_tabular", {}, 6),
        ("train_distributed", {}, 1),
        ("predict", {}, 2),
        ("compress", {}, 3),
        ("finetune", {}, 4),
        ("scaling_study", {}, 2),
        ("report", {}, 0),  # its drawings are those of the page
    ],
)
def test_a_smoke_run_reaches_the_end_of_a_bare_notebook(name, parameters, n_figures, bare):
    outputs = _execute(name, bare, smoke=True, **parameters)
    assert _n_figures(outputs) == n_figures
    assert _printed(outputs, "stderr") == ""
    assert list(bare.iterdir()) == []


@pytest.mark.slow
def test_the_defaults_read_more_than_97_percent_of_unseen_digits(bare, monkeypatch):
    bundle = _run_in_bundle(Store(bare), monkeypatch)
    metrics = bundle.summary()["metrics"]
    assert metrics["accuracy"] > 0.97
    assert metrics["val_accuracy"] > metrics["baseline_accuracy"]
    answers = pd.read_parquet(bundle.artifacts / "predictions.parquet")
    test = answers[answers["split"] == "test"]
    assert metrics["accuracy"] == (test["label"] == test["predicted"]).mean()
    assert not set(test["example"]) & set(answers.loc[answers["split"] == "validation", "example"])
    assert (bundle.artifacts / "model.pt").stat().st_size > 100_000
    assert [step for step, _ in bundle.curves()["val_accuracy"]] == list(range(1, 16))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_eval_calls_two_of_them_equal(bare, monkeypatch):
    store = Store(bare / "runs")
    store.folder.mkdir()
    first, again = (_run_in_bundle(store, monkeypatch, smoke=True, seed=3) for _ in range(2))
    assert first.curves() == again.curves()
    answers = [pd.read_parquet(bundle.artifacts / "predictions.parquet") for bundle in (first, again)]
    pd.testing.assert_frame_equal(*answers)
    outputs = _execute("eval", bare, smoke=True)  # finds the store by itself
    assert "inside the noise for 1 of 1" in _printed(outputs)
    assert _n_figures(outputs) == 4


def _keep_answers(store: Store, name: str, right: np.ndarray, group: np.ndarray | None = None) -> Bundle:
    "A run that answered yes or no, right where `right` says so; each part has as many examples as that"
    n = len(right)
    answers = pd.DataFrame({"split": np.repeat(["validation", "test"], n), "example": np.arange(2 * n)})
    answers["label"] = answers["example"] % 2
    answers["predicted"] = np.where(np.tile(right, 2), answers["label"], 1 - answers["label"])
    answers["p_1"] = np.where(answers["predicted"] == 1, 0.9, 0.1)
    answers["p_0"] = 1 - answers["p_1"]
    if group is not None:
        answers["group"] = np.tile(group, 2)
    bundle = store.create_run({"notebook": "yes_no.ipynb", "parameters": {"name": name}})
    answers.to_parquet(bundle.artifacts / "predictions.parquet")
    bundle.set_state("running")
    return _finish(bundle)


def _compare(store: Store, **parameters: Any) -> tuple[str, dict[str, Any]]:
    "What eval printed, and what it recorded"
    bundle = Store(store.folder.parent / "evals").create_run({"notebook": "eval.ipynb"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALEKIT_BUNDLE", str(bundle.path))
        outputs = _execute("eval", store.folder.parent, store=str(store.folder), **parameters)
    return _printed(outputs), bundle.records()


@pytest.mark.slow
def test_eval_tells_a_lead_from_noise(bare):
    store, place = Store(bare / "runs"), np.arange(400)
    _keep_answers(store, "many wrong", place % 4 > 0)
    best = _keep_answers(store, "few wrong", place % 50 > 0)
    _keep_answers(store, "one more wrong", (place % 50 > 0) & (place != 7))
    _keep_answers(store, "other examples", np.ones(10, dtype=bool))
    every = [row["run_id"] for row in store.list_runs()][1:]
    text, kept = _compare(store, runs=[*every, store.open_run("latest").run_id])
    assert (kept["best_run"], kept["n_runs"], kept["n_inside_the_noise"]) == (best.run_id, 3, 1)
    assert "inside the noise for 1 of 2: name=one more wrong" in text
    assert kept["test_low"] < kept["test_score"] == 0.98 < kept["test_high"]
    assert re.search("Left out, since they answered other examples than .*: .*", text)


@pytest.mark.slow
def test_examples_that_belong_together_make_eval_less_sure(bare):
    widths = {}
    for name, group in [("alone", None), ("in tens", np.arange(400) // 10)]:
        store = Store(bare / name)
        _keep_answers(store, name, np.arange(400) // 10 % 10 > 0, group)
        _, kept = _compare(store, smoke=True)
        widths[name] = kept["test_high"] - kept["test_low"]
    assert widths["in tens"] > 2 * widths["alone"]  # the square root of ten, were there no chance


@pytest.mark.slow
def test_eval_without_runs_says_what_to_do(bare):
    with pytest.raises(CellExecutionError, match=r"has no finished run .*scalekit sweep train\.ipynb"):
        _execute("eval", bare)
