"""The builders by name, and their options: all that `build --help` needs, so that nothing heavy is imported for it.

The first line of an options class says what its builder reads.
"""

from dataclasses import dataclass, field
from typing import Any


def option(default: Any, text: str) -> Any:
    """A field that is an option on the command line."""
    return field(default=default, metadata={"help": text})


VALIDATION_HELP = (
    "Share of the images, drawn by a hash of their name, that validation gets; of two or more, at least one each for "
    "train and validation."
)


@dataclass
class AnnotationOptions:
    """Options of all that reads annotations."""

    data_dir: str | None = option(None, "Folder that holds the annotations.")
    images_dir: str | None = option(None, "Folder of the images; without it annotations only, the image column empty.")
    strict: bool = option(False, "Stop at the first record that cannot be used, instead of counting it.")
    in_pixels: bool = option(False, "Boxes that end at 100 or 1000 in images of any size are pixels all the same.")


@dataclass
class AlbefJsonOptions(AnnotationOptions):
    """ALBEF's lists of images, captions and boxes"""

    annotations: str = option("train.json", "File with the list, in the data folder.")
    split: str = option("train", "Name of the split to make of it.")
    image_prefix: str = option(
        "", "Beginning of the images' names to take off, where they are not those of images_dir."
    )


@dataclass
class ObjectOptions(AnnotationOptions):
    """Options of all that reads objects in images."""

    phrase_template: str = option("{}", 'What phrases are made of labels by, e.g. "a photo of a {}".')
    split: str | None = option(None, "Name of one split for all images, instead of those that are named or drawn.")
    license: str | None = option(None, "Licence of images and annotations by its name on the Hub, e.g. cc-by-4.0.")
    validation_fraction: float = option(0.1, VALIDATION_HELP)


@dataclass
class CocoOptions(ObjectOptions):
    """COCO's format, also LVIS's, Roboflow's, captions, panoptic: a category and all its instances"""

    annotations: str | None = option(
        None,
        "Annotation files or folders, in the data folder, with commas between them; none: instances.json, or one for "
        "each split, as Roboflow and COCO have them.",
    )
    categories: str | None = option(None, "JSON file of categories {id, name}, in place of the annotation file's.")


@dataclass
class YoloOptions(ObjectOptions):
    """YOLO's text files, boxes and polygons, with data.yaml or a list of names"""


@dataclass
class VocOptions(ObjectOptions):
    """Pascal VOC's XML files, one for each image"""


@dataclass
class LabelmeOptions(ObjectOptions):
    """LabelMe's JSON files, one for each image"""


@dataclass
class PhotoListOptions(ObjectOptions):
    """Options of all that reads files of many images."""

    annotations: str | None = option(None, "Annotation file, in the data folder; without it all that are in there.")


@dataclass
class ViaOptions(PhotoListOptions):
    """VIA's JSON, a project or its annotations"""

    label_attribute: str | None = option(None, "Region attribute that names the object; needed if there are several.")


@dataclass
class CvatOptions(PhotoListOptions):
    """CVAT's XML for images 1.1"""


@dataclass
class LabelStudioOptions(PhotoListOptions):
    """Label Studio's JSON: rectangles, polygons, ellipses, brushes"""


@dataclass
class CreatemlOptions(PhotoListOptions):
    """CreateML's JSON"""


@dataclass
class Flickr30kEntitiesOptions(AnnotationOptions):
    """phrases of Flickr30k's captions, and boxes"""

    keep_unboxed: bool = option(False, "Keep visible phrases that have no box, as rows without a region.")


@dataclass
class RefCocoOptions(AnnotationOptions):
    """RefCOCO, RefCOCO+, RefCOCOg, ReferIt, gRefCOCO: the refer toolkit's pickle and JSON"""

    splits_by: str | None = option(
        None, "Whose split: NAME of refs(NAME).p or grefs(NAME).json, such as unc; needed if there are several."
    )
    proposals: str | None = option(None, "JSON file of a detector's boxes, in the data folder or by its whole path.")


@dataclass
class ReferItOptions(AnnotationOptions):
    """ReferIt in the layout of the released code: image lists and a file a region"""

    records: str = option(".", "Folder of the records, <image>_<region>.json, in the data folder.")


@dataclass
class VisualGenomeOptions(AnnotationOptions):
    """Visual Genome's regions, objects, attributes and relations as phrases"""

    kinds: str = option(
        "all", "regions, objects, attributes, relations, with commas between them; all: whose files are there."
    )
    regions_file: str = option("region_descriptions.json", "File of the regions, of the older layout or the newer.")
    exclude_coco_ids: str | None = option(
        None,
        "Leave out the images with these COCO ids: a file with one id or file name a line, a JSON list, or an "
        "instances.json; several files with commas between them.",
    )
    exclude_flickr_ids: str | None = option(
        None, "Leave out the images with these Flickr ids; files as for COCO ids, for instance Flickr30k's test.txt."
    )
    validation_fraction: float = option(0.0, VALIDATION_HELP)


@dataclass
class ScenesOptions:
    """rendered scenes, drawn here: no download, exact masks"""

    seed: int = option(0, "Seed of all scenes.")
    image_size: int = option(128, "Width and height in pixels, at least 64; the objects scale with it.")
    phrases_per_scene: int = option(4, "At most this many rows per scene, 2 to 4, each with another target.")
    absent_per_scene: int = option(0, "At most this many rows per scene for what is not in it, beside the others.")
    train: int = option(6000, "Scenes of the train split; of 0 scenes a split is left out.")
    validation: int = option(200, "Scenes of the validation split.")
    test: int = option(400, "Scenes of the test split: attribute phrases only.")
    test_relations: int = option(300, "Scenes of test_relations: relation phrases only.")
    test_unseen: int = option(200, "Scenes of test_unseen: targets of a colour and shape never seen together.")
    captions: int = option(2500, "Scenes of captions: one caption each, no region.")


@dataclass
class PhraseFilesOptions(AnnotationOptions):
    """Options of what reads files of records with phrases."""

    annotations: str | None = option(
        None, "Files, in the data folder, with commas between them; default: every .json and .jsonl in it that fits."
    )
    split: str | None = option(
        None, "Name of one split for all; default: train, validation, test as the files' names say, or else drawn."
    )
    image_prefix: str = option(
        "", "Beginning of the images' names to take off, where they are not those of images_dir."
    )
    validation_fraction: float = option(0.1, VALIDATION_HELP)


@dataclass
class OdvgOptions(PhraseFilesOptions):
    """ODVG's JSON Lines of Grounding DINO: phrases of captions, detections, expressions"""

    label_map: str | None = option(
        None, "JSON file {number: name} of the labels, in the data folder, where instances have no category."
    )


@dataclass
class ChatOptions(PhraseFilesOptions):
    """conversations whose text has boxes as Qwen-VL, Kosmos-2, Florence-2 or Shikra write them"""

    style: str | None = option(
        None, "Whose boxes: qwen, qwen2.5, qwen2.5-resized, qwen3, kosmos2, florence2, shikra; default: found out."
    )


@dataclass
class PhraseCutOptions(PhraseFilesOptions):
    """PhraseCut's refer_*.json: phrases with the boxes and polygons of all that they mean"""


@dataclass
class XvlmOptions(PhraseFilesOptions):
    """X-VLM's JSON Lines: images with captions and regions, [x, y, width, height]"""


@dataclass
class NarrativesOptions(PhraseFilesOptions):
    """Localized Narratives: clauses of spoken captions, with the box that the mouse went over"""


# Name, also of the module → the builder's class and its options.
BUILDERS: dict[str, tuple[str, type]] = {
    "scenes": ("Scenes", ScenesOptions),
    "coco": ("Coco", CocoOptions),
    "yolo": ("Yolo", YoloOptions),
    "voc": ("Voc", VocOptions),
    "labelme": ("Labelme", LabelmeOptions),
    "via": ("Via", ViaOptions),
    "cvat": ("Cvat", CvatOptions),
    "label_studio": ("LabelStudio", LabelStudioOptions),
    "createml": ("Createml", CreatemlOptions),
    "visual_genome": ("VisualGenome", VisualGenomeOptions),
    "flickr30k_entities": ("Flickr30kEntities", Flickr30kEntitiesOptions),
    "refcoco": ("RefCoco", RefCocoOptions),
    "referit": ("ReferIt", ReferItOptions),
    "albef_json": ("AlbefJson", AlbefJsonOptions),
    "odvg": ("Odvg", OdvgOptions),
    "chat": ("Chat", ChatOptions),
    "phrasecut": ("PhraseCut", PhraseCutOptions),
    "xvlm": ("Xvlm", XvlmOptions),
    "narratives": ("Narratives", NarrativesOptions),
}
