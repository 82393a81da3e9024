"""What a row's image is called in its source, by the row's `image_id`."""

import re


def name_in_source(image_id: str) -> str:
    return re.fullmatch(r"[a-z0-9_]+/(.+)#[^#/]+", image_id, re.S)[1]
