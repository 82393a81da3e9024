"""Evaluation and ground-dataset: against the model asked singly, one process against two, killed and gone on with."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModel

from dataset_scripts.features import FEATURES, encode_png
from modeling_albef_amc import AlbefProcessor, AutoGrounder
from modeling_albef_amc.families.registry import FAMILIES
from modeling_albef_amc.processing_albef import post_process_grounding
from tests.helpers import forked
from tests.helpers.data import PHRASES, tiny_records, write_folder
from tests.helpers.evaluation import (
    IN_TWO_PROCESSES,
    NUM_RECORDS,
    evaluate,
    files,
    ground_arguments,
    records_with_everything,
    rows,
    run_ground,
    save_checkpoint,
    write_files,
)
from tests.helpers.models import SIZE, own_tokenizer_model, slow_siglip_processor, tiny_family_processor
from tests.helpers.runs import torchrun
from tests.helpers.versions import needs
from trainer import benchmarks, evaluate_grounding, evaluation, ground_dataset
from trainer.blocks import Blocks, by_image, open_blocks
from trainer.columns import Columns
from trainer.evaluation import RecordGrounder, ahead, batches_of

ROOT = Path(__file__).parents[1]
METRICS = ("pointing_game", "box_accuracy", "heatmap_box")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "tiny", test=records_with_everything())


@pytest.fixture(scope="module")
def whole(checkpoint, data, tmp_path_factory) -> Path:
    """All of `data` grounded in one run, with heatmaps."""
    folder = tmp_path_factory.mktemp("whole")
    run_ground(checkpoint, data, folder, "--save_heatmaps")
    return folder


def assert_equal_by_rounding(found: list[dict], expected: list[dict], **tolerance: float) -> None:
    tolerance = {"heatmap": 1e-5, "score": 1e-4} | tolerance
    for row, other in zip(found, expected, strict=True):
        maps = np.array(row["heatmap"]), np.array(other["heatmap"])
        np.testing.assert_allclose(*maps, atol=tolerance["heatmap"] * maps[1].max())
        assert row["score"] == pytest.approx(other["score"], rel=tolerance["score"])
        if tolerance["heatmap"] < 1e-4:
            assert {**row, "score": 0, "heatmap": 0} == {**other, "score": 0, "heatmap": 0}


# Blocks and batches ---------------------------------------------------------------------------------------------------


def dataset_of(image_ids: list[str | None]) -> datasets.Dataset:
    found = [{**tiny_records(1)[0], "image_id": image_id} for image_id in image_ids]
    return datasets.Dataset.from_list(found, features=FEATURES).cast_column("image", datasets.Image(decode=False))


def test_blocks_are_cut_between_images():
    ids = [*"aaabbcdddddde", None, None, None, "f"]
    dataset = dataset_of(ids)
    for size in range(1, 20):
        blocks = Blocks(dataset, size)
        read = [[record["image_id"] for group in blocks[i] for record in group] for i in range(len(blocks))]
        assert [image_id for block in read for image_id in block] == ids
        assert all(block for block in read) and blocks.num_rows(range(len(blocks))) == len(ids)
        assert all(len(block) <= size or len(set(block)) == 1 for block in read)
        for one, other in pairwise(read):
            assert one[-1] != other[0] or one[-1] is None
    groups = [len(group) for group in by_image(dataset)]
    assert groups == [3, 2, 1, 6, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        Blocks(dataset, 0)


def test_batches_hold_whole_images():
    def lengths(sizes, batch_size):
        groups = [[{"image": i}] * size for i, size in enumerate(sizes)]
        return [[len(part) for part in batch] for batch in batches_of(groups, batch_size)]

    assert lengths([3, 2, 2, 1, 4], 5) == [[3, 2], [2, 1], [4]]
    assert lengths([2, 12, 1], 5) == [[2], [12], [1]]
    assert lengths([], 5) == []


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_ahead_keeps_the_order_and_hands_on_errors(num_threads):
    assert list(ahead(lambda n: n * n, range(20), num_threads)) == [n * n for n in range(20)]
    taken = []
    results = ahead(lambda n: 1 // (4 - n), (taken.append(n) or n for n in range(100)), num_threads)
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert len(taken) <= 5 + num_threads, "the whole data set was read ahead"


def test_fingerprints_tell_data_sets_apart(data, tmp_path):
    records = records_with_everything()
    same = open_blocks(str(data), None, "test").fingerprint()
    for name, change in {"phrase": "another", "boxes": [[1, 2, 3, 5]], "image_id": "x"}.items():
        other = write_folder(tmp_path / name, test=[*records[:-1], {**records[-1], name: change}])
        assert open_blocks(str(other), None, "test").fingerprint() != same
    copy = write_folder(tmp_path / "copy", test=records)
    assert open_blocks(str(copy), None, "test", block_size=5).fingerprint() == same
    assert open_blocks(str(copy), None, "test", limit=22).fingerprint() != same
    moved = write_folder(tmp_path / "moved", test=[{**records[0], "image": records[-1]["image"]}, *records[1:]])
    assert open_blocks(str(moved), None, "test").fingerprint() != same


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("changed", ["0.png", "mask.png", "test.jsonl"])
def test_fingerprints_see_that_a_file_was_corrected(tmp_path, changed, streaming):
    for name in ("0.png", "mask.png"):
        Image.new("L", (8, 8), 255).save(tmp_path / name)
    (tmp_path / "test.jsonl").write_text('{"image": "0.png", "phrase": "a dog", "masks": ["mask.png"]}\n')
    before = open_blocks(str(tmp_path), None, "test", streaming=streaming).fingerprint()
    assert open_blocks(str(tmp_path), None, "test", streaming=streaming).fingerprint() == before
    content = (tmp_path / changed).read_bytes()
    (tmp_path / changed).write_bytes(content.replace(b"dog", b"cat"))  # as large as before
    os.utime(tmp_path / changed, ns=(0, 10**18))
    assert open_blocks(str(tmp_path), None, "test", streaming=streaming).fingerprint() != before


@pytest.mark.parametrize("streaming", [False, True])
def test_fingerprints_see_what_the_card_says_of_columns(tmp_path, streaming):
    row = {"image": "0.png", "short": "a dog", "long": "a big dog"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    found = set()
    for column in ("short", "long"):
        (tmp_path / "README.md").write_text(f"---\nalbef_amc:\n  columns:\n    phrase: {column}\n---\n")
        found.add(open_blocks(str(tmp_path), None, "test", streaming=streaming, columns=Columns()).fingerprint())
    assert len(found) == 2


def test_a_missing_mask_is_one_unusable_record(checkpoint, tmp_path):
    folder, output = tmp_path / "set", tmp_path / "output"
    folder.mkdir()
    for number in range(3):
        Image.new("L", (8, 8), 255).save(folder / f"{number}.png")
    row = {"image": "0.png", "phrase": "a dog"}
    given = [{**row, "masks": [f"{number}.png"]} for number in (1, 2, 3)]
    (folder / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in given))
    evaluate(checkpoint, folder, output)
    found = [row["error"] for row in rows(output)]
    assert found[:2] == [None, None] and found[2].startswith("there is no image") and found[2].endswith("3.png")


@pytest.mark.parametrize(
    ("given", "box_format", "expected"),
    [
        ([[2, 4, 6, 8]], "xywh", [[2, 4, 8, 12]]),
        ([[0.25, 0.25, 0.5, 1]], "xyxy_normalized", [[5, 4, 10, 16]]),
        ([[1, 2, 30], [31, 3, 5], [30, 31, 2], [3, 30, 31]], "xyxy", "proposal 0 must be four numbers"),
        ([[1, 2, 9, 9], [100, 200, 300, 400]], "xyxy", "proposal 1 lies outside the image of 20x16"),
        ([[0.1, 0.2, 0.5, 0.6]], "xyxy", "proposal 0 has no coordinate above 1"),
    ],
)
def test_proposals_are_read_as_boxes_are(given, box_format, expected):
    settings = {"batch_size": 1, "num_workers": 0, "heatmaps": None, "strict": False}
    grounder = RecordGrounder(None, benchmarks.Protocol(), {}, box_format=box_format, **settings)
    question = grounder._question({"image": None, "phrase": "a dog", "proposals": given}, (16, 20))
    if isinstance(expected, str):
        assert question.error.startswith(expected)
    else:
        assert question.error is None and question.proposals.tolist() == expected


# Rows -----------------------------------------------------------------------------------------------------------------


def test_rows_against_the_model_asked_phrase_by_phrase(checkpoint, data, tmp_path):
    evaluate(checkpoint, data, tmp_path, "--save_heatmaps")
    model, processor = AutoModel.from_pretrained(checkpoint).eval(), AlbefProcessor.from_pretrained(checkpoint)
    found, records = rows(tmp_path), records_with_everything()
    assert len(found) == NUM_RECORDS
    images = datasets.load_dataset(str(data), split="test")["image"]
    for row, record, image in zip(found, records, images, strict=True):
        assert (row["image_id"], row["phrase"]) == (record["image_id"], record["phrase"])
        assert row["categories"] == record["categories"] and row["error"] is None
        inputs = processor(images=image.convert("RGB"), text=[record["phrase"]], return_tensors="pt")
        outputs = model(**inputs, output_heatmaps=True)
        assert row["score"] == pytest.approx(outputs.itm_logits.softmax(-1)[0, 1].item(), rel=1e-4)
        expected = outputs.heatmaps[0].detach()
        np.testing.assert_allclose(np.array(row["heatmap"]), expected, atol=1e-5 * expected.max().item())
        (answer,) = post_process_grounding(torch.tensor(row["heatmap"])[None], (image.height, image.width))
        assert tuple(row["point"]) == answer["point"] and tuple(row["box"]) == answer["box"]
        if not record["boxes"]:
            assert row["pointing_game"] is None and row["heatmap_box"] is None
        else:
            assert row["pointing_game"] is any(
                x1 < row["point"][0] < x2 and y1 < row["point"][1] < y2 for x1, y1, x2, y2 in record["boxes"]
            )


@pytest.mark.parametrize("options", [["--batch_size", "64", "--block_size", "99"], ["--batch_size", "2"]])
def test_rows_do_not_depend_on_how_they_are_batched(checkpoint, data, whole, tmp_path, options):
    """With two phrases a pass, an image of three is encoded once and asked twice."""
    run_ground(checkpoint, data, tmp_path, "--save_heatmaps", *options)
    assert len(files(whole)) == 4 and len(files(tmp_path)) == (1 if "99" in options else 4)
    found = rows(tmp_path)
    assert_equal_by_rounding(found, rows(whole))
    assert len({row["phrase"] for row in found}) > 5 and len({tuple(row["point"]) for row in found}) > 3


def test_bfloat16_changes_rows_by_rounding(checkpoint, data, whole, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    run_ground(checkpoint, data, tmp_path, "--save-heatmaps", "--bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert [row["score"] for row in rows(tmp_path)] != [row["score"] for row in rows(whole)]
    assert_equal_by_rounding(rows(tmp_path), rows(whole), heatmap=0.1, score=0.1)


@pytest.mark.parametrize("batch_size", ["6", "2"])
def test_an_image_is_encoded_once_for_its_phrases(checkpoint, data, tmp_path, monkeypatch, batch_size):
    encoded, load_grounder = [], ground_dataset.load_grounder

    def watched(*args):
        grounder, settings = load_grounder(*args)
        vision_model = grounder.grounder.model.vision_model
        vision_model.register_forward_hook(lambda module, inputs, output: encoded.append(len(output[0])))
        return grounder, settings

    monkeypatch.setattr(ground_dataset, "load_grounder", watched)
    run_ground(checkpoint, data, tmp_path, "--batch_size", batch_size)
    assert sum(encoded) == len({record["image_id"] for record in records_with_everything()}) == 8
    assert max(encoded) == (2 if batch_size == "6" else 1)


@pytest.mark.parametrize("num_workers", ["0", "3"])
def test_threads_change_nothing(checkpoint, data, whole, tmp_path, num_workers):
    run_ground(checkpoint, data, tmp_path, "--save_heatmaps", "--num_workers", num_workers)
    assert files(tmp_path) == files(whole)


@needs("datasets>=5", "a file without rows")
def test_streaming_gives_the_same_rows(checkpoint, whole, tmp_path):
    records = records_with_everything()
    write_files(tmp_path / "data", "test", records[:9], records[9:12], [], records[12:])
    run_ground(checkpoint, tmp_path / "data", tmp_path / "streamed", "--streaming", "--save_heatmaps")
    assert len(files(tmp_path / "streamed")) == 4
    assert_equal_by_rounding(rows(tmp_path / "streamed"), rows(whole))
    results = evaluate(checkpoint, tmp_path / "data", tmp_path / "out", "--streaming", "--num_pictured", "3")
    assert results == evaluate(checkpoint, tmp_path / "data", tmp_path / "again", "--num_pictured", "3")
    streamed, plain = ((tmp_path / name / "heatmaps.png").read_bytes() for name in ("out", "again"))
    assert streamed == plain, "other records are drawn"
    with pytest.raises(ValueError, match="streamed data set is taken whole"):
        run_ground(checkpoint, tmp_path / "data", tmp_path / "x", "--streaming", "--max_examples", "2")


# Several processes, several machines, killed ones ---------------------------------------------------------------------

# Dies by SIGKILL, which nothing can catch, with half of a block's rows written.
KILLED = """
import os, signal, sys
from trainer.record_store import RecordStore
from trainer import ground_dataset
write = RecordStore.write
def write_some(self, block, batches):
    def then_die():
        for number, batch in enumerate(batches):
            if block == 2 and number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
    write(self, block, then_die())
RecordStore.write = write_some
ground_dataset.main(sys.argv[1:])
"""


def test_two_processes_equal_one_record_for_record(checkpoint, data, tmp_path):
    (tmp_path / "wrapper.py").write_text(IN_TWO_PROCESSES)
    scored = ["--models", f"tiny={checkpoint}", "--num_pictured", "3", "--dataset", str(data), "--cpu"]
    scored += ["--batch_size", "4", "--save_heatmaps", "--output"]
    torchrun(str(tmp_path / "wrapper.py"), "trainer.evaluate_grounding", *scored, str(tmp_path / "two"), cwd=tmp_path)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["gloo", "gloo"]
    evaluate_grounding.main([*scored, str(tmp_path / "one")])
    assert len(rows(tmp_path / "one")) == NUM_RECORDS and files(tmp_path / "one") == files(tmp_path / "two")
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    for report in reports:
        assert report["models"]["tiny"]["test"].pop("pairs_per_second") > 0
    assert reports[0] == reports[1]
    assert (tmp_path / "one" / "results.json").read_bytes() == (tmp_path / "two" / "results.json").read_bytes()


def test_a_split_with_records_is_not_scored_again(checkpoint, data, tmp_path, monkeypatch):
    results = evaluate(checkpoint, data, tmp_path)
    (name,) = files(tmp_path)
    assert name == "test.parquet"
    file = tmp_path / "records" / "tiny" / name
    file.with_suffix(".4321.partial").write_bytes(b"of a run that was killed")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_grounding.RecordGrounder, "ground", None)
        assert evaluate(checkpoint, data, tmp_path, "--batch_size", "2") == results
    report = json.loads((tmp_path / "report.json").read_text())["models"]["tiny"]["test"]
    assert report["pairs_per_second"] is None and report["num_records"] == NUM_RECORDS
    made = file.read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(heatmaps: None, now 'float32'.*--overwrite"):
        evaluate(checkpoint, data, tmp_path, "--save_heatmaps")
    assert file.read_bytes() == made
    evaluate(checkpoint, data, tmp_path, "--save_heatmaps", "--overwrite")
    assert file.read_bytes() != made
    file.write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match=r"test\.parquet is damaged: delete it"):
        evaluate(checkpoint, data, tmp_path, "--save_heatmaps")
    with pytest.raises(ValueError, match=r"'test\[:4\]' cannot name files.*--max_examples"):
        evaluate(checkpoint, data, tmp_path, "--splits", "test[:4]")


def test_a_killed_run_goes_on_and_ends_the_same(checkpoint, data, tmp_path, capsys):
    output, options = tmp_path / "killed", ["--batch_size", "3", "--save_heatmaps"]
    command = ground_arguments(checkpoint, data, output, *options)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run_ground(checkpoint, data, tmp_path / "whole", *options)
    killed = forked.run(["-c", KILLED, *command], tmp_path, environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    whole, left = files(tmp_path / "whole"), files(output)
    assert list(left) == list(whole)[:2] and len(whole) == 4
    assert [path.name for path in output.glob("partial*")] == ["partial-test-00002.parquet"]
    made = {path.name: path.stat().st_mtime_ns for path in (output / "data").iterdir()}
    capsys.readouterr()
    ground_dataset.main(command)
    assert "2 of 4 blocks are missing" in capsys.readouterr().out
    assert files(output) == whole and not list(output.glob("partial*"))
    assert all((output / "data" / name).stat().st_mtime_ns == time for name, time in made.items()), "made again"
    ground_dataset.main(command)  # nothing is left to do
    assert files(output) == whole and "pairs/s" not in capsys.readouterr().out.split("going on")[-1]


def test_rows_of_other_settings_are_refused(checkpoint, data, whole, tmp_path):
    output, heatmaps = shutil.copytree(whole, tmp_path / "out"), "--save_heatmaps"
    other = save_checkpoint(tmp_path / "other", seed=1)
    moved = write_folder(tmp_path / "moved", test=records_with_everything())
    before = files(output)
    for model, more, name in [
        (other, [heatmaps], "model: "),
        (checkpoint, [heatmaps, "--max_examples", "20"], "data: "),
        (checkpoint, [], "heatmaps: 'float32', now None"),
        (checkpoint, [heatmaps, "--block_size", "9"], "blocks: 4, now 3"),
    ]:
        with pytest.raises(ValueError, match=rf"other settings \(.*{re.escape(name)}.*--overwrite"):
            run_ground(model, data, output, *more)
        assert files(output) == before
    run_ground(checkpoint, moved, output, heatmaps, "--batch_size", "7")  # the same data elsewhere
    (output / "data" / "test-00001-of-00004.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match=r"test-00001-of-00004\.parquet is damaged: delete it"):
        run_ground(checkpoint, data, output, heatmaps)
    run_ground(other, data, output, "--overwrite")
    assert files(output).keys() == before.keys() and files(output) != before
    (output / "test.json").unlink()
    before = files(output)
    for more in ([], ["--overwrite"]):  # which deletes no files of others
        with pytest.raises(ValueError, match=r"no test\.json to say how they were made"):
            run_ground(checkpoint, data, output, *more)
        assert files(output) == before


# What cannot be used --------------------------------------------------------------------------------------------------

BROKEN = {"bytes": b"\x89PNG\r\n\x1a\n cut off", "path": None}


def broken_records() -> list[dict]:
    records = records_with_everything(12)
    for row in (3, 4, 5):
        records[row]["image"] = BROKEN
    records[7]["phrase"] = " "
    records[8]["phrase"] = "..."  # nothing is left of it after cleaning
    records[9]["phrase"] = "a b c d e f g h i j k l m n o p q r s t u v w"
    records[10]["boxes"] = [[500, 500, 510, 510]]
    return records


def test_records_that_cannot_be_used_are_named_and_counted(checkpoint, whole, tmp_path, capsys):
    folder = write_folder(tmp_path / "broken", test=broken_records())
    with pytest.raises(ValueError, match=r"7 of 12 records cannot be used, too many for a score"):
        evaluate(checkpoint, folder, tmp_path / "out")
    folder = write_folder(tmp_path / "less broken", test=[*broken_records(), *tiny_records(30)[24:]])
    results = evaluate(checkpoint, folder, tmp_path / "out", "--num_pictured", "5", "--gallery", "2", "--overwrite")
    printed = capsys.readouterr().out
    found = rows(tmp_path / "out")
    errors = {number: row["error"] for number, row in enumerate(found) if row["error"] is not None}
    assert sorted(errors) == [3, 4, 5, 7, 8, 9, 10] and len(found) == 18
    for number, reason in {3: "not a readable", 7: "empty", 8: "", 9: "word pieces, the model takes 20"}.items():
        assert reason in errors[number]
    assert "outside the image" in errors[10]
    assert all(found[number]["score"] is None and found[number]["point"] is None for number in errors)
    assert "7 of 18 records cannot be used" in printed and "image 'scene-1', phrase 'small green" in printed
    report = json.loads((tmp_path / "out" / "report.json").read_text())["models"]["tiny"]["test"]
    assert report["num_unusable"] == 7 and len(report["unusable"]) == 7 and report["num_records"] == 18
    # The others are what they would be without the broken ones among them.
    kept = [number for number in range(12) if number not in errors]
    assert [found[number]["point"] for number in kept] == [rows(whole)[number]["point"] for number in kept]
    hits = [row["pointing_game"] for row in found if row["error"] is None and row["pointing_game"] is not None]
    assert results["tiny"]["test"] == sum(hits) / len(hits)


@pytest.mark.parametrize(
    ("row", "message"), [(3, "image 'scene-1', phrase .*not a readable"), (7, "phrase ' '.*empty")]
)
def test_strict_stops_at_the_first_and_names_it(checkpoint, tmp_path, row, message):
    records, broken = records_with_everything(12), broken_records()[row]
    of_image = [{**record, "image": broken["image"]} for record in records if record["image_id"] == broken["image_id"]]
    records[row // 3 * 3 : row // 3 * 3 + 3] = of_image
    records[row] = broken
    folder = write_folder(tmp_path / "broken", test=records)
    with pytest.raises(ValueError, match=message):
        run_ground(checkpoint, folder, tmp_path / "out", "--strict")
    written = {path.name for path in (tmp_path / "out" / "data").iterdir()}
    assert len(written) == row // 6, "a block with a broken record, or one after it, was finished"


def test_nothing_to_score(checkpoint, tmp_path):
    broken = broken_records()[3]
    for name, records, message in [
        ("broken", [broken, broken], "no record that can be used; the first: image 'scene-1'.*not a readable"),
        ("bare", [{**r, "boxes": []} for r in tiny_records(3)], "Split test of .*bare has no phrase with a box"),
    ]:
        folder = write_folder(tmp_path / name, test=records)
        with pytest.raises(ValueError, match=message):
            evaluate(checkpoint, folder, tmp_path / "out" / name)
    run_ground(checkpoint, tmp_path / "bare", tmp_path / "out" / "grounded")
    assert len(rows(tmp_path / "out" / "grounded")) == 3, "to ground, no boxes are needed"


@needs("datasets>=5", "a file without rows")
def test_no_rows(checkpoint, tmp_path):
    write_files(tmp_path, "test", [])
    with pytest.raises(ValueError, match=r"Split test of .* cannot be had: .*no data"):
        evaluate(checkpoint, tmp_path, tmp_path / "out")


def test_one_box_a_phrase_where_the_benchmark_says_so(checkpoint, data, tmp_path, monkeypatch):
    one_box = benchmarks.Protocol(metrics=METRICS, one_box=True)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "referit", one_box)
    evaluate(checkpoint, data, tmp_path, "--benchmark", "referit")
    for row, record in zip(rows(tmp_path), records_with_everything(), strict=True):
        assert (row["error"] is not None) == (len(record["boxes"]) > 1)
        if row["error"] is not None:
            assert "it has 2 boxes" in row["error"]


def test_masks_count_where_there_are_no_boxes(checkpoint, tmp_path):
    boxed = [{**record, "boxes": record["boxes"][:1]} for record in tiny_records(6)]
    masked = []
    for record in boxed:
        x1, y1, x2, y2 = record["boxes"][0]
        mask = np.zeros(np.asarray(Image.open(BytesIO(record["image"]["bytes"]))).shape[:2], dtype=bool)
        mask[y1:y2, x1:x2] = True
        masked.append({**record, "boxes": [], "masks": [encode_png(mask)]})
    found = {}
    for name, records in {"boxed": boxed, "masked": masked}.items():
        folder = write_folder(tmp_path / name, test=records)
        evaluate(checkpoint, folder, tmp_path / "out" / name, "--gallery", "2", "--num_pictured", "2")
        found[name] = rows(tmp_path / "out" / name)
    assert found["boxed"] == found["masked"]
    for picture in ("heatmaps.png", "gallery-tiny-test.png"):  # the same boxes are drawn
        pictures = {Image.open(tmp_path / "out" / name / picture).tobytes() for name in ("boxed", "masked")}
        assert len(pictures) == 1


def test_quiet_is_the_last_word_on_progress(monkeypatch):
    """tqdm's own settings, by which `--quiet` is told, come before the process that shows a bar."""
    for is_quiet in (False, True):
        monkeypatch.setattr(evaluation, "tqdm", partial(tqdm, disable=True) if is_quiet else tqdm)
        assert evaluation.progress_bar(True, total=1).disable is is_quiet
        assert evaluation.progress_bar(False, total=1).disable


# The commands ---------------------------------------------------------------------------------------------------------


def test_a_benchmark_from_command_to_table_and_gallery(checkpoint, tmp_path, capsys):
    records = [{**record, "boxes": record["boxes"][:1]} for record in records_with_everything(12)]
    folder = tmp_path / "refcoco"
    write_files(folder, "testA", records)
    write_files(folder, "testB", records[:6])
    output = tmp_path / "out"
    results = evaluate(checkpoint, folder, output, "--benchmark", "refcoco+", "--gallery", "3")
    report = json.loads((output / "report.json").read_text())
    protocol, found = report["protocol"], report["models"]["tiny"]
    assert (protocol["name"], protocol["image_size"], protocol["max_words"]) == ("RefCOCO+", 384, 30)
    assert list(protocol["metrics"]) == list(METRICS) and list(found) == ["testA", "testB"]
    for split in ("testA", "testB"):
        assert found[split]["pointing_game"]["accuracy"] == results["tiny"][split]
        assert found[split]["pairs_per_second"] > 0
    assert len([row for row in rows(output) if row["box_accuracy"] is not None]) > 8
    people = found["testA"]["pointing_game"]["categories"]["people"]
    expected = [row for row in rows(output)[:12] if "people" in row["categories"]]
    expected = [row["pointing_game"] for row in expected if row["pointing_game"] is not None]
    assert people == {"accuracy": sum(expected) / len(expected), "num_phrases": len(expected)}
    table = (output / "table.md").read_text()
    assert table in capsys.readouterr().out
    (line,) = (line for line in table.splitlines() if line.startswith("| ALBEF + AMC"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["78.89", "61.16", "80.34", "64.55", "–", "–"]
    (own,) = (line for line in table.splitlines() if line.startswith("| tiny"))
    assert f"{100 * results['tiny']['testA']:.2f}" in own and "–" not in own
    for split in ("testA", "testB"):
        pixels = np.asarray(Image.open(output / f"gallery-tiny-{split}.png").convert("RGB")).astype(int)
        assert pixels.shape[0] > 255 and pixels.shape[1] >= 460
        assert ((pixels[..., 0] < 40) & (pixels[..., 1:] > 220).all(axis=-1)).sum() > 100, "no cyan box"


def test_a_benchmark_at_a_size_that_a_model_cannot_take_says_what_can_be_done(tmp_path):
    """Patches of 14 pixels, of which 256 and 384 are no multiples."""
    model = FAMILIES["clip"].small_model(replace(SIZE, patch_size=14, image_size=28))
    model.save_pretrained(tmp_path / "clip")
    tiny_family_processor("clip", PHRASES).save_pretrained(tmp_path / "clip")
    folder = write_folder(tmp_path / "data", test=tiny_records(4))
    message = (
        r"clip: Images of 384 x 384 pixels .* patches of 14\. ReferIt is asked at this size\. Leave out --benchmark"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "clip", folder, tmp_path / "out", "--benchmark", "referit")
    evaluate(tmp_path / "clip", folder, tmp_path / "out", "--splits", "test")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["protocol"]["image_size"] == 28


def test_a_slow_tokenizer(data, tmp_path):
    model, processor = own_tokenizer_model("siglip"), slow_siglip_processor()
    for folder in (tmp_path / "siglip", tmp_path / "moved"):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    run_ground(tmp_path / "siglip", data, tmp_path / "out")
    expected = AutoGrounder(model, processor)
    for row, record in zip(rows(tmp_path / "out"), records_with_everything(), strict=True):
        (answer,) = expected.ground(record["image"], [record["phrase"]])
        assert row["point"] == list(answer["point"]) and row["score"] == pytest.approx(answer["score"], rel=1e-4)
    run_ground(tmp_path / "moved", data, tmp_path / "out")  # the same tokenizer elsewhere
    processor.tokenizer.add_tokens(["square"])
    processor.save_pretrained(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"other settings \(processor: "):
        run_ground(tmp_path / "moved", data, tmp_path / "out")


def test_any_data_set_is_grounded(checkpoint, tmp_path, capsys):
    """Other column names, several phrases in a row, no image ids; the rows load as a data set of the same split."""
    records = tiny_records(4)
    folder = tmp_path / "images" / "data"
    folder.mkdir(parents=True)
    phrases = [["red square", "blue square"], ["white square on the left"], [], ["green square"]]
    columns = {"picture": [record["image"] for record in records], "queries": phrases}
    features = datasets.Features({"picture": datasets.Image(), "queries": datasets.List(datasets.Value("string"))})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "test-00000.parquet")
    renamed = ["--columns", "image=picture", "phrase=queries"]
    run_ground(checkpoint, tmp_path / "images", tmp_path / "out", *renamed, "--save_heatmaps")
    assert re.search(r"\d+\.\d pairs/s\n.* all 4 rows; 0 have an error", capsys.readouterr().out)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="test")
    assert loaded["phrase"][:] == [phrase for row in phrases for phrase in row]
    assert {"image_id", "score", "point", "box", "error", "heatmap"} < set(loaded.column_names)
    assert not set(METRICS) & set(loaded.column_names)
    heatmap = np.array(loaded[0]["heatmap"])
    assert heatmap.shape == (4, 4) and heatmap.max() > 0 and 0 <= loaded[0]["score"] <= 1
    columns = Columns({"image": "picture", "phrase": "queries"})
    blocks = open_blocks(str(tmp_path / "images"), None, "test", columns=columns)
    chosen = blocks.records_at([2, 0])
    assert [record["phrase"] for record in chosen] == ["white square on the left", "red square"]
    with pytest.raises(ValueError, match="has no column caption; it has picture, queries"):
        run_ground(checkpoint, tmp_path / "images", tmp_path / "x", "--columns", "phrase=caption")
    with pytest.raises(ValueError, match="has no column image, phrase"):
        run_ground(checkpoint, tmp_path / "images", tmp_path / "x")
