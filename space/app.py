"""Point at what phrases name: a photo and phrases in; out comes for each where the model sees it, and how well it fits.

python space/app.py                       the models that come with this folder
MODEL_ID=org/model python space/app.py    another one first: a Hub id or a folder
"""

import base64
import hashlib
import html
import importlib
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr

from grounding import Grounder, LinesError
from models import MAX_LAYERS, ModelError, read_catalogue
from photos import MAX_BYTES, PhotoError, fetch, read_photo

HERE = Path(__file__).parent
EXAMPLES = json.loads((HERE / "examples" / "examples.json").read_text())
PHOTO_LINKS = {
    hashlib.sha256((HERE / "examples" / example["photo"]).read_bytes()).hexdigest(): f"example:{example['photo']}"
    for example in EXAMPLES
}
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
INTRODUCTION = """
# Point at it
Name things in a photo, and see where the model looks for them.
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


# Of the gallery: which of its buttons was pressed.
CHOOSE_EXAMPLE = """
element.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button) trigger("click", { index: Number(button.value) });
});
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
            return answer(grounder, photo, lines, url, model, compare, None if layer in ("", None) else int(layer))
        except (PhotoError, LinesError, ModelError) as error:
            return {"error": str(error)}

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
        photo = next((str(HERE / "examples" / e["photo"]) for e in EXAMPLES if name == f"example:{e['photo']}"), None)
        fields = [
            photo,
            asked["lines"],
            name if name.startswith(("http://", "https://")) else "",
            asked.get("model") or grounder.default,
            asked.get("compare", ""),
            layer if layer in LAYERS else "",
        ]
        return [*fields, asked]

    def take(event: gr.EventData):
        example = EXAMPLES[event.index]
        return str(HERE / "examples" / example["photo"]), example["lines"], ""

    first = EXAMPLES[0]
    with gr.Blocks(title="Point at it", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                sources = ["upload", "webcam", "clipboard"]
                photo = PhotoInput(str(HERE / "examples" / first["photo"]), label="Photo", sources=sources, height=214)
                hint = "or its address: https://…"
                url = gr.Textbox(label="Address of a photo", show_label=False, placeholder=hint, max_lines=1)
                lines = gr.Textbox(first["lines"], label="What to look for, one phrase a line", lines=4, max_lines=8)
                button = gr.Button("Point", variant="primary")
                examples = gr.HTML(gallery(), js_on_load=CHOOSE_EXAMPLE, elem_id="examples", apply_default_css=False)
                with gr.Accordion("Advanced", open=False):
                    choices = [(entry.title, entry.id) for entry in grounder.catalogue.values()]
                    model = gr.Dropdown(
                        choices,
                        value=grounder.default,
                        label="Model",
                        info="One of these, or the Hub id of any model of a known family: ALBEF, BLIP, CLIP, …",
                        allow_custom_value=True,
                    )
                    compare = gr.Dropdown(
                        [("none", ""), *choices],
                        value=compare_with(grounder),
                        label="Compare with",
                        allow_custom_value=True,
                    )
                    # Not a number's field: gradio would take an empty one for 0.
                    layer = gr.Dropdown([("the model's own", ""), *LAYERS], value="", label="Layer")
            with gr.Column(scale=7, min_width=320):
                shown = [name for name in (grounder.default, compare_with(grounder)) if name]
                viewer = gr.HTML(
                    first_view(grounder),
                    **viewer_files(),
                    models=[grounder.describe(grounder.catalogue[name]) for name in shown],
                    elem_id="viewer",
                    apply_default_css=False,
                )
        fields = [photo, lines, url, model, compare, layer]
        # All that computes stands in one queue.
        queued = {"concurrency_id": "ground", "concurrency_limit": 2}
        options = {"fn": show, "inputs": fields, "outputs": viewer, "api_visibility": "private", **queued}
        button.click(**options)
        url.submit(**options)
        examples.click(take, None, [photo, lines, url], api_visibility="private").then(**options)
        # In the browser: who presses the button at once does not get the photo of the old address.
        photo.input(None, None, url, js="() => ''", api_visibility="private")
        # Only a link makes the state change. Queued, since otherwise gradio does not tell the page that it has.
        link = gr.State()
        page.load(restore, None, [*fields, link], concurrency_limit=None, api_visibility="private")
        link.change(**options)
        with gr.Accordion("Use it from Python", open=False):
            gr.Markdown(USE.replace("{url}", os.environ.get("SPACE_ID", "http://127.0.0.1:7860")), elem_id="use")
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


def first_view(grounder: Grounder) -> dict[str, Any] | None:
    """What the page shows as it opens: the first example, answered once for all visitors.

    On ZeroGPU nothing can be answered before somebody asks: None.
    """
    if find_spec("spaces"):
        return None
    first = EXAMPLES[0]
    path = HERE / "examples" / first["photo"]
    try:
        return answer(grounder, str(path), first["lines"], "", grounder.default, compare_with(grounder), None)
    except (PhotoError, LinesError, ModelError) as error:
        return {"error": str(error)}


def gallery() -> str:
    """The examples as buttons with small pictures."""
    buttons = []
    for number, example in enumerate(EXAMPLES):
        title = html.escape(example["title"])
        picture = base64.b64encode((HERE / "examples" / example["photo"]).read_bytes()).decode()
        picture = f'<img src="data:image/png;base64,{picture}" alt="Example: {title}">'
        buttons.append(f'<button type="button" value="{number}" title="{title}">{picture}</button>')
    return f"<p>Examples</p>{''.join(buttons)}"


def viewer_files() -> dict[str, str]:
    names = {"html_template": "viewer.html", "css_template": "viewer.css", "js_on_load": "viewer.js"}
    return {option: (HERE / name).read_text() for option, name in names.items() if (HERE / name).is_file()}


def launch_options() -> dict[str, Any]:
    return {
        "theme": THEME,
        "css": (HERE / "page.css").read_text(),
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
