"""Smaller models: what they save, what they lose, and files that prove it."""

import copy
import io
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from scalekit import compress
from scalekit.compress.forms import find_difference
from scalekit.compress.latency import compare_times, time_calls
from scalekit.compress.measured import Against
from scalekit.compress.outcomes import Paired, compare_answers, flip_signs
from scalekit.compress.words import tell_accuracy, tell_size, tell_speed
from scalekit.extras import import_extra
from scalekit.seal import write_seal

X, Y = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def _perceptron(width: int = 64) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)).eval()


class Residual(nn.Module):
    "Two branches that are added, a normalisation, and two heads"

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 10)  # defined first, runs last
        self.first, self.left, self.right = (
            nn.Conv2d(1, 16, 3, padding=1),
            nn.Conv2d(16, 16, 1),
            nn.Conv2d(16, 16, 1),
        )
        self.norm, self.other = nn.BatchNorm2d(16), nn.Linear(16, 2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = self.norm(self.left(x) + self.right(x)).mean(dim=(2, 3))
        return {"other": self.other(x), "digit": self.head(x)}


def _train(model: nn.Module, loss=compress.learn_labels, n_steps: int = 4) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss(model, X, Y).backward()
        optimizer.step()


def _size(model: nn.Module, folder: Path) -> int:
    torch.save(model.state_dict(), folder / "weights.pt")
    return (folder / "weights.pt").stat().st_size


WAYS = {
    "bf16": (compress.to_bf16, 0.6),
    "int8": (lambda model: compress.to_int8(model, compile=False), 0.4),
    "pruned": (lambda model: compress.prune_channels(model, X, 0.5), 0.6),
    "zeros": (lambda model: compress.prune_weights(model, 0.9), 1.01),
    "trained": (lambda model: compress.train_model(model, _train), 1.01),
    "control": (lambda model: compress.train_control(model, _train), 1.01),
    "distilled": (lambda model: compress.distill(model, model, _train), 1.01),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_a_new_model_and_leaves_the_original_alone(way, tmp_path):
    make, most = WAYS[way]
    original = _perceptron(256).train()
    before = copy.deepcopy(original.state_dict())
    made = make(original)
    assert made.model is not original and original.training and not made.model.training
    assert [*before] == [*original.state_dict()]
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert made(X).shape == (64, 10) and made(X).dtype == torch.float32
    assert _size(made.model, tmp_path) < most * _size(original, tmp_path)
    assert made.changes[-1].n_weights[0] == compress.count_weights(original)


@pytest.mark.parametrize("way", ["bf16", "int8"])
def test_fewer_bits_change_the_scores_only_a_little(way):
    original = _perceptron()
    gap = find_difference([WAYS[way][0](original)(X)], [original(X)])
    assert 0 < gap < 0.02


def test_changes_add_up_along_a_chain():
    trained = compress.train_model(_perceptron(), _train)
    pruned = compress.prune_channels(trained, X, 0.5, fine_tune=_train, n_rounds=2)
    small = compress.to_int8(pruned, compile=False)
    assert [change.method for change in small.changes] == ["trained", "channels pruned", "int8 weights"]
    assert small.n_steps == 4 + 2 * 4
    assert small.changes[1].n_weights == (4810, 2410) and small.n_weights == 2410


def test_steps_of_another_model_are_not_counted():
    bystander = _perceptron()
    made = compress.train_model(_perceptron(), lambda model: (_train(model), _train(bystander, n_steps=9)))
    assert made.n_steps == 4


def test_pruning_follows_sums_and_keeps_every_named_head():
    original = Residual()
    with pytest.raises(compress.NotCompressible, match="Name every layer that gives an output"):
        compress.prune_channels(original, X)
    pruned = compress.prune_channels(original, X, 0.5, keep=["head", "other"], round_to=4)
    model = pruned.model
    shapes = {name: tuple(one.shape) for name, one in pruned(X).items()}
    assert shapes == {"other": (64, 2), "digit": (64, 10)}
    assert model.left.out_channels == model.right.out_channels == model.norm.num_features == 8
    assert model.head.in_features == model.other.in_features == 8
    assert pruned.n_weights < 0.5 * compress.count_weights(original)
    assert compress.count_flops(model, X) < 0.5 * compress.count_flops(original, X)
    assert compress.count_flops(model, X) / compress.count_flops(original, X) == pytest.approx(
        pruned.changes[0].settings["flops_left"], abs=1e-3
    )


def test_a_control_has_the_shape_and_none_of_the_weights():
    pruned = compress.prune_channels(_perceptron(), X, 0.5)
    control = compress.train_control(pruned, lambda model: None)
    shapes = [[tuple(weight.shape) for weight in one.model.parameters()] for one in (pruned, control)]
    assert shapes[0] == shapes[1]
    assert not any(map(torch.equal, pruned.model.parameters(), control.model.parameters()))


class OwnWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda net: compress.to_int8(net, keep=["1", "heads"]), "has no layer 'heads'"),
        (lambda net: compress.prune_channels(net, X, keep=["4"]), "has no layer '4'"),
        (
            lambda net: compress.prune_channels(net, torch.rand(2, 3), 0.5),
            r"does not run on an example of shape \(2, 3\)",
        ),
        (lambda net: compress.prune_channels(net, X, 50), "between 0 and 1, got 50"),
        (lambda net: compress.prune_channels(net, X, n_rounds=0), "n_rounds is at least 1"),
        (lambda net: compress.prune_weights(net, 0), "between 0 and 1, got 0"),
        (lambda net: compress.prune_weights(nn.ReLU()), "no linear or convolutional layer"),
        (lambda net: compress.train_control(compress.to_bf16(net), _train), "before it was quantised"),
        (lambda net: compress.train_control(OwnWeights(), _train), "has weights and no reset_parameters"),
        (lambda net: compress.to_bf16(net.state_dict()), "not its state_dict"),
        (lambda net: compress.distill(net, net, _train, temperature=0), "temperature must be > 0"),
    ],
)
def test_what_cannot_be_meant_is_named(wrong, words):
    with pytest.raises(compress.NotCompressible, match=words):
        wrong(_perceptron())


def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)  # import now fails as if it were not installed
    monkeypatch.delitem(sys.modules, "torchao.quantization", raising=False)
    with pytest.raises(compress.MissingPackage, match=r"needs the package torchao.*'scalekit\[compress\]'"):
        compress.to_int8(_perceptron())


def test_a_library_that_is_there_and_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_library.py").write_text("import something_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        import_extra("half_library", "half-library", "this")


def test_the_package_loads_without_the_libraries_of_single_ways():
    code = "import sys, scalekit.compress; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torchao", "torch_pruning", "onnx", "onnxruntime", "onnxscript", "pandas"} & set(out.split())


def test_the_paired_test_is_mcnemar_for_one_seed():
    chance = np.random.default_rng(0)
    for n_lost, n_gained in [(0, 0), (1, 0), (12, 3), (40, 41), (300, 200)]:
        signs = np.repeat([-1, 1, 0], [n_lost, n_gained, 50])
        chance.shuffle(signs)
        expected = binomtest(n_lost, n_lost + n_gained).pvalue if n_lost + n_gained else 1.0
        assert flip_signs(signs) == pytest.approx(expected, rel=1e-9)


def test_the_paired_test_of_several_seeds_agrees_with_random_flips():
    chance = np.random.default_rng(1)
    differences = chance.integers(-3, 4, 60) + (chance.random(60) < 0.3)
    flips = chance.choice([-1, 1], (200_000, 60)) @ np.abs(differences)
    expected = np.mean(np.abs(flips) >= abs(differences.sum()))
    assert flip_signs(differences) == pytest.approx(expected, abs=0.005)


def test_seeds_that_agree_on_examples_make_nobody_surer():
    right = np.random.default_rng(2).random((1, 300)) < 0.9
    other = right.copy()
    other[0, :8] = True
    one, five = compare_answers(right, other), compare_answers(np.repeat(right, 5, 0), np.repeat(other, 5, 0))
    assert five.p == pytest.approx(one.p)
    assert (five.difference, five.n_lost) == (one.difference, one.n_lost)
    assert five.high - five.low == pytest.approx(one.high - one.low, rel=0.1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    chance, n_covered = np.random.default_rng(3), 0
    for _ in range(200):
        both = chance.random((3, 400))
        found = compare_answers(both < 0.85, (both + chance.normal(0, 0.02, both.shape)) < 0.9)
        truth = 0.85 - 0.9
        n_covered += found.low <= truth <= found.high
    assert n_covered > 175  # 190 are expected; fewer than 176 has a chance below one in ten thousand


def test_a_slow_moment_of_the_machine_meets_all_candidates():
    state = {"calls": 0}

    def work(factor):
        state["calls"] += 1
        return torch.rand(20 * factor * (20 if state["calls"] % 40 < 20 else 1)).sort()

    times = time_calls({"one": lambda: work(100), "same": lambda: work(100)}, n_rounds=60)
    found = compare_times(times["same"], times["one"])
    assert found.low < 1.2 and found.high > 0.8
    assert len(times["one"]) == 60 and found.p50 <= found.p95


@pytest.fixture(scope="module")
def card() -> compress.ReportCard:
    torch.manual_seed(0)
    nets = [compress.train_model(_perceptron(), lambda model: _train(model, n_steps=60)) for _ in range(2)]
    tried = {"original": nets, "same": nets, "zeros": [compress.prune_weights(net, 0.5) for net in nets]}
    tried["int8"] = [compress.to_int8(net, compile=False) for net in nets]
    tried["pruned"] = [compress.prune_channels(net, X, 0.9) for net in nets]
    tried["small"] = [compress.train_control(one, _train) for one in tried["pruned"]]
    return compress.report_card(
        tried, X, Y, controls={"pruned": "small"}, batch_sizes=(1, 16), n_rounds=40, forms=["pt2"]
    )


def test_a_card_says_in_plain_words_that_nothing_was_saved(card):
    original, zeros = card["original"], card["zeros"]
    assert tell_size(zeros, original) == "no file size saved"
    assert zeros.sizes["pt2"] == pytest.approx(original.sizes["pt2"], rel=0.02)
    assert "times faster" not in tell_speed(zeros)
    assert card.sentences["zeros"].startswith("No file size saved; ")
    assert "slower at batch 1" in card.sentences["int8"]  # not compiled
    assert "unseen" not in str(card) and "64 test examples" in str(card)


def test_a_card_finds_a_loss_and_sees_none_where_there_is_none(card):
    assert card["same"].original.p == 1 and card["same"].agreement == 1
    assert "as accurate" in card.sentences["same"] and "no difference seen" in card.sentences["same"]
    assert card["pruned"].original.p < 0.05 and ": worse" in card.sentences["pruned"]
    assert "trained from scratch (small)" in card.sentences["pruned"]
    assert "for 4 steps only, against 60" in card.sentences["pruned"]


def test_agreement_and_accuracy_are_those_counted_by_hand(card):
    pruned, original = card["pruned"], card["original"]
    found = [one.candidate(X).argmax(dim=1) for one in (pruned, original)]
    assert pruned.accuracies[0] == pytest.approx((found[0] == Y).double().mean().item())
    one = compress.report_card(
        {"a": [original.candidate], "b": [pruned.candidate]}, X, Y, n_rounds=5, forms=[]
    )
    assert one["b"].agreement == pytest.approx((found[0] == found[1]).double().mean().item())
    assert any(note.startswith("There is one seed only") for note in one.notes)


def test_the_winner_is_the_smallest_that_surely_loses_little(card):
    assert compress.choose_smallest(card, most_lost=0.0).name in ("original", "same", "zeros")
    assert compress.choose_smallest(card, most_lost=1.0).name in ("pruned", "small")


def test_a_candidate_that_may_have_lost_too_much_does_not_win(card):
    original, small = card["original"], card["pruned"]
    doubtful = Against("original", Paired(-0.005, -0.03, 0.02, 0.7, 3, 2), 0.7)
    judged = replace(card, measured=[original, replace(small, original=doubtful)])
    assert compress.choose_smallest(judged, most_lost=0.01).name == "original"
    assert compress.choose_smallest(judged, most_lost=0.03).name == "pruned"


def test_a_verdict_needs_the_test_and_the_interval():
    told = {
        (low, high, p): tell_accuracy(Against("original", Paired(0.02, low, high, p, 1, 2), p))
        for low, high in ((-0.01, 0.05), (0.01, 0.03))
        for p in (0.0, 0.2)
    }
    sure = [key for key, words in told.items() if "better" in words]
    assert sure == [(0.01, 0.03, 0.0)] and "p < 0.0001" in told[sure[0]]


def test_two_that_are_wrong_in_different_ways_do_not_agree():
    one, two = _perceptron(), _perceptron()
    for model, answer in ((one, 1), (two, 2)):
        model[-1].bias.data[answer] = 100
    targets = torch.zeros(64, dtype=torch.long)
    found = compress.report_card({"one": [one], "two": [two]}, X, targets, n_rounds=5, forms=[])
    assert (found["two"].accuracy, found["two"].agreement, found["two"].original.p) == (0, 0, 1)


def test_a_card_is_a_table_a_page_and_a_frame(card):
    html, page, frame = card._repr_html_(), compress.write_markdown(card), card.frame
    assert html.count("<tr>") == 7 and page.count("\n| ") == 6
    assert list(frame.index) == ["original", "same", "zeros", "int8", "pruned", "small"]
    assert frame.loc["pruned", "pt2_bytes"] < frame.loc["original", "pt2_bytes"]
    assert frame.loc["pruned", "n_weights"] == card["pruned"].candidate.n_weights
    assert {"p50_ms_batch_1", "p95_ms_batch_16", "agreement", "p"} <= set(frame.columns)
    front = compress.find_pareto(card, "pt2_bytes")
    assert frame.pt2_bytes[front].is_monotonic_increasing and frame.accuracy[front].is_monotonic_increasing


def test_names_of_candidates_stay_text(card):
    one = card["original"]
    page = compress.report_card(
        {"<b>": [one.candidate], "a|b": [one.candidate]}, X, Y, n_rounds=5, forms=[], like=None
    )
    assert "&lt;b&gt;" in page._repr_html_() and "<b><b>" not in page._repr_html_()
    assert "a&#124;b" in compress.write_markdown(page)


def test_sizes_and_times_are_taken_over_for_other_examples_of_the_same_models_only(card):
    tried = {one.name: [one.candidate] for one in card.measured}
    again = compress.report_card(tried, X[:32], Y[:32], like=card)
    assert again["pruned"].speeds == card["pruned"].speeds and again["pruned"].sizes == card["pruned"].sizes
    assert again.n_examples == 32 and again["pruned"].accuracies != card["pruned"].accuracies
    with pytest.raises(compress.NotPaired, match="has not measured this 'other'"):
        compress.report_card({"original": tried["original"], "other": [_perceptron()]}, X, Y, like=card)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> compress.Exported:
    torch.manual_seed(0)
    pruned = compress.prune_channels(_perceptron(), X, 0.5, fine_tune=_train)
    return compress.export_model(pruned, tmp_path_factory.mktemp("export") / "winner", X[:9])


def test_an_export_says_what_it_is(exported):
    manifest = json.loads((exported.path / "manifest.json").read_text())
    assert exported.forms == ["pt2", "onnx"]
    assert [one["shape"] for one in manifest["inputs"]] == [["batch", 1, 8, 8]]
    assert [one["shape"] for one in manifest["outputs"]] == [["batch", 10]]
    assert manifest["changes"][0]["method"] == "channels pruned" and manifest["changes"][0]["n_steps"] == 4
    assert manifest["versions"]["torch"] == torch.__version__
    assert all(one["difference"] <= manifest["tolerance"] for one in manifest["forms"].values())
    assert compress.find_code(exported.path / "model.pt2") == []


def test_both_forms_answer_as_the_model_at_any_batch_size(exported):
    sample = compress.check_exported(exported.path)
    assert set(sample) == {"pt2", "onnx"} and max(sample.values()) < 1e-5
    calls = {form: compress.open_exported(exported.path, form) for form in ("pt2", "onnx")}
    for n in (1, 7, 64):
        outputs = [calls[form](X[:n])[0] for form in calls]
        assert outputs[0].shape == (n, 10)
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx", "sample.safetensors", "manifest.json"])
def test_one_flipped_bit_is_found_wherever_it_is(exported, tmp_path, name):
    folder = shutil.copytree(exported.path, tmp_path / "copy")
    content = bytearray((folder / name).read_bytes())
    content[len(content) * 2 // 3] ^= 4
    (folder / name).write_bytes(content)
    with pytest.raises(compress.DamagedExport, match=f"{name}: differs"):
        compress.open_exported(folder)


def test_an_export_in_the_way_stays_as_it_is(exported):
    before = sorted(path.stat().st_mtime_ns for path in exported.path.iterdir())
    with pytest.raises(compress.NotExportable, match="exists already and stays as it is"):
        compress.export_model(_perceptron(), exported.path, X)
    assert before == sorted(path.stat().st_mtime_ns for path in exported.path.iterdir())


def test_int8_exports_for_torch_only_and_says_so(tmp_path):
    small = compress.to_int8(_perceptron(), compile=False)
    exported = compress.export_model(small, tmp_path / "int8", X)
    assert exported.forms == ["pt2"]
    assert "ONNX has no form of aten._int_mm" in exported.manifest["forms"]["onnx"]["not"]
    with pytest.raises(compress.NotExportable, match="has no model as onnx: .*aten._int_mm"):
        compress.open_exported(exported.path, "onnx")
    assert exported.manifest["forms"]["pt2"]["unpickles"] == []
    assert compress.check_exported(exported.path)["pt2"] < 1e-5


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class OneSize(nn.Module):
    def forward(self, x):
        return x.reshape(64, 64) * 2


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (Branches(), X, "can't follow Branches"),
        (OneSize(), X, "can't follow OneSize.*one size of batch"),
        (_perceptron(), X[:1], r"two rows or more in each input, got \(1, 1, 8, 8\)"),
    ],
)
def test_a_model_that_cannot_be_exported_leaves_nothing_behind(model, example, words, tmp_path):
    with pytest.raises(compress.NotExportable, match=words):
        compress.export_model(model, tmp_path / "out", example)
    assert list(tmp_path.iterdir()) == []


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


class Detour:
    "What belongs there, by way of a function that torch doesn't know"

    def __reduce__(self):
        return copy.copy, (((X[:2],), {}),)


def _prepare(exported: compress.Exported, folder: Path, sample: object) -> Path:
    "The same export with something else for example inputs, under a seal of its own"
    content = io.BytesIO()
    torch.save(sample, content)
    shutil.copytree(exported.path, folder)
    with (
        zipfile.ZipFile(exported.path / "model.pt2") as old,
        zipfile.ZipFile(folder / "model.pt2", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, content.getvalue() if "sample_inputs" in name else old.read(name))
    (folder / "SHA256SUMS").unlink()
    write_seal(folder)
    return folder


def test_a_prepared_file_is_refused_before_its_code_runs(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = _prepare(exported, tmp_path / "prepared", Trap())
    with pytest.raises(compress.UntrustedExport, match="sample_inputs.*trust=True"):
        compress.open_exported(folder, "pt2")
    assert not (tmp_path / "trapped").exists()


def test_whoever_trusts_a_file_opens_it_all_the_same(exported, tmp_path):
    folder = _prepare(exported, tmp_path / "prepared", Detour())
    with pytest.raises(compress.UntrustedExport):
        compress.open_exported(folder, "pt2")
    answers = [compress.open_exported(where, "pt2", trust=True)(X)[0] for where in (folder, exported.path)]
    torch.testing.assert_close(*answers)


@pytest.mark.slow
def test_compiled_int8_gives_the_answers_of_plain_int8():
    original = _perceptron(256)
    compiled, plain = compress.to_int8(original), compress.to_int8(original, compile=False)
    with torch.inference_mode():
        for n in (1, 7):
            torch.testing.assert_close(compiled(X[:n]), plain(X[:n]), rtol=1e-3, atol=1e-3)
