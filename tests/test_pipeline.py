"""The visual-grounding pipeline: answers by hand, photos of all kinds, sharing and batches, publishing."""

import io
import json
import multiprocessing
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from transformers import BertConfig, BertModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_albef_amc import AlbefForPreTraining, AutoGroundingPipeline, PhraseAttention, VisualGroundingPipeline
from modeling_albef_amc.images import open_image
from tests.helpers import forked
from tests.helpers.data import (
    BROKEN_EXIF,
    EXIF_ORIENTATION,
    blip_processor,
    odd_exif,
    picture,
    tiny_albef,
    tiny_dataset,
    tiny_processor,
)
from tests.helpers.grounding import build, same
from tests.helpers.models import tiny_blip

PHRASES = ["the red square on the left", "the blue square", "the green square on the right here"]


every_family = pytest.mark.parametrize("family", ["albef", "albef_pretraining", "blip"])


@pytest.fixture
def ground() -> VisualGroundingPipeline:
    return build("albef")


# Answers --------------------------------------------------------------------------------------------------------------


def one_patch(row: int, column: int, probability: float = 0.75):
    """An `explain` whose heatmap is 1 in one patch of 4 x 4 and 0 elsewhere."""

    def explain(model, pixel_values, input_ids, attention_mask, image_index):
        attention = torch.zeros(len(input_ids), 1, 1, 17)
        attention[..., 1 + 4 * row + column] = 1
        attention.requires_grad_()
        token_mask = torch.ones(len(input_ids), 1)
        probabilities = torch.full((len(input_ids),), probability)
        return PhraseAttention(attention.sum((1, 2, 3)), attention, token_mask, slice(1, None), (4, 4), probabilities)

    return explain


def test_a_heatmap_known_by_hand(ground):
    """Patch (row 1, column 2) of 4 x 4 on a photo 80 wide and 40 high covers x 40..59 and y 10..19."""
    image = Image.new("RGB", (80, 40))
    (answer,) = ground(image, "a dog", explain=one_patch(1, 2), output_pictures=True)
    assert answer.keys() == {"phrase", "score", "point", "box", "heatmap", "picture"}
    assert (answer["phrase"], answer["score"]) == ("a dog", 0.75)
    assert answer["heatmap"].shape == (40, 80)
    assert answer["heatmap"].dtype == np.float32
    # Its middle lies between two pixels, and the first of equal maxima in row order counts.
    assert answer["point"] == (49, 14)
    x1, y1, x2, y2 = answer["box"]
    assert (x1 + x2, y1 + y2) == (100, 30)
    assert 18 <= x2 - x1 <= 24
    assert 9 <= y2 - y1 <= 12
    assert answer["picture"].size == (80, 40)
    assert answer["picture"].getpixel(answer["point"]) == (0, 255, 255)
    assert answer["picture"].getpixel((x1, y1)) == answer["picture"].getpixel((x2 - 1, y2 - 1)) == (0, 255, 255)
    assert answer["picture"].getpixel((x1 - 1, y1)) != (0, 255, 255)
    assert max(answer["picture"].getpixel((5, 35))) < 8
    (tighter,) = ground(image, "a dog", explain=one_patch(1, 2), threshold=0.9, output_heatmaps=False)
    assert tighter.keys() == {"phrase", "score", "point", "box"}
    assert x1 < tighter["box"][0] < tighter["box"][2] < x2


@pytest.mark.parametrize("explanation", ["itm", "itc"])
@pytest.mark.parametrize("layer", [None, 1])
def test_equal_to_model_and_processor(ground, explanation, layer):
    layer = layer if explanation == "itc" else layer and 4
    photo, processor = picture(), tiny_processor()
    inputs = processor(images=photo, text=PHRASES, return_tensors="pt")
    output = ground.model(**inputs, output_heatmaps=True, explanation=explanation, grounding_layer=layer)
    expected = processor.post_process_grounding(output.heatmaps, (photo.height, photo.width))
    answers = ground(photo, PHRASES, explanation=explanation, grounding_layer=layer)
    scores = output.itm_logits.softmax(dim=-1)[:, 1].tolist()
    for answer, wanted, phrase, score in zip(answers, expected, PHRASES, scores, strict=True):
        assert answer["phrase"] == phrase
        assert answer["score"] == pytest.approx(score, abs=1e-6)
        assert (answer["point"], answer["box"]) == (wanted["point"], wanted["box"])
        np.testing.assert_allclose(answer["heatmap"], wanted["heatmap"].numpy(), rtol=1e-5, atol=1e-9)


def test_blip_scores_as_blip_does():
    ground, photo = build("blip"), picture()
    inputs = blip_processor()(images=photo, text=PHRASES, padding=True, return_tensors="pt")
    with torch.no_grad():
        pixel_values = inputs["pixel_values"].repeat(3, 1, 1, 1)
        logits = ground.model(inputs["input_ids"], pixel_values, attention_mask=inputs["attention_mask"]).itm_score
    scores = [answer["score"] for answer in ground(photo, PHRASES)]
    assert scores == pytest.approx(logits.softmax(dim=-1)[:, 1].tolist(), abs=1e-5)
    assert ground(photo, PHRASES[:1], grounding_layer=0)[0]["heatmap"].max() > 0
    with pytest.raises(ValueError, match=r"this family is explained by .itm. only"):
        ground(photo, PHRASES, explanation="itc")
    with pytest.raises(ValueError, match=r"layer 3 is none of this model's: choose one of 0, 1, 2"):
        ground(photo, PHRASES, grounding_layer=3)


# Sharing and batches --------------------------------------------------------------------------------------------------


@every_family
def test_a_photo_is_encoded_once_for_all_its_phrases(family):
    ground, sizes = build(family), []
    encoder = ground.model.base_model.vision_model
    encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    ground(picture(), PHRASES * 20)
    assert sizes == [1]
    sizes.clear()
    ground([picture(), picture(50, 30), picture(20, 20)], PHRASES, batch_size=2)
    assert sizes == [2, 1]


@every_family
def test_batches_and_passes_change_nothing(family):
    ground = build(family)
    photos = [picture(), picture(50, 30), picture(20, 20)]
    phrases = [PHRASES, PHRASES[2:], [], PHRASES[:2]]
    photos.insert(2, picture(8, 8))
    expected = [ground(photo, own) for photo, own in zip(photos, phrases)]
    assert [len(answers) for answers in expected] == [3, 1, 0, 2]
    for options in ({}, {"batch_size": 2}, {"batch_size": 4, "phrase_batch_size": 2}, {"phrase_batch_size": 1}):
        with torch.inference_mode("batch_size" in options):
            found = ground(photos, phrases, **options)
        for answers, wanted in zip(found, expected, strict=True):
            same(answers, wanted)


# Photos ---------------------------------------------------------------------------------------------------------------


def test_photos_of_all_kinds(ground, tmp_path):
    photo = picture()
    photo.save(tmp_path / "photo.png")
    pixels = np.asarray(photo)
    kinds = [
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        pixels,
        torch.tensor(pixels).permute(2, 0, 1),
        pixels.astype(np.float32) / 255,
        np.dstack([pixels, np.full_like(pixels[..., :1], 255)]),
        photo.convert("RGBA"),
    ]
    expected = ground(photo, PHRASES)
    for kind in kinds:
        same(ground(kind, PHRASES), expected)
    for several in (kinds[:3], tuple(kinds[:3]), np.stack([pixels] * 3), torch.tensor(np.stack([pixels] * 3))):
        found = ground(several, PHRASES)
        assert len(found) == 3
        for answers in found:
            same(answers, expected)


def test_gray_and_transparent_photos():
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert (np.asarray(open_image(gray)) == gray[..., None]).all()
    assert (np.asarray(open_image(gray[..., None] > 31))[4:] == 255).all()
    assert (np.asarray(open_image(gray.astype(np.uint16) * 257)) == gray[..., None]).all()
    assert open_image(Image.new("RGBA", (2, 2), (9, 9, 9, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", [1, 4, 6, 7])
def test_photos_are_turned_upright(ground, tmp_path, orientation):
    """The photo as it is shown is 60 x 40; what the camera stored is that, turned or mirrored."""
    shown = picture(60, 40)
    back = {4: Image.Transpose.FLIP_TOP_BOTTOM, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    stored = shown.transpose(back[orientation]) if orientation in back else shown
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    expected = ground(shown, PHRASES)
    same(ground(tmp_path / "photo.png", PHRASES), expected)
    with Image.open(tmp_path / "photo.png") as opened:
        assert opened.size == ((40, 60) if orientation > 4 else (60, 40))
        same(ground(opened, PHRASES), expected)
    assert expected[0]["heatmap"].shape == (40, 60)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_odd_tags_of_exif_turn_no_image_away(tmp_path, kind, orientation):
    """Pillow's own way is right where it works."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    picture(60, 40).save(tmp_path / "plain", kind, exif=exif)
    with Image.open(tmp_path / "plain") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    if kind != "tiff":  # whose own tags these are
        picture(60, 40).save(tmp_path / "odd", kind, exif=odd_exif(orientation))
    for path in tmp_path.iterdir():
        found = open_image(path)
        assert np.array_equal(np.asarray(found), expected)
        assert np.array_equal(np.asarray(open_image(found)), expected), "turned twice"


@pytest.mark.parametrize("exif", BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_photo_whose_exif_cannot_be_read_stays_as_it_is_stored(tmp_path, kind, exif):
    picture(60, 40).save(tmp_path / "plain", kind)
    picture(60, 40).save(tmp_path / "broken", kind, exif=exif)
    assert np.array_equal(*(np.asarray(open_image(path)) for path in tmp_path.iterdir()))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, -1), (8, 1)])
def test_a_gray_tiff_file_is_turned_as_a_whole(tmp_path, orientation, turns):
    """Pillow maps it to memory, for want of compression."""
    exif, gray = Image.Exif(), picture(60, 40).convert("L")
    exif[EXIF_ORIENTATION] = orientation
    gray.save(tmp_path / "gray.tiff", exif=exif)
    for source in (tmp_path / "gray.tiff", Image.open(tmp_path / "gray.tiff")):
        assert np.array_equal(np.asarray(open_image(source))[..., 0], np.rot90(np.asarray(gray), turns))


@pytest.fixture
def server():
    """Serves /photo.png, and nothing else."""
    content = io.BytesIO()
    picture().save(content, "png")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/photo.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(content.getvalue() if found else b"no such page")

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_urls(ground, server):
    same(ground(f"{server}/photo.png", PHRASES), ground(picture(), PHRASES))
    with pytest.raises(ConnectionError, match=r"/other\.png could not be fetched: HTTP Error 404"):
        ground(f"{server}/other.png", PHRASES)
    with pytest.raises(ConnectionError, match="could not be fetched: <urlopen error"):
        ground("http://127.0.0.1:1/photo.png", PHRASES)


# Data sets ------------------------------------------------------------------------------------------------------------


def test_data_sets(ground):
    dataset = tiny_dataset(count=4).cast_column("image", datasets.Image())
    photos, phrases = list(dataset["image"]), list(dataset["phrase"])
    expected = [ground(photo, phrase) for photo, phrase in zip(photos, phrases)]
    rows = dataset.rename_column("phrase", "phrases")
    frame = pd.DataFrame({"image": photos, "phrases": phrases}, index=range(7, 11))  # as after a selection
    given = {
        "rows": ground(rows, batch_size=3),
        "streamed rows": ground(rows.to_iterable_dataset(), batch_size=3),
        "a column": ground(dataset["image"], [[phrase] for phrase in phrases]),
        "KeyDataset": ground(KeyDataset(dataset, "image"), [[phrase] for phrase in phrases], num_workers=1),
        "a generator": ground({"image": photo, "phrases": [phrase]} for photo, phrase in zip(photos, phrases)),
        "an iterator": ground(iter(photos), [[phrase] for phrase in phrases]),
        "a list of records": ground([{"image": photo, "phrases": phrase} for photo, phrase in zip(photos, phrases)]),
        "a list of pandas' columns": ground(frame["image"], frame["phrases"].map(lambda phrase: [phrase])),
        "a list of arrays": ground(photos, pd.Series([np.array([phrase], dtype=object) for phrase in phrases])),
        "a list of pandas' rows": ground(frame),
    }
    for name, found in given.items():
        assert isinstance(found, list) == name.startswith("a list of"), name
        for answers, wanted in zip(found, expected, strict=True):
            same(answers, wanted)
    same(ground({"image": photos[0], "phrases": phrases[0]}), expected[0])
    assert ground([], PHRASES) == []


def test_a_data_set_is_read_as_it_is_needed(ground):
    read = []

    def photos():
        for number in range(100):
            read.append(number)
            yield picture()

    found = ground(photos(), "the red square")
    next(found)
    assert 0 < len(read) < 5, "by the caller's own process"


def test_workers_are_forked_however_processes_begin_else(ground, monkeypatch):
    default = multiprocessing.context._default_context
    monkeypatch.setattr(default, "_actual_context", multiprocessing.get_context("spawn"))
    photos = [picture(), picture(50, 30)]
    for answers, wanted in zip(ground(photos, PHRASES, num_workers=1), ground(photos, PHRASES), strict=True):
        same(answers, wanted)
    assert len(list(ground(iter(photos), PHRASES, num_workers=1))) == 2


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "phrases", "message"),
    [
        (picture(), " ", r"a phrase is empty \(' '\)"),
        (picture(), ["a dog", ""], r"a phrase is empty \(''\)"),
        (picture(), ["a dog", "\u200b\u2060"], r"a phrase is empty \('\\u200b\\u2060'\)"),
        (picture(), ["a dog", "!?"], r"phrase 1 \('!\?'\) is empty after cleaning"),
        (picture(), ["a dog", 3], "a phrase must be a string, not 3"),
        (picture(), [["a dog"]], "for one image pass one list"),
        (picture(), None, "no phrases were given"),
        (picture(), "very " * 30, "has 31 word pieces, the model takes 20"),
        (picture(), "very-" * 51, "has 51 words, 50 are read"),
        ([picture()] * 3, [["a dog"], ["a cat"]], "2 lists of phrases for 3 images"),
        (iter([picture()] * 3), [["a dog"], ["a cat"]], "zip"),
        ({"photo": picture(), "phrases": "a dog"}, None, 'a record needs "image" and "phrases", this one has'),
        ({"image": picture()}, None, "no phrases were given"),
        (pd.DataFrame({"photo": ["a.png"], "phrases": "a dog"}), None, 'a record needs "image" and "phrases", this'),
        ([3], "a dog", "an image must be a path, a URL, a Pillow image or an array"),
        (b"\x89PNG", "a dog", r"not bytes \(PIL\.Image\.open reads files and io\.BytesIO\(bytes\)\)"),
        (io.BytesIO(b"\x89PNG"), "a dog", r"a Pillow image or an array, not BytesIO \(PIL\.Image\.open reads"),
        (3, "a dog", "images must be an image, several images or a data set"),
        (np.zeros((0, 4, 3)), "a dog", r"an array of the shape \(0, 4, 3\) is no image"),
        (np.zeros(4), "a dog", r"an array of the shape \(4,\) is no image"),
        (np.full((4, 4, 3), 300.0), "a dog", r"they must lie in \[0, 255\]"),
        (Image.new("F", (4, 4)), "a dog", "is not a readable image|a Pillow image of mode 'F'"),
    ],
)  # fmt: skip
def test_bad_input(ground, images, phrases, message):
    with pytest.raises(ValueError, match=message):
        list(ground(images, phrases))


def test_bad_files(ground, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no image .*missing\.png"):
        ground(tmp_path / "missing.png", PHRASES)
    with pytest.raises(FileNotFoundError, match=r"http://a\.b/c\.jpg: of a data set no address is fetched, download"):
        ground({"image": {"bytes": None, "path": "http://a.b/c.jpg"}, "phrases": "a dog"})
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is not a readable image: it is of no kind .*convert it to JPEG"):
        ground(tmp_path / "text.png", PHRASES)
    picture(200, 200).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-900])
    with pytest.raises(ValueError, match=r"cut\.jpg is not a readable image \(image file is truncated"):
        ground(tmp_path / "cut.jpg", PHRASES)


def test_bad_pipelines(ground):
    with pytest.raises(ValueError, match="the pipeline needs the processor too"):
        VisualGroundingPipeline(tiny_blip())
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ValueError, match="No explanation is known for models of type 'bert'"):
        VisualGroundingPipeline(bert, tiny_processor())
    with pytest.raises(ValueError, match="gives no probability"):
        ground(picture(), "a dog", explain=lambda *inputs: one_patch(0, 0)(*inputs)._replace(probability=None))
    with pytest.raises(TypeError, match="treshold"):
        ground(picture(), "a dog", treshold=0.3)
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\]"):
        ground(picture(), "a dog", threshold=2)


# Publishing -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_albef(tmp_path):
    """With the package imported, a folder needs no code of its own."""
    model = AlbefForPreTraining(tiny_albef().config).eval()
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    ground = pipeline("visual-grounding", model=str(tmp_path), device="cpu")
    assert type(ground) is AutoGroundingPipeline
    assert type(ground.model).__module__ == "modeling_albef_amc.modeling_albef"
    expected = pipeline("visual-grounding", model=model, processor=tiny_processor(), device="cpu")(picture(), PHRASES)
    same(ground(picture(), PHRASES), expected)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["custom_pipelines"] == {
        "visual-grounding": {"impl": "pipeline.VisualGroundingPipeline", "pt": ["AutoModel"]}
    }


# Written as ALBEF never read it: its cleaning makes the first three of "red square".
UNCLEAN = ["Red square!", "a (red-square)", {"caption": "A dog; a RED-square, left", "caption_span": (2, 4)}, "blue"]
SCORES = """
import json, sys
sys.modules["modeling_albef_amc"] = None  # importing it fails
from transformers import AutoModelForPreTraining, AutoProcessor, pipeline

def answers_of(folder):
    ground = pipeline("visual-grounding", model=folder, trust_remote_code=True, device="cpu")
    assert type(ground).__module__.startswith("transformers_modules."), type(ground)
    answers = ground([sys.argv[1]], json.loads(sys.argv[2]), output_pictures=True)[0]
    assert answers[0].pop("picture").size == answers[0]["heatmap"].shape[::-1]
    names = "phrase", "score", "point", "box"
    plain = [{name: answer[name] for name in names} | {"heatmap": answer["heatmap"].tolist()} for answer in answers]
    return ground, plain

"""
REMOTE_SCRIPT = (
    SCORES
    + """
import torch
from PIL import Image

again, *folders = sys.argv[3:]
found = []
for folder in folders:
    ground, answers = answers_of(folder)
    found.append(answers)
# What was saved by the published code works as well.
ground.save_pretrained(again)
found.append(answers_of(again)[1])
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
assert {type(part).__module__.split(".")[0] for part in (processor, model, model.config)} == {"transformers_modules"}
inputs = processor(images=Image.open(sys.argv[1]), text=["Red square!", "blue"], return_tensors="pt")
with torch.no_grad():
    print(json.dumps([found, inputs["input_ids"].tolist(), model(**inputs).loss.item()]))
"""
)
HUB_SCRIPT = SCORES + 'print(json.dumps(answers_of("org/albef-amc")[1]))'


def in_a_clean_process(script: str, folder: Path, *arguments: Path, **environment: str):
    """What the script prints last, as JSON, about a photo and `UNCLEAN`."""
    picture().save(folder / "photo.png")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    command = ["-c", script, folder / "photo.png", json.dumps(UNCLEAN), *arguments]
    environment = kept | {"HF_HUB_OFFLINE": "1", **environment}
    done = forked.run(command, folder, environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_published_code_in_a_clean_process(tmp_path):
    """Each file that transformers begins with has its own copies of the others: the class of an object says nothing."""
    ground, by_model, again = build("albef_pretraining"), tmp_path / "saved by the model", tmp_path / "again"
    ground.save_pretrained(tmp_path / "albef")
    for part in (ground.model, ground.processor):
        part.save_pretrained(by_model)
    lines = {path.name: len(path.read_text().splitlines()) for path in by_model.glob("*.py")}
    assert len(lines) <= 12 and sum(lines.values()) <= 3200, "short enough to be read before it is trusted"
    folders = again, tmp_path / "albef", by_model
    remote, ids, loss = in_a_clean_process(REMOTE_SCRIPT, tmp_path, *folders, HF_MODULES_CACHE=str(tmp_path / "cache"))
    answers = ground(picture(), UNCLEAN)
    for found in remote:
        same(found, [{**answer, "point": list(answer["point"]), "box": list(answer["box"])} for answer in answers])
    inputs = ground.processor(images=picture(), text=["Red square!", "blue"], return_tensors="pt")
    assert ids == inputs["input_ids"].tolist()
    with torch.no_grad():
        assert loss == pytest.approx(ground.model(**inputs).loss.item(), rel=1e-5)
    first, second, in_caption, other = answers
    assert first["score"] == pytest.approx(ground(picture(), "red square")[0]["score"], abs=1e-6)
    assert in_caption["phrase"] == "a RED-square," and len({first["score"], second["score"], other["score"]}) == 3


def test_published_on_the_hub(tmp_path):
    """From a Hub cache as a download leaves it, by transformers' other way to a checkpoint's code."""
    ground, commit = build("albef_pretraining"), "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "home" / "hub" / "models--org--albef-amc"
    ground.model.save_pretrained(repository / "snapshots" / commit)
    ground.processor.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = in_a_clean_process(HUB_SCRIPT, tmp_path, HF_HOME=str(tmp_path / "home"))
    expected = [answer["score"] for answer in ground(picture(), UNCLEAN)]
    assert [answer["score"] for answer in found] == pytest.approx(expected, abs=1e-6)


def test_another_family_is_saved_without_code(tmp_path):
    ground = build("blip")
    ground.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    again = pipeline("visual-grounding", model=str(tmp_path), device="cpu")
    same(again(picture(), PHRASES), ground(picture(), PHRASES))


def test_a_model_that_was_trained_since_answers_without_dropout():
    grounder = build("albef").grounder
    expected = grounder.ground(picture(), ["red"])[0]["score"]
    grounder.model.train()
    assert grounder.ground(picture(), ["red"])[0]["score"] == expected and not grounder.model.training
