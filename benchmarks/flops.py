"""Useful floating-point operations, counted from a configuration: those of matrix products, at 2 a multiply-add.

What is useful is what the result needs and no more: an image encoded once for all its phrases, its keys and values
projected once a fusion layer, no padding, MLM logits at masked positions, no derivative below the explained layer for
a heatmap. Work that is done twice or on padding takes time and counts for nothing.
"""

from collections.abc import Iterable

from modeling_albef_amc import AlbefConfig, AlbefTextConfig


def num_keys(config: AlbefConfig, image_size: int) -> int:
    """[CLS] and the patches of a square image."""
    return 1 + (image_size // config.vision_config.patch_size) ** 2


def image_encoder(config: AlbefConfig, image_size: int) -> float:
    vision, length = config.vision_config, num_keys(config, image_size)
    width = vision.hidden_size
    patches = 2 * (length - 1) * vision.num_channels * vision.patch_size**2 * width
    linear = 2 * length * width * (4 * width + 2 * vision.intermediate_size)
    return patches + vision.num_hidden_layers * (linear + 4 * length**2 * width)


def projections(config: AlbefConfig, image_size: int) -> float:
    """An image's keys and values, of all fusion layers."""
    text = config.text_config
    num_layers = text.num_hidden_layers - text.fusion_layer
    return num_layers * 2 * num_keys(config, image_size) * 2 * text.hidden_size * text.encoder_hidden_size


def text_layer(text: AlbefTextConfig, length: int) -> float:
    """Self-attention and MLP for a phrase of `length` tokens."""
    width = text.hidden_size
    return 2 * length * width * (4 * width + 2 * text.intermediate_size) + 4 * length**2 * width


def cross_attention(text: AlbefTextConfig, length: int, keys: int) -> float:
    """Without the projections of the image."""
    return 4 * length * text.hidden_size**2 + 4 * length * keys * text.hidden_size


def text_encoder(config: AlbefConfig, length: int) -> float:
    return config.text_config.fusion_layer * text_layer(config.text_config, length)


def fusion_encoder(config: AlbefConfig, image_size: int, length: int) -> float:
    text = config.text_config
    a_layer = text_layer(text, length) + cross_attention(text, length, num_keys(config, image_size))
    return (text.num_hidden_layers - text.fusion_layer) * a_layer


def explanation(config: AlbefConfig, image_size: int, length: int) -> float:
    """From the match score of a phrase back to the attention of the explained layer; no gradient of any weight.

    A linear layer costs its forward pass again. Attention over the text costs twice its forward pass (its four factors
    depend on the phrase), attention to the image once and a half times (its value and key do not).
    """
    text, keys = config.text_config, num_keys(config, image_size)
    width = text.hidden_size
    above = text.num_hidden_layers - 1 - config.grounding_layer
    a_layer = text_layer(text, length) + 4 * length**2 * width + cross_attention(text, length, keys)
    mlp = 4 * length * width * text.intermediate_size
    of_explained = mlp + 2 * length * width**2 + 2 * length * keys * width
    return above * a_layer + of_explained


def evaluation(config: AlbefConfig, image_size: int, num_images: int, lengths: Iterable[int]) -> float:
    """Heatmaps of phrases of these lengths, in tokens, in `num_images` images."""
    of_images = num_images * (image_encoder(config, image_size) + projections(config, image_size))
    return of_images + sum(
        text_encoder(config, length)
        + fusion_encoder(config, image_size, length)
        + explanation(config, image_size, length)
        for length in lengths
    )


def training_step(config: AlbefConfig, image_size: int, batch_size: int, length: int, num_masked: int) -> float:
    """A step with AMC: `batch_size` pairs with phrases of `length` tokens, `num_masked` of all tokens masked.

    A pass that is trained costs three times its forward pass, the momentum encoders' once. The explanation costs
    itself and twice that to be differentiated in turn.
    """
    text = config.text_config
    of_image, keys_and_values = image_encoder(config, image_size), projections(config, image_size)
    of_text, fused = text_encoder(config, length), fusion_encoder(config, image_size, length)
    trained = of_image + keys_and_values + 2 * of_text + 4 * fused  # true, two negatives, masked
    momentum = of_image + keys_and_values + 2 * of_text + fused
    head = num_masked * 2 * text.hidden_size * (text.hidden_size + text.vocab_size)
    similarity = 2 * config.projection_dim * (batch_size + config.queue_size)  # one direction; its candidates are fixed
    a_pair = 3 * trained + momentum + 3 * explanation(config, image_size, length) + 2 * (2 + 1) * similarity
    return batch_size * a_pair + (3 + 1) * head
