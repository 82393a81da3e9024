"""`albef-amc inspect`: counts by hand, trouble by name, a picture of the regions, and a command that trains."""

import json
import re
import shlex
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_albef_amc.visualization import MARK
from tests.helpers.training import TINY_MODEL
from trainer import inspect_dataset, training
from trainer.commands import main, parse

CYAN = (0, 255, 255)


def write(folder, rows, name="train") -> None:
    folder.mkdir(exist_ok=True)
    for number in range(4):
        Image.new("RGB", (100, 50), (40 * number, 80, 90)).save(folder / f"{number}.png")
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(number: int, phrase: object, boxes: object, **more) -> dict:
    return {"image": f"{number}.png", "image_id": str(number), "phrase": phrase, "boxes": boxes, "absent": None, **more}


def test_counts_sizes_and_the_command(tmp_path, capsys):
    """Of 100 x 50 pixels: boxes of 50 (1 %), 250 (5 %), 1,000 (20 %), 2,500 (50 %) and all."""
    boxes = [[0, 0, 10, 5], [0, 0, 25, 10], [0, 0, 50, 20], [0, 0, 50, 50], [0, 0, 100, 50]]
    rows = [row(number % 3, f"thing {number}", [box]) for number, box in enumerate(boxes)]
    rows += [row(3, "two of them", boxes[:2]), row(3, "nothing", [], absent=True)]
    write(tmp_path / "mine", rows)
    write(tmp_path / "mine", rows[:2], "test")
    output = tmp_path / "new" / "sheet.png"
    found = inspect_dataset.main([str(tmp_path / "mine"), "--output", str(output)])
    of_train = {**found["train"], "sizes": list(found["train"]["sizes"].values())}
    expected = {"phrases": 7, "images": 4, "boxes": 6, "polygons": 0, "masks": 0, "scribbles": 0, "absent": 1}
    assert of_train == {**expected, "without region": 1, "sizes": [2, 2, 1, 1, 1], "unusable": [], "refused": None}
    assert found["test"]["phrases"] == 2
    printed = capsys.readouterr().out
    assert "train: 7 phrases of 4 images, 1.8 an image" in printed and "cannot be used" not in printed
    words = shlex.split(printed.split("Train on it: ")[1])
    assert words[:3] == ["albef-amc", "train", "--model"] and words[-1] == "outputs/mine"
    assert words[words.index("--validation_fraction") + 1] == "0.1"
    sheet = Image.open(output).convert("RGB")
    assert MARK == "cyan" and (np.asarray(sheet) == CYAN).all(-1).any()


def test_images_without_ids_are_counted_by_path_or_bytes(tmp_path, capsys):
    rows = [{"image": f"{n % 3}.png", "text": f"thing {n}", "bbox": [0, 0, 30, 30]} for n in range(8)]
    write(tmp_path / "mine", rows)
    contents = [{"bytes": (tmp_path / "mine" / row["image"]).read_bytes(), "path": None} for row in rows]
    (tmp_path / "inside").mkdir()
    inside = datasets.Dataset.from_list([row | {"image": image} for row, image in zip(rows, contents)])
    inside.cast_column("image", datasets.Image()).to_parquet(tmp_path / "inside" / "train.parquet")
    write(tmp_path / "part", [row | {"image_id": id_} for row, id_ in zip(rows, ["a", "a", *[None] * 6])])
    for name, count in ("mine", 3), ("inside", 3), ("part", 4):
        words = [str(tmp_path / name), "--box_format", "xyxy", "--output", str(tmp_path / "sheet.png")]
        found = inspect_dataset.main(words)["train"]
        assert (found["phrases"], found["images"]) == (8, count)
        assert f"8 phrases of {count} images, {8 / count:.1f} an image" in capsys.readouterr().out


def test_rows_with_lists_and_masks(tmp_path):
    mask = Image.new("L", (100, 50))
    mask.paste(255, (10, 10, 20, 20))
    mask.save(tmp_path / "mask.png")
    rows = [row(0, ["a", "b", "c"], [[], [[0, 0, 9, 9]], []], masks=[[str(tmp_path / "mask.png")], [], []])]
    write(tmp_path / "mine", rows)
    found = inspect_dataset.main([str(tmp_path / "mine"), "--output", str(tmp_path / "sheet.png")])["train"]
    assert (found["phrases"], found["masks"], found["boxes"], found["without region"]) == (3, 1, 1, 1)
    assert found["images"] == 1 and found["unusable"] == [] and sum(found["sizes"].values()) == 2


def test_trouble_is_named_and_strict_stops(tmp_path, capsys):
    rows = [row(number % 4, f"thing {number}", [[0, 0, 10, 10]]) for number in range(20)]
    rows += [row(0, "beside", [[200, 0, 210, 10]]), row(1, " ", [[0, 0, 9, 9]]), {**rows[0], "image": "none.png"}]
    write(tmp_path / "mine", rows)
    arguments = [str(tmp_path / "mine"), "--output", str(tmp_path / "sheet.png")]
    found = inspect_dataset.main(arguments)
    assert len(found["train"]["unusable"]) == 3
    printed = capsys.readouterr().out
    assert "3 of 23 cannot be used (13.0%):" in printed and "phrase 'beside': " in printed and "none.png" in printed
    with pytest.raises(ValueError, match=r"3 records cannot be used; the first: image '0', phrase 'beside'"):
        inspect_dataset.main([*arguments, "--strict"])
    write(tmp_path / "none", [{**row(0, "a", [[0, 0, 9, 9]]), "image": "no.png"}])
    with pytest.raises(ValueError, match=r"No record of .*none can be used\. 1 of 1 records .*no\.png.*Mend or drop"):
        inspect_dataset.main([str(tmp_path / "none")])


@pytest.mark.parametrize(("more", "is_of_units"), [({"image": "no.png"}, False), ({"boxes": [[9, 9, 1, 1]]}, True)])
def test_another_format_is_proposed_where_boxes_are_the_trouble(tmp_path, capsys, more, is_of_units):
    rows = [row(number, f"thing {number}", [[0, 0, 9, 9]]) for number in range(4)]
    write(tmp_path / "mine", [*rows[:2], *({**each, **more} for each in rows[2:])])
    found = inspect_dataset.main([str(tmp_path / "mine"), "--output", str(tmp_path / "sheet.png")])
    assert len(found["train"]["unusable"]) == 2
    assert ("are in another box_format" in capsys.readouterr().out) == is_of_units
    assert ("box_format" in found["train"]["refused"]) == is_of_units


# What is in each row, and why neither training nor evaluation takes it.
REFUSED = [
    (
        {"at": [0, 0, 9, 9]},
        r"none of the columns boxes, .*; not understood: at\. Say which .*--columns boxes=…",
    ),
    ({"bbox": [40, 20, 60, 40]}, r"boxes \(bbox\) may be .*Say which: --box_format .*--columns boxes=…"),
    ({"bbox": [0, 0, 9, 9], "box": [0, 0, 9, 9]}, r"in doubt what boxes is\. Say --columns boxes=bbox or boxes=box"),
    ({"boxes": []}, r"AMC needs regions, and boxes of the 4 training phrases are empty\. Fill them, or train without"),
    (
        {"boxes": [[0, 0, 9, 9]], "image_id": "a"},
        r"two different images have the image_id 'a' .*give every image an id",
    ),
    ({"boxes": [[0, 0, 9, 9]], "image_id": None}, None),
]


@pytest.mark.parametrize(("more", "reason"), REFUSED)
def test_what_training_refuses_ends_with_what_to_do_about_it(tmp_path, capsys, more, reason):
    write(tmp_path / "mine", [{"image": f"{number}.png", "phrase": f"thing {number}", **more} for number in range(4)])
    arguments = [str(tmp_path / "mine"), "--output", str(tmp_path / "sheet.png")]
    found = inspect_dataset.main(arguments)["train"]
    printed, settings = capsys.readouterr().out, ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    assert ("Train on it: " in printed) == (reason is None)
    if reason is None:
        assert found["refused"] is None
        return
    assert re.search(f"Split train can neither be trained on nor scored: .*{reason}", printed)
    (tmp_path / "config.json").write_text("{}")
    settings += ["--dataset", str(tmp_path / "mine"), "--image_size", "32", "--save_strategy", "no"]
    with pytest.raises(ValueError, match=reason):
        training.main([*settings, "--model_config", json.dumps(TINY_MODEL), "--per_device_train_batch_size", "4"])


def test_a_sample_is_read_of_large_data(tmp_path):
    write(tmp_path / "mine", [row(number % 4, f"thing {number}", [[0, 0, 10, 10]]) for number in range(40)])
    options = ["--output", str(tmp_path / "sheet.png"), "--num_read", "7", "--num_pictured", "3"]
    found = inspect_dataset.main([str(tmp_path / "mine"), *options])["train"]
    assert found["phrases"] == 40 and sum(found["sizes"].values()) == 7


def test_the_command_it_ends_with_trains(tmp_path, capsys, monkeypatch):
    """Of a file with other columns and units, as a user would copy it."""
    rows = [{"img": f"{number}.png", "caption": f"thing {number}", "bbox": [50, 10, 40, 30]} for number in range(4)]
    write(tmp_path / "mine", rows)
    monkeypatch.chdir(tmp_path)
    main(["inspect", "mine/train.jsonl", "--columns", "phrase=caption", "--box_format", "xywh", "--download_images"])
    words = shlex.split(capsys.readouterr().out.split("Train on it: ")[1])
    assert "--box_format" in words and "phrase=caption" in words and "--download_images" in words
    given = []
    monkeypatch.setattr(training, "main", given.extend)
    main(words[1:])
    assert given == words[2:]


@pytest.mark.parametrize("dataset", [".", "..", "labels.json"])
def test_nothing_is_written_into_the_data_set(tmp_path, capsys, monkeypatch, dataset):
    """A picture in it would be among its images, and files around annotations have them built anew."""
    write(tmp_path / "mine", [row(number, f"thing {number}", [[0, 0, 9, 9]]) for number in range(4)])
    labels = {"images": [{"id": 0, "file_name": "0.png", "width": 100, "height": 50}]}
    labels |= {"categories": [{"id": 0, "name": "dog"}]}
    labels |= {"annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [0, 0, 9, 9]}]}
    (tmp_path / "mine" / "labels.json").write_text(json.dumps(labels))
    (tmp_path / "mine" / "below").mkdir()
    before = sorted((tmp_path / "mine").rglob("*"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path / "mine" / ("below" if dataset == ".." else ""))
    main(["inspect", dataset])
    output = Path(shlex.split(capsys.readouterr().out.split("Train on it: ")[1])[-1])
    assert output.resolve() == tmp_path / "outputs" / ("labels" if dataset == "labels.json" else "mine")
    assert sorted((tmp_path / "mine").rglob("*")) == before and (tmp_path / "inspected.png").is_file()
    if dataset != "labels.json":
        with pytest.raises(SystemExit):
            main(["inspect", dataset, "--output", "sheet.png"])
        assert "would put files among those of the data set" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--num_read", "--num_pictured"])
def test_none_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        parse("inspect", ["x", option, "0"])
    assert "--num_read and --num_pictured must be at least 1" in capsys.readouterr().err
