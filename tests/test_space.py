"""The Space: its view against the Python API, its caches, models of strangers, and the folder alone as a server.

Photos: test_space_photos.py. The page in a browser: test_space_browser.py.
"""

import base64
import importlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_albef_amc import VisualGroundingPipeline, upsample_heatmaps
from tests.conftest import tiny_blip
from tests.hub_server import HubServer
from tests.test_pipeline import blip_processor
from tests.test_publishing import environment, put, run
from tests.tiny_data import picture, tiny_albef, tiny_processor

gr = pytest.importorskip("gradio")
from gradio_client import Client, handle_file  # noqa: E402  (comes with gradio)
from gradio_client.exceptions import AppError  # noqa: E402

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "space"
# As when `python space/app.py` runs: its modules lie beside each other.
sys.path.append(str(SPACE))
app, grounding, models = map(importlib.import_module, ("app", "grounding", "models"))

PHRASES = ["the red square on the left", "very small blue square"]
LINES = "\n".join(PHRASES)
FAMILIES = {
    "albef": lambda: (tiny_albef().albef, tiny_processor()),
    "blip": lambda: (tiny_blip(), blip_processor()),
}


def saved(folder: Path, family: str) -> models.Entry:
    model, processor = FAMILIES[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return models.Entry(str(folder), f"Tiny {family}", "nothing")


@pytest.fixture(scope="module")
def entries(tmp_path_factory) -> dict[str, models.Entry]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    return {name: saved(folder / name, family) for name, family in [("a", "albef"), ("b", "albef"), ("c", "blip")]}


@pytest.fixture
def grounder(entries):
    return grounding.Grounder(list(entries.values()))


def unpacked(heatmap: dict) -> torch.Tensor:
    values = np.frombuffer(base64.b64decode(heatmap["values"]), "<f4").reshape(heatmap["rows"], heatmap["columns"])
    return torch.from_numpy(values.copy())


# The view -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "c"])
def test_the_view_says_what_the_python_api_says(grounder, entries, name):
    photo, entry = picture(50, 36), entries[name]
    view = grounder.ground(photo, f"  {PHRASES[0]} \n\n{PHRASES[1].replace(' ', '  ')}", entry.id)
    loaded = grounder.load(entry.id)
    ground = VisualGroundingPipeline(loaded.model, loaded.processor)
    assert [phrase["text"] for phrase in view["phrases"]] == PHRASES
    assert (view["photo"]["width"], view["photo"]["height"]) == photo.size
    for phrase, expected in zip(view["phrases"], ground(photo, PHRASES), strict=True):
        (answer,) = phrase["answers"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-6)
        assert answer["present"] == (answer["score"] >= 0.5)
        assert (tuple(answer["point"]), tuple(answer["box"])) == (expected["point"], expected["box"])
        upsampled = upsample_heatmaps(unpacked(answer["map"])[None], (36, 50))[0].numpy()
        np.testing.assert_allclose(upsampled, expected["heatmap"], rtol=1e-4, atol=1e-9)
        assert phrase["words"] == phrase["text"].split(" ")
        spans = [{"caption": phrase["text"], "caption_span": (n, n + 1)} for n in range(len(phrase["words"]))]
        for word, of_word in zip(answer["words"], ground(photo, spans), strict=True):
            upsampled = upsample_heatmaps(unpacked(word["map"])[None], (36, 50))[0].numpy()
            np.testing.assert_allclose(upsampled, of_word["heatmap"], rtol=1e-4, atol=1e-9)


def test_a_word_of_several_pieces_and_one_that_cleaning_removes(grounder, entries):
    view = grounder.ground(picture(), "red zebra &!? left-right !!", entries["a"].id)
    (phrase,) = view["phrases"]
    tokens = [word["tokens"] for word in phrase["answers"][0]["words"]]
    assert phrase["words"] == ["red", "zebra", "&!?", "left-right", "!!"]
    # "zebra" is not in the vocabulary: five letters; "&" is kept by the cleaning and unknown.
    assert tokens == [1, 5, 1, 2, 0]
    assert [word["map"] is None for word in phrase["answers"][0]["words"]] == [False] * 4 + [True]


def test_two_models_side_by_side(grounder, entries):
    both = grounder.ground(picture(), LINES, entries["a"].id, entries["c"].id)
    assert [model["title"] for model in both["models"]] == ["Tiny albef", "Tiny blip"]
    assert both["request"]["compare"] == entries["c"].id
    for number, name in enumerate("ac"):
        alone = grounder.ground(picture(), LINES, entries[name].id)
        assert [p["answers"][number] for p in both["phrases"]] == [p["answers"][0] for p in alone["phrases"]]
    with_itself = grounder.ground(picture(), LINES, entries["a"].id, entries["a"].id)
    assert len(with_itself["models"]) == 1 and with_itself["request"]["compare"] is None


def test_another_layer(grounder, entries):
    default, third, fourth = (grounder.ground(picture(), LINES, entries["a"].id, None, k) for k in (None, 3, 4))
    assert default["phrases"] == third["phrases"]  # tiny_config explains layer 3
    assert third["phrases"][0]["answers"][0]["map"] != fourth["phrases"][0]["answers"][0]["map"]
    for name, layer in [("a", 0), ("a", 99), ("a", -1), ("c", 99)]:
        with pytest.raises(grounding.LinesError, match="choose one of"):
            grounder.ground(picture(), LINES, entries[name].id, None, layer)


def test_absent_is_said_by_the_probability_of_the_catalogue(entries):
    for bound, present in [(0.0, True), (1.0, False)]:
        entry = models.Entry(entries["a"].id, "Tiny", "nothing", absent_below=bound)
        answers = grounding.Grounder([entry]).ground(picture(), LINES)["phrases"]
        assert [phrase["answers"][0]["present"] for phrase in answers] == [present] * 2


def test_large_photos_are_shown_smaller_and_answered_in_their_own_pixels(grounder):
    view = grounder.ground(picture(2000, 500).resize((2000, 500)), PHRASES[0])
    with Image.open(
        io.BytesIO(base64.b64decode(view["photo"]["src"].removeprefix("data:image/jpeg;base64,")))
    ) as shown:
        assert shown.size == (1280, 320)
    x1, y1, x2, y2 = view["phrases"][0]["answers"][0]["box"]
    assert 0 <= x1 < x2 <= 2000 and 0 <= y1 < y2 <= 500


# What is kept ---------------------------------------------------------------------------------------------------------


def test_a_photo_is_encoded_once(grounder, entries):
    for name in "ac":
        encoder, seen = grounder.load(entries[name].id).model.vision_model.encoder, []
        encoder.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(1))
        first = grounder.ground(picture(), PHRASES[0], entries[name].id)
        grounder.ground(picture(), LINES, entries[name].id)
        again = grounder.ground(picture(), PHRASES[0], entries[name].id)
        assert len(seen) == 1 and again == first
        grounder.ground(picture(41), PHRASES[0], entries[name].id)
        assert len(seen) == 2


def test_what_is_kept_is_bounded(entries):
    small = grounding.Grounder(list(entries.values()), max_models=2, max_encodings=3)
    for width in range(40, 46):
        for entry in entries.values():
            small.ground(picture(width), PHRASES[0], entry.id)
    assert len(small.models.values) == 2 and len(small.encodings.values) == 3


def test_recent_forgets_what_was_not_asked_for_the_longest():
    recent = grounding.Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)


def test_many_at_once_get_what_each_asked_for(grounder, entries):
    asked = [(picture(40 + n % 3), PHRASES[n % 2], entries["ac"[n % 2]].id) for n in range(12)]
    alone = [grounding.Grounder(list(entries.values())).ground(*each) for each in asked[:6]]
    with ThreadPoolExecutor(6) as pool:
        views = list(pool.map(lambda each: grounder.ground(*each), asked))
    for number, view in enumerate(views):
        found, expected = (v["phrases"][0]["answers"][0] for v in (view, alone[number % 6]))
        assert (found["point"], found["box"]) == (expected["point"], expected["box"])


# Lines that cannot be answered -----------------------------------------------------------------------------


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
def test_lines_that_cannot_be_answered(grounder, lines, sentence):
    with pytest.raises(grounding.LinesError, match=sentence):
        grounder.ground(picture(), lines)
    assert grounder.ground(picture(), PHRASES[0])["phrases"]


# Models ---------------------------------------------------------------------------------------------------------------


def test_models_that_are_not_there(grounder, entries):
    for name in ("../../etc", str(SPACE), "a b/c", "checkpoints", "org/model/more", "http://x/y"):
        with pytest.raises(models.ModelError, match="no model's name"):
            grounder.ground(picture(), LINES, name)
    with pytest.raises(models.ModelError, match="does not hand out org/model now"):  # offline here
        grounder.ground(picture(), LINES, "org/model")
    assert grounder.ground(picture(), LINES)["models"][0]["title"] == "Tiny albef"


def test_only_one_visitor_loads_a_model_at_a_time(grounder):
    with grounder.loading_a_strangers, pytest.raises(models.ModelError, match="Another model is just being loaded"):
        grounder.ground(picture(), LINES, "org/model")


def test_the_owners_model_comes_first_or_the_page_says_why_not(entries):
    catalogue = [entries["b"]]
    chosen = grounding.Grounder(catalogue, preferred=entries["c"].id).ground(picture(), LINES)
    assert chosen["models"][0]["id"] == entries["c"].id and chosen["models"][0]["note"] is None
    instead = grounding.Grounder(catalogue, preferred="org/nothing").ground(picture(), LINES)
    assert instead["models"][0]["id"] == entries["b"].id
    assert re.match("The model org/nothing could not be loaded: .* Shown instead: Tiny", instead["models"][0]["note"])


def test_what_is_too_large_is_not_loaded(tmp_path, monkeypatch):
    entry = saved(tmp_path / "model", "albef")
    for name, bound, sentence in [
        ("MAX_PARAMETERS", 1000, "million parameters"),
        ("MAX_LAYERS", 4, "5 layers"),
        ("MAX_SIDE", 31, "images of 32 pixels"),
    ]:
        with monkeypatch.context() as patched:
            patched.setattr(models, name, bound)
            with pytest.raises(models.ModelError, match=sentence):
                models.load_own(entry)


def test_a_model_without_its_head_is_refused(tmp_path):
    model, processor = FAMILIES["albef"]()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("itm_head")}
    model.save_pretrained(tmp_path, state_dict=weights)
    processor.save_pretrained(tmp_path)
    with pytest.raises(models.ModelError, match="lacks weights"):
        models.load_own(models.Entry(str(tmp_path), "", ""))


def test_the_models_that_come_along():
    for entry in models.read_catalogue():
        files = {path.name for path in (SPACE / entry.id).iterdir()}
        assert "model.safetensors" in files and files <= {*models.FILES, "README.md"}
        assert sum(path.stat().st_size for path in (SPACE / entry.id).iterdir()) < 3e6
        assert "auto_map" not in "".join(p.read_text() for p in (SPACE / entry.id).glob("*config.json"))


STRANGERS = """
import json, sys, tempfile
from pathlib import Path
tempfile.tempdir = sys.argv[1]
import models
for name in json.loads(sys.argv[2]):
    try:
        loaded = models.load_strangers(name)
        print(name, type(loaded.model).__name__, loaded.model.config._attn_implementation)
    except models.ModelError as error:
        print(name, error)
print("left", [path.name for path in Path(sys.argv[1]).glob("model-*")])
"""


def test_a_strangers_model_runs_no_code(tmp_path):
    """A Hub id is loaded although its repository is full of traps, and none of them springs."""
    mark = tmp_path / "sprung"
    code = f"open({str(mark)!r}, 'w').close()\n"
    for family in FAMILIES:
        saved(tmp_path / family, family)
        folder, trap = tmp_path / family, {"auto_map": {"AutoConfig": "trap.C", "AutoModel": "trap.M"}}
        trap |= {"audio_tokenizer": {"audio_tokenizer_class": "BertModel", "audio_tokenizer_name_or_path": "org/trap"}}
        for path in [*folder.glob("*.py"), folder / "trap.py", folder / "modeling_albef.py"]:
            path.write_text(code)
        for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
            content = json.loads((folder / name).read_text()) | trap | {"attn_implementation": "org/kernel"}
            (folder / name).write_text(json.dumps(content))
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/trap"}')
    pickled = tmp_path / "pickled"
    shutil.copytree(tmp_path / "albef", pickled)
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(code)))
    (tmp_path / "other").mkdir()
    shutil.copytree(tmp_path / "albef", tmp_path / "other", dirs_exist_ok=True)
    content = json.loads((tmp_path / "other" / "config.json").read_text()) | {"model_type": "trap"}
    (tmp_path / "other" / "config.json").write_text(json.dumps(content))
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
    assert printed[:2] == ["org/albef AlbefModel sdpa", "org/blip BlipForImageTextRetrieval eager"]
    assert "has no model.safetensors" in printed[2] and "of type 'trap'" in printed[3]
    assert "There is no public model org/missing" in printed[4]
    assert printed[5] == "left []" and not mark.exists()
    assert "trap.py" not in fetched and fetched <= set(models.FILES)


class Trap:
    """Unpickled, it runs code."""

    def __init__(self, code: str):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


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
def served(tmp_path_factory):
    """The folder and the package, and nothing else of the project, as a server. Returns: its address."""
    folder = tmp_path_factory.mktemp("alone") / "space"
    shutil.copytree(SPACE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.pyi"))
    package = folder / "modeling_albef_amc"
    shutil.copytree(ROOT / "modeling_albef_amc", package, ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    settings |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder.parent / "uploads")}
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MODEL_ID")}
    log = (folder.parent / "log").open("w")
    server = subprocess.Popen([sys.executable, "-c", START], cwd=folder, env=kept | settings, stdout=log, stderr=log)
    try:
        ends = time.monotonic() + 300
        while "Running on local URL" not in (told := (folder.parent / "log").read_text()):
            assert server.poll() is None and time.monotonic() < ends, told
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(300)
        log.close()


def example(number: int = 0) -> tuple[Path, list[str]]:
    chosen = app.EXAMPLES[number]
    return SPACE / "examples" / chosen["photo"], chosen["lines"].splitlines()


def test_the_api_points_where_the_python_api_points(served):
    photo, phrases = example()
    view = Client(served, verbose=False).predict(handle_file(photo), "\n".join(phrases), api_name="/ground")
    ground = pipeline("visual-grounding", model=str(SPACE / models.read_catalogue()[0].id))
    for phrase, expected in zip(view["phrases"], ground(str(photo), phrases), strict=True):
        (answer,) = phrase["answers"]
        assert phrase["text"] == expected["phrase"]
        assert (tuple(answer["point"]), tuple(answer["box"])) == (expected["point"], expected["box"])
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert view["photo"]["link"] == f"example:{photo.name}"


def test_the_snippets_run_as_they_are_written(served, tmp_path, monkeypatch, capsys):
    shutil.copy(example()[0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    page = app.USE.replace("{url}", served)
    readme = re.sub(r'Client\("[^"]+"', f'Client("{served}"', (SPACE / "README.md").read_text())
    for text in (page, readme):
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        exec(compile(code, "snippet", "exec"), {})
        assert capsys.readouterr().out.count("[") >= 2


def test_after_bad_input_the_server_goes_on(served, tmp_path):
    client, (photo, phrases) = Client(served, verbose=False), example()
    (tmp_path / "text.jpg").write_text("just text")
    Image.new("L", (8000, 5000)).save(tmp_path / "large.png")
    bad = [
        ((None, "star"), "Choose a photo first"),
        ((handle_file(photo), ""), "at least one phrase"),
        ((handle_file(photo), "star " * 10_000), "letters; at most"),
        ((handle_file(tmp_path / "text.jpg"), "star"), "not a photo"),
        ((handle_file(tmp_path / "large.png"), "star"), "40 megapixels"),
        ((None, "star", "http://127.0.0.1/x.jpg"), "private network"),
        ((handle_file(photo), "star", "", "org/no-such-model"), "does not hand out"),
        ((handle_file(photo), "star", "", "", "", 99), "choose one of"),
        (({"path": f"{served}/config", "meta": {"_type": "gradio.FileData"}}, "star"), "pass its address as url"),
    ]
    for arguments, sentence in bad:
        with pytest.raises(AppError, match=sentence):
            client.predict(*arguments, api_name="/ground")
    assert client.predict(handle_file(photo), phrases[0], api_name="/ground")["phrases"]


def test_files_of_the_server_are_out_of_reach(served):
    """Asked without gradio_client, which would upload a file of its own machine."""
    inside = str(SPACE / "examples" / app.EXAMPLES[0]["photo"])
    uploaded = Client(served, verbose=False).predict(handle_file(inside), "star", api_name="/ground")
    assert uploaded["phrases"]
    for path in (inside, "/etc/passwd", "../../etc/passwd"):
        photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
        content = json.dumps({"data": [photo, "star", "", "", "", None]}).encode()
        url, kind = f"{served}/gradio_api/call/ground", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, content, kind)) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{url}/{event}") as answer:
            assert answer.read().decode().startswith("event: error")


def test_several_users_at_once(served):
    photo, phrases = example()

    def use(user: int) -> list[list[int]]:
        client = Client(served, verbose=False)
        views = [client.predict(handle_file(photo), phrases[user % 3], api_name="/ground") for _ in range(3)]
        return [view["phrases"][0]["answers"][0]["point"] for view in views]

    with ThreadPoolExecutor(6) as pool:
        points = list(pool.map(use, range(6)))
    assert points[:3] == points[3:] and all(each == each[:1] * 3 for each in points)


# The page -------------------------------------------------------------------------------------------------------------


def endpoint(page, name: str):
    (function,) = {f.fn for f in page.fns.values() if f.fn is not None and f.fn.__name__ == name}
    return function


def test_errors_are_handed_to_the_viewer(grounder):
    show = endpoint(app.build(grounder), "show")
    assert show(None, LINES, "", "", "", None) == {
        "error": "Choose a photo first: upload one, paste its address, or take an example."
    }
    assert "private network" in show(None, LINES, "http://localhost/x.png", "", "", None)["error"]
    assert show(str(example()[0]), LINES, "", "", "", None)["phrases"]


def test_a_link_brings_back_what_it_was_made_of(grounder, entries):
    restore = endpoint(app.build(grounder), "restore")
    photo = example()[0]

    def opened(**query: str) -> list:
        return restore(SimpleNamespace(query_params=query))

    query = {"photo": f"example:{photo.name}", "lines": LINES, "model": entries["b"].id, "compare": "", "layer": "3"}
    assert opened(**query) == [str(photo), LINES, "", entries["b"].id, "", "3", query]
    address = "https://example.org/photo.jpg"
    assert opened(photo=address, lines="cup")[:3] == [None, "cup", address]
    nothing = [*[gr.skip()] * 6, None]
    assert opened() == nothing
    for name in ("example:../app.py", "/etc/passwd", "file:///etc/passwd", "example:"):
        assert opened(photo=name) == nothing
        assert opened(photo=name, lines=LINES)[0] is None
