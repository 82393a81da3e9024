"""Flickr30k Entities: invented trees in both layouts, odd markup, what is dropped and counted, what is refused."""

import json
import re
import shutil

import numpy as np
import pytest

from dataset_scripts.flickr30k_entities import (
    Flickr30kEntities,
    Phrase,
    parse_sentence,
    read_annotation,
    read_sentences,
)
from tests.helpers.builders import name_in_source, read_all, write, write_image
from tests.helpers.flickr30k_tree import (
    DrawnImage,
    Mention,
    Thing,
    annotation_xml,
    draw_images,
    sentence_text,
    write_original,
    write_processed,
)
from trainer.metrics.pointing_game.pointing_game import point_in_boxes

SPLITS = {"train": "train", "val": "validation", "test": "test"}
BOX = Thing(["1"], (1, 1, 4, 4))  # of chain 1; [0, 0, 4, 4] here


def builder(folder, **options) -> Flickr30kEntities:
    return Flickr30kEntities(cache_dir=str(folder / "cache"), data_dir=str(folder), **options)


def build(folder, **options):
    return read_all(builder(folder, **options))


def one_image(things=(), captions=None, image_id="7", size=(40, 30)) -> DrawnImage:
    captions = [*(captions or []), *[["words", "alone"]] * 5][:5]
    return DrawnImage(image_id, size, captions, list(things))


def phrase(chain: str, *words: str, types=("people",)) -> Mention:
    return Mention(chain, list(types), list(words) or ["a", "man"])


def write_one(folder, image: DrawnImage) -> None:
    """A tree of one image that matters, in "train"."""
    others = {"val": [one_image(image_id="8")], "test": [one_image(image_id="9")]}
    write_original(folder, {"train": [image], **others})
    write(folder / "UNRELATED_CAPTIONS", "# format: <imageID> <sentence number>\n")


def rows_of(folder, *things, captions=None, **options):
    write_one(folder, one_image(things, captions))
    rows, report = build(folder, **options)
    return rows["train"], report


@pytest.fixture
def splits():
    return {
        split: list(draw_images(count, seed))
        for seed, (split, count) in enumerate([("train", 12), ("val", 3), ("test", 2)])
    }


# Whole trees ----------------------------------------------------------------------------------------------------------


def expected_rows(image: DrawnImage, unrelated: set[tuple[str, int]]):
    """(id, phrase, boxes, caption, span, types) of the phrases that have boxes, from what was drawn, not from files."""
    boxes = {}
    for thing in image.things:
        for chain in thing.chains if thing.box else []:
            x1, y1, x2, y2 = thing.box
            boxes.setdefault(chain, []).append([x1 - 1, y1 - 1, x2, y2])
    for number, caption in enumerate(image.captions, start=1):
        words = [word for part in caption for word in ([part] if isinstance(part, str) else part.words)]
        position = 0
        for part in caption:
            length = 1 if isinstance(part, str) else len(part.words)
            if length > 1 and part.chain in boxes and (image.image_id, number) not in unrelated:
                span = [position, position + length]
                yield image.image_id, " ".join(part.words), boxes[part.chain], " ".join(words), span, part.types
            position += length


def as_tuple(row):
    columns = "phrase", "boxes", "caption", "caption_span", "categories"
    return name_in_source(row["image_id"]), *(row[key] for key in columns)


def test_a_tree_comes_out_as_it_was_drawn(tmp_path, splits):
    write_original(tmp_path, splits)
    rows, report = build(tmp_path)
    lines = (tmp_path / "UNRELATED_CAPTIONS").read_text().split("\n")[1:]
    unrelated = {(image_id, int(number)) for image_id, number in (line.split() for line in lines)}
    assert len(unrelated) == 12
    for split, name in SPLITS.items():
        assert [as_tuple(row) for row in rows[name]] == [
            row for image in splits[split] for row in expected_rows(image, unrelated)
        ]
    everything = [row for name in rows for row in rows[name]]
    assert everything and all(
        row["caption"].split(" ")[slice(*row["caption_span"])] == row["phrase"].split(" ") for row in everything
    )
    assert all(row["image"] is None and row["masks"] == row["proposals"] == [] for row in everything)
    images = [image for split in splits.values() for image in split]
    mentions = [part for image in images for caption in image.captions for part in caption if isinstance(part, Mention)]
    phrases = [
        report.kept["phrases with boxes"],
        *(n for why, n in report.dropped.items() if why.startswith("phrases")),
    ]
    assert len(everything) == phrases[0] and sum(phrases) == len(mentions)
    things = [thing for image in images for thing in image.things]
    assert report.kept["images"] == 17 and report.kept["captions"] == 5 * 17 - 12
    assert report.dropped["captions: unrelated to their image"] == 12
    assert report.kept["objects with a box"] == sum(thing.box is not None for thing in things)
    assert report.dropped["objects: without a box, marked scene"] == sum(thing.scene for thing in things)
    assert report.dropped["objects: without a box, marked nobndbox"] == sum(thing.nobndbox for thing in things)


def test_both_layouts_give_the_same_rows(tmp_path, splits):
    splits["train"].append(one_image([Thing(["1", "2"], (3, 4, 3, 9))], [[phrase("1"), phrase("2", types=("a", "b"))]]))
    write_original(tmp_path / "original", splits)
    write_processed(tmp_path / "processed", splits)
    shutil.copy(tmp_path / "original" / "UNRELATED_CAPTIONS", tmp_path / "processed")
    original, first = build(tmp_path / "original")
    processed, second = build(tmp_path / "processed")
    assert list(processed) == ["train", "validation", "test"] and all(processed.values())
    assert {split: [as_tuple(row) for row in rows] for split, rows in processed.items()} == {
        split: [as_tuple(row) for row in rows] for split, rows in original.items()
    }
    for counts in (first.kept, second.kept), (first.dropped, second.dropped):
        phrases, again = ({k: n for k, n in own.items() if not k.startswith("objects")} for own in counts)
        assert phrases == again
    for name in "train", "val":  # one split is enough
        for path in (tmp_path / "processed").glob(f"*_{name}.json"):
            path.unlink()
    assert build(tmp_path / "processed")[0] == {"test": processed["test"]}


# Boxes ----------------------------------------------------------------------------------------------------------------


def test_corners_are_half_open_and_the_pointing_game_differs_by_the_last_pixel(tmp_path):
    rows, _ = rows_of(tmp_path, Thing(["1"], (3, 5, 7, 9)), captions=[[phrase("1")]])
    (box,) = rows[0]["boxes"]
    assert box == [2, 4, 7, 9]  # the columns 2 to 6, which are the third to the seventh
    original_tool = [2, 4, 6, 8]
    pixels = [np.array([x, y]) for x in range(12) for y in range(12)]
    ours, theirs = (
        {tuple(pixel.tolist()) for pixel in pixels if point_in_boxes(pixel, np.array([corners]))}
        for corners in (box, original_tool)
    )
    assert theirs == {(x, y) for x in range(3, 6) for y in range(5, 8)}
    last = {(6, y) for y in range(5, 9)} | {(x, 8) for x in range(3, 7)}
    assert ours == theirs | last and not theirs & last


@pytest.mark.parametrize(
    ("corners", "expected"),
    [((1, 1, 40, 30), [0, 0, 40, 30]), ((30, 20, 41, 31), [29, 19, 40, 30]), ((5, 5, 5, 5), [4, 4, 5, 5])],
)
def test_boxes_are_cut_to_the_image(tmp_path, corners, expected):
    rows, report = rows_of(tmp_path, Thing(["1"], corners), captions=[[phrase("1")]])
    assert [row["boxes"] for row in rows] == [[expected]] and not report.dropped
    cut = expected != [corners[0] - 1, corners[1] - 1, *corners[2:]]
    assert report.kept["objects with a box that was cut to the image"] == cut


@pytest.mark.parametrize("corners", [(41, 1, 50, 5), (9, 9, 5, 12)])
def test_boxes_without_area_are_dropped(tmp_path, corners):
    rows, report = rows_of(tmp_path, Thing(["1"], corners), captions=[[phrase("1")]])
    assert not rows and report.dropped == {
        "objects: box without area in the image": 1,
        "phrases: of boxes that were dropped": 1,
    }
    with pytest.raises(ValueError, match=r"image 7, box .* of chain 1"):
        build(tmp_path, strict=True)
    path = tmp_path / "Annotations" / "7.xml"  # where the size is not known, boxes are not cut
    path.write_text(re.sub(r"<size>.*</size>", "", path.read_text(), flags=re.S))
    assert len(build(tmp_path)[0]["train"]) == (corners[0] == 41)


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size><width>0</width><height>0</height></size>",
        "<size><width>40</width></size>",
        "<size><width> </width></size>",
    ],
)
def test_a_size_that_nobody_filled_in_is_that_of_the_image(tmp_path, size):
    write_one(tmp_path, one_image([Thing(["1"], (31, 21, 45, 32))], [[phrase("1")]]))
    path = tmp_path / "Annotations" / "7.xml"
    path.write_text(re.sub(r"<size>.*</size>", size, path.read_text(), flags=re.S))
    unknown = "images of unknown size, whose boxes are cut to positive numbers alone"
    for options, box, count in ({}, [30, 20, 45, 32], 1), ({"images_dir": str(tmp_path)}, [30, 20, 40, 30], 0):
        if options:
            write_image(tmp_path / "7.jpg", (40, 30))
        rows, report = build(tmp_path, **options)
        assert [row["boxes"] for row in rows["train"]] == [[box]] and report.kept[unknown] == count


def test_a_phrase_has_all_boxes_of_its_chain(tmp_path):
    things = [BOX, Thing(["2", "1"], (5, 5, 9, 9)), Thing(["2", "2"], (6, 6, 8, 8))]
    rows, _ = rows_of(tmp_path, *things, captions=[[phrase("1"), phrase("2")], [phrase("1")]])
    first, second = [[0, 0, 4, 4], [4, 4, 9, 9]], [[4, 4, 9, 9], [5, 5, 8, 8]]
    assert [row["boxes"] for row in rows] == [first, second, first]


def test_an_object_may_have_several_boxes(tmp_path):
    write_one(tmp_path, one_image([BOX], [[phrase("1")]]))
    path = tmp_path / "Annotations" / "7.xml"
    second = "<bndbox><xmin>6</xmin><ymin>7</ymin><xmax>8</xmax><ymax>9</ymax></bndbox>"
    path.write_text(path.read_text().replace("</bndbox>", "</bndbox>" + second))
    assert [row["boxes"] for row in build(tmp_path)[0]["train"]] == [[[0, 0, 4, 4], [5, 6, 8, 9]]]


def test_a_chain_that_lost_a_box_has_none(tmp_path):
    """Its phrase would be of all of it, and is not: corners the wrong way round say of nothing where it is."""
    things = [Thing(["1", "2"], (1, 1, 4, 4)), Thing(["1"], (9, 9, 5, 12)), Thing(["2"], (41, 1, 50, 5))]
    rows, report = rows_of(tmp_path, *things, captions=[[phrase("1"), phrase("2")]])
    assert [row["boxes"] for row in rows] == [[[0, 0, 4, 4]]]  # of chain 2, whose other box is beside the image
    assert report.dropped == {
        "objects: box without area in the image": 2,
        "phrases: of a chain that lost one of its boxes": 1,
    }


# Phrases without a box ------------------------------------------------------------------------------------------------

UNBOXED = [
    BOX,
    Thing(["2"], None, scene=1),
    Thing(["3"], None, nobndbox=1),
    Thing(["4"], None, scene=1, nobndbox=1),
    Thing(["5"], (50, 50, 60, 60)),
    Thing(["1"], None, scene=1),
    Thing(["7"], None),
    Thing(["8"], None, nobndbox=1),
    Thing(["8"], None, scene=1),
]
UNBOXED_CAPTION = [phrase(chain, "the", f"thing{chain}") for chain in "012345678"]
UNBOXED_REASONS = {
    "phrases: of the scene as a whole, which has no box": 3,
    "phrases: of what has no box": 2,
    "phrases: of boxes that were dropped": 1,
    "phrases: of a chain that the annotations do not have": 1,
}


def test_phrases_without_a_box_are_counted_by_reason_or_kept_on_demand(tmp_path):
    invisible = {"phrases: of nothing visible (chain 0)": 1}
    rows, report = rows_of(tmp_path, *UNBOXED, captions=[UNBOXED_CAPTION])
    assert [row["phrase"] for row in rows] == ["the thing1"]
    assert {k: n for k, n in report.dropped.items() if k.startswith("phrases")} == UNBOXED_REASONS | invisible
    assert report.kept["phrases with boxes of a chain that is marked scene, too"] == 1
    assert report.dropped["objects: without a box, marked scene"] == 4
    assert report.dropped["objects: without a box, marked nobndbox"] == 3

    rows, report = build(tmp_path, keep_unboxed=True)
    assert [row["phrase"] for row in rows["train"]] == [f"the thing{chain}" for chain in "12345678"]
    assert [row["boxes"] for row in rows["train"]] == [[[0, 0, 4, 4]], *[[]] * 7]
    assert rows["train"][3]["caption_span"] == [8, 10]
    assert {k: report.kept[f"{k}: kept without a region"] for k in UNBOXED_REASONS} == UNBOXED_REASONS
    assert {k: n for k, n in report.dropped.items() if k.startswith("phrases")} == invisible


def test_strict_minds_faults_but_not_what_has_no_box(tmp_path):
    rows, _ = rows_of(tmp_path / "fine", *UNBOXED[:4], captions=[UNBOXED_CAPTION[:5]], strict=True)
    assert len(rows) == 1
    with pytest.raises(ValueError, match="image 7, sentence 2, chain 6: phrases: of a chain that the annotations"):
        rows_of(tmp_path / "unknown", captions=[["words"], [phrase("6")]], strict=True)


# Markup ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words", "phrases"),
    [
        ("[/EN#1/people A man] walks .", "A man walks .", [(0, 2, "1", "people")]),
        ("no phrase at all", "no phrase at all", []),
        ("in [/EN#3/bodyparts/people a man 's arm]", "in a man 's arm", [(1, 5, "3", "bodyparts/people")]),
        (
            "[/EN#1/people A man in [/EN#2/clothing a red shirt]] waves",
            "A man in a red shirt waves",
            [(0, 6, "1", "people"), (3, 6, "2", "clothing")],
        ),
        (
            "[/EN#1/people [/EN#2/people One] of [/EN#3/people two men] here] .",
            "One of two men here .",
            [(0, 5, "1", "people"), (0, 1, "2", "people"), (2, 4, "3", "people")],
        ),
        ("a [/EN#4/other black/white ball]", "a black/white ball", [(1, 3, "4", "other")]),
        ("[sic] [/EN#4/other a [red] ball]", "[sic] a [red] ball", [(1, 4, "4", "other")]),
        ("[/EN#4/other the [red]]", "the [red]", [(0, 2, "4", "other")]),
        ("[/EN#4/other a sad :[ face] ]", "a sad :[ face ]", [(0, 4, "4", "other")]),
        ("[/EN#4/other a ball ] .", "a ball .", [(0, 2, "4", "other")]),
        ("[/EN#4/other a ball], red", "a ball , red", [(0, 2, "4", "other")]),
        ("the[/EN#4/other ball]", "the ball", [(1, 2, "4", "other")]),
        ("[/EN#4/other a][/EN#5/other b]", "a b", [(0, 1, "4", "other"), (1, 2, "5", "other")]),
        ("in [/EN#4/other ] there", "in there", [(1, 1, "4", "other")]),
        ("in [/EN#4/other] there", "in there", [(1, 1, "4", "other")]),
        ("  [/EN#0/notvisual it]\t is\xa0so  \r", "it is so", [(0, 1, "0", "notvisual")]),
        ("[/EN#4/other der Fluß] – 咖啡", "der Fluß – 咖啡", [(0, 2, "4", "other")]),
    ],
)
def test_markup(line, words, phrases):
    sentence = parse_sentence(line)
    assert " ".join(sentence.words) == words
    assert sentence.phrases == [
        Phrase(first, end, chain, tuple(types.split("/"))) for first, end, chain, types in phrases
    ]


def test_a_phrase_without_a_word_is_dropped(tmp_path):
    caption = [phrase("1"), Mention("1", ["people"], [""]), "walks"]
    rows, report = rows_of(tmp_path / "original", BOX, captions=[caption, ["", phrase("1")]])
    assert report.dropped == {"phrases: without a word": 1}
    write_processed(tmp_path / "processed", {"train": [one_image([BOX], [caption, ["", phrase("1")]])]})
    again, report = build(tmp_path / "processed")
    assert report.dropped == {"phrases: without a word": 1}
    for found in (rows, again["train"]):
        assert [(row["phrase"], row["caption"], row["caption_span"]) for row in found] == [
            ("a man", "a man walks", [0, 2]),
            ("a man", "a man", [0, 2]),
        ]
    with pytest.raises(ValueError, match="image 7, sentence 1, chain 1: phrases: without a word"):
        build(tmp_path / "original", strict=True)


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["images", "images/flickr30k-images"])
def test_images_lie_in_the_folder_or_in_flickr30k_images_in_it(tmp_path, folder):
    write_one(tmp_path, one_image([BOX], [[phrase("1")]]))
    stored = {name: write_image(tmp_path / folder / f"{name}.jpg", (40, 30)) for name in "789"}
    rows, report = build(tmp_path, images_dir=str(tmp_path / "images"), strict=True)
    assert [row["image"]["bytes"] for row in rows["train"]] == [stored["7"]] and report.kept["images"] == 3


# What is refused ------------------------------------------------------------------------------------------------------

BROKEN = one_image([Thing(["1"], (2, 2, 4, 4)), Thing(["2"], None, nobndbox=1)])
XML = annotation_xml(BROKEN)
BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "1111111111"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""
OUTSIDE = """<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<annotation><object><name>&a;</name></object></annotation>"""
ANNOTATIONS = [
    (XML[: len(XML) // 2], "is not XML, or was cut off"),
    ("<html>" + XML + "</html>", "is an XML file of <html>"),
    (BOMB, "declares a document type"),
    (OUTSIDE, "declares a document type"),
    (XML.replace("<annotation>", "<annotation>&nbsp;"), "is not XML"),
    ('<?xml version="1.0" encoding="no-such"?>' + XML, "is not XML"),
    (XML.replace("<name>1</name>", ""), "an object has no <name>"),
    (XML.replace("<name>1</name>", "<name> </name>"), "an object has no <name>"),
    (XML.replace("<xmin>2</xmin>", ""), "<xmin> of <bndbox> cannot be None"),
    (XML.replace("<xmin>2</xmin>", "<xmin>two</xmin>"), "<xmin> of <bndbox> cannot be 'two'"),
    (XML.replace("<width>40</width>", "<width>4.5</width>"), "an image cannot have .4.5. x .30. pixels"),
    (XML.replace("<scene>0", "<scene>no"), "<scene> of <object> cannot be 'no'"),
]
SENTENCES = [
    ("one\ntwo\n\nthree\nfour\n", "has 4 sentences, 5 are expected"),
    ("1\n2\n3\n4\n5\n6\n", "has 6 sentences"),
    (b"1\n2\n3\n4\ncaf\xe9\n", "is not UTF-8"),
]
MARKUP = [
    ("[/EN#12/people A man walks .", "chain 12 has no closing bracket"),
    ("[/EN#1/people A man in [/EN#2/clothing a shirt] .", "chain 1 has no closing bracket"),
    ("[/EN#1 A man]", "is not .*<chain>/<type>"),
    ("[/EN#/people A man]", "is not .*<chain>/<type>"),
    ("[/EN#1/people/ A man]", "is not .*<chain>/<type>"),
    ("/EN#1/people A man] walks", "has markup that is not"),
    ("[/EN#1/people A /EN#2/people man]", "has markup that is not"),
]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(("Annotations/7.xml", *case) for case in ANNOTATIONS),
        *(("Sentences/7.txt", *case) for case in SENTENCES),
        *(("Sentences/7.txt", f"fine\nfine\n{line}\n4\n5", f"line 3: .*{message}") for line, message in MARKUP),
    ],
)
def test_a_broken_file_of_an_image_is_refused_by_name(tmp_path, name, content, message):
    write_one(tmp_path, BROKEN)
    build(tmp_path)
    write(tmp_path / name, content)
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / name))}.*{message}"):
        build(tmp_path)


REFUSED = [
    ("Sentences", None, "has neither a folder Sentences"),
    ("Annotations", None, "there is no folder .*Annotations"),
    ("val.txt", None, r"val\.txt: No such file"),
    ("UNRELATED_CAPTIONS", None, "UNRELATED_CAPTIONS: No such"),
    ("test.txt", "\n", r"test\.txt is empty"),
    ("train.txt", "7\n6\n7\n", r"train\.txt: 7 occurs twice"),
    ("test.txt", "9\n7\n", r"test\.txt: 7 is also in .*train\.txt"),
    ("train.txt", "../7\n", r"train\.txt: '\.\./7' is not the number"),
    ("UNRELATED_CAPTIONS", "# format\n7 two\n", "UNRELATED_CAPTIONS, line 2: '7 two' is not"),
    ("UNRELATED_CAPTIONS", "7 6\n", "UNRELATED_CAPTIONS, line 1"),
    ("UNRELATED_CAPTIONS", "7\n", "UNRELATED_CAPTIONS, line 1"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_a_broken_tree_is_refused_before_the_work_begins(tmp_path, name, content, message):
    write_one(tmp_path, one_image())
    assert builder(tmp_path).split_names()
    path = tmp_path / name
    if content is not None:
        write(path, content)
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=message):
        builder(tmp_path).split_names()


@pytest.mark.parametrize("name", ["Sentences/7.txt", "Annotations/7.xml"])
def test_a_listed_image_without_its_file_is_counted(tmp_path, name):
    write_one(tmp_path, one_image())
    (tmp_path / name).unlink()
    rows, report = build(tmp_path)
    assert not rows["train"] and report.kept["images"] == 2
    ((reason, count),) = report.dropped.items()
    assert reason.startswith("images: listed, but without a file of") and count == 1
    with pytest.raises(ValueError, match=re.escape(name)):
        build(tmp_path, strict=True)


# Of an entry of the sentences or of the boxes: what is done to it, and what is said.
PROCESSED = [
    ("sentences", lambda entry: entry.pop("sentence"), "sentence 1 .*KeyError"),
    ("sentences", lambda entry: entry.update(sentence=5), "sentence 1 .*AttributeError"),
    ("sentences", lambda entry: entry["phrases"][0].update(first_word_index=1), "'a man' is not at word 1"),
    ("sentences", lambda entry: entry["phrases"][0].update(first_word_index=-3), "'a man' is not at word -3"),
    ("sentences", lambda entry: entry["phrases"][0].update(phrase_id=None), "has no phrase_id"),
    ("sentences", lambda entry: entry["phrases"][0].update(phrase_type="people"), "no list as phrase_type"),
    ("sentences", lambda entry: entry["phrases"][0].update(phrase_type=[3]), "phrase_type that is no text"),
    ("bounding_boxes", lambda entry: entry.pop("boxes"), "KeyError"),
    ("bounding_boxes", lambda entry: entry["boxes"].update({"1": [[1, 2, 3]]}), "a box cannot be"),
    ("bounding_boxes", lambda entry: entry["boxes"].update({"1": [[1, 2, 3, "4px"]]}), "a box cannot be"),
    ("bounding_boxes", lambda entry: entry.update(scene=[1]), "chains must be a list of texts"),
    ("bounding_boxes", lambda entry: entry.update(width=-1), "an image cannot have -1 x"),
]


def processed(folder, *images, kind="sentences"):
    """One of the two files of the split test, which have nothing else, and its content."""
    write_processed(folder, {"test": list(images)})
    path = folder / f"{kind}_test.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(("kind", "change", "message"), PROCESSED)
def test_a_broken_record_of_the_processed_layout_is_refused(tmp_path, kind, change, message):
    path, content = processed(tmp_path, one_image([BOX], [[phrase("1"), "walks"]]), kind=kind)
    assert len(build(tmp_path)[0]["test"]) == 1
    change(content["7"][0] if kind == "sentences" else content["7"])
    write(path, content)
    with pytest.raises(ValueError, match=rf"{kind}_test\.json, image 7.*{message}"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sentences_test.json", '{"7": [', "sentences_test.json is not JSON, or was cut off"),
        ("sentences_test.json", "[]", "sentences_test.json is empty, or not an object"),
        ("bounding_boxes_test.json", "{}", "bounding_boxes_test.json is empty"),
        ("sentences_test.json", '{"../7": []}', "'../7' is not the number"),
        ("sentences_test.json", '{"7": {}}', "image 7: a list of sentences is expected"),
        ("bounding_boxes_test.json", None, "there is no file .*bounding_boxes_test.json"),
    ],
)
def test_a_broken_file_of_the_processed_layout_is_refused(tmp_path, name, text, message):
    processed(tmp_path, one_image())
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        build(tmp_path)


@pytest.mark.parametrize("kind", ["sentences", "bounding_boxes"])
def test_an_image_in_one_file_of_the_processed_layout_only_is_counted(tmp_path, kind):
    path, content = processed(tmp_path, one_image(), one_image(image_id="8"), kind=kind)
    del content["8"]
    write(path, content)
    _, report = build(tmp_path)
    assert report.kept["images"] == 1 and list(report.dropped.values()) == [1]
    with pytest.raises(ValueError, match=f"{kind}_test.json, image 8: images: without"):
        build(tmp_path, strict=True)


# The real files -------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_nothing_of_the_real_sentences_is_lost(shared_dir):
    """Against expressions of its own that know nothing of brackets in words or phrases in phrases."""
    paths = sorted((shared_dir / "data" / "flickr30k_entities" / "Sentences").glob("*.txt"))
    assert len(paths) == 9
    total = 0
    for path in paths:
        text = path.read_text()
        sentences = read_sentences(path)
        plain = re.sub(r"\[/EN#\d+(/[a-z]+)+ |\]", "", text)
        assert [" ".join(sentence.words) for sentence in sentences] == plain.split("\n")[:5]
        found = [
            (phrase.chain, "/".join(phrase.types), " ".join(sentence.words[phrase.first : phrase.end]))
            for sentence in sentences
            for phrase in sentence.phrases
        ]
        assert found == re.findall(r"\[/EN#(\d+)/([a-z/]+) ([^\]]+)\]", text)
        assert len(found) == text.count("[/EN#")
        total += len(found)
    assert total == sum(len(re.findall(r"/EN#", path.read_text())) for path in paths) == 143


@pytest.mark.shared
def test_the_real_lists_and_the_real_annotation(shared_dir, tmp_path):
    folder = shared_dir / "data" / "flickr30k_entities"
    made = Flickr30kEntities(cache_dir=str(tmp_path), data_dir=str(folder))
    ids = {name: [image_id for job in made.jobs(name) for image_id in job] for name in made.split_names()}
    assert {name: len(found) for name, found in ids.items()} == {"train": 29_783, "validation": 1_000, "test": 1_000}
    assert len({image_id for found in ids.values() for image_id in found}) == 31_783
    assert len(made._unrelated) == 21 and ("129602216", 5) in made._unrelated and ("180753784", 3) in made._unrelated
    annotation = read_annotation(folder / "Annotations" / "1000092795.xml")
    assert annotation.size == (333, 500)
    assert [thing.chains for thing in annotation.objects] == [["1"], ["4"], ["4"], ["1", "6"], ["10"]]
    assert annotation.objects[3].box == [196, 109, 261, 373]
    assert annotation.objects[4] == (["10"], None, False, True)
    rows = list(made.rows("train", ["1000092795"]))
    assert [(row["phrase"], len(row["boxes"])) for row in rows] == [
        ("Two young guys", 2),
        ("Two young , White males", 2),
        ("many bushes", 2),
        ("Two men", 2),
        ("A man", 1),
        ("Two friends", 2),
    ]


@pytest.mark.shared
def test_invented_sentences_look_like_the_real_ones(shared_dir):
    path = shared_dir / "data" / "flickr30k_entities" / "Sentences" / "1000092795.txt"
    caption = [phrase("6", "A", "man"), "in", phrase("7", "a", "blue", "shirt", types=("clothing",)), "standing", "in"]
    caption += [phrase("9", "a", "garden", types=("scene",)), "."]
    assert path.read_text().split("\n")[3] == sentence_text(caption)
