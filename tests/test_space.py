"""The Space: its view against the Python API, what it keeps, models of strangers, and the folder alone as a server.

Images: test_space_images.py. The page in a browser: test_space_browser.py.
"""

import base64
import io
import json
import re
import shutil
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip import CLIPImageProcessorPil

from modeling_albef_amc import AutoGrounder, upsample_heatmaps
from tests.helpers.data import picture, tiny_albef, tiny_processor
from tests.helpers.hub import HubServer, environment, put, run
from tests.helpers.space import ROOT, SPACE, save_model, served, space_module, tiny_model

gr = pytest.importorskip("gradio")
from gradio_client import Client, handle_file  # noqa: E402  (comes with gradio)
from gradio_client.exceptions import AppError  # noqa: E402

app, grounding, models = map(space_module, ("app", "grounding", "models"))
VisitorError = space_module("errors").VisitorError

PHRASES = ["the red square on the left", "very small blue square"]
LINES = "\n".join(PHRASES)


@pytest.fixture(scope="module")
def entries(tmp_path_factory) -> dict[str, models.Entry]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    others = "blip", "clip", "vilt", "flava", "siglip2", "internvl"
    families = {"a": "albef", "b": "albef"} | {family: family for family in others}
    return {
        name: models.Entry(str(save_model(folder / name, family)), f"Tiny {family}", "nothing")
        for name, family in families.items()
    }


@pytest.fixture
def store(entries):
    return models.ModelStore(list(entries.values()), max_models=len(entries))


def close_maps(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def heatmap(packed: dict) -> np.ndarray:
    """A map of the view, (36, 50)."""
    values = np.frombuffer(base64.b64decode(packed["values"]), "<f4").reshape(packed["rows"], packed["columns"])
    return upsample_heatmaps(torch.from_numpy(values.copy())[None], (36, 50))[0].numpy()


# The view -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "blip", "clip", "vilt", "flava", "siglip2", "internvl"])
def test_the_view_says_what_the_python_api_says(store, entries, name):
    image, entry = picture(50, 36), entries[name]
    view = grounding.ground_lines(store, image, f"  {PHRASES[0]} \n\n{PHRASES[1].replace(' ', '  ')}", entry.id)
    ground = AutoGrounder.from_pretrained(entry.id, device="cpu").ground
    assert [phrase["text"] for phrase in view["phrases"]] == PHRASES
    assert (view["photo"]["width"], view["photo"]["height"]) == image.size
    for phrase, expected in zip(view["phrases"], ground(image, PHRASES), strict=True):
        (answer,) = phrase["answers"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-6)
        assert answer["present"] == (answer["score"] >= 0.5)
        assert (tuple(answer["point"]), tuple(answer["box"])) == (expected["point"], expected["box"])
        close_maps(heatmap(answer["map"]), expected["heatmap"])
        words = phrase["text"].split(" ")
        assert phrase["words"] == words and len(answer["words"]) == len(words)
        if name in ("clip", "siglip2"):  # its words have no maps
            assert answer["words"] == [{"map": None, "tokens": 0}] * len(words)
            continue
        spans = [{"caption": phrase["text"], "caption_span": (number, number + 1)} for number in range(len(words))]
        for word, of_word in zip(answer["words"], ground(image, spans), strict=True):
            close_maps(heatmap(word["map"]), of_word["heatmap"])


def test_a_word_of_several_pieces_and_one_that_cleaning_removes(store):
    view = grounding.ground_lines(store, picture(), "red zebra &!? left-right !!")
    (phrase,) = view["phrases"]
    words = phrase["answers"][0]["words"]
    assert phrase["words"] == ["red", "zebra", "&!?", "left-right", "!!"]
    # "zebra" is not in the vocabulary: five letters; "&" is kept by the cleaning and unknown.
    assert [word["tokens"] for word in words] == [1, 5, 1, 2, 0]
    assert [word["map"] is None for word in words] == [False] * 4 + [True]


def test_two_models_side_by_side(store, entries):
    ids = [entries[name].id for name in ("a", "blip")]
    both = grounding.ground_lines(store, picture(), LINES, *ids)
    assert [model["title"] for model in both["models"]] == ["Tiny albef", "Tiny blip"]
    assert both["request"]["compare"] == ids[1]
    for number, model_id in enumerate(ids):
        alone = grounding.ground_lines(store, picture(), LINES, model_id)
        assert [p["answers"][number] for p in both["phrases"]] == [p["answers"][0] for p in alone["phrases"]]
    with_itself = grounding.ground_lines(store, picture(), LINES, ids[0], ids[0])
    assert len(with_itself["models"]) == 1 and with_itself["request"]["compare"] is None


def test_another_layer(store, entries):
    default, third, fourth = (grounding.ground_lines(store, picture(), LINES, layer=layer) for layer in (None, 3, 4))
    assert default["phrases"] == third["phrases"]  # tiny_config explains layer 3
    assert third["phrases"][0]["answers"][0]["map"] != fourth["phrases"][0]["answers"][0]["map"]
    for name, layer in [("a", 0), ("a", 99), ("a", -1), ("blip", 99)]:
        with pytest.raises(VisitorError, match="choose one of"):
            grounding.ground_lines(store, picture(), LINES, entries[name].id, layer=layer)


def test_absent_is_said_by_the_probability_of_the_catalogue(entries):
    for bound, present in [(0.0, True), (1.0, False)]:
        store = models.ModelStore([models.Entry(entries["a"].id, "Tiny", "nothing", absent_below=bound)])
        answers = grounding.ground_lines(store, picture(), LINES)["phrases"]
        assert [phrase["answers"][0]["present"] for phrase in answers] == [present] * 2


def test_large_images_are_shown_smaller_and_answered_in_their_own_pixels(store):
    view = grounding.ground_lines(store, picture(2000, 500), PHRASES[0])
    shown = base64.b64decode(view["photo"]["src"].removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(shown)) as opened:
        assert opened.size == (1280, 320)
    x1, y1, x2, y2 = view["phrases"][0]["answers"][0]["box"]
    assert 0 <= x1 < x2 <= 2000 and 0 <= y1 < y2 <= 500


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "at least one phrase"),
        (" \n\t\n", "at least one phrase"),
        ("the red square\n?!", "no word that can be looked for"),
        ("square " * 10_000, "letters; at most"),
        ("square " * 60, "words; the model reads 50"),
        ("square " * 30, "word pieces; the model reads 20"),
        ("square\n" * 17, "at most 16"),
    ],
)
def test_lines_that_cannot_be_answered(store, lines, sentence):
    with pytest.raises(VisitorError, match=sentence):
        grounding.ground_lines(store, picture(), lines)
    assert grounding.ground_lines(store, picture(), PHRASES[0])["phrases"]


# What is kept ---------------------------------------------------------------------------------------------------------


def test_adapters_alone_are_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(VisitorError, match=r"has no config\.json .* merge them \(albef-amc merge\)"):
        models.load_own(models.Entry(str(tmp_path), "Adapters", "nothing"))


@pytest.mark.parametrize("name", ["a", "blip"])
def test_an_image_is_encoded_once(store, entries, name):
    seen, model_id = [], entries[name].id
    encoder = store.load(model_id).grounder.model.vision_model
    encoder.register_forward_hook(lambda *_: seen.append(1))
    first = grounding.ground_lines(store, picture(), PHRASES[0], model_id)
    grounding.ground_lines(store, picture(), LINES, model_id)
    assert grounding.ground_lines(store, picture(), PHRASES[0], model_id) == first and len(seen) == 1
    grounding.ground_lines(store, picture(41), PHRASES[0], model_id)
    assert len(seen) == 2


def test_what_is_kept_is_bounded(entries, monkeypatch):
    monkeypatch.setattr(models, "MAX_ENCODINGS", 3)
    a, b, blip = (entries[name] for name in ("a", "b", "blip"))
    small = models.ModelStore([a, b, blip], max_models=2)
    for entry in (a, b, a, blip):
        for width in range(40, 45):
            grounding.ground_lines(small, picture(width), PHRASES[0], entry.id)
    assert list(small.kept) == [a.id, blip.id]  # b was not asked for the longest
    assert [len(loaded.grounder.encodings) for loaded in small.kept.values()] == [3, 3]


def test_many_at_once_get_what_each_asked_for(store, entries):
    names = "a", "blip", "clip"
    asked = [(picture(40 + n % 3), PHRASES[n % 2], entries[names[n % 3]].id) for n in range(18)]
    alone = [grounding.ground_lines(store, *each) for each in asked[:6]]
    with ThreadPoolExecutor(6) as pool:
        views = list(pool.map(lambda each: grounding.ground_lines(store, *each), asked))
    for number, view in enumerate(views):
        found, expected = (each["phrases"][0]["answers"][0] for each in (view, alone[number % 6]))
        assert (found["point"], found["box"]) == (expected["point"], expected["box"])


# Models ---------------------------------------------------------------------------------------------------------------


def test_models_that_are_not_there(store):
    for name in ("../../etc", str(SPACE), "a b/c", "checkpoints", "org/model/more", "http://x/y"):
        with pytest.raises(VisitorError, match="no model's name"):
            grounding.ground_lines(store, picture(), LINES, name)
    with pytest.raises(VisitorError, match="org/model could not be loaded, try again"):  # offline here
        grounding.ground_lines(store, picture(), LINES, "org/model")
    with store.loading_strangers, pytest.raises(VisitorError, match="Another model is just being loaded"):
        grounding.ground_lines(store, picture(), LINES, "org/model")
    assert grounding.ground_lines(store, picture(), LINES)["models"][0]["title"] == "Tiny albef"


def test_the_owners_model_comes_first_or_the_page_says_why_not(entries, tmp_path):
    first, chosen = entries["b"], entries["blip"].id
    (model,) = grounding.ground_lines(models.ModelStore([first], chosen), picture(), LINES)["models"]
    assert model["id"] == chosen and model["note"] is None
    (tmp_path / "config.json").write_text("{")
    for name in ("org/nothing", str(tmp_path)):
        (model,) = grounding.ground_lines(models.ModelStore([first], name), picture(), LINES)["models"]
        assert model["id"] == first.id
        assert re.match(f"The model {name} could not be loaded, .*: .* Shown instead: Tiny", model["note"])


@pytest.mark.parametrize(
    ("name", "bound", "sentence"),
    [
        ("MAX_PARAMETERS", 1000, "million parameters"),
        ("MAX_LAYERS", 4, "5 layers"),
        ("MAX_SIDE", 31, "images of 32 pixels"),
        ("MAX_PATCHES", 15, "images of 16 patches"),
    ],
)
def test_what_is_too_large_is_not_loaded(entries, monkeypatch, name, bound, sentence):
    monkeypatch.setattr(models, name, bound)
    with pytest.raises(VisitorError, match=sentence):
        models.load_own(entries["a"])


@pytest.mark.parametrize(
    ("family", "side", "sizes", "refused"),
    [
        ("florence2", 768, dict(patch_size=[7, 3, 3, 3], patch_stride=[4, 2, 2, 2]), None),  # Florence-2's own: 24 x 24
        ("florence2", 768, dict(patch_size=[7, 3, 3, 3], patch_stride=[4, 2, 1, 1]), "9,216"),
        ("internvl", 448, dict(patch_size=(14, 14)), None),  # 32 x 32
        ("qwen2_vl", 700, dict(patch_size=14), "2,500"),  # the encoder's, whatever the language model gets of them
        ("clip", 768, dict(patch_size=16), None),
        ("clip", 768, dict(patch_size=14), "2,916"),
    ],
)
def test_patches_are_counted_as_the_encoder_makes_them(family, side, sizes, refused):
    config = tiny_model(family)[0].config
    config.vision_config = type(config.vision_config)(**{**config.vision_config.to_dict(), **sizes})
    images = CLIPImageProcessorPil(size={"height": side, "width": side})
    with pytest.raises(VisitorError, match=f"images of {refused} patches") if refused else nullcontext():
        models.check_image_size(models.Entry("org/tiny", "", ""), images, config)


def test_a_model_without_its_head_is_refused(tmp_path):
    model, processor = tiny_model("albef")
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("itm_head")}
    model.save_pretrained(tmp_path, state_dict=weights)
    processor.save_pretrained(tmp_path)
    with pytest.raises(VisitorError, match="without weights such as itm_head"):
        models.load_own(models.Entry(str(tmp_path), "", ""))


def test_the_models_that_come_along():
    for entry in models.read_catalogue():
        files = {path.name for path in (SPACE / entry.id).iterdir()}
        assert "model.safetensors" in files and files <= {*models.FILES, "README.md"}
        assert sum(path.stat().st_size for path in (SPACE / entry.id).iterdir()) < 3e6
        assert "auto_map" not in "".join(path.read_text() for path in (SPACE / entry.id).glob("*config.json"))


def test_a_packed_checkpoint_has_what_answers_need(tmp_path):
    checkpoint, packed = tmp_path / "run", tmp_path / "packed"
    tiny_albef().save_pretrained(checkpoint)  # with its momentum encoder, and with code
    tiny_processor().save_pretrained(checkpoint)
    (checkpoint / "README.md").write_text("card")
    space_module("pack_checkpoint").pack(checkpoint, packed)
    files = {path.name: path.stat().st_size for path in packed.iterdir()}
    assert files.keys() <= {*models.FILES, "README.md"} and "auto_map" not in (packed / "config.json").read_text()
    assert files["model.safetensors"] < 0.7 * (checkpoint / "model.safetensors").stat().st_size
    stores = [models.ModelStore([models.Entry(str(folder), "Tiny", "nothing")]) for folder in (checkpoint, packed)]
    whole, small = (grounding.ground_lines(store, picture(), LINES)["phrases"] for store in stores)
    assert small == whole


STRANGERS = """
import json, sys, tempfile
from pathlib import Path
tempfile.tempdir = sys.argv[1]
import models
for name in json.loads(sys.argv[2]):
    try:
        model = models.load_strangers(name).grounder.model
        print(name, type(model).__name__, model.config._attn_implementation)
    except models.VisitorError as error:
        print(name, error)
print("left", [path.name for path in Path(sys.argv[1]).glob("model-*")])
"""


def test_a_strangers_model_runs_no_code(tmp_path):
    """A Hub id is loaded although its repository is full of traps, and none of them springs."""
    mark, trap = tmp_path / "sprung", {"auto_map": {"AutoConfig": "trap.C", "AutoModel": "trap.M"}}
    trap |= {"audio_tokenizer": {"audio_tokenizer_class": "BertModel", "audio_tokenizer_name_or_path": "org/trap"}}
    code = f"open({str(mark)!r}, 'w').close()\n"
    for family in ("albef", "blip"):
        folder = save_model(tmp_path / family, family)
        for path in [*folder.glob("*.py"), folder / "trap.py", folder / "modeling_albef.py"]:
            path.write_text(code)
        for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
            content = json.loads((folder / name).read_text()) | trap | {"attn_implementation": "org/kernel"}
            (folder / name).write_text(json.dumps(content))
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/trap"}')
    pickled, other = (shutil.copytree(tmp_path / "albef", tmp_path / name) for name in ("pickled", "other"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")  # never fetched, whatever is in it
    content = json.loads((other / "config.json").read_text()) | {"model_type": "trap"}
    (other / "config.json").write_text(json.dumps(content))
    names = ["albef", "blip", "pickled", "other", "missing"]
    (tmp_path / "hub").mkdir()
    (tmp_path / "scratch").mkdir()
    with HubServer(tmp_path / "hub") as hub:
        for name in names[:-1]:
            put(hub, "models", f"org/{name}", tmp_path / name)
        settings = environment(hub.url, tmp_path / "home") | {"PYTHONPATH": f"{ROOT}:{SPACE}"}
        asked = json.dumps([f"org/{name}" for name in names])
        printed = run(["-c", STRANGERS, tmp_path / "scratch", asked], tmp_path, settings).stdout.splitlines()
        fetched = {line.split("/")[-1].split(" ")[0] for line in hub.requests if "/resolve/" in line}
        assert not [line for line in hub.requests if "org/trap" in line]
    assert printed[:2] == ["org/albef AlbefModel sdpa", "org/blip BlipForImageTextRetrieval eager"]
    assert "has no model.safetensors" in printed[2] and "of type 'trap'" in printed[3]
    assert "There is no public model org/missing" in printed[4]
    assert printed[5] == "left []" and not mark.exists()
    assert "trap.py" not in fetched and fetched <= set(models.FILES)


# The folder alone -----------------------------------------------------------------------------------------------------

START = """
import sys
for name in "trainer", "dataset_scripts", "tests", "train":
    sys.modules[name] = None
import runpy
sys.argv = ["app.py"]
sys.path.insert(0, ".")
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of the folder and the package, and nothing else of the project, as a server."""
    folder = tmp_path_factory.mktemp("alone") / "space"
    shutil.copytree(SPACE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.pyi"))
    package = folder / "modeling_albef_amc"
    shutil.copytree(ROOT / "modeling_albef_amc", package, ignore=shutil.ignore_patterns("__pycache__"))
    uploads = str(folder.parent / "uploads")
    with served([sys.executable, "-c", START], folder, OMP_NUM_THREADS="1", GRADIO_TEMP_DIR=uploads) as (address, _):
        yield address


def example() -> tuple[Path, list[str]]:
    first = app.EXAMPLES[0]
    return SPACE / "examples" / first["photo"], first["lines"].splitlines()


def test_the_snippet_runs_as_it_is_written(url, tmp_path, monkeypatch, capsys):
    shutil.copy(example()[0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", app.SNIPPET.replace("org/point", url), re.DOTALL)
    exec(compile(code, "snippet", "exec"), {})
    assert capsys.readouterr().out.count("[") >= 2


def test_after_bad_input_the_server_goes_on(url, tmp_path):
    client, (photo, phrases) = Client(url, verbose=False), example()
    Image.new("L", (8000, 5000)).save(tmp_path / "large.png")
    bad = [
        ((None, "star"), "Choose a photo first"),
        ((handle_file(photo), ""), "at least one phrase"),
        ((handle_file(tmp_path / "large.png"), "star"), "more than 25 megapixels"),
        ((None, "star", "http://127.0.0.1/x.jpg"), "private network"),
        ((handle_file(photo), "star", "", "org/no-such-model"), "could not be loaded, try again"),
        ((handle_file(photo), "star", "", "", "", 99), "choose one of"),
        (({"path": f"{url}/config", "meta": {"_type": "gradio.FileData"}}, "star"), "pass its address as url"),
    ]
    for arguments, sentence in bad:
        with pytest.raises(AppError, match=sentence):
            client.predict(*arguments, api_name="/ground")
    view = client.predict(handle_file(photo), phrases[0], api_name="/ground")
    assert view["phrases"][0]["text"] == phrases[0] and view["photo"]["link"] == f"example:{photo.name}"


def test_files_of_the_server_are_out_of_reach(url):
    """Asked without gradio_client, which would upload a file of its own machine."""
    for path in (str(example()[0]), "/etc/passwd", "../../etc/passwd"):
        photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
        content = json.dumps({"data": [photo, "star", "", "", "", None]}).encode()
        call, kind = f"{url}/gradio_api/call/ground", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(call, content, kind)) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{call}/{event}") as answer:
            assert answer.read().decode().startswith("event: error")


# The page -------------------------------------------------------------------------------------------------------------


def test_a_link_brings_back_what_it_was_made_of(store, entries):
    functions = {block.fn.__name__: block.fn for block in app.build(store).fns.values() if block.fn is not None}
    photo, address, nothing = example()[0], "https://example.org/photo.jpg", [*[gr.skip()] * 6, None]

    def opened(**query: str) -> list:
        return functions["restore"](SimpleNamespace(query_params=query))

    query = {"photo": f"example:{photo.name}", "lines": LINES, "model": entries["b"].id, "compare": "", "layer": "3"}
    assert opened(**query) == [str(photo), LINES, "", entries["b"].id, "", "3", query]
    assert opened(photo=address, lines="cup")[:3] == [None, "cup", address]
    assert opened() == nothing
    for name in ("example:../app.py", "/etc/passwd", "file:///etc/passwd", "example:"):
        assert opened(photo=name) == nothing
        assert opened(photo=name, lines=LINES)[0] is None
