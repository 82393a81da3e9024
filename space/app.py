"""Point at what phrases name: a photo and phrases in; out comes for each where the model sees it, and how well it fits.

python space/app.py                       the models that come with this folder
MODEL_ID=org/model python space/app.py    another one first: a Hub id or a folder
"""

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr

from grounding import Grounder, LinesError
from models import ModelError, read_catalogue
from photos import MAX_BYTES, PhotoError, fetch, read_photo

HERE = Path(__file__).parent
EXAMPLES = json.loads((HERE / "examples" / "examples.json").read_text())
PHOTO_LINKS = {
    hashlib.sha256((HERE / "examples" / example["photo"]).read_bytes()).hexdigest(): f"example:{example['photo']}"
    for example in EXAMPLES
}
# Fonts of the visitor's system: nothing is fetched from another host.
THEME = gr.themes.Default(
    font=("ui-sans-serif", "system-ui", "sans-serif"), font_mono=("ui-monospace", "Consolas", "monospace")
)
INTRODUCTION = """
# Point at it
A photo, and phrases for things in it: see where the model looks for each of them, and how well it thinks that they fit.
"""
USE = """
```python
from gradio_client import Client, handle_file

space = Client("{url}")
view = space.predict(handle_file("photo.jpg"), "the red cup\\nthe left cup", api_name="/ground")
for phrase in view["phrases"]:
    answer = phrase["answers"][0]
    print(phrase["text"], answer["score"], answer["point"], answer["box"])
```
Points and boxes are in pixels of the upright photo.
"""


class PhotoInput(gr.Image):
    """Hands on the uploaded file as it is, to be opened once, with care; addresses have a field of their own."""

    is_template = True  # looks like its parent

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None else payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        # gradio would fetch an address without a limit to its size.
        if str(url_or_file_path).startswith(("http://", "https://")):
            raise gr.Error("Upload the photo, or pass its address as url.", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)


def answer(
    grounder: Grounder, photo: str | None, lines: str, url: str, model: str, compare: str, layer: int | None
) -> dict[str, Any]:
    """
    Args:
        photo: path of an uploaded file; used when `url` is empty.

    Returns: the view, see `Grounder.ground`.

    Raises:
        PhotoError, LinesError, ModelError: a sentence for the visitor.
    """
    url = (url or "").strip()
    if not url and photo is None:
        raise PhotoError("Choose a photo first: upload one, paste its address, or take an example.")
    data = fetch(url) if url else Path(photo).read_bytes()
    link = url if url else PHOTO_LINKS.get(hashlib.sha256(data).hexdigest())
    return grounder.ground(read_photo(data), lines or "", model, compare, layer, link)


def build(grounder: Grounder) -> gr.Blocks:
    """The page, and the endpoint `/ground`."""

    @on_gpu
    def show(photo, lines, url, model, compare, layer):
        try:
            return answer(grounder, photo, lines, url, model, compare, layer)
        except (PhotoError, LinesError, ModelError) as error:
            return {"error": str(error)}

    def ground(photo=None, lines="", url="", model="", compare="", layer=None):
        view = show(photo, lines, url, model, compare, layer)
        if "error" in view:
            raise gr.Error(view["error"], print_exception=False)
        return view

    def restore(request: gr.Request):
        """What a link says of photo, lines, model, compare and layer; and the link, when there is something to show."""
        asked = dict(request.query_params)
        name, layer = asked.get("photo", ""), asked.get("layer", "")
        photo = next((str(HERE / "examples" / e["photo"]) for e in EXAMPLES if name == f"example:{e['photo']}"), None)
        fields = [
            photo,
            asked.get("lines", ""),
            name if name.startswith(("http://", "https://")) else "",
            asked.get("model") or grounder.default,
            asked.get("compare", "") if asked else compare_with(grounder),
            int(layer) if layer.isdecimal() else None,
        ]
        return [*fields, asked if name and fields[1] else None]

    with gr.Blocks(title="Point at it", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                photo = PhotoInput(label="Photo", sources=["upload", "webcam", "clipboard"], height=240)
                url = gr.Textbox(label="or its address", placeholder="https://…", max_lines=1)
                lines = gr.Textbox(label="One phrase a line", placeholder="the red cup\nthe left cup", lines=3)
                button = gr.Button("Point", variant="primary")
                rows = [[str(HERE / "examples" / e["photo"]), e["lines"]] for e in EXAMPLES]
                titles = [e["title"] for e in EXAMPLES]
                examples = gr.Examples(rows, [photo, lines], example_labels=titles, cache_examples=False)
                with gr.Accordion("Advanced", open=False):
                    choices = [(entry.title, entry.id) for entry in grounder.catalogue.values()]
                    model = gr.Dropdown(
                        choices,
                        value=grounder.default,
                        label="Model",
                        info="One of these, or any Hub id of an ALBEF or BLIP model.",
                        allow_custom_value=True,
                    )
                    compare = gr.Dropdown(
                        [("none", ""), *choices],
                        value=compare_with(grounder),
                        label="Compare with",
                        allow_custom_value=True,
                    )
                    layer = gr.Number(label="Layer", info="Empty: the model's own.", precision=0, value=None)
            with gr.Column(scale=7, min_width=320):
                models = [grounder.describe(grounder.catalogue[grounder.default])]
                viewer = gr.HTML(**viewer_files(), models=models, elem_id="viewer", apply_default_css=False)
        fields = [photo, lines, url, model, compare, layer]
        # All that computes stands in one queue.
        queued = {"concurrency_id": "ground", "concurrency_limit": 2}
        options = {"fn": show, "inputs": fields, "outputs": viewer, "api_visibility": "private", **queued}
        button.click(**options)
        url.submit(**options)
        examples.load_input_event.then(lambda: "", None, url, api_visibility="private").then(**options)
        photo.input(lambda: "", None, url, api_visibility="private")
        # Who opens the page without a link does not have to queue for it.
        link = gr.State()
        page.load(restore, None, [*fields, link], queue=False, api_visibility="private")
        link.change(**options)
        with gr.Accordion("Use it from Python", open=False):
            gr.Markdown(USE.replace("{url}", os.environ.get("SPACE_ID", "http://127.0.0.1:7860")))
        with gr.Column(visible=False):
            # A value is what makes a parameter optional for gradio_client.
            asked = [PhotoInput(), *(gr.Textbox("") for _ in range(4)), gr.Number(precision=0)]
            gr.Button().click(ground, asked, gr.JSON(), api_name="ground", **queued)
    return page.queue(max_size=100)


def on_gpu(function: Callable) -> Callable:
    """On ZeroGPU, what computes has to say so; elsewhere this changes nothing."""
    return importlib.import_module("spaces").GPU(function) if find_spec("spaces") else function


def compare_with(grounder: Grounder) -> str:
    """The second model of the page as it opens: of the models that come with it the other one."""
    others = [name for name in grounder.catalogue if name != grounder.default]
    return others[0] if others and grounder.default.startswith("checkpoints/") else ""


def viewer_files() -> dict[str, str]:
    names = {"html_template": "viewer.html", "css_template": "viewer.css", "js_on_load": "viewer.js"}
    return {option: (HERE / name).read_text() for option, name in names.items() if (HERE / name).is_file()}


def launch_options() -> dict[str, Any]:
    return {
        "theme": THEME,
        "max_file_size": MAX_BYTES,
        "state_session_capacity": 200,  # of each visitor, gradio keeps the last answer
        "ssr_mode": False,
        "allowed_paths": [str(HERE / "examples")],
        "footer_links": ["api", "settings"],
    }


def main() -> None:
    build(Grounder(read_catalogue(), os.environ.get("MODEL_ID"))).launch(**launch_options())


if __name__ == "__main__":
    main()
