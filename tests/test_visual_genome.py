"""Visual Genome, on files made by hand and on its own first hundred images: phrases, boxes, counts, what is refused."""

import json

import pytest

from dataset_scripts.features import FEATURES, make_row
from dataset_scripts.visual_genome import VisualGenome, read_ids
from tests.helpers.builders import Workshop, id_without_image, name_in_source

WIDTH, HEIGHT = 40, 30


def image(id_: int, folder: str = "VG_100K", **changes) -> dict:
    url = f"https://cs.stanford.edu/people/rak248/{folder}/{id_}.jpg"
    plain = {"image_id": id_, "width": WIDTH, "height": HEIGHT, "url": url, "coco_id": None, "flickr_id": None}
    return plain | changes


def region(phrase="a red car", box=(1, 2, 10, 20), image_id=1, **changes) -> dict:
    x, y, width, height = box
    plain = {"region_id": 9, "image_id": image_id, "phrase": phrase, "x": x, "y": y, "width": width, "height": height}
    return plain | changes


def thing(object_id: int, name: str, *attributes, box=(1, 2, 10, 20), **changes) -> dict:
    x, y, w, h = box
    plain = {"object_id": object_id, "names": [name], "x": x, "y": y, "w": w, "h": h, "attributes": list(attributes)}
    return plain | changes


def relationship(subject: dict, predicate: str, other: dict) -> dict:
    return {"predicate": predicate, "subject": subject, "object": other}


CAR, TREE, DOG = thing(1, "car", "red", "parked"), thing(2, "tree", box=(20, 0, 5, 30)), thing(3, "Dog", "small ")
RELATIONSHIPS = [relationship(CAR, "next  TO", TREE), relationship(TREE, "ON", DOG), relationship(DOG, "in", CAR)]


class GenomeWorkshop(Workshop):
    """Writes the files of image 1."""

    def __init__(self, folder):
        super().__init__(VisualGenome, folder)
        self.put("image_data", [image(1)])

    def put(self, name: str, content) -> None:
        self.write(f"{name}.json", content)

    def regions(self, *regions) -> None:
        self.put("region_descriptions", [{"id": 1, "regions": list(regions)}])

    def objects(self, *things) -> None:
        self.put("attributes", [{"image_id": 1, "attributes": list(things)}])

    def relationships(self, *relationships) -> None:
        self.put("relationships", [{"image_id": 1, "relationships": list(relationships)}])

    def phrases(self, **options) -> list[tuple]:
        return [(row["categories"][0], row["phrase"], row["boxes"][0]) for row in self.rows(**options)[0]]


@pytest.fixture
def workshop(tmp_path):
    return GenomeWorkshop(tmp_path)


# The real samples -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sample(shared_dir):
    """Its records by file name, and a function that builds from it."""
    folder = shared_dir / "data" / "visual_genome"

    def build(file: str):
        builder = VisualGenome(data_dir=str(folder), regions_file=file)
        assert builder.split_names() == ["train"]
        return [row for job in builder.jobs("train") for row in builder.rows("train", job)], builder.report

    return (lambda file: json.loads((folder / file).read_text())), build


@pytest.mark.shared
def test_the_real_regions_are_all_there(sample):
    read, build = sample
    rows, report = build("region_descriptions.json")
    assert len(rows) == 7278 and not report.dropped
    assert report.kept == {
        "images": 100,
        "rows: regions": 7278,
        "boxes that began left of or above the image, cut": 4,
        "phrases with stray blanks at an end, cleaned": 557,
        "phrases with stray blanks only inside, cleaned": 45,
    }
    raw = [region for record in read("region_descriptions.json") for region in record["regions"]]
    for row, record in zip(rows, raw, strict=True):
        assert row["phrase"].split(" ") == record["phrase"].split()
        corner = [max(record["x"], 0), max(record["y"], 0)]
        assert row["boxes"] == [[*corner, record["x"] + record["width"], record["y"] + record["height"]]]
        assert (name_in_source(row["image_id"]), row["categories"]) == (str(record["image_id"]), ["region"])
    assert FEATURES.encode_example(rows[0]).keys() == rows[0].keys()


@pytest.mark.shared
def test_the_real_regions_of_the_older_layout_are_kept_or_counted(sample):
    read, build = sample
    rows, report = build("region_descriptions_v1.json")
    raw = [region for record in read("region_descriptions_v1.json") for region in record["regions"]]
    assert len(raw) == 6472 and sum(region["width"] <= 0 or region["height"] <= 0 for region in raw) == 7
    assert report.dropped["regions: box without area in the image"] == 7
    assert report.dropped["regions: phrase and box that the image has already"] == 13
    assert len(rows) + sum(report.dropped.values()) == 6472
    assert report.kept["phrases with stray blanks at an end, cleaned"] == 463


# Phrases --------------------------------------------------------------------------------------------------------------


def test_both_layouts_of_the_regions_give_the_same_rows(workshop):
    workshop.regions(region(), region("a tree", (20, 0, 5, 30)))
    newer = workshop.rows()[0]
    older = [{"id": 4, "image": 1, "phrase": "a red car", "x": 1, "y": 2, "width": 10, "height": 20}]
    older += [older[0] | {"id": 5, "phrase": "a tree", "x": 20, "y": 0, "width": 5, "height": 30}]
    workshop.put("v1", [{"id": 1, "regions": older}])
    workshop.put("image_data", [{"id": 1, "width": WIDTH, "height": HEIGHT, "url": "https://x.org/VG_100K/1.jpg"}])
    assert workshop.rows(regions_file="v1.json")[0] == newer
    expected = [("a red car", [1, 2, 11, 22]), ("a tree", [20, 0, 25, 30])]
    assert newer == [
        make_row(None, id_without_image("visual_genome", workshop.folder, "1"), phrase, [box], categories=["region"])
        for phrase, box in expected
    ]


def test_the_three_kinds_of_an_image_together(workshop):
    workshop.regions(region("The Car"))
    workshop.objects(CAR, TREE, DOG)
    workshop.relationships(*RELATIONSHIPS)
    box = [1, 2, 11, 22]
    regions = [("region", "The Car", box)]
    attributes = [("attribute", phrase, box) for phrase in ("red car", "parked car", "small dog")]
    relations = [
        ("relation", phrase, box) for phrase in ("red car next to tree", "parked car next to tree", "small dog in car")
    ]
    assert workshop.phrases() == regions + attributes + relations
    assert workshop.phrases(kinds="regions") == regions
    assert workshop.phrases(kinds="attributes") == attributes
    assert workshop.phrases(kinds="relations") == relations
    assert workshop.phrases(kinds="relations,regions") == regions + relations
    report = workshop.rows()[1]
    assert report.kept == {"images": 1, "rows: regions": 1, "rows: attributes": 3, "rows: relations": 3}
    assert report.dropped == {"attributes: objects that have none": 1, "relations: whose subject has no attribute": 1}


def test_names_of_objects_have_the_boxes_of_all_that_are_called_so(workshop):
    """As objects.json has them, with synsets; an object with two names is called both."""
    here, there = (1, 2, 10, 20), (20, 0, 5, 30)
    things = [thing(1, "Trees", box=here), thing(2, "trees ", box=there), thing(3, "man", box=here)]
    things += [thing(6, "T-shirt", box=here), thing(7, "t shirt", box=there)]
    things[2]["names"] = ["man", "person", " ", 7]
    for each in things:
        each |= {"synsets": ["tree.n.01"], "merged_object_ids": []}
        del each["attributes"]
    things += [{"names": [], "object_id": 4, **dict(zip("xywh", here))}, 7, thing(5, "trees", box=(-5, 0, 5, 5))]
    url = "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg"
    workshop.put("objects", [{"image_id": 1, "objects": things, "image_url": url}])
    workshop.regions(region("person", here))
    rows, report = workshop.rows()
    assert [(row["categories"], row["phrase"], row["boxes"]) for row in rows] == [
        (["region"], "person", [[1, 2, 11, 22]]),
        (["object"], "trees", [[1, 2, 11, 22], [20, 0, 25, 30]]),
        (["object"], "man", [[1, 2, 11, 22]]),
        (["object"], "t-shirt", [[1, 2, 11, 22], [20, 0, 25, 30]]),
    ]
    assert report.kept["rows: objects"] == 3 and report.dropped == {
        "objects: of an object without name": 2,
        "objects: of a name that is empty or no text": 2,
        "objects: box without area in the image": 1,
        "objects: phrase and box that the image has already": 1,
    }
    assert report.examples["objects: of a name that is empty or no text"] == ["image 1, object 2"] * 2
    assert [row["phrase"] for row in workshop.rows(kinds="objects")[0]] == ["trees", "man", "person", "t-shirt"]
    with pytest.raises(ValueError, match="image 1, object 2: objects: of a name"):
        workshop.rows(kinds="objects", strict=True)
    things[1]["w"] = 0  # lost: the row would not be of all
    workshop.put("objects", [{"id": 1, "objects": things}])
    assert [row["phrase"] for row in workshop.rows(kinds="objects")[0]] == ["man", "person", "t-shirt"]
    with pytest.raises(ValueError, match=r"kinds: attributes need .*attributes\.json"):
        workshop.rows(kinds="objects,attributes")


def test_older_things_are_their_name_and_their_box(workshop):
    """Without ids: neither alone may lend its attributes to another."""

    def older(name, box, *attributes):
        return {"id": 7, "object_names": [name], **place(box), "attributes": list(attributes)}

    def side(name, box):
        return {"id": 70, "name": name, **place(box)}

    def place(box):
        return dict(zip("xywh", box))

    here, there = (1, 2, 10, 20), (5, 2, 10, 20)
    cars = older("car", here, "red", "parked"), older("car", there, "blue"), older("man", here, "tall")
    workshop.put("attributes", [{"id": 1, "attributes": [*cars, older("Car", here, "red")]}])
    sides = [side("car ", here), side("car", there), side("man", here), side("man", there), side("tree", here)]
    workshop.relationships(*(relationship(one, "near", side("dog", there)) for one in sides))
    assert [phrase for _, phrase, _ in workshop.phrases()] == [
        *("red car", "parked car", "blue car", "tall man"),
        *("red car near dog", "parked car near dog", "blue car near dog", "tall man near dog"),
    ]
    assert workshop.rows()[1].dropped == {
        "attributes: phrase and box that the image has already": 1,
        "relations: whose subject has no attribute": 2,
    }


def test_things_with_ids_are_told_apart_by_these_alone(workshop):
    def relations(*sides):
        workshop.relationships(*(relationship(one, "near", TREE) for one in sides))
        return [phrase for kind, phrase, _ in workshop.phrases() if kind == "relation"]

    workshop.objects(thing(1, "car", "red"), thing(2, "car", "blue"))
    assert relations(thing(1, "automobile", box=(5, 5, 5, 5)), thing(3, "car")) == ["red automobile near tree"]
    # An id that is no number is none.
    workshop.objects(thing("a", "car", "red"), thing(None, "car", "blue", box=(5, 5, 5, 5)))
    assert relations(thing("b", "car"), thing("a", "bus")) == ["red car near tree"]


def test_what_is_called_the_same_has_one_row(workshop):
    """A row is of all instances; but a region description of the region that it was written about."""
    here, there, other = [1, 2, 11, 22], [20, 0, 25, 30], [5, 5, 10, 10]
    cars = [
        thing(i, "car", "red", box=(x, y, u - x, v - y)) for i, (x, y, u, v) in enumerate((here, there, other, here))
    ]
    workshop.objects(*cars)
    workshop.relationships(*(relationship(car, "near", TREE) for car in cars[:2]))
    workshop.regions(region("red car"), region("red car", (20, 0, 5, 30)))
    rows, report = workshop.rows()
    assert [(row["categories"], row["phrase"], row["boxes"]) for row in rows] == [
        (["region"], "red car", [here]),
        (["region"], "red car", [there]),
        (["attribute"], "red car", [here, there, other]),
        (["relation"], "red car near tree", [here, there]),
    ]
    assert report.kept["rows: attributes"] == 1 and report.dropped == {
        "attributes: phrase and box that the image has already": 1
    }


@pytest.mark.parametrize("id_", [2, None])
@pytest.mark.parametrize(
    ("box", "is_lost"),
    [
        ((40, 0, 9, 9), False),
        *((box, True) for box in ((1, 2, 0, 20), (39, 0, 9, 9), (1, 2, None, 20), ("?", 2, 9, 20), None)),
    ],
)
def test_a_row_that_lost_an_object_is_left_out(workshop, box, is_lost, id_):
    lost = thing(id_, "car", "red", box=box or (1, 2, 9, 20))
    lost = lost if box else {key: value for key, value in lost.items() if key not in "xywh"}
    workshop.objects(thing(1, "car", "red"), lost, thing(3, "car", "blue"))
    workshop.relationships(*(relationship(car, "near", TREE) for car in (thing(1, "car"), lost, thing(3, "car"))))
    rows, report = workshop.rows()
    whole = ["red car", "blue car", "red car near tree", "blue car near tree"]
    assert [row["phrase"] for row in rows] == (whole[1::2] if is_lost else whole)
    for kind in "attributes", "relations":
        assert report.dropped[f"{kind}: beside one that was lost, without which the row would not be of all"] == is_lost


def test_numbers_of_every_kind_mean_the_same(workshop):
    workshop.objects(CAR, thing(2, "car", "blue"))
    workshop.regions(region())
    workshop.relationships(relationship(thing(1, "auto"), "near", TREE))
    expected = workshop.rows()[0]
    for kind in (str, float, lambda value: f"{value}.0"):
        box = {key: kind(CAR[key]) for key in "xywh"}
        ids = {"image_id": kind(1)}
        workshop.put(
            "image_data", [image(1) | ids | {"width": kind(WIDTH), "height": kind(HEIGHT), "coco_id": kind(7)}]
        )
        things = [each | box | {"object_id": kind(each["object_id"])} for each in (CAR, thing(2, "car", "blue"))]
        workshop.put("attributes", [ids | {"attributes": things}])
        workshop.put(
            "region_descriptions", [{"id": kind(1), "regions": [region(box=tuple(map(kind, (1, 2, 10, 20)))) | ids]}]
        )
        near = relationship(thing(1, "auto") | box | {"object_id": kind(1)}, "near", TREE)
        workshop.put("relationships", [ids | {"relationships": [near]}])
        rows, _ = workshop.rows(strict=True)
        assert rows == expected and len(rows) == 6


def test_all_takes_what_is_there_and_a_named_kind_must_be(workshop):
    workshop.objects(CAR)
    assert [kind for kind, _, _ in workshop.phrases()] == ["attribute"] * 2
    with pytest.raises(ValueError, match=r"kinds: regions need .*region_descriptions\.json"):
        workshop.build(kinds="attributes,regions")
    with pytest.raises(ValueError, match=r"kinds: relations need .*relationships\.json"):
        workshop.build(kinds="relations")
    (workshop.folder / "attributes.json").unlink()
    workshop.relationships(*RELATIONSHIPS)
    with pytest.raises(ValueError, match=r"has none of region_descriptions\.json, objects\.json, attributes\.json"):
        workshop.build()


def test_stray_blanks_are_cleaned_and_counted(workshop):
    phrases = ["a car ", "\ta  tree\n", "a  dog", "a cat", " \n", ""]
    workshop.regions(*(region(phrase, (i, 0, 1, 1)) for i, phrase in enumerate(phrases)))
    rows, report = workshop.rows()
    assert [row["phrase"] for row in rows] == ["a car", "a tree", "a dog", "a cat"]
    assert report.kept["phrases with stray blanks at an end, cleaned"] == 2
    assert report.kept["phrases with stray blanks only inside, cleaned"] == 1
    assert report.dropped == {"regions: with an empty phrase": 2}


@pytest.mark.parametrize(
    ("box", "expected", "began", "ended"),
    [
        ((-3, 4, 10, 10), [0, 4, 7, 14], 1, 0),
        ((35, 25, 6, 8), [35, 25, 40, 30], 0, 1),
        ((-5, -5, 50, 40), [0, 0, 40, 30], 1, 1),
        (("-3", "4.0", 10.0, "1e1"), [0, 4, 7, 14], 1, 0),
        ((-10, 0, 10, 10), None, 0, 0),
    ],
)
def test_boxes_are_cut_to_the_image_or_dropped(workshop, box, expected, began, ended):
    workshop.regions(region(box=box))
    rows, report = workshop.rows()
    assert [row["boxes"] for row in rows] == ([[expected]] if expected else [])
    assert report.kept["boxes that began left of or above the image, cut"] == began
    assert report.kept["boxes that ended right of or below the image, cut"] == ended
    assert report.dropped == ({} if expected else {"regions: box without area in the image": 1})


def test_a_phrase_and_box_come_once_an_image(workshop):
    workshop.regions(region(), region("a  red car"), region(box=(1, 2, 10, 19)), region("red car"))
    workshop.objects(CAR)
    rows, report = workshop.rows()
    assert [row["phrase"] for row in rows] == ["a red car", "a red car", "red car", "parked car"]
    assert report.dropped == {
        "regions: phrase and box that the image has already": 1,
        "attributes: phrase and box that the image has already": 1,
    }


# Broken records -------------------------------------------------------------------------------------------------------

BROKEN = {
    "no phrase": ("regions", region(None), "regions: without phrase"),
    "phrase that is a list": ("regions", region(["a car"]), "regions: without phrase"),
    "no box": ("regions", {"phrase": "a car", "x": 1, "y": 2, "width": 3}, "regions: without box"),
    "no record": ("regions", "a car", "regions: that are no records"),
    "box of text": ("regions", region(box=(1, 2, "10px", 20)), "regions: with a box that is not four numbers"),
    "box that is no number": ("regions", region(box=(float("nan"), 5, 1, 1)), "regions: with a box that is not four"),
    "box of truth": ("regions", region(box=(1, 2, True, 20)), "regions: with a box that is not four numbers"),
    "another image": ("regions", region(image_id=2), "regions: of another image than the record they are in"),
    "object without name": ("attributes", thing(1, "car", "red", names=[]), "attributes: of an object without name"),
    "object without box": ("attributes", thing(1, "car", "red", w=None), "attributes: with a box that is not four num"),
    "attributes in a text": ("attributes", thing(1, "car", attributes="red"), "attributes: that are no list"),
    "attribute that is blank": ("attributes", thing(1, "car", " "), "attributes: empty or no text"),
    "relation without predicate": ("relationships", relationship(CAR, " ", TREE), "relations: without predicate"),
    "relation without object": ("relationships", relationship(CAR, "on", None), "relations: of an object without name"),
    "relation without subject": (
        "relationships",
        {"predicate": "on", "object": TREE},
        "relations: of an object without name",
    ),
    "relation of null": ("relationships", relationship(None, "on", TREE), "relations: of an object without name"),
    "relation that is none": ("relationships", 7, "relations: that are no records"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_record_is_counted_or_fatal(workshop, case):
    file, record, reason = BROKEN[case]
    workshop.regions(region("a whole one", (0, 0, 5, 5)), *([record] if file == "regions" else []))
    workshop.objects(thing(5, "cat", "black", box=(3, 3, 3, 3)), *([record] if file == "attributes" else []))
    workshop.relationships(*([record] if file == "relationships" else []))
    rows, report = workshop.rows()
    assert [row["phrase"] for row in rows] == ["a whole one", "black cat"]
    (dropped,) = report.dropped
    assert dropped.startswith(reason) and report.dropped[dropped] == 1
    with pytest.raises(ValueError, match=r"image 1, (region 1|an object of|a relationship).*" + reason):
        workshop.rows(strict=True)


def test_an_image_that_is_not_listed_is_counted(workshop):
    workshop.put("image_data", [image(2)])
    workshop.put("region_descriptions", [{"id": i, "regions": [region(image_id=i)] * i} for i in (1, 2, 3)])
    workshop.put("attributes", [{"image_id": i, "attributes": [CAR]} for i in (1, 2, 3)])
    rows, report = workshop.rows()
    assert {name_in_source(row["image_id"]) for row in rows} == {"2"} and len(rows) == 3
    assert report.dropped == {
        "images: not in image_data.json": 2,
        "regions: of images: not in image_data.json": 4,
        "attributes: of images: not in image_data.json": 2,
        "regions: phrase and box that the image has already": 1,
    }
    with pytest.raises(ValueError, match="image 1: images: not in image_data"):
        workshop.rows(strict=True)


# Images ---------------------------------------------------------------------------------------------------------------


def test_images_are_found_in_both_folders(workshop):
    workshop.put("image_data", [image(1), image(2, "VG_100K_2"), image(3), image(4, url=None)])
    workshop.put("region_descriptions", [{"id": i, "regions": [region(image_id=i)]} for i in (1, 2, 3, 4)])
    names = ["VG_100K/1.jpg", "VG_100K_2/2.jpg", "VG_100K_2/3.jpg", "VG_100K_2/4.jpg"]
    images = [workshop.image(name, (WIDTH, HEIGHT)) for name in names]
    workshop.image("VG_100K/2.jpg", (5, 5))  # its address says that the other one is meant
    rows, report = workshop.rows(images=True)
    assert [row["image"] for row in rows] == [{"bytes": image, "path": None} for image in images]
    assert report.kept["images"] == 4 and not report.dropped


# Exclusion and splits -------------------------------------------------------------------------------------------------


@pytest.fixture
def overlapping(workshop):
    """Four images: the second is in COCO, the third on Flickr, the fourth both."""
    ids = [(None, None), (72, None), (None, 36979), (581857, "1007129816")]
    data = [image(i + 1, coco_id=coco, flickr_id=flickr) for i, (coco, flickr) in enumerate(ids)]
    workshop.put("image_data", data)
    workshop.put(
        "region_descriptions",
        [{"id": i, "regions": [region(image_id=i), region("b", image_id=i)]} for i in (1, 2, 3, 4)],
    )
    return workshop


COCO_LISTS = {
    "lines": "72\n\n581857\n",
    "file names": "train2014/COCO_train2014_000000000072.jpg\nCOCO_train2014_000000581857_16.jpg\n",
    "JSON": "[72, 581857]",
    "JSON of texts": '["72", "581857.jpg"]',
    "instances": json.dumps({"images": [{"id": 72, "file_name": "x"}, {"id": 581857}], "annotations": []}),
    "instances numbered anew": json.dumps(
        {
            "images": [
                {"id": 0, "file_name": "COCO_train2014_000000581857.jpg"},
                {"id": 1, "file_name": "000000000072.jpg"},
            ]
        }
    ),
    "MDETR's": json.dumps(
        {"images": [{"id": 0, "file_name": "x", "original_id": 72}, {"id": 9, "original_img_id": "581857"}]}
    ),
    "Roboflow's": json.dumps(
        {"images": [{"id": 0, "file_name": "a\\000000000072_jpg.rf.5e0a.jpg"}, {"id": 1, "file_name": "581857.png"}]}
    ),
}


@pytest.mark.parametrize("form", COCO_LISTS)
def test_images_of_evaluation_splits_are_left_out_by_coco_id(overlapping, form):
    (overlapping.folder / "ids").write_text(COCO_LISTS[form])
    rows, report = overlapping.rows(exclude_coco_ids=str(overlapping.folder / "ids"), strict=True)
    assert [name_in_source(row["image_id"]) for row in rows] == ["1", "1", "3", "3"]
    assert report.dropped == {
        "images: excluded by their COCO id": 2,
        "regions: of images: excluded by their COCO id": 4,
    }


def test_images_are_left_out_by_flickr_id_from_several_lists(overlapping):
    (overlapping.folder / "val.txt").write_text("36979\n1")
    (overlapping.folder / "test.txt").write_text("1007129816\n")
    lists = ",".join(str(overlapping.folder / name) for name in ("val.txt", "test.txt"))
    rows, report = overlapping.rows(exclude_flickr_ids=lists)
    assert [name_in_source(row["image_id"]) for row in rows] == ["1", "1", "2", "2"]
    assert report.dropped["images: excluded by their Flickr id"] == 2


@pytest.mark.shared
def test_the_real_split_list_can_be_read_as_ids(shared_dir):
    assert len(read_ids(shared_dir / "data" / "flickr30k_entities" / "test.txt")) == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("72\nseventy\n", "'seventy' is no id of an image"),
        ("[72, 1.5]", "'1.5' is no id"),
        ("[true]", "'True' is no id"),
        ('{"images": 7}', "needs the list images"),
        ('{"images": [7]}', r"'\[7\]' is no id of an image"),
        ("[72", "is not JSON, or was cut off"),
        ("[]", "has no ids"),
    ],
)
def test_a_list_of_ids_that_is_none_is_refused(overlapping, text, message):
    (overlapping.folder / "ids").write_text(text)
    with pytest.raises(ValueError, match=rf"ids.*{message}"):
        overlapping.build(exclude_coco_ids=str(overlapping.folder / "ids"))
    with pytest.raises(ValueError, match=r"nowhere\.txt"):
        overlapping.build(exclude_flickr_ids=str(overlapping.folder / "nowhere.txt"))


def test_a_list_that_excludes_nothing_is_told(overlapping):
    (overlapping.folder / "ids").write_text("71\n36979")
    assert f"no id in {overlapping.folder / 'ids'} is here" in str(
        overlapping.build(exclude_coco_ids=str(overlapping.folder / "ids"))[1]
    )


def test_splits_are_drawn_by_id_and_few_images_leave_none_empty(workshop):
    """How, test_coco.py says of the same code."""
    workshop.put("image_data", [image(i) for i in range(5)])
    workshop.put("region_descriptions", [{"id": i, "regions": [region(image_id=i)]} for i in range(5)])
    for fraction, count in (1e-9, 1), (1 - 1e-9, 4):
        rows, _ = workshop.build(validation_fraction=fraction)
        ids = {split: {name_in_source(row["image_id"]) for row in rows[split]} for split in rows}
        assert len(ids["validation"]) == count and ids["validation"] ^ ids["train"] == set("01234")
    assert set(workshop.build()[0]) == {"train"}


# Files ----------------------------------------------------------------------------------------------------------------


def test_files_are_read_in_step_where_images_are_missing(workshop):
    order = [7, 2, 5, 1]  # whatever it is, it is image_data.json's
    workshop.put("image_data", [image(i) for i in order])
    workshop.put("region_descriptions", [{"id": i, "regions": [region(image_id=i)]} for i in (7, 99, 5, 1)])
    workshop.put("attributes", [{"image_id": i, "attributes": [CAR]} for i in (7, 2, 99, 1)])
    workshop.put("relationships", [{"image_id": i, "relationships": RELATIONSHIPS[:1]} for i in (2, 5, 1)])
    rows, report = workshop.rows()
    phrases: dict[str, list[str]] = {}
    for row in rows:
        phrases.setdefault(name_in_source(row["image_id"]), []).append(row["categories"][0])
    attributes, relations = ["attribute"] * 2, ["relation"] * 2
    assert list(phrases.items()) == [
        ("7", ["region", *attributes]),
        ("2", [*attributes, *relations]),
        ("5", ["region"]),
        ("1", ["region", *attributes, *relations]),
    ]
    assert report.dropped["images: not in image_data.json"] in (1, 2)


def test_a_file_in_another_order_can_be_built_alone(workshop):
    workshop.put("image_data", [image(i) for i in (1, 2, 3)])
    workshop.put("region_descriptions", [{"id": i, "regions": [region(image_id=i)]} for i in (1, 3, 2)])
    assert [name_in_source(row["image_id"]) for row in workshop.rows()[0]] == ["1", "3", "2"]
    workshop.put("attributes", [{"image_id": i, "attributes": [CAR]} for i in (1, 2, 3)])
    with pytest.raises(ValueError, match=r"region_descriptions\.json: image 2 \(record 2\) is not where .*one kind"):
        workshop.rows()
    assert len(workshop.rows(kinds="regions")[0]) == 3


IMAGE, REGIONS = image(1), {"id": 1, "regions": [region()]}
ATTRIBUTES = {"image_id": 1, "attributes": [CAR]}
REFUSED = [
    (
        "region_descriptions",
        '[{"id": 1, "regions": [',
        r"region_descriptions\.json is not JSON, or was cut off, after 0",
    ),
    ("region_descriptions", REGIONS, "does not begin with '\\['"),
    ("region_descriptions", [region()], "record 0 needs .* a list regions"),
    ("region_descriptions", [REGIONS, REGIONS], "image 1 occurs twice, the second time as record 1"),
    ("relationships", [{"relationships": RELATIONSHIPS}], "record 0 needs a whole number"),
    ("attributes", "[nonsense]", r"attributes\.json is not JSON"),
    ("attributes", [ATTRIBUTES | {"image_id": "1a"}], r"attributes\.json: record 0 needs"),
    ("attributes", [1], "record 0 needs"),
    ("attributes", [ATTRIBUTES, ATTRIBUTES], r"attributes\.json: image 1 occurs twice"),
    ("image_data", [IMAGE, IMAGE], r"image_data\.json: image 1 occurs twice"),
    ("image_data", [{"width": WIDTH}], "record 0 needs a whole"),
    ("image_data", [IMAGE | {"width": None}], "image 1 has no usable width"),
    ("image_data", [IMAGE | {"height": 0}], "image 1 has no usable width and height"),
    ("image_data", [IMAGE | {"coco_id": [7]}], r"coco_id cannot be '\[7\]'"),
    ("image_data", "[", r"image_data\.json is not JSON, or was cut off"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_a_broken_file_is_refused_by_name(workshop, name, content, message):
    workshop.regions(region())
    workshop.objects(CAR)
    workshop.relationships(*RELATIONSHIPS)
    assert len(workshop.rows()[0]) == 5
    workshop.put(name, content)
    with pytest.raises(ValueError, match=message):
        workshop.build()


def test_bad_options_are_named(workshop):
    with pytest.raises(ValueError, match="kinds: 'colours' is none of regions, objects, attributes, relations, all"):
        workshop.builder(kinds="regions,colours")
    (workshop.folder / "image_data.json").unlink()
    workshop.regions(region())
    with pytest.raises(ValueError, match=r"image_data\.json"):
        workshop.build()
