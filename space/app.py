"""Point at what phrases name: an image and phrases in; where the model sees each, and how well it fits, out.

python space/app.py                       the models that come with this folder
MODEL_ID=org/model python space/app.py    another one first: a Hub id or a folder
"""

import base64
import hashlib
import html
import importlib
import json
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr

from errors import VisitorError
from grounding import ground_lines
from images import MAX_BYTES, fetch, read_image
from models import MAX_LAYERS, ModelStore, read_catalogue

HERE = Path(__file__).parent
EXAMPLES = json.loads((HERE / "examples" / "examples.json").read_text())
# What stands for an example in a link → its file.
EXAMPLE_FILES = {f"example:{example['photo']}": str(HERE / "examples" / example["photo"]) for example in EXAMPLES}
LINKS = {hashlib.sha256(Path(path).read_bytes()).hexdigest(): link for link, path in EXAMPLE_FILES.items()}
FIRST, FIRST_FILE = EXAMPLES[0], next(iter(EXAMPLE_FILES.values()))
LAYERS = [str(layer) for layer in range(MAX_LAYERS)]
# Fonts of the visitor's system: nothing is fetched from another host.
THEME = gr.themes.Default(
    primary_hue="violet",
    spacing_size="sm",
    font=("ui-sans-serif", "system-ui", "sans-serif"),
    font_mono=("ui-monospace", "Consolas", "monospace"),
).set(
    # Letters that differ enough from what is behind them.
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_700",
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)
GRADIO_5 = gr.__version__.startswith("5.")
HTML = importlib.import_module("gradio5").HTML if GRADIO_5 else gr.HTML
PRIVATE = {"api_name": False} if GRADIO_5 else {"api_visibility": "private"}  # no part of the API
LOOK = {"theme": THEME, "css": (HERE / "page.css").read_text()}
INTRODUCTION = "# Point at it\nName things in a photo, and see where the model looks for them."
# Of the README, where the Space has the name that it would be uploaded under.
(SNIPPET,) = re.findall(r"```python\n.*?```", (HERE / "README.md").read_text(), re.DOTALL)


class ImageInput(gr.Image):
    """Hands on the uploaded file as it is, to be opened once, with care; addresses have a field of their own."""

    is_template = True  # looks like its parent

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None else payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        # gradio would fetch an address without a limit to its size.
        if str(url_or_file_path).startswith(("http://", "https://")):
            raise gr.Error("Upload the photo, or pass its address as url.", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)


def answer(store: ModelStore, path: str | None, lines, url="", model="", compare="", layer=None) -> dict[str, Any]:
    """The view, see `ground_lines`; or {"error": a sentence for the visitor}.

    Args:
        path: of an uploaded file; used when `url` is empty.
        layer: a number; "" or None is the model's own.
    """
    url, layer = (url or "").strip(), None if layer in ("", None) else int(layer)
    try:
        if not url and path is None:
            raise VisitorError("Choose a photo first: upload one, paste its address, or take an example.")
        data = fetch(url) if url else Path(path).read_bytes()
        link = url or LINKS.get(hashlib.sha256(data).hexdigest())
        return ground_lines(store, read_image(data), lines or "", model, compare, layer, link)
    except VisitorError as error:
        return {"error": str(error)}


def build(store: ModelStore) -> gr.Blocks:
    """The page, and the endpoint `/ground`."""

    @on_gpu
    def show(photo, lines, url, model, compare, layer):
        return answer(store, photo, lines, url, model, compare, layer)

    def ground(photo=None, lines="", url="", model="", compare="", layer=None):
        view = show(photo, lines, url, model, compare, layer)
        if "error" in view:
            raise gr.Error(view["error"], print_exception=False)
        return view

    def restore(request: gr.Request):
        """What a link says of photo, lines, model, compare and layer, and the link; nothing where there is none."""
        asked = dict(request.query_params)
        name, layer = asked.get("photo", ""), asked.get("layer", "")
        if not name or not asked.get("lines"):
            return [gr.skip()] * 6 + [None]
        url = name if name.startswith(("http://", "https://")) else ""
        model, layer = asked.get("model") or store.default, layer if layer in LAYERS else ""
        return [EXAMPLE_FILES.get(name), asked["lines"], url, model, asked.get("compare", ""), layer, asked]

    def take(event: gr.EventData):
        return list(EXAMPLE_FILES.values())[event.index], EXAMPLES[event.index]["lines"], ""

    options = {"title": "Point at it", "analytics_enabled": False, "delete_cache": (600, 3600)}
    with gr.Blocks(**options, **(LOOK if GRADIO_5 else {})) as page:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                fields, button, examples = inputs(store)
            with gr.Column(scale=7, min_width=320):
                viewer = first_view(store)
        image, lines, url, *_ = fields
        # All that computes stands in one queue.
        queued = {"concurrency_id": "ground", "concurrency_limit": 2}
        options = {"fn": show, "inputs": fields, "outputs": viewer, **PRIVATE, **queued}
        button.click(**options)
        url.submit(**options)
        examples.click(take, None, [image, lines, url], **PRIVATE).then(**options)
        # In the browser: who presses the button at once does not get the image of the old address.
        image.input(None, None, url, js="() => ''", **PRIVATE)
        # Only a link makes the state change. Queued, since otherwise gradio does not tell the page that it has.
        link = gr.State()
        page.load(restore, None, [*fields, link], concurrency_limit=None, **PRIVATE)
        link.change(**options)
        with gr.Accordion("Use it from Python", open=False):
            here = os.environ.get("SPACE_ID", "http://127.0.0.1:7860")
            units = "Points and boxes are in pixels of the upright photo."
            gr.Markdown(f"{SNIPPET.replace('org/point', here)}\n{units}", elem_id="use")
        with gr.Column(visible=False):
            # A value is what makes a parameter optional for gradio_client.
            asked = [ImageInput(), *(gr.Textbox("") for _ in range(4)), gr.Number(precision=0)]
            gr.Button().click(ground, asked, gr.JSON(), api_name="ground", **queued)
    return page.queue(max_size=100)


def inputs(store: ModelStore) -> tuple[list[gr.components.Component], gr.Button, gr.HTML]:
    """The left column. Returns: image, lines, url, model, compare and layer; the button; the examples."""
    image = ImageInput(FIRST_FILE, label="Photo", sources=["upload", "webcam", "clipboard"], height=214)
    hint = "or its address: https://…"
    url = gr.Textbox(label="Address of a photo", show_label=False, placeholder=hint, max_lines=1)
    lines = gr.Textbox(FIRST["lines"], label="What to look for, one phrase a line", lines=4, max_lines=8)
    button = gr.Button("Point", variant="primary")
    chosen = (HERE / "examples.js").read_text()
    examples = HTML(gallery(), js_on_load=chosen, elem_id="examples", apply_default_css=False)
    with gr.Accordion("Advanced", open=False):
        choices = [(entry.title, entry.id) for entry in store.catalogue.values()]
        hint = "One of these, or the Hub id of any model of a known family: ALBEF, BLIP, CLIP, …"
        model = gr.Dropdown(choices, value=store.default, label="Model", info=hint, allow_custom_value=True)
        second, choices = compare_with(store), [("none", ""), *choices]
        compare = gr.Dropdown(choices, value=second, label="Compare with", allow_custom_value=True)
        # Not a number's field: gradio would take an empty one for 0.
        layer = gr.Dropdown([("the model's own", ""), *LAYERS], value="", label="Layer")
    return [image, lines, url, model, compare, layer], button, examples


def first_view(store: ModelStore) -> gr.HTML:
    """The viewer, with the first example, answered once for all visitors; on ZeroGPU nothing can be before they ask."""
    second, view = compare_with(store), None
    if not find_spec("spaces"):
        view = answer(store, FIRST_FILE, FIRST["lines"], model=store.default, compare=second)
    names = {"html_template": "viewer.html", "css_template": "viewer.css", "js_on_load": "viewer.js"}
    files = {option: (HERE / name).read_text() for option, name in names.items()}
    shown = [store.describe(store.catalogue[name]) for name in (store.default, second) if name]
    return HTML(view, **files, models=shown, elem_id="viewer", apply_default_css=False)


def on_gpu(function: Callable) -> Callable:
    """On ZeroGPU, what computes has to say so; elsewhere this changes nothing."""
    return importlib.import_module("spaces").GPU(function) if find_spec("spaces") else function


def compare_with(store: ModelStore) -> str:
    """The second model of the page as it opens: of the models that come with it the other one."""
    others = [name for name in store.catalogue if name != store.default]
    return others[0] if others and store.default.startswith("checkpoints/") else ""


def gallery() -> str:
    buttons = []
    for number, (example, path) in enumerate(zip(EXAMPLES, EXAMPLE_FILES.values(), strict=True)):
        title, data = html.escape(example["title"]), base64.b64encode(Path(path).read_bytes()).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="Example: {title}">'
        buttons.append(f'<button type="button" value="{number}" title="{title}">{image}</button>')
    return f"<p>Examples</p>{''.join(buttons)}"


def launch_options() -> dict[str, Any]:
    own = {} if GRADIO_5 else LOOK | {"footer_links": ["api", "settings"]}
    return own | {
        "max_file_size": MAX_BYTES,
        "state_session_capacity": 200,  # of each visitor, gradio keeps the last answer
        "ssr_mode": False,
        "allowed_paths": [str(HERE / "examples")],
    }


if __name__ == "__main__":
    build(ModelStore(read_catalogue(), os.environ.get("MODEL_ID"))).launch(**launch_options())
