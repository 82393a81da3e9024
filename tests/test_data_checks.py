"""Data that people have: other columns and units, lists of phrases, ids twice, paths, no validation; named or right."""

import io
import json
import logging
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

import train
from dataset_scripts.features import encode_png
from tests.helpers import forked
from tests.helpers.data import odd_exif, picture, tiny_albef, tiny_dataset, tiny_processor, tiny_records, write_folder
from tests.helpers.training import collator_of
from trainer import data_checks, evaluate_grounding, ground_dataset, sweep_layers
from trainer.blocks import by_image, open_blocks
from trainer.columns import Columns
from trainer.data_checks import check_regions, with_annotated_share
from trainer.phrase_rows import PhraseRows, records_of
from trainer.process_group import run_script
from trainer.regions import BOX_FORMATS, Region
from trainer.splits import open_split
from trainer.streaming import StreamedRows

ROOT = Path(__file__).parents[1]
SETTINGS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "true", "--report_to", "none"]
SETTINGS += ["--save_strategy", "no", "--num_logged_heatmaps", "1", "--mask_size", "16", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    for part in (tiny_albef(), tiny_processor()):
        part.save_pretrained(folder)
    return str(folder)


def run(model: str, dataset: Path, output: Path, *more: str) -> dict[str, float]:
    return train.main(["--dataset", str(dataset), "--model", model, "--output_dir", str(output), *SETTINGS, *more])


def score(model: str, dataset: Path, output: Path, *more: str, split: str = "validation") -> float:
    """The pointing accuracy by `albef-amc evaluate`."""
    command = ["--models", f"a={model}", "--dataset", str(dataset), "--splits", split, "--cpu", "--num_pictured", "1"]
    return evaluate_grounding.main([*command, "--output", str(output), *more])["a"][split]


def with_boxes(convert, count: int = 8) -> list[dict]:
    """Records whose boxes are written otherwise: (box, width, height of the photo) → box."""
    records = tiny_records(count)
    for record in records:
        width, height = Image.open(io.BytesIO(record["image"]["bytes"])).size
        record["boxes"] = [convert(box, width, height) for box in record["boxes"]]
    return records


def as_xywh(box, width, height):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def as_shares(box, width, height):
    return [box[0] / width, box[1] / height, box[2] / width, box[3] / height]


# Columns and units ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_region_column_of_another_name_is_found_and_said(model, tmp_path, streaming, caplog):
    rows = [{"image": r["image"], "phrase": r["phrase"], "bbox": r["boxes"]} for r in tiny_records(4)]
    features = datasets.Features({"image": datasets.Image(), "phrase": datasets.Value("string"),
                                  "bbox": datasets.List(datasets.List(datasets.Value("float32")))})  # fmt: skip
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        run(model, tmp_path, tmp_path / "run", "--streaming", streaming)
    assert "boxes=bbox; boxes are xyxy, the first is [3.0, 4.0, 15.0, 16.0]. Guessed;" in caplog.text
    without = "--amc_mean_weight", "0", "--amc_max_weight", "0"
    run(model, tmp_path, tmp_path / "run", "--streaming", streaming, *without)


def test_regions_that_are_all_empty_and_regions_that_few_have(caplog):
    with pytest.raises(ValueError, match="boxes, masks of the 4 training phrases are empty"):
        check_regions(tiny_dataset(4, without_region=(0, 1, 2, 3)))
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        check_regions(tiny_dataset(8, without_region=(0, 1, 2, 4, 5, 6)))
    assert "25.0% of the training phrases (2 of 8) have a region" in caplog.text


def test_regions_may_begin_late_in_a_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(data_checks, "_STREAMED_ROWS", 2)
    folder = write_folder(tmp_path, train=tiny_records(4, without_region=(0, 1)))
    check_regions(StreamedRows.open(str(folder), None, "train"))


@pytest.mark.parametrize(
    ("convert", "box_format", "message", "streaming"),
    [
        (
            as_shares,
            "xyxy_normalized",
            "12 of 12 boxes .* above 1: .*--box_format xyxy_normalized. First: phrase ",
            "true",
        ),
        (as_xywh, "xywh", "of 12 boxes .* have no area as xyxy: .*--box_format xywh. First: phrase ", "false"),
    ],
    ids=["shares", "xywh"],
)
def test_boxes_in_other_units_are_refused_until_said_to_be(model, tmp_path, convert, box_format, message, streaming):
    folder = write_folder(tmp_path / "data", train=with_boxes(convert), validation=with_boxes(convert))
    for how in "true", "false":
        with pytest.raises(ValueError, match=message):
            run(model, folder, tmp_path / "run", "--streaming", how)
    plain = write_folder(tmp_path / "plain", train=tiny_records(8), validation=tiny_records(8))
    expected = run(model, plain, tmp_path / "expected", "--streaming", streaming)
    found = run(model, folder, tmp_path / "run", "--box_format", box_format, "--streaming", streaming)
    for name in ("validation_pointing_game", "validation_loss_amc_max"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3)
    scored = score(model, folder, tmp_path / "scored", "--box_format", box_format)
    assert scored == score(model, plain, tmp_path / "plainly")


@pytest.mark.parametrize(
    ("convert", "count", "boxes"),
    [(as_shares, 8, 12), (as_shares, 5, 7), (lambda *_: [0, 0, 1, 1], 8, 12)],
    ids=["all", "most", "whole images"],
)
def test_boxes_in_shares_are_not_scored_as_the_first_pixel(tmp_path, convert, count, boxes):
    """Before any model is looked for."""
    folder = write_folder(tmp_path / "data", validation=with_boxes(convert)[:count] + tiny_records(8)[count:])
    message = rf"(?i)^{boxes} of 12 boxes of split validation of .* no coordinate above 1: .*xyxy_normalized"
    with pytest.raises(ValueError, match=message):
        score("nowhere", folder, tmp_path / "scored")
    with pytest.raises(ValueError, match=message):
        sweep_layers.main(["--model", "nowhere", "--dataset", str(folder), "--cpu"])


def test_scores_need_regions_before_any_model_is_looked_for(tmp_path):
    table = pa.table({"image": [tiny_records(1)[0]["image"]["bytes"]], "phrase": ["a"], "place": [[[1, 2, 3, 4]]]})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "validation.parquet")
    for score_it in (
        lambda: score("nowhere", tmp_path / "set", tmp_path / "scored"),
        lambda: sweep_layers.main(["--model", "nowhere", "--dataset", str(tmp_path / "set"), "--cpu"]),
    ):
        with pytest.raises(ValueError, match=r"scores do; .* has none of the columns boxes, .*not understood: place"):
            score_it()


def test_what_contradicts_itself_is_neither_trained_on_nor_scored(model, tmp_path):
    records = tiny_records(8)
    for record in records[:6]:
        width, height = Image.open(io.BytesIO(record["image"]["bytes"])).size
        mask = np.zeros((height, width), bool)
        mask[30:, 35:] = True
        record["masks"] = [encode_png(mask)]
    folder = write_folder(tmp_path / "data", train=records, validation=records)
    with pytest.raises(ValueError, match=r"6 of 8 records .* cannot be used: image 'scene-0', .* contradict its masks"):
        run(model, folder, tmp_path / "run")
    with pytest.raises(ValueError, match=r"6 of 8 records cannot be used, .*'scene-0.* contradict its masks"):
        score(model, folder, tmp_path / "scored")


@pytest.mark.parametrize(
    ("region", "in_pixels"),
    [
        ({"boxes": [[0.5, 0.25, 1.0, 1.0]]}, {"boxes": [[50, 10, 100, 40]]}),
        ({"polygons": [[[0.5, 0.25, 1.0, 0.25, 1.0, 1.0]]]}, {"polygons": [[[50, 10, 100, 10, 100, 40]]]}),
        ({"scribbles": [[0.5, 0.25]], "scribble_radius": 8.0}, {"scribbles": [[50, 10]], "scribble_radius": 8.0}),
    ],
)
def test_shares_of_the_image_are_no_region_in_pixels(region, in_pixels):
    with pytest.raises(ValueError, match=r"has no coordinate above 1: .*shares of the image"):
        Region.from_record(region, height=40, width=100)
    assert Region.from_record(in_pixels, height=40, width=100).num_instances == 1


def test_the_first_pixel_is_a_region_where_whole_numbers_say_so():
    np.testing.assert_equal(Region.from_record({"boxes": [[0, 0, 1, 1]]}, 40, 100).boxes, [[0, 0, 1, 1]])


def test_half_of_the_boxes_in_shares_and_one_that_is_no_number():
    features, records = tiny_dataset(1).features, tiny_records(8)
    with pytest.raises(ValueError, match=r"6 of 12 boxes .* have no coordinate above 1"):
        check_regions(datasets.Dataset.from_list(with_boxes(as_shares)[:4] + records[4:], features=features))
    records[0]["boxes"] = [[1, float("nan"), 9, 9]]
    check_regions(datasets.Dataset.from_list(records, features=features))


def test_formats_of_boxes_by_hand():
    given = {"xyxy": [10, 20, 40, 30], "xywh": [10, 20, 30, 10], "cxcywh": [25, 25, 30, 10]}
    given |= {f"{name}_normalized": (np.array(box) / [100, 50, 100, 50]).tolist() for name, box in given.items()}
    assert set(given) == set(BOX_FORMATS)
    for name, box in given.items():
        region = Region.from_record({"boxes": [box]}, height=50, width=100, box_format=name)
        np.testing.assert_allclose(region.boxes, [[10, 20, 40, 30]])


def test_a_run_of_unusable_records_does_not_end_well(model, tmp_path):
    records = tiny_records(8)
    for record in records[:6]:
        record["boxes"] = [[500, 500, 600, 600]]
    folder = write_folder(tmp_path / "data", train=records, validation=records)
    with pytest.raises(ValueError, match=r"6 of 8 records .* cannot be used: image 'scene-0', .*outside the image"):
        run(model, folder, tmp_path / "run")
    with pytest.raises(ValueError, match=r"6 of 8 records cannot be used, too many for a score; .*'scene-0"):
        score(model, folder, tmp_path / "scored")


def test_a_held_out_image_that_is_missing_is_not_drawn(model, tmp_path):
    """The first of the two that would be; training goes on and draws the other."""
    records = tiny_records(4)
    records[0]["image"] = {"bytes": b"no picture", "path": None}
    folder = write_folder(tmp_path / "data", train=tiny_records(4), validation=records)
    evaluated = "--eval_strategy", "steps", "--eval_steps", "1", "--num_logged_heatmaps", "2"
    metrics = run(model, folder, tmp_path / "run", *evaluated)
    assert metrics["validation_num_phrases"] == 3
    with Image.open(tmp_path / "run" / "heatmaps.png") as drawn:
        assert drawn.height == 240  # one row


def test_grounding_without_any_answer_does_not_end_well(model, tmp_path, capsys):
    records = tiny_records(4)
    arguments = ["--model", model, "--dataset", str(tmp_path / "data"), "--cpu", "--output", str(tmp_path / "grounded")]
    for record in records[:3]:
        record["image"] = {"bytes": b"no picture", "path": None}
    write_folder(tmp_path / "data", train=records)
    ground_dataset.main(arguments)
    printed = capsys.readouterr().out
    assert "3 have an error instead of an answer" in printed
    assert "The first error: this image is not a readable" in printed
    arguments += ["--max_examples", "3", "--overwrite"]
    with pytest.raises(ValueError, match=r"No row of split train of .* has an answer; the first: this image is not"):
        ground_dataset.main(arguments)


# Lists of phrases, ids ------------------------------------------------------------------------------------------------


def listed_folder(folder: Path, boxes, feature) -> Path:
    """Two photos of two phrases each, in one row a photo."""
    features = datasets.Features({"image": datasets.Image(), "phrase": datasets.List(datasets.Value("string")),
                                  "boxes": feature, "image_id": datasets.Value("string")})  # fmt: skip
    rows = [
        {"image": r["image"], "phrase": [r["phrase"], "the square"], "boxes": boxes(r), "image_id": r["image_id"]}
        for r in tiny_records(4)
    ]
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


NUMBERS = datasets.List(datasets.Value("float32"))


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_lists_of_phrases_have_lists_of_boxes_each(model, tmp_path, streaming):
    folder = listed_folder(tmp_path / "listed", lambda r: [r["boxes"], []], datasets.List(datasets.List(NUMBERS)))
    rows = PhraseRows(open_split(str(folder), None, "train"))
    assert len(rows) == 8 and rows["phrase"][:2] == [tiny_records(1)[0]["phrase"], "the square"]
    assert rows[1]["boxes"] == [] and rows[2]["boxes"] == tiny_records(2)[1]["boxes"]
    assert [row["phrase"] for row in rows.select([3, 0])] == [rows["phrase"][3], rows["phrase"][0]]
    streamed = StreamedRows.open(str(folder), None, "train")
    assert len(streamed) == 8 and [row["phrase"] for row in streamed] == rows["phrase"]
    sizes = ["--phrases_per_image", "2", "--per_device_train_batch_size", "3"]
    metrics = run(model, folder, tmp_path / "run", "--streaming", streaming, *sizes)
    assert metrics["validation_num_phrases"] == 4  # of the others no box is known
    assert score(model, folder, tmp_path / "scored") * 4 in range(5)


@pytest.mark.parametrize("is_listed", [False, True])
def test_annotated_phrases_are_repeated_until_they_are_a_share(tmp_path, is_listed):
    boxes = [[], [[0.0, 0, 9, 9]], [], [[1.0, 1, 9, 9]], []]
    columns = {"phrase": list("abcde"), "boxes": boxes}
    dataset = datasets.Dataset.from_dict(columns).select([4, 0, 1, 2, 3])
    if is_listed:
        rows = {"phrase": [list("xabc"), None, list("de")], "boxes": [[[], *boxes[:3]], None, boxes[3:]]}
        dataset = PhraseRows(datasets.Dataset.from_dict(rows)).select([6, 1, 2, 3, 5])

    def drawn(share: float) -> str:
        return "".join(with_annotated_share(dataset, share)["phrase"])

    assert [drawn(share) for share in (0, 0.4, 0.6, 0.7, 1)] == ["eabcd", "eabcd", "eabbbcdd", "eabbbbcddd", "bd"]
    for nowhere in (dataset.select([0, 1]), datasets.Dataset.from_dict({"phrase": ["a"]})):
        with pytest.raises(ValueError, match="needs phrases with a region, and none of the training data has one"):
            with_annotated_share(nowhere, 0.5)


def test_boxes_of_no_phrase_in_particular_are_refused_alike(model, tmp_path):
    folder = listed_folder(tmp_path / "flat", lambda r: r["boxes"], datasets.List(NUMBERS))
    message = r"Column boxes of .*flat holds .*, one entry for each of the row's phrases"
    with pytest.raises(ValueError, match=message):
        run(model, folder, tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        score(model, folder, tmp_path / "scored", split="train")
    folder = listed_folder(tmp_path / "short", lambda r: [r["boxes"]], datasets.List(datasets.List(NUMBERS)))
    with pytest.raises(
        ValueError, match=r"image 'scene-0', phrase \['red .*'the square'\]: boxes has 1 entries for 2 phrases"
    ):
        run(model, folder, tmp_path / "run")


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_row_without_its_list_of_phrases_is_one_unusable_record(model, tmp_path, streaming):
    folder = listed_folder(tmp_path / "listed", lambda r: [r["boxes"], []], datasets.List(datasets.List(NUMBERS)))
    table = pq.read_table(folder / "train.parquet")
    rows = table.to_pylist()
    rows[1] |= {"phrase": None, "boxes": None}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "train.parquet")
    expected = [phrase for row in rows for phrase in row["phrase"] or [None]]
    found = PhraseRows(open_split(str(folder), None, "train"))
    assert found["phrase"] == [row["phrase"] for row in found] == expected and found["boxes"][2] is None
    streamed = StreamedRows.open(str(folder), None, "train")
    assert len(streamed) == 7 and [row["phrase"] for row in streamed] == expected
    check_regions(streamed if streaming == "true" else found)
    run(model, folder, tmp_path / "run", "--streaming", streaming)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_lists_of_phrases_in_another_format(name):
    """One `absent` for all phrases of a row; a list of them in the other column."""
    row = {"phrase": ["a dog", "a cat"], "absent": True, "boxes": [[[1.0, 2, 3, 4]], [[5.0, 6, 7, 8]]]}
    dataset = datasets.Dataset.from_list([row, row]).with_format(name)
    for records in (records_of(dataset[0]), list(PhraseRows(dataset))[:2]):
        assert [record["phrase"] for record in records] == row["phrase"]
        assert [bool(record["absent"]) for record in records] == [True, True]
        assert [[list(map(float, box)) for box in record["boxes"]] for record in records] == row["boxes"]
    assert PhraseRows(dataset)["boxes"] == row["boxes"] * 2


def test_different_pictures_under_one_id_are_an_error():
    records = tiny_records(3)
    records[1]["image_id"] = records[0]["image_id"]
    with pytest.raises(ValueError, match="two different images have the image_id 'scene-0'"):
        collator_of()(records)
    with pytest.raises(ValueError, match="two different images have the image_id 'scene-0'"):
        list(by_image(records))
    for first, second in ((picture(), picture()), (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8))):
        same = [{"image": image, "image_id": 7, "phrase": "red square"} for image in (first, second)]
        assert len(collator_of()(same)["pixel_values"]) == 1


def test_one_picture_in_whatever_form_is_the_same(tmp_path):
    path = tmp_path / "0.png"
    picture().save(path, exif=odd_exif(1))
    forms = [str(path), path, f"{tmp_path}/./0.png", {"bytes": path.read_bytes(), "path": None}, picture(),
             {"bytes": None, "path": str(path)}, Image.open(path), np.array(picture())]  # fmt: skip
    same = [{"image": image, "image_id": 7, "phrase": "red square"} for image in forms]
    assert len(collator_of()(same)["pixel_values"]) == 1
    picture(41).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="two different images have the image_id 7"):
        collator_of()([same[0], {**same[1], "image": tmp_path / "1.png"}])


def test_a_transform_of_lists_of_phrases_is_refused():
    dataset = datasets.Dataset.from_list([{"phrase": ["a dog"], "boxes": [[[1.0, 2, 3, 4]]]}])
    with pytest.raises(ValueError, match=r"know no with_transform .*use map instead"):
        PhraseRows(dataset.with_transform(lambda batch: batch))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "names", [{"phrase": "caption"}, {"phrase": "caption", "caption": "phrase"}, {"phrase": "image_id"}]
)
def test_a_column_takes_the_name_of_another(tmp_path, streaming, names):
    folder = write_lines(
        tmp_path / "data", train=line(0, caption="a", image_id="b") + line(1, caption="c", image_id="d")
    )
    found = list(open_split(str(folder), None, "train", streaming, Columns(names)))
    is_of_id = names["phrase"] == "image_id"
    assert [row["phrase"] for row in found] == (["b", "d"] if is_of_id else ["a", "c"])
    assert [row.get("caption") for row in found] == {1: [None] * 2, 2: ["a dog"] * 2}[len(names)] or is_of_id


@pytest.mark.parametrize("streaming", [False, True])
def test_keys_that_only_some_rows_have(tmp_path, streaming):
    folder = write_lines(tmp_path / "data", train=line(0, boxes=BOX, absent=False), train2=line(1, boxes=BOX))
    (folder / "train2.jsonl").rename(folder / "train-2.jsonl")
    message = r"only some of its rows have the keys absent: write these into every row"
    with pytest.raises(ValueError, match=message):
        list(StreamedRows.open(str(folder), None, "train") if streaming else open_split(str(folder), None, "train"))


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
@pytest.mark.parametrize("undecoded", [False, True])
def test_relative_paths_of_slices_are_of_the_folder(tmp_path, monkeypatch, name, undecoded):
    """Never of the working directory, which has other images of these names."""
    folder = write_lines(tmp_path / "data", train="")
    (folder / "train.jsonl").unlink()
    rows = [{"image": f"{n}.png", "phrase": "a dog"} for n in range(4)]
    rows = [{**row, "image": {"bytes": None, "path": row["image"]}} for row in rows] if undecoded else rows
    if name.endswith("jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    write_lines(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for split, places in (("train", [0, 1, 2, 3]), ("train[:75%]", [0, 1, 2]), ("train[3:]+train[:1]", [3, 0])):
        found = open_split(str(folder), None, split)
        assert [row["image"]["path"] for row in found] == [str(folder / f"{n}.png") for n in places]
    assert [row["image"]["path"] for row in open_split(str(folder), None, "train", True)][3] == str(folder / "3.png")


# Files and splits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_images_and_masks_by_their_paths_read_and_streamed(model, tmp_path, monkeypatch, name):
    """Every kind of row: with boxes, with a mask, with empty lists, with nothing at all."""
    (tmp_path / "data" / "photos").mkdir(parents=True)
    regions = [{"boxes": [[1, 1, 9, 9]], "masks": []}, {"boxes": None, "masks": ["photos/mask.png"]},
               {"boxes": [], "masks": None}, {"boxes": None, "masks": None}]  # fmt: skip
    rows = [{"image": f"photos/{n}.png", "phrase": "red square", **region} for n, region in enumerate(regions)]
    for number in range(4):
        picture(40 + number).save(tmp_path / "data" / "photos" / f"{number}.png")
    mask = np.pad(np.full((8, 6), 255, np.uint8), ((4, 24), (3, 32)))
    Image.fromarray(mask).save(tmp_path / "data" / "photos" / "mask.png")
    if name.endswith("jsonl"):
        (tmp_path / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / name)
    monkeypatch.chdir("/")
    for streaming in (False, True):
        blocks = open_blocks(str(tmp_path / "data"), None, "train", streaming=streaming)
        batch = collator_of()([record for group in blocks[0] for record in group])
        assert batch["image_sizes"].tolist() == [[36, 40], [36, 41], [36, 42], [36, 43]]
        assert batch["boxes"][:, 0].tolist() == [[1, 1, 9, 9], [3, 4, 9, 12], [-100] * 4, [-100] * 4]
    for streaming in ("false", "true"):
        run(model, tmp_path / "data", tmp_path / streaming, "--streaming", streaming, "--strict", "true")


def write_lines(folder: Path, **files: str) -> Path:
    """JSON Lines by the names of their files, and the images that they name."""
    folder.mkdir()
    for number in range(4):
        picture(40 + number).save(folder / f"{number}.png")
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def line(number: int, **columns) -> str:
    return json.dumps({"image": f"{number}.png", "phrase": "a dog", **columns}) + "\n"


BOX = [[1.5, 1, 9, 9]]


@pytest.mark.parametrize(
    ("first", "second", "boxes"),
    [
        (line(0, boxes=None), line(1, boxes=BOX), [None, BOX]),
        (line(0, boxes=[]), line(1, boxes=BOX), [[], BOX]),
        (line(0, boxes=BOX), line(1, boxes=None), [BOX, None]),
        (line(0, boxes=BOX), line(1), [BOX, None]),
        (line(0, boxes=BOX), "", [BOX]),
        (line(0, boxes=[[1, 1, 9, 9]]), line(1, boxes=BOX), [[[1, 1, 9, 9]], BOX]),
    ],
)
def test_files_of_which_one_has_nothing_in_a_column_or_whole_numbers(tmp_path, first, second, boxes):
    folder = str(write_lines(tmp_path / "data", **{"train-0": first, "train-1": second}))
    assert [record["boxes"] for record in open_split(folder, None, "train")] == boxes
    assert [record["boxes"] for record in StreamedRows.open(folder, None, "train")] == boxes
    blocks = open_blocks(folder, None, "train", streaming=True)
    assert [each["boxes"] for block in range(len(blocks)) for group in blocks[block] for each in group] == boxes


@pytest.mark.parametrize("second", ['{"image": "1.p', line(1, boxes=[["a"]])], ids=["cut off", "of texts"])
def test_a_streamed_file_that_cannot_be_read_is_named(tmp_path, second):
    folder = str(write_lines(tmp_path / "data", **{"train-0": line(0, boxes=BOX), "train-1": second}))
    with pytest.raises(ValueError, match=r"train-1\.jsonl cannot be had: "):
        list(StreamedRows.open(folder, None, "train"))
    with pytest.raises(ValueError, match=r"train-1\.jsonl cannot be had: "):
        list(open_blocks(folder, None, "train", streaming=True)[1])


@pytest.mark.parametrize("streaming", [False, True])
def test_masks_beside_the_metadata_of_an_imagefolder(tmp_path, streaming):
    folder = tmp_path / "train"
    for name, image in {"images": picture(), "masks": Image.fromarray(np.full((36, 40), 255, np.uint8))}.items():
        (folder / name).mkdir(parents=True)
        for number in range(2):
            image.save(folder / name / f"{number}.png")
    lines = [{"file_name": f"images/{n}.png", "phrase": "a dog", "masks": [f"masks/{n}.png"]} for n in range(2)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    batch = collator_of()(list(open_split(str(tmp_path), None, "train", streaming)))
    assert batch["boxes"].tolist() == [[[0, 0, 40, 36]]] * 2


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_file_is_named(tmp_path, streaming):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"Split train of .* cannot be had: a file of it is empty"):
        open_split(str(tmp_path), None, "train", streaming)


def test_what_is_trained_on_is_not_evaluated_on(model, tmp_path, caplog):
    folder = write_folder(tmp_path / "data", train=tiny_records(4), validation=tiny_records(4))
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        assert run(model, folder, tmp_path / "run", "--train_split", "train+validation") == {}
    assert "its split validation is trained on: training goes on without evaluation" in caplog.text
    with pytest.raises(ValueError, match="eval_splits: validation is trained on"):
        run(model, folder, tmp_path / "run", "--train_split", "train+validation", "--eval_splits", "validation")


def test_without_validation_training_goes_on_and_says_so(model, tmp_path, caplog):
    folder = write_folder(tmp_path / "data", train=tiny_records(4))
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        assert run(model, folder, tmp_path / "run", "--eval_strategy", "steps", "--eval_steps", "1") == {}
    assert "has no split validation: training goes on without evaluation" in caplog.text
    assert (tmp_path / "run" / "model.safetensors").is_file() and (tmp_path / "run" / "README.md").is_file()
    with pytest.raises(ValueError, match=r"Split validation of .* cannot be had"):
        run(model, folder, tmp_path / "run", "--eval_splits", "validation")
    with pytest.raises(ValueError, match="early_stopping_patience need an evaluation"):
        run(model, folder, tmp_path / "run", "--early_stopping_patience", "2", "--eval_strategy", "steps")


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (train.main, ["--dataset", "nowhere", "--output_dir", "run", "--report_to", "none"], "nowhere"),
        (evaluate_grounding.main, ["--models", "a=no/where", "--dataset", "no/data", "--cpu"], ""),
        (sweep_layers.main, ["--model", "no/where", "--dataset", "no/data", "--cpu"], ""),
        (ground_dataset.main, ["--model", "no/where", "--dataset", "no/data", "--cpu", "--output", "o"], ""),
    ],
)
def test_a_users_mistake_is_told_in_a_line(tmp_path, monkeypatch, capsys, main, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and last.startswith("error: ") and message in last


def test_files_that_are_not_utf_8_are_told_in_a_line(capsys):
    with pytest.raises(SystemExit):
        run_script(lambda: b"caf\xe9".decode())
    assert capsys.readouterr().err.startswith("error: 'utf-8' codec can't decode byte 0xe9")


def test_settings_that_trainer_refuses_are_told_in_a_line(tmp_path, capsys):
    args = TrainingArguments(str(tmp_path), eval_strategy="steps", use_cpu=True, report_to="none")
    with pytest.raises(SystemExit):
        run_script(lambda: Trainer(torch.nn.Linear(1, 1), args))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: You have set `args.eval_strategy` to")


def test_train_py_tells_it_in_a_line(tmp_path):
    done = forked.run([ROOT / "train.py", "--output_dir", "run", "--report_to", "none"], tmp_path, os.environ)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: Say which data set to use")


@pytest.mark.parametrize("main", [lambda: torch.zeros(2).reshape(3), lambda: json.loads("{")])
def test_errors_of_our_own_keep_their_traceback(main):
    with pytest.raises((RuntimeError, json.JSONDecodeError)):
        run_script(main)
