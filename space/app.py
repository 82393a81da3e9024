"""Point at what phrases name: a photo and some phrases in, for each the heatmap, its maximum, a box and the match.

    MODEL_ID=… python space/app.py

MODEL_ID is a Hub id or a folder; its own code is run (`trust_remote_code`), so let it be one you trust. Without it, the
model that `make train` makes is shown.
"""

import os
from functools import partial
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin

HERE = Path(__file__).parent
TRAINED_HERE = HERE.parent / "outputs" / "scenes" / "with_amc"
MAX_PHRASES = 16
COLUMNS = ["phrase", "match, %", "point (x, y)", "box (x1, y1, x2, y2)"]
EXAMPLES = [
    [str(HERE / "examples" / "scene_1.png"), "the triangle that is red\nlarge star\nsmall star"],
    [
        str(HERE / "examples" / "scene_2.png"),
        "the green object above the blue square\ngreen object below the blue square\nblue star under the blue square",
    ],
]
EXPLANATION = """
# Point at it
Give a photo and short phrases for things in it. A phrase is matched with the photo, and Grad-CAM on the model's
cross-attention shows where that match comes from. The dot is the heatmap's maximum, the box surrounds the heat at it.
Points and boxes are in pixels of the photo.
"""


def load(model_id: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model, on a GPU if there is one, and its processor.

    Args:
        model_id: Hub id or folder of an ALBEF model with its code.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(model_id, trust_remote_code=True).eval().to(device)
    return model, AutoProcessor.from_pretrained(model_id, trust_remote_code=True)


def ground(
    model: PreTrainedModel, processor: ProcessorMixin, photo: Image.Image | None, text: str
) -> tuple[list[tuple[Image.Image, str]], list[list[str]]]:
    """
    Args:
        photo: RGB.
        text: one phrase a line.

    Returns: for each phrase the photo under its heatmap, with a caption; and a row of `COLUMNS`.

    Raises:
        gr.Error: no photo, no phrase, too many of them, or one that is too long or has no word.
    """
    phrases = [line.strip() for line in text.splitlines() if line.strip()]
    if photo is None:
        raise user_error("Choose a photo first.")
    if not phrases:
        raise user_error("Write at least one phrase, for example: the red cup")
    if len(phrases) > MAX_PHRASES:
        raise user_error(f"At most {MAX_PHRASES} phrases at a time, please; these are {len(phrases)}.")
    photo = photo.convert("RGB")
    try:
        inputs = processor(images=photo, text=phrases, return_tensors="pt")
    except ValueError as error:
        raise user_error(str(error)) from error
    most = model.config.text_config.max_position_embeddings
    if inputs["input_ids"].shape[1] > most:
        raise user_error(f"A phrase is longer than the model's {most} word pieces: shorten it.")
    output = model(**inputs.to(model.device), output_heatmaps=True)
    matches = output.itm_logits.detach().float().softmax(dim=-1)[:, 1].tolist()
    found = processor.post_process_grounding(output.heatmaps.cpu(), (photo.height, photo.width))
    pictures, rows = [], []
    for phrase, match, answer in zip(phrases, matches, found, strict=True):
        picture = overlay(photo, answer["heatmap"].numpy())
        mark(picture, answer["point"], answer["box"])
        pictures.append((picture, f"{phrase} ({match:.0%})"))
        rows.append([phrase, f"{100 * match:.1f}", *(", ".join(map(str, answer[key])) for key in ("point", "box"))])
    return pictures, rows


def user_error(message: str) -> gr.Error:
    """Shown on the page; not a fault of the program, so without a traceback in its log."""
    return gr.Error(message, print_exception=False)


def overlay(photo: Image.Image, heatmap: np.ndarray, opacity: float = 0.6) -> Image.Image:
    """The photo under its heatmap (height, width), shown from its minimum to its maximum."""
    heat = (heatmap - heatmap.min()) / max(np.ptp(heatmap), 1e-12)
    colours = colormaps["inferno"](heat, bytes=True)[..., :3]
    weight = opacity * heat[..., None]
    return Image.fromarray((np.asarray(photo) * (1 - weight) + colours * weight).astype(np.uint8))


def mark(picture: Image.Image, point: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    """Draws the point (x, y) and the half-open box (x1, y1, x2, y2) into the picture, each with a dark rim."""
    width = max(1, round(max(picture.size) / 200))
    draw = ImageDraw.Draw(picture)
    x1, y1, x2, y2 = box
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline="black", width=2 * width)
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline="cyan", width=width)
    draw.circle(point, 3 * width, fill="black")
    draw.circle(point, 2 * width, fill="cyan")


def build(model: PreTrainedModel, processor: ProcessorMixin) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="Point at it") as page:
        gr.Markdown(EXPLANATION)
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type="pil", image_mode="RGB", label="Photo", sources=["upload", "clipboard"])
                phrases = gr.Textbox(lines=4, label="Phrases, one a line", placeholder="the red cup\nthe left cup")
                button = gr.Button("Point", variant="primary")
            with gr.Column():
                pictures = gr.Gallery(label="Heatmaps", columns=2, object_fit="contain")
                table = gr.Dataframe(headers=COLUMNS, label="Answers", interactive=False)
        gr.Examples(EXAMPLES, [photo, phrases], cache_examples=False)
        button.click(partial(ground, model, processor), [photo, phrases], [pictures, table], api_name="ground")
    return page


def main() -> None:
    model_id = os.environ.get("MODEL_ID")
    if model_id is None and not TRAINED_HERE.is_dir():
        raise SystemExit(f"Set MODEL_ID to a Hub id or a folder, or run `make train`: there is no {TRAINED_HERE}.")
    build(*load(model_id or str(TRAINED_HERE))).launch()


if __name__ == "__main__":
    main()
