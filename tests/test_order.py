"""Which sample is seen when."""

import random

import numpy as np
import pytest
import torch

from scalekit.train.feed import DatasetSource, TensorSource
from scalekit.train.loader import LoaderSource
from scalekit.train.order import Cut, Order, Span, check_cut
from scalekit.train.partitions import Partitions, plan_windows
from scalekit.train.streams import RankSampler

LAST = ("keep", "drop", "pad")
SIZES = [(n, size) for n in (1, 5, 12, 23, 24, 25, 100) for size in (1, 2, 4, 8, 12, 24, 36)]


class Noisy(torch.utils.data.Dataset):
    "Each sample with what is drawn for it"

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def draw_steps(n_ranks, accumulate=1, n_workers=0, n_epochs=2, step=0, last="keep"):
    "Samples of each step, of all ranks and micro-batches together, without those that count nothing"
    span = Span(Cut(23, 12, n_ranks, accumulate, last), n_epochs, None)
    steps = {}
    for rank in range(n_ranks):
        options = {"collate_fn": list} if not n_workers else {"collate_fn": list, "prefetch_factor": 1}
        for share, batch in DatasetSource(Noisy(), n_workers, options=options).open(
            span, rank, step=step, seed=7
        ):
            found = steps.setdefault((share.epoch, share.step), [])
            found += batch if share.weight else []
    return {key: sorted(found) for key, found in steps.items()}


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize(("n", "size"), SIZES)
def test_a_step_is_cut_without_loss_and_its_weights_are_right(n, size, last):
    for n_ranks, accumulate in ((1, 1), (2, 1), (3, 1), (4, 3), (1, 4)):
        cut = Cut(n, size, n_ranks, accumulate, last)
        for step in range(cut.n_steps):
            shares = [cut.shares(0, step, rank) for rank in range(n_ranks)]
            assert len({len(own) for own in shares}) == 1 and len(shares[0]) <= accumulate
            flat = [share for own in shares for share in own]
            assert sum(share.weight for share in flat) == pytest.approx(n_ranks)
            places = sorted(p for share in flat if share.weight for p in range(share.start, share.stop))
            first = step * size
            assert places == list(range(first, first + size if last == "pad" else min(first + size, n)))
            assert [own[-1].ends_step for own in shares] == [True] * n_ranks
            assert all(share.stop > share.start for share in flat)
            assert shares[0][0].weight > 0


@pytest.mark.parametrize("last", LAST)
def test_every_epoch_has_every_sample_once(last):
    order = Order(23, seed=3)
    found = [order.indices(epoch, 0, 23).tolist() for epoch in range(4)]
    assert all(sorted(epoch) == list(range(23)) for epoch in found)
    assert len({tuple(epoch) for epoch in found}) == 4
    assert (
        order.epoch(1).tolist() == Order(23, seed=3).epoch(1).tolist() != Order(23, seed=4).epoch(1).tolist()
    )


@pytest.mark.parametrize(("n_ranks", "accumulate"), [(2, 1), (3, 1), (4, 1), (1, 3), (2, 2)])
def test_order_and_augmentation_are_the_same_on_any_number_of_ranks(n_ranks, accumulate):
    assert draw_steps(n_ranks, accumulate) == draw_steps(1)


def test_order_and_augmentation_are_the_same_with_loader_processes():
    assert draw_steps(1, n_workers=2) == draw_steps(1)


@pytest.mark.parametrize("step", range(4))
def test_a_training_that_begins_later_sees_the_rest_of_the_same_order(step):
    whole = draw_steps(1)
    assert draw_steps(1, step=step) == {key: whole[key] for key in list(whole)[step:]}


def test_reading_samples_does_not_move_the_common_streams():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    draw_steps(2)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected


def test_a_sampler_says_how_many_batches_it_has():
    sampler = RankSampler(Order(23), Span(Cut(23, 12, 2, 3), 2, None), rank=1)
    assert len(sampler) == len(list(sampler))


@pytest.mark.parametrize("buffer", [1, 7, 10, 1000])
def test_windows_hold_each_row_group_once_and_are_bounded(buffer):
    rows = [3, 5, 2, 8, 1, 4]
    windows = plan_windows(rows, buffer, epoch=2, seed=1)
    assert sorted(group for window in windows for group in window.groups) == list(range(6))
    assert [w.start for w in windows[1:]] == [w.stop for w in windows[:-1]]
    assert windows[-1].stop == sum(rows)
    assert all(w.stop - w.start - rows[w.groups[-1]] < buffer for w in windows)


@pytest.fixture
def folder(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part in range(4):
        rows = range(10 * part, 10 * part + 10)
        table = pa.table(
            {"x": list(rows), "y": [0.5 * row for row in rows], "name": [f"r{row}" for row in rows]}
        )
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=3)
    return tmp_path


def stream(data, n_ranks=1, step=0, last="keep", size=6):
    steps = {}
    span = Span(Cut(40, size, n_ranks, last=last), 2, None)
    for rank in range(n_ranks):
        for share, (x, y) in data.open(span, rank, step=step, seed=5):
            assert torch.equal(x[:, 0] / 2, y)
            steps.setdefault((share.epoch, share.step), []).extend(
                x[:, 0].int().tolist() if share.weight else []
            )
    return steps


@pytest.mark.parametrize("buffer", [1, 8, 100])
def test_a_parquet_folder_is_streamed_in_one_order_from_any_place_on_any_ranks(folder, buffer):
    data = Partitions(folder, x="x", y="y", buffer=buffer)
    whole = stream(data)
    for epoch in range(2):
        seen = [row for (at, _), rows in whole.items() if at == epoch for row in rows]
        assert sorted(seen) == list(range(40)) and seen != sorted(seen)
    assert stream(data, n_ranks=2) == stream(data, n_ranks=3) == whole
    assert stream(data, step=9) == {key: whole[key] for key in list(whole)[9:]}


def test_a_padded_epoch_of_a_parquet_folder_begins_again(folder):
    padded = stream(Partitions(folder, x="x", y="y", buffer=8), last="pad", size=12)
    assert [len(rows) for rows in padded.values()] == [12] * 8
    assert padded[0, 3][4:] == padded[0, 0][:8]


def test_tables_become_batches_by_a_function_of_the_users(folder):
    data = Partitions(folder, to_batch=lambda table: table["name"].to_pylist(), columns=["name"], buffer=8)
    batches = [batch for _, batch in data.open(Span(Cut(40, 8), 1, None))]
    assert sorted(sum(batches, [])) == sorted(f"r{row}" for row in range(40))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "column 'name' is string, and only numbers become tensors"),
        ({"x": "z"}, "has no column 'z'"),
        ({"buffer": 0}, "buffer counts rows, from 1 on"),
        ({"x": "x", "to_batch": len}, "give one of them"),
    ],
)
def test_a_folder_that_can_not_become_tensors_is_refused(folder, options, sentence):
    with pytest.raises(Exception, match=sentence):
        Partitions(folder, **options)


def test_tensors_and_a_data_set_of_them_come_in_the_same_order():
    x = torch.arange(23)
    span = Span(Cut(23, 5), 2, None)
    fast = [batch[0].tolist() for _, batch in TensorSource((x, x)).open(span, seed=3)]
    slow = DatasetSource(torch.utils.data.TensorDataset(x, x)).open(span, seed=3)
    assert fast == [batch[0].tolist() for _, batch in slow]


@pytest.mark.parametrize("n", range(0, 9, 2))
def test_a_loader_goes_on_after_any_step(n):
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make():
        torch.manual_seed(1)  # its sampler draws a seed when it is made
        return LoaderSource(StatefulDataLoader(torch.arange(10), batch_size=3, shuffle=True), accumulate=2)

    def show(draws):
        return [(share.epoch, share.weight, share.ends_step, batch.tolist()) for share, batch in draws]

    whole = show(make().draw(n_epochs=2, seed=4))
    source = make()
    draws = source.draw(n_epochs=2, seed=4)
    begun = [next(draws) for _ in range(min(n, 8))]
    later = make()
    if begun:
        later.load_state_dict(source.state_dict())
    epoch = begun[-1][0].epoch if begun else 0
    rest = show(later.draw(epoch, 2, seed=4))
    assert rest == whole[n:] and len(whole) == 8


def test_a_batch_that_can_not_be_cut_names_the_nearest_that_can():
    with pytest.raises(Exception, match=r"for 4 ranks x accumulate=2. Write batch_size=96 or 104"):
        check_cut(1000, 100, 4, 2, "keep")
