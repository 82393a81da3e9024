"""Phrases and boxes in conversations: each style against values by hand, containers, what is in doubt or wrong."""

import json

import pytest

from dataset_scripts.chat import Chat
from dataset_scripts.chat_text import qwen_size, read_text
from tests.helpers.builders import Workshop, json_lines, name_in_source

SIZE = (1000, 500)  # of the images here


class ChatWorkshop(Workshop):
    def __init__(self, folder):
        super().__init__(Chat, folder)
        self.image("1.png", SIZE)

    def of(self, *records, **options):
        """The rows, and the report."""
        self.write("train.jsonl", json_lines(records))
        return self.rows(True, **options)


@pytest.fixture
def workshop(tmp_path):
    return ChatWorkshop(tmp_path)


def says(answer, question="<image>\nWhat is there?", **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "1", "image": "1.png", "conversations": turns} | more


def told(rows):
    return [(row["phrase"], row["boxes"]) for row in rows]


def test_roboflows_download_for_florence2(workshop):
    for folder in "train", "valid", "test":
        workshop.image(f"../data/{folder}/1.png", SIZE)
        record = {"image": "1.png", "prefix": "<OD>", "suffix": f"{folder} car<loc_52><loc_332><loc_932><loc_774>"}
        workshop.write(f"{folder}/annotations.jsonl", json_lines([record]))
    rows, _ = workshop.build(images_dir=str(workshop.folder), strict=True)
    box = [[52.5, 166.25, 932.5, 387.25]]
    assert {
        split: [(name_in_source(row["image_id"]), *told([row])[0]) for row in own] for split, own in rows.items()
    } == {
        split: [(f"{folder}/1.png", f"{folder} car", box)]
        for split, folder in (("test", "test"), ("train", "train"), ("validation", "valid"))
    }


# Answer → rows; pixels of an image of 1000 x 500.
STYLES = {
    "qwen": (
        "<ref> A woman</ref><box>(448,381),(726,797)</box> with<ref> her dogs</ref><box>(219,428),(580,890)</box>"
        "<box>(0,0),(10,10)</box> on the beach",
        [("A woman", [[448, 190.5, 726, 398.5]]), ("her dogs", [[219, 214, 580, 445], [0, 0, 10, 5]])],
    ),
    "qwen, of Qwen2-VL": (
        "<|object_ref_start|>the eyes on a giraffe<|object_ref_end|><|box_start|>(176,106),(232,160)<|box_end|>",
        [("the eyes on a giraffe", [[176, 53, 232, 80]])],
    ),
    "qwen, of InternVL": (
        "<ref>dogs</ref><box>[[10, 20, 30, 40], [0, 0, 1000, 1000]]</box>",
        [("dogs", [[10, 10, 30, 20], [0, 0, 1000, 500]])],
    ),
    "kosmos2": (
        "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> "
        "warming himself by<phrase> a fire</phrase><object><patch_index_0005><patch_index_0911></object>, and"
        "<phrase> stars</phrase><object><patch_index_0000><patch_index_0002></delimiter_of_multi_objects/>"
        "<patch_index_0033><patch_index_0033></object>",
        [
            ("a snowman", [[390.625, 23.4375, 984.375, 414.0625]]),
            ("a fire", [[171.875, 7.8125, 484.375, 445.3125]]),
            ("stars", [[0, 0, 93.75, 15.625], [31.25, 15.625, 62.5, 31.25]]),
        ],
    ),
    "florence2": (
        "</s><s>A green car<loc_52><loc_332><loc_932><loc_774>wheels<loc_0><loc_0><loc_99><loc_99><loc_100><loc_100>"
        "<loc_999><loc_999></s>",
        [
            ("A green car", [[52.5, 166.25, 932.5, 387.25]]),
            ("wheels", [[0.5, 0.25, 99.5, 49.75], [100.5, 50.25, 999.5, 499.75]]),
        ],
    ),
    "shikra": (
        "The man[0.22,0.1,0.5,.9] is holding a dog[0.3, 0.2, 0.4, 0.5;0.125,0.5,0.25,1.0] in front of "
        "the tree[0,0.5,1,1].",
        [
            ("The man", [[220, 50, 500, 450]]),
            ("a dog", [[300, 100, 400, 250], [125, 250, 250, 500]]),
            ("the tree", [[0, 250, 1000, 500]]),
        ],
    ),
}
JSON = (
    '```json\n[\n\t{"bbox_2d": [100, 50, 200, 300], "label": "a dog"},\n'
    '\t{"bbox_2d": [1, 5, 20.5, 30], "label": "a dog"}\n]\n```'
)


@pytest.mark.parametrize("style", STYLES)
def test_styles(workshop, style):
    answer, expected = STYLES[style]
    for options in {}, {"style": style.split(",")[0]}:
        rows, report = workshop.of(says(answer), strict=True, **options)
        assert [row["phrase"] for row in rows] == [phrase for phrase, _ in expected]
        for row, (_, boxes) in zip(rows, expected):
            assert row["boxes"] == [pytest.approx(box) for box in boxes]
        assert not report.dropped and report.kept["images"] == 1


@pytest.mark.parametrize(
    ("style", "boxes"),
    [
        ("qwen2.5", [[100, 50, 200, 300], [1, 5, 20.5, 30]]),
        ("qwen3", [[100, 25, 200, 150], [1, 2.5, 20.5, 15]]),
        # 1000 x 500 is resized to 1008 x 504.
        (
            "qwen2.5-resized",
            [[100 / 1.008, 50 / 1.008, 200 / 1.008, 300 / 1.008], [1 / 1.008, 5 / 1.008, 20.5 / 1.008, 30 / 1.008]],
        ),
    ],
)
@pytest.mark.parametrize("form", ["{}", "<think>[1, 2]</think> Here: {}!", '{{"objects": {}}}'])
def test_json_is_read_as_style_says(workshop, style, boxes, form):
    rows, _ = workshop.of(
        says(form.format(JSON.strip("`json\n") if "objects" in form else JSON)), style=style, strict=True
    )
    assert [row["phrase"] for row in rows] == ["a dog"]
    assert rows[0]["boxes"] == [pytest.approx(box) for box in boxes]


def test_json_of_which_style_says_nothing_is_refused(workshop):
    message = (
        r"train\.jsonl in .*: nobody can tell .*\(bbox_2d in 1 records\): say --style qwen2\.5 if they are pixels of"
    )
    with pytest.raises(ValueError, match=message):
        workshop.of(says(JSON))


@pytest.mark.parametrize(
    ("size", "resized"),
    [((640, 480), (644, 476)), ((4000, 3000), (1148, 840)), ((40, 30), (84, 56)), ((10, 1000), (28, 1008))],
)
def test_how_qwen_resizes(size, resized):
    assert qwen_size(*size) == resized


def test_several_styles_are_refused_until_one_is_named(workshop):
    both = says(STYLES["qwen"][0]), says(STYLES["kosmos2"][0])
    with pytest.raises(
        ValueError, match=r"in several ways \(qwen in 1 records, kosmos2 in 1 records\): say which to read"
    ):
        workshop.of(*both)
    rows, report = workshop.of(*both, style="kosmos2")
    assert len(rows) == 3 and report.dropped == {"records: without a phrase and box in their text": 1}
    with pytest.raises(ValueError, match="no text has boxes as of style shikra; found: qwen, kosmos2"):
        workshop.of(*both, style="shikra")
    with pytest.raises(ValueError, match="style: 'llava' is none of qwen, kosmos2, florence2"):
        workshop.of(*both, style="llava")
    with pytest.raises(ValueError, match="no answer has boxes in its text as any of qwen,"):
        workshop.of(says("A dog."))


@pytest.mark.parametrize(
    ("answer", "style"),
    [
        ("<ref>a dog</ref><box>(1588,499),(1725,789)</box>", "qwen"),
        ("<ref>a dog</ref><box>(0.1,0.2),(0.5,0.9)</box>", "qwen"),
        ("<phrase>a dog</phrase><object><patch_index_0900><patch_index_0044></object>", "kosmos2"),
        ("<phrase>a dog</phrase><object><patch_index_0900><patch_index_1044></object>", "kosmos2"),
        ("a dog<loc_1><loc_2><loc_3><loc_1000>", "florence2"),
        ("a dog[0.1,0.2,0.5,1.9]", "shikra"),
        (JSON.replace("100", "1001"), "qwen3"),
    ],
)
def test_boxes_in_other_units_are_refused_where_they_are_many(workshop, answer, style):
    with pytest.raises(ValueError, match=rf"train\.jsonl: \d of \d boxes are none of style {style} \(record 0: "):
        workshop.of(says(answer), style=style)
    good = next(STYLES[name][0] for name in STYLES if name == style) if style != "qwen3" else JSON
    workshop.image("0.png", SIZE)
    rows, report = workshop.of(says(answer, image="0.png"), *[says(good)] * 4, style=style)
    assert (
        report.dropped["phrases: none of their boxes is of use"] + report.dropped["phrases: one of their boxes is lost"]
        == 1
    )
    assert len(rows) == (1 if style == "qwen3" else len(STYLES[style][1]))


def test_a_phrase_in_two_records_of_an_image_has_the_boxes_of_both(workshop):
    """Asked where the cat is, and for all cats."""
    box, others = "<ref>the cat</ref><box>(100,200),(400,600)</box>", "<box>(500,500),(700,700)</box>"
    rows, _ = workshop.of(says(box), says(f"{box}{others}"), style="qwen")
    assert told(rows) == [("the cat", [[100, 100, 400, 300], [500, 250, 700, 350]])]


# Text -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("the red car in the rain[B]", ["the red car in the rain"]),
        ("There is a man[B] and a dog[B].", ["a man", "a dog"]),
        ("Answer: the man[B]", ["the man"]),
        ("Yes. Dogs in the snow[B]", ["Dogs in the snow"]),
        ("A man[B] wearing a hat[B]", ["A man", "a hat"]),
        ("A man[B] sits on the bench[B], next to the left of his dog[B]", ["A man", "the bench", "his dog"]),
        ("A man[B] and woman in the hat[B]", ["A man", "woman in the hat"]),
        ("cars[B], trucks[B] and dogs[B]", ["cars", "trucks", "dogs"]),
        ("red car[B] blue truck[B]", ["red car", "blue truck"]),
        ("A man[B] holds dogs[B]", ["A man", None]),
        ("A man[B] and dogs near the tree[B]", ["A man", None]),
        ("A man[B] with woman in the hat[B]", ["A man", None]),
        ("[B]", [None]),
        ("It is at [B] and [B].", [None, None]),
        ("The dog is at [B]. Its bounding box is [B], its coordinates [B]", [None, None, None]),
        ("the dog on the right[B]", ["the dog on the right"]),
    ],
)
def test_where_a_phrase_begins_that_no_mark_begins(text, phrases):
    marked = list(read_text(text.replace("[B]", "[0.1,0.2,0.3,0.4]"), "shikra", SIZE))
    assert [mark.phrase for mark in marked] == phrases


def test_phrases_have_their_sentence(workshop):
    rows, _ = workshop.of(says(STYLES["kosmos2"][0]))
    caption = "An image of a snowman warming himself by a fire, and stars"
    assert {row["caption"] for row in rows} == {caption}
    assert [row["caption_span"] for row in rows] == [[3, 5], [8, 10], [11, 12]]
    rows, _ = workshop.of(says("<ref>the dog</ref><box>(1,1),(9,9)</box>"))
    assert rows[0]["caption"] is None and not rows[0]["caption_span"]


def test_a_question_may_have_the_phrase_and_pointing_words_are_none(workshop):
    box = "<box>(100,100),(200,200)</box>"
    ask = "Picture 1: <img>1.png</img>\nWhere is <ref>the dog</ref>?"
    rows, _ = workshop.of(says(box, ask), strict=True)
    assert told(rows) == [("the dog", [[100, 50, 200, 100]])]
    rows, _ = workshop.of(says("It barks.", f"What does <ref>the dog</ref>{box} do?"), strict=True)
    assert told(rows) == [("the dog", [[100, 50, 200, 100]])]
    rows, report = workshop.of(says(f"<ref>This</ref>{box} is a dog, <ref>it</ref>{box} barks"), strict=True)
    assert not rows and report.dropped == {"phrases: that only point, as «it» and «this» do": 2}
    rows, report = workshop.of(says(box, "<ref>dog</ref> or <ref>cat</ref>?"))
    assert not rows and report.dropped == {"boxes: without a phrase whose beginning and end can be told": 1}
    # The example of an answer in a question is none.
    question = 'Like [{"bbox_2d": [1, 2, 3, 4], "label": "head"}]'
    assert told(workshop.of(says(JSON, question), style="qwen2.5", strict=True)[0])[0][0] == "a dog"


@pytest.mark.parametrize(
    "text", ["<ref>a</ref><box>(1,2)</box>", "<ref>a</ref><box>(1,2),(3,4),(5,6)</box>", "<ref>a</ref><box></box>"]
)
def test_boxes_that_are_no_four_numbers_lose_their_phrase(workshop, text):
    rows, report = workshop.of(says(text), says(STYLES["qwen"][0]))
    assert len(rows) == 2 and report.dropped["phrases: none of their boxes is of use"] == 1


@pytest.mark.parametrize(
    "text",
    ["[{" * 50_000, "<box>(" * 50_000, "<phrase>" * 50_000, "[0.1," * 50_000, "<loc_1>" * 50_000, "is being " * 50_000],
)
def test_long_texts_without_an_end_take_no_time(text):
    for style in "qwen", "kosmos2", "florence2", "shikra", "qwen2.5":
        list(read_text(text + "[0.1,0.2,0.3,0.4]", style, SIZE))


# Records --------------------------------------------------------------------------------------------------------------

MARKED = "<ref>the dog</ref><box>(100,100),(200,200)</box>"
CONTAINERS = {
    "LLaVA": says(MARKED),
    "a list of one image": says(MARKED, image=["1.png"]),
    "Qwen-VL": {
        "id": "identity_1",
        "conversations": [
            {"from": "user", "value": "Picture 1: <img>1.png</img>\n框出图中的狗"},
            {"from": "assistant", "value": MARKED},
        ],
    },
    "LLaMA-Factory": {
        "messages": [{"role": "user", "content": "<image>Find it."}, {"role": "assistant", "content": MARKED}],
        "images": ["1.png"],
    },
    "OpenAI": {
        "messages": [
            {"role": "system", "content": "You are kind."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "file://1.png"}},
                    {"type": "text", "text": "Find the dog."},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": MARKED}]},
        ]
    },
    "Hugging Face": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "1.png"}, {"type": "text", "text": "Find it."}]},
            {"role": "assistant", "content": [{"type": "text", "text": MARKED}]},
        ]
    },
    "ms-swift": {"messages": [{"role": "assistant", "content": MARKED}], "images": [{"path": "1.png"}]},
    "Florence-2's sets": {"image": "1.png", "prefix": "<OD>", "suffix": MARKED},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(workshop, container):
    rows, _ = workshop.of(CONTAINERS[container], strict=True)
    assert told(rows) == [("the dog", [[100, 50, 200, 100]])] and name_in_source(rows[0]["image_id"]) == "1.png"


def test_records_that_cannot_be_used_are_counted(workshop):
    records = [
        says(MARKED, image=None),
        says(MARKED, image=["1.png", "2.png"]),
        says(MARKED, "<img>2.png</img>"),
        says(MARKED, conversations=None),
        says(MARKED, conversations="hello"),
        says("Nothing."),
        says(MARKED, conversations=[7, {"from": "gpt"}, {"from": "gpt", "value": [7]}]),
        says(MARKED),
    ]
    rows, report = workshop.of(*records)
    assert len(rows) == 1 and report.dropped == {
        "records without image": 1,
        "records with several images: nobody knows which one boxes are of": 2,
        "records: without a list of turns": 2,
        "records: without a phrase and box in their text": 2,
    }


def test_without_images_a_size_is_needed(workshop):
    workshop.write("train.json", json.dumps([says(MARKED, image="2.png"), says(MARKED, width=1000, height=500)]))
    rows, report = workshop.rows()
    assert told(rows) == [("the dog", [[100, 50, 200, 100]])]
    assert report.dropped == {"records: of an image whose size is not known: give images_dir": 1}
