"""The fixed texts of a model card: what is the same for every run, or for every run of a model family."""

from dataclasses import dataclass

from modeling_albef_amc.families.registry import FAMILIES as KNOWN_FAMILIES

PROTOCOL = (
    "hits / phrases, over the phrases that have boxes. A hit: the first maximum, in row order, of the heatmap, "
    "upsampled bicubically to the size of the original image, lies strictly inside any of the phrase's boxes."
)
# Loss → what it asks.
OBJECTIVES = {
    "loss_itc": "a phrase is more similar to its own image than to others, and an image to its own phrase",
    "loss_itm": "a phrase matches its own image, and not an image or a phrase that is hard to tell from it",
    "loss_mlm": "masked words are found again from the rest of the phrase and the image",
    "loss_amc_mean": "the heatmap's mean inside the region exceeds the mean outside by {margin}",
    "loss_amc_max": "the heatmap's maximum inside the region exceeds the maximum outside by {margin}",
}
LIMITATIONS = """\
- A heatmap explains one score of this model; it is no proof of what is in the photo. It comes out for any phrase, also
  for one that does not fit the photo: look at the match first.
- Measured is whether the heatmap's maximum hits, on {splits} of {title}. How well its extent, or the box around it,
  agrees with the object, and how the model does on other photos and phrases, was not measured.
- The numbers are of one run with one seed.
- What the base model and the data have of bias, towards people, places and languages, this model has too; nobody has
  looked for it here."""
PICTURE_TEXT = """\
![Heatmaps of held-out phrases](heatmaps.png)

*Held-out phrases. Left the annotated region, in cyan; right the model's heatmap and its maximum, green for a hit and
red for a miss. The examples are spread evenly over the split, not chosen.*"""
LICENSE_TEXT = "The weights: {license}. The code files that come with them: Apache-2.0."
NO_LICENSE_TEXT = """\
Nobody has stated the licence of these weights. Who publishes them must (`--hub_license`), minding the terms of the base
model and of the data. The code files that come with them: Apache-2.0."""


@dataclass(frozen=True)
class Family:
    """What a card must say differently for each model family.

    Attributes:
        name: of the model. tag: for the Hub. citation: BibTeX of the model's paper.
        usage: with code to run; `{model_id}` and `{phrases}` stand for the model and a list of phrases.
    """

    name: str
    tag: str
    usage: str
    citation: str


ALBEF = Family(
    name="ALBEF",
    tag="albef",
    usage="""```python
from transformers import pipeline

ground = pipeline("visual-grounding", model="{model_id}", trust_remote_code=True)
for answer in ground("photo.jpg", {phrases}):
    print(answer["phrase"], answer["score"], answer["point"], answer["box"])
```

`score` is the probability that the phrase fits the photo, `point` the heatmap's maximum (x, y), `box` (x1, y1, x2, y2)
surrounds the heat at it; both in pixels of the photo. `answer["heatmap"]` is the map, of the photo's size. The model's
code lies in this repository; `trust_remote_code=True` runs it. The same step by step:

```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{model_id}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{model_id}", trust_remote_code=True)

photo = Image.open("photo.jpg").convert("RGB")
phrases = {phrases}
inputs = processor(images=photo, text=phrases, return_tensors="pt")
outputs = model(**inputs, output_heatmaps=True)  # the photo is encoded once for all its phrases

matches = outputs.itm_logits.softmax(-1)[:, 1]
answers = processor.post_process_grounding(outputs.heatmaps, (photo.height, photo.width))
for phrase, match, answer in zip(phrases, matches, answers):
    print(f"{phrase}: fits with {match:.0%}, point {answer['point']}, box {answer['box']}")
```""",
    citation="""

@inproceedings{li2021align,
  title     = {Align before Fuse: Vision and Language Representation Learning with Momentum Distillation},
  author    = {Li, Junnan and Selvaraju, Ramprasaath R. and Gotmare, Akhilesh Deepak and Joty, Shafiq and
               Xiong, Caiming and Hoi, Steven C. H.},
  booktitle = {NeurIPS},
  year      = {2021}
}""",
)
BLIP = Family(
    name="BLIP",
    tag="blip",
    usage="""The weights are those of transformers' own `BlipForImageTextRetrieval`, which scores phrases by itself:

```python
import torch
from PIL import Image
from transformers import AutoProcessor, BlipForImageTextRetrieval

model = BlipForImageTextRetrieval.from_pretrained("{model_id}").eval()
processor = AutoProcessor.from_pretrained("{model_id}")

photo = Image.open("photo.jpg").convert("RGB")
phrases = {phrases}
inputs = processor(images=[photo] * len(phrases), text=phrases, padding=True, return_tensors="pt")
with torch.no_grad():
    matches = model(**inputs).itm_score.softmax(-1)[:, 1]
print(dict(zip(phrases, matches.tolist())))
```

Its heatmaps are read out by the package `modeling_albef_amc` of the project albef-amc:

```python
import modeling_albef_amc
from transformers import pipeline

ground = pipeline("visual-grounding", model="{model_id}")
for answer in ground("photo.jpg", phrases):
    print(answer["phrase"], answer["score"], answer["point"], answer["box"])
```

`score` is the probability that the phrase fits the photo, `point` the heatmap's maximum (x, y), `box` (x1, y1, x2, y2)
surrounds the heat at it; both in pixels of the photo. `answer["heatmap"]` is the map, of the photo's size.""",
    citation="""

@inproceedings{li2022blip,
  title     = {{BLIP}: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and
               Generation},
  author    = {Li, Junnan and Li, Dongxu and Xiong, Caiming and Hoi, Steven},
  booktitle = {ICML},
  year      = {2022}
}""",
)
FAMILIES = {"albef": ALBEF, "blip": BLIP}
AMC_CITATION = """@inproceedings{yang2023improving,
  title     = {Improving Visual Grounding by Encouraging Consistent Gradient-based Explanations},
  author    = {Yang, Ziyan and Kafle, Kushal and Dernoncourt, Franck and Ordonez, Vicente},
  booktitle = {CVPR},
  year      = {2023}
}"""


KNOWN_USAGE = """\
`{class_name}.from_pretrained("{{model_id}}")` of transformers loads it. Its heatmaps are read out by the package
`modeling_albef_amc` of the project albef-amc:

```python
from modeling_albef_amc import AutoGrounder

grounder = AutoGrounder.from_pretrained("{{model_id}}")
for answer in grounder.ground("photo.jpg", {{phrases}}):
    print(answer["phrase"], answer["score"], answer["point"], answer["box"])
```

`score` says how well the phrase fits the photo, `point` is the heatmap's maximum (x, y), `box` (x1, y1, x2, y2)
surrounds the heat at it; both in pixels of the photo. `answer["heatmap"]` is the map, of the photo's size."""


def family_texts(model_type: str, class_name: str) -> Family:
    """The texts of a model family; of one that has none, what holds for any."""
    if model_type in KNOWN_FAMILIES and model_type not in FAMILIES:
        return Family(class_name, model_type, KNOWN_USAGE.format(class_name=class_name), citation="")
    usage = (
        f'`{class_name}.from_pretrained("{{model_id}}")` of transformers loads it. Its heatmaps were read out by a '
        "function of the run's own, `explain`, which is not in this repository."
    )
    return FAMILIES.get(model_type) or Family(name=class_name, tag=model_type, usage=usage, citation="")
