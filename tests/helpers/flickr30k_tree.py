"""Trees in the format of Flickr30k Entities, of any size: invented images' captions, chains and boxes."""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

NUM_UNRELATED = 21

TYPES = ["people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "other"]
ADJECTIVES = ["red", "young", "tall", "wet", "small", "striped", "wooden", "two", "several", "black-and-white", "café"]
NOUNS = ["man", "woman", "dog", "shirt", "hat", "car", "guitar", "ball", "tree", "bench", "street", "table", "rope"]
FILLERS = ["is", "holding", "near", "with", "in", "front", "of", "wearing", "looks", "at", "and", "/", "behind"]


class Mention(NamedTuple):
    """A phrase of a caption."""

    chain: str
    types: list[str]
    words: list[str]


class Thing(NamedTuple):
    """An object of the XML: a box with corners from 1, both part of it, or flags."""

    chains: list[str]
    box: tuple[int, int, int, int] | None
    scene: int = 0
    nobndbox: int = 0


class DrawnImage(NamedTuple):
    """What is drawn of an image."""

    image_id: str
    size: tuple[int, int]
    captions: list[list[str | Mention]]
    things: list[Thing]


def draw_images(count: int, seed: int) -> Iterator[DrawnImage]:
    """Images with about 17.6 phrases and 8.7 boxes each; with another seed others, with other ids."""
    rng = random.Random(seed)
    for number in range(count):
        yield _draw_image(rng, str(1_000_000 * (seed + 1) + number), 10 * number + 1)


def _draw_image(rng: random.Random, image_id: str, first_chain: int) -> DrawnImage:
    size = rng.choice([(500, 375), (375, 500), (500, 333), (333, 500)])
    chains = [str(first_chain + i) for i in range(rng.choice([7, 7, 8, 8, 9]))]
    types = {chain: [rng.choice(TYPES)] for chain in chains}
    things: list[Thing] = []
    for chain in chains:
        draw = rng.random()
        if draw < 0.02:
            types[chain] = ["scene"]
            things.append(Thing([chain], None, scene=1, nobndbox=int(rng.random() < 0.3)))
        elif draw < 0.21:
            things.append(Thing([chain], None, nobndbox=1))
        else:
            for _ in range(rng.choices([1, 2, 3], [70, 20, 10])[0]):
                also = [rng.choice(chains)] if rng.random() < 0.03 else []
                (x1, x2), (y1, y2) = (sorted(rng.sample(range(1, side + 1), 2)) for side in size)
                things.append(Thing(list(dict.fromkeys([chain, *also])), (x1, y1, x2, y2)))
    return DrawnImage(image_id, size, [_draw_caption(rng, chains, types) for _ in range(5)], things)


def _draw_caption(rng: random.Random, chains: list[str], types: dict[str, list[str]]) -> list[str | Mention]:
    caption: list[str | Mention] = []
    for _ in range(rng.choices([2, 3, 4, 5, 6], [20, 32, 28, 16, 4])[0]):
        if rng.random() < 0.03:
            caption.append(Mention("0", ["notvisual"], [rng.choice(["it", "there", "them"])]))
        else:
            chain = rng.choice(chains)
            kinds = types[chain] if rng.random() < 0.98 else [*types[chain], "people"]
            words = ["a", *rng.sample(ADJECTIVES, rng.choice([0, 1, 2])), rng.choice(NOUNS)]
            caption.append(Mention(chain, kinds, words))
        caption += rng.sample(FILLERS, rng.choice([1, 2, 3]))
    return [*caption, "."]


def sentence_text(caption: list[str | Mention]) -> str:
    return " ".join(
        part if isinstance(part, str) else f"[/EN#{part.chain}/{'/'.join(part.types)} {' '.join(part.words)}]"
        for part in caption
    )


def annotation_xml(image: DrawnImage) -> str:
    width, height = image.size
    lines = ["<annotation>", f"<filename>{image.image_id}.jpg</filename>"]
    lines.append(f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    for thing in image.things:
        lines += ["<object>", *(f"<name>{chain}</name>" for chain in thing.chains)]
        if thing.box is not None:
            corners = zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True)
            lines += ["<bndbox>", *(f"<{tag}>{value}</{tag}>" for tag, value in corners), "</bndbox>"]
        else:
            lines.append(f"<scene>{thing.scene}</scene><nobndbox>{thing.nobndbox}</nobndbox>")
        lines.append("</object>")
    return "\n".join([*lines, "</annotation>"]) + "\n"


def write_original(folder: Path, splits: dict[str, Iterable[DrawnImage]]) -> None:
    """Sentences, Annotations, the lists of the splits ("train", "val", "test"), and unrelated captions of "train"."""
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir(parents=True)
    unrelated = ["# format: <imageID> <sentence number>"]
    for split, images in splits.items():
        with (folder / f"{split}.txt").open("w") as ids:
            for image in images:
                ids.write(image.image_id + "\n")
                if split == "train" and len(unrelated) <= NUM_UNRELATED:
                    unrelated.append(f"{image.image_id} {len(unrelated) % 5 + 1}")
                text = "".join(sentence_text(caption) + "\n" for caption in image.captions)
                (folder / "Sentences" / f"{image.image_id}.txt").write_text(text, encoding="utf-8")
                (folder / "Annotations" / f"{image.image_id}.xml").write_text(annotation_xml(image), encoding="utf-8")
    (folder / "UNRELATED_CAPTIONS").write_text("\n".join(unrelated))


def write_processed(folder: Path, splits: dict[str, Iterable[DrawnImage]]) -> None:
    """InfoGround's pair of files for each split: what the original tool returns for each image."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        images = list(images)
        sentences = {image.image_id: [_sentence_json(caption) for caption in image.captions] for image in images}
        boxes = {image.image_id: _annotation_json(image) for image in images}
        (folder / f"sentences_{split}.json").write_text(json.dumps(sentences))
        (folder / f"bounding_boxes_{split}.json").write_text(json.dumps(boxes))


def _sentence_json(caption: list[str | Mention]) -> dict:
    words: list[str] = []
    phrases = []
    for part in caption:
        if isinstance(part, str):
            words.append(part)
            continue
        phrase = {"first_word_index": len(words), "phrase": " ".join(part.words)}
        phrases.append({**phrase, "phrase_id": part.chain, "phrase_type": part.types})
        words += part.words
    return {"sentence": " ".join(words), "phrases": phrases}


def _annotation_json(image: DrawnImage) -> dict:
    boxes: dict[str, list[list[int]]] = {}
    for thing in image.things:
        for chain in thing.chains if thing.box is not None else []:
            boxes.setdefault(chain, []).append([corner - 1 for corner in thing.box])
    flags = {"scene": [c for thing in image.things if thing.scene for c in thing.chains]}
    flags["nobox"] = [c for thing in image.things if thing.nobndbox for c in thing.chains]
    return {"boxes": boxes, **flags, "width": image.size[0], "height": image.size[1], "depth": 3}
