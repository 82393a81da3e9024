"""Training from a streamed data set: every row once, the same again, dealt to processes and workers."""

import json
from collections import Counter

import datasets
import pyarrow.parquet as pq
import pytest
from packaging import version
from torch.utils.data import DataLoader

import train
from dataset_scripts.features import FEATURES
from tests.helpers.data import tiny_albef, tiny_processor, tiny_records, write_folder
from tests.helpers.training import TINY_MODEL, make_trainer
from trainer import training
from trainer.amc_trainer import AmcTrainer
from trainer.streaming import StreamedBatches, StreamedRows, as_it_is

SETTINGS = ["--per_device_train_batch_size", "4", "--use_cpu", "true", "--report_to", "none", "--mask_size", "16"]
SETTINGS += ["--num_logged_heatmaps", "0", "--disable_tqdm", "true", "--save_strategy", "no", "--warmup_steps", "0"]


class Names:
    """A collator that shows what it is given."""

    epoch = 0

    def __call__(self, records):
        return [record["image_id"] + record["phrase"] for record in records]


def streamed(folder, records=None, rows_per_group: int = 4) -> StreamedRows:
    records = tiny_records(24) if records is None else records
    data = write_folder(folder / "data", rows_per_group=rows_per_group, train=records)
    return StreamedRows.open(str(data), None, "train")


def names(records) -> list[str]:
    return Names()(records)


def epoch_of(rows: StreamedRows, epoch: int = 0, **options) -> list[list[str]]:
    batches = StreamedBatches(rows, Names(), **{"batch_size": 5, "buffer_size": 6, **options})
    batches.begin_epoch(epoch)
    return list(batches)


def flat(batches) -> list[str]:
    return [name for batch in batches for name in batch]


# Order ----------------------------------------------------------------------------------------------------------------


def test_an_epoch_is_every_row_once_in_an_order_of_its_own(tmp_path):
    rows = streamed(tmp_path)
    epochs = [epoch_of(rows, epoch) for epoch in range(3)]
    expected = names(tiny_records(24))
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [5, 5, 5, 5, 4]
        assert sorted(flat(epoch)) == sorted(expected) and flat(epoch) != expected
    assert epochs[0] != epochs[1] != epochs[2]
    assert epoch_of(rows, 1) == epochs[1]
    assert epoch_of(rows, 1, seed=1) != epochs[1]
    assert epoch_of(rows, 0, drop_last=True) == epochs[0][:4]


def test_rows_of_different_parts_are_mixed(tmp_path):
    """With a buffer of the whole data, the first batch may hold anything; with one of a row, two parts at most."""
    rows = streamed(tmp_path)
    parts = {name: row // 4 for row, name in enumerate(names(tiny_records(24)))}
    first = [
        [{parts[name] for name in epoch_of(rows, epoch, buffer_size=size)[0]} for epoch in range(8)] for size in (1, 24)
    ]
    assert max(map(len, first[0])) <= 3 and max(map(len, first[1])) >= 4


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 2), (2, 0), (8, 0), (3, 2)])
@pytest.mark.parametrize(("num_rows", "rows_per_group"), [(24, 4), (21, 5), (21, 100)])
def test_processes_and_workers_share_an_epoch(tmp_path, num_processes, num_workers, num_rows, rows_per_group):
    """Every row comes, few of them twice: as many to each process, or gradients would wait for ever."""
    rows = streamed(tmp_path, tiny_records(num_rows), rows_per_group)
    shares = []
    for process in range(num_processes):
        batches = StreamedBatches(rows, Names(), batch_size=2, share=(process, num_processes))
        loader = DataLoader(batches, batch_size=None, collate_fn=list, num_workers=num_workers)
        shares.append(list(loader))
        assert shares[-1] == list(loader) and len(shares[-1]) == len(loader)
    assert len({tuple(map(len, share)) for share in shares}) == 1
    counts = Counter(name for share in shares for name in flat(share))
    assert counts.keys() == set(names(tiny_records(num_rows))) and max(counts.values()) <= 2
    assert sum(counts.values()) == -(-num_rows // num_processes) * num_processes


def test_phrases_of_an_image_follow_each_other_and_share_its_picture(tmp_path):
    records = tiny_records(24, phrases_per_image=4)
    rows = streamed(tmp_path, records, rows_per_group=8)
    given = []
    batches = StreamedBatches(rows, Names(), batch_size=24, buffer_size=100, phrases_per_image=2)
    batches.collator = lambda batch: given.extend(batch)
    list(batches)
    runs = [tuple(record["image_id"] for record in given[start : start + 2]) for start in range(0, 24, 2)]
    assert all(one == other for one, other in runs)
    assert Counter(one for one, _ in runs) == {f"scene-{number}": 2 for number in range(6)}
    assert runs[0::2] != runs[1::2]  # of an image, two runs, and not one after the other
    assert len({id(record["image"]) for record in given}) == 6
    assert sorted(names(given)) == sorted(names(records))


def test_rows_are_what_the_file_holds(tmp_path):
    """As the same split from disk."""
    records = tiny_records(5, without_region=(3,))
    rows = streamed(tmp_path, records, rows_per_group=2)
    prepared = training.load_split(str(tmp_path / "data"), None, "train")
    assert list(rows) == list(prepared) and len(rows) == 5
    if version.parse(datasets.__version__) >= version.parse("5.0"):  # older ones split no files
        assert len(rows.parts) == 3
    assert list(rows["phrase"]) == list(prepared["phrase"])


# Resuming -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_was_trained_on_is_passed_over_without_a_look_at_it(tmp_path, num_workers):
    rows = streamed(tmp_path)
    batches = StreamedBatches(rows, Names(), batch_size=4)
    loader = DataLoader(batches, batch_size=None, collate_fn=as_it_is, num_workers=num_workers)
    batches.begin_epoch(2)
    whole = list(loader)
    batches.begin_epoch(2, passed_over=3)
    assert list(loader) == [None] * 3 + whole[3:]


# Errors ---------------------------------------------------------------------------------------------------------------


def test_sizes_of_nothing(tmp_path):
    rows = streamed(tmp_path)
    for option in ("buffer_size", "phrases_per_image"):
        with pytest.raises(ValueError, match="must be at least 1"):
            epoch_of(rows, **{option: 0})


def test_data_that_cannot_be_streamed(tmp_path):
    folder = str(write_folder(tmp_path / "data", train=tiny_records(2)))
    with pytest.raises(ValueError, match=r"Split other of .* cannot be had"):
        StreamedRows.open(folder, None, "other")
    (tmp_path / "empty").mkdir()
    pq.write_table(FEATURES.arrow_schema.empty_table(), tmp_path / "empty" / "train.parquet")
    with pytest.raises(ValueError, match=r"Split train of .* cannot be had"):
        StreamedRows.open(str(tmp_path / "empty"), None, "train")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.csv").write_text("phrase,number\na,1\n")
    with pytest.raises(ValueError, match="does not say its columns"):
        StreamedRows.open(str(tmp_path / "texts"), None, "train")


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    tiny_albef().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    records = tiny_records(10)
    records[4]["image"] = {"bytes": b"\x89PNG, and no more", "path": None}
    write_folder(folder / "data", rows_per_group=4, train=records, validation=tiny_records(3))
    return folder


def run(folder, output, *more: str) -> dict[str, float]:
    command = ["--dataset", str(folder / "data"), "--output_dir", str(output), "--streaming", "true"]
    return train.main([*command, *SETTINGS, *more])


def test_a_run_of_two_epochs(folder, tmp_path, caplog):
    """The number of steps follows from the data; a broken picture is named once, the card has the number of phrases."""
    caplog.set_level("WARNING")
    metrics = run(folder, tmp_path, "--model", str(folder / "model"), "--num_train_epochs", "2", "--max_steps", "-1")
    assert metrics["validation_num_phrases"] == 3
    results = (tmp_path / "train_results.json").read_text()
    assert '"epoch": 2.0' in results and '"num_unusable": 1' in results
    assert '"global_step": 6' in (tmp_path / "trainer_state.json").read_text()
    assert "| phrases | 10 |" in (tmp_path / "README.md").read_text()


def test_a_tokenizer_is_made_of_the_streamed_phrases(folder, tmp_path):
    run(folder, tmp_path, "--model_config", json.dumps(TINY_MODEL), "--max_steps", "1")
    assert '"square' in (tmp_path / "tokenizer.json").read_text()


def test_a_part_of_streamed_data_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="max_train_examples: streamed data is taken whole"):
        run(folder, tmp_path, "--model", str(folder / "model"), "--max_train_examples", "3")


def test_rows_that_fill_no_batch_are_refused(folder, tmp_path):
    more = "--per_device_train_batch_size", "11", "--dataloader_drop_last", "true"
    with pytest.raises(ValueError, match="dataloader_drop_last leaves nothing of 10 rows a process in batches of 11"):
        run(folder, tmp_path, "--model", str(folder / "model"), *more)


def test_accumulation_and_workers_see_every_batch(folder, tmp_path):
    more = "--gradient_accumulation_steps", "2", "--dataloader_num_workers", "2", "--max_steps", "4"
    run(folder, tmp_path, "--model", str(folder / "model"), *more)
    state = (tmp_path / "trainer_state.json").read_text()
    assert '"global_step": 4' in state and '"epoch": 2.0' in state


def test_streamed_rows_are_not_evaluated_on(tmp_path):
    trainer, rows = make_trainer(tmp_path / "run"), streamed(tmp_path)
    for evaluate in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match="StreamedRows are to train on, and no data to evaluate on: load_split"):
            evaluate(rows)
    with pytest.raises(ValueError, match="StreamedRows are to train on"):
        AmcTrainer(trainer.model, trainer.args, eval_dataset={"held_out": rows}, data_collator=trainer.data_collator)
