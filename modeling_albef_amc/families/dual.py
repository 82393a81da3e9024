"""Dual encoders, explained by the image encoder's self-attention: CLIP, SigLIP, AIMv2, and their kin.

Such a model does not look at the image for a phrase: its attention is the same for all phrases, and what tells them
apart is the gradient of the similarity.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import transformers
from torch import distributed, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from ..gradcam import PhraseAttention
from ..modeling_albef_pretraining import gather_rows, text_fingerprints, unlike_any
from .family import AdaptedModules, Family, Pass, Size, layers_of_images
from .fusion import BERT_ATTENTION
from .hooks import check_input, explained_attention, named_outputs, tensor_on
from .objectives import fits
from .pooling import eager_pooling, image_inputs
from .relevance import clip_modules


def clip(given: Pass) -> PhraseAttention:
    """CLIP and its like: the scaled cosine, by the [CLS] row of the self-attention of an image-encoder layer.

    The default is the last layer: its [CLS] row is all that the image's features are made of. `probability` is
    (1 + cosine) / 2, a rank and no calibrated probability: these models only compare.
    """
    start = given.model.vision_model.encoder.layers[given.layer]
    cosine, attention = explained_cosine(given, start, start.self_attn)
    rows = None if attention is None else torch.zeros(attention.shape[::2], device=cosine.device)
    if rows is not None:
        rows[:, 0] = 1
    score = cosine * logit_scale(given.model).to(cosine.device)
    probability = (1 + cosine.detach().float()) / 2
    return PhraseAttention(score, attention, rows, slice(1, None), given.grid, probability)


class CLIPSegModel(transformers.CLIPSegModel):
    """As of transformers; checkpoints of the segmenter have its weights under this name, which older versions miss."""

    base_model_prefix = "clip"


def pooled_layers(model: PreTrainedModel) -> range:
    """Those of the image encoder, and the pooling head behind them."""
    return range(model.config.vision_config.num_hidden_layers + model.vision_model.use_head)


def siglip(given: Pass) -> PhraseAttention:
    """SigLIP and SigLIP 2: the log-odds of a pair, by the attention of the pooling head; see `pooled_cosine`."""
    cosine, attention, rows = pooled_cosine(given, "self_attn")
    scale, bias = (each.to(cosine.device) for each in (logit_scale(given.model), given.model.logit_bias))
    score = cosine * scale + bias
    return PhraseAttention(
        score, attention, rows, slice(None), given.grid, score.detach().float().sigmoid(), match_logit=score
    )


def aimv2(given: Pass) -> PhraseAttention:
    """AIMv2: the scaled cosine, by the attention of the pooling head; see `pooled_cosine`. `probability`: of `clip`."""
    cosine, attention, rows = pooled_cosine(given, "attention")
    score, probability = cosine * logit_scale(given.model).to(cosine.device), (1 + cosine.detach().float()) / 2
    return PhraseAttention(score, attention, rows, slice(None), given.grid, probability)


def pooled_cosine(given: Pass, name: str) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The cosines (num_phrases,), the attention, and which rows of it count, of an encoder with a pooling head.

    The head is layer `num_hidden_layers`, the default, of one row; below it there is no [CLS], and all rows count of a
    layer's self-attention, its `name`.
    """
    vision = given.model.vision_model
    is_head = given.layer == len(vision.encoder.layers)
    start = vision.head if is_head else vision.encoder.layers[given.layer]
    with eager_pooling(vision) as pooling:
        cosine, attention = explained_cosine(given, start, pooling if is_head else getattr(start, name))
    rows = None if attention is None else torch.ones(attention.shape[::2], device=cosine.device)
    return cosine, attention, rows


def logit_scale(model: PreTrainedModel) -> torch.Tensor:
    """What cosines are multiplied by; AIMv2's is bounded."""
    scale = model.logit_scale
    return (scale.clamp(0, model.max_log_logit_scale) if model.config.model_type == "aimv2" else scale).exp()


def explained_cosine(given: Pass, start: nn.Module, attention: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The cosines (num_phrases,), and the probabilities of the attention in module `start` of the image encoder."""
    with torch.set_grad_enabled(given.create_graph):
        text = text_features(given.model, given.input_ids, given.attention_mask)
    with explained_attention(start, attention, given.create_graph, given.image_index) as recorded:
        images = image_features(given.model, given.pixel_values)
        return (images * text.to(images.device)).sum(dim=-1), recorded[0]


def image_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(num_images, projection_dim), unit length."""
    with image_inputs(model, pixel_values) as inputs:
        features = model.get_image_features(**inputs).pooler_output
    return F.normalize(features, dim=-1)


def text_features(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(num_phrases, projection_dim), unit length."""
    model_type = model.config.model_type
    if model_type in ("siglip", "siglip2"):
        input_ids, attention_mask = padded_as_trained(model, input_ids, attention_mask), None
    elif attention_mask is None:  # without one, AIMv2 lets words look at those behind them
        attention_mask = torch.ones_like(input_ids)
    if model_type in ("clip", "clipseg", "metaclip_2", "aimv2"):
        end = model.text_model.eos_token_id
        # 2 stands in old configurations of the first two, whatever the end token is: they read the highest token.
        if end != 2 or model_type not in ("clip", "clipseg"):
            check_end(model, input_ids, end)
    features = model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
    return F.normalize(features, dim=-1)


def check_end(model: PreTrainedModel, input_ids: torch.Tensor, end: int) -> None:
    """CLIP reads the place of the end token; where there is none, it takes the first place without a word."""
    message = f"A phrase has no end token (id {end}), which the model reads: tokenize it with the model's tokenizer."
    check_input(model, (input_ids == end).any(dim=1), message)


def padded_as_trained(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """SigLIP reads the last place, and has learned to without a mask, from phrases padded to its full length."""
    config, length = model.config.text_config, input_ids.shape[1]
    most = config.max_position_embeddings
    if length > most:
        raise ValueError(f"A phrase has {length} word pieces, the model takes {most}: truncate it.")
    if attention_mask is not None:
        input_ids = input_ids.masked_fill(attention_mask == 0, config.pad_token_id)
    return F.pad(input_ids, (0, most - length), value=config.pad_token_id)


PAIR_COLUMNS = "images", "texts", "image_ids", "text_ids"


@dataclass
class StepPairs:
    """All true pairs of an optimizer step, of all its processes and micro-batches, for one micro-batch.

    - `images`, `texts` (num_step_pairs, projection_dim): their features, without a graph.
    - `image_ids`, `text_ids` (num_step_pairs,): equal for equal images, and for equal texts.
    - `position`: where the pairs of this micro-batch begin. `num_parts`: micro-batches that have pairs.
    - `seed`: of the dropout in the features of this micro-batch.
    """

    images: torch.Tensor
    texts: torch.Tensor
    image_ids: torch.Tensor
    text_ids: torch.Tensor
    position: int = 0
    num_parts: int = 1
    seed: int | None = None

    def select(self, rows: slice) -> "StepPairs":
        return replace(self, **{name: getattr(self, name)[rows] for name in PAIR_COLUMNS})


def pairs_of_step(model: nn.Module, micro_batches: list[dict[str, torch.Tensor]]) -> list[StepPairs | None]:
    """Encodes all micro-batches of an optimizer step without a graph, so that each can be contrasted with all pairs.

    With a graph, each is encoded again in its own forward pass, as in GradCache (Gao et al., arXiv 2101.06983). With
    several processes every one of them must call this: features are gathered from all.

    Args:
        model: what `groundable` returned, in whatever wrapper it is called. micro_batches: arguments of its `forward`.

    Returns: one entry a micro-batch; None where there is one only.
    """
    is_distributed = distributed.is_available() and distributed.is_initialized()
    if len(micro_batches) == 1 and not (is_distributed and distributed.get_world_size() > 1):
        return [None]
    parts = []
    for batch in micro_batches:
        if batch.get("image_ids") is None:  # as different from all others of the step
            batch = {**batch, "image_ids": unlike_any(len(batch["pixel_values"]), batch["pixel_values"].device)}
        seed = int(torch.randint(2**62, ()))
        with torch.no_grad(), seeded(seed, batch["pixel_values"].device):
            parts.append(replace(model(**batch, output_pairs=True).step_pairs, seed=seed))
    device = parts[0].images.device
    is_part = [len(part.images) > 0 for part in parts]
    num_parts = sum(is_part)
    if is_distributed:
        num_parts = int(gather_rows(tensor_on(device, is_part).long())[0].sum())
    columns = {name: gather_rows(torch.cat([getattr(part, name) for part in parts])) for name in PAIR_COLUMNS}
    everything = {name: rows for name, (rows, _) in columns.items()}
    step_pairs, position = [], columns["images"][1]
    for part in parts:
        step_pairs.append(StepPairs(**everything, position=position, num_parts=num_parts, seed=part.seed))
        position += len(part.images)
    return step_pairs


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers of this seed; those that are drawn afterwards are as if none had been drawn in here."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, enabled=seed is not None, device_type=device.type if devices else "cuda"):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def own_pairs(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    own_image: torch.Tensor,
    image_ids: torch.Tensor | None = None,
) -> StepPairs:
    """The pairs of a micro-batch alone; arguments of `matching_loss`."""
    with named_outputs(model):
        images, texts = image_features(model, pixel_values), text_features(model, input_ids, attention_mask)
    image_of = own_image if image_ids is None else image_ids[own_image]
    return StepPairs(images[own_image].float(), texts.float(), image_of, text_fingerprints(input_ids, attention_mask))


def contrasted(model: PreTrainedModel, batch: tuple, step_pairs: StepPairs | None) -> tuple[StepPairs, torch.Tensor]:
    """The pairs to contrast, those of this micro-batch (`own_pairs`) in the graph, and their similarities.

    Returns: the pairs, and the scaled cosines (num_step_pairs, num_step_pairs) of each phrase with each image. All
        micro-batches compute all of them: each gives the scale its share of the gradient.
    """
    scale = logit_scale(model)
    with seeded(None if step_pairs is None else step_pairs.seed, batch[0].device):
        pairs = own = own_pairs(model, *batch)
    if step_pairs is not None:
        before, after = slice(step_pairs.position), slice(step_pairs.position + len(own.texts), None)
        images, texts = (
            torch.cat([everything[before], rows, everything[after]])
            for everything, rows in ((step_pairs.images, own.images), (step_pairs.texts, own.texts))
        )
        pairs, scale = replace(step_pairs, images=images, texts=texts), share(scale, step_pairs.num_parts)
    # Scaled, what bfloat16 rounds off is whole logits.
    with torch.autocast(pairs.texts.device.type, enabled=False):
        return pairs, pairs.texts @ pairs.images.T * scale


def share(value: torch.Tensor, num_parts: int) -> torch.Tensor:
    """`value`, with one of so many equal shares of its gradient."""
    return value.detach() + (value - value.detach()) / num_parts


def mean_of_part(losses: torch.Tensor, pairs: StepPairs, num_own: int) -> torch.Tensor:
    """The mean of `num_own` of the losses (num_step_pairs,), with the gradient that all of them give its pairs."""
    own, total = losses[pairs.position : pairs.position + num_own].mean(), losses.sum() / num_own
    return own.detach() + (total - total.detach())


def contrastive_loss(
    model: PreTrainedModel,
    explain: Callable[..., PhraseAttention],
    true_pairs: PhraseAttention,
    *batch: torch.Tensor | None,
    step_pairs: StepPairs | None = None,
) -> torch.Tensor:
    """CLIP's: finding each phrase's image among those of the step, and each image's phrase (arXiv 2103.00020, §2.3).

    Pairs that are known to fit are no negatives of each other. Arguments: of `matching_loss`; and
    `step_pairs`, of `pairs_of_step`: None contrasts the pairs of the micro-batch alone.
    """
    pairs, logits = contrasted(model, batch, step_pairs)
    ignored = ignored_pairs(pairs)
    target = torch.arange(len(logits), device=logits.device)
    by_phrase = F.cross_entropy(logits.masked_fill(ignored, -torch.inf), target, reduction="none")
    by_image = F.cross_entropy(logits.T.masked_fill(ignored.T, -torch.inf), target, reduction="none")
    return mean_of_part((by_phrase + by_image) / 2, pairs, num_own=len(batch[1]))


def sigmoid_loss(
    model: PreTrainedModel,
    explain: Callable[..., PhraseAttention],
    true_pairs: PhraseAttention,
    *batch: torch.Tensor | None,
    step_pairs: StepPairs | None = None,
) -> torch.Tensor:
    """SigLIP's: every pair of the step is right or wrong by itself (arXiv 2303.15343, algorithm 1); else as above."""
    pairs, logits = contrasted(model, batch, step_pairs)
    logits = logits + share(model.logit_bias, pairs.num_parts)
    is_own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    losses = F.softplus(torch.where(is_own, -logits, logits)).masked_fill(ignored_pairs(pairs), 0).sum(dim=1)
    return mean_of_part(losses, pairs, num_own=len(batch[1]))


def ignored_pairs(pairs: StepPairs) -> torch.Tensor:
    """(num_step_pairs, num_step_pairs) of bool: not the phrase's own pair, but known to fit."""
    known = fits(pairs.image_ids, pairs.text_ids)
    return known & ~torch.eye(len(known), dtype=torch.bool, device=known.device)


def small_dual(config_class: str, more_text: Callable[[Size], dict], size: Size, **options) -> PreTrainedConfig:
    """`more_text`: what its text encoder has beside, or other than, a BERT; `options`: of the image encoder."""
    return getattr(transformers, config_class)(
        text_config=size.text | more_text(size),
        vision_config=size.encoder | size.images | options,
        projection_dim=size.width,
    )


def small_siglip_2(size: Size, **options) -> PreTrainedConfig:
    vision = size.encoder | dict(patch_size=size.patch_size, num_patches=(size.image_size // size.patch_size) ** 2)
    text = size.text | dict(projection_size=size.width)
    return transformers.Siglip2Config(text_config=text, vision_config=vision | options)


CLIP_ATTENTION = r"self_attn\.([qkv]|out)_proj"
CLIP_ENCODERS = rf"(vision|text)_model\.encoder\.layers\.\d+\.{CLIP_ATTENTION}"
CLIP_VISION = rf"vision_model\.encoder\.layers\.\d+\.{CLIP_ATTENTION}"

CLIP = Family(
    title="CLIP",
    model_class="CLIPModel",
    processor_class="CLIPProcessor",
    function=clip,
    layers={"itc": layers_of_images},
    depth=1,
    adapted=AdaptedModules(CLIP_ENCODERS),
    losses={"loss_itc": contrastive_loss},
    has_token_maps=False,
    modules=clip_modules,
    small_config=partial(small_dual, "CLIPConfig", lambda size: {}),
)
ALTCLIP = replace(
    CLIP,
    title="AltCLIP",
    model_class="AltCLIPModel",
    processor_class="AltCLIPProcessor",
    adapted=AdaptedModules(rf"{CLIP_VISION}|text_model\.roberta\.encoder\.layers\.\d+\.{BERT_ATTENTION}"),
    small_config=partial(
        small_dual,
        "AltCLIPConfig",
        # Its positions begin behind the padding's.
        lambda size: dict(project_dim=size.width, max_position_embeddings=size.max_tokens + size.pad + 1),
    ),
)
CHINESE_CLIP = replace(
    CLIP,
    title="ChineseCLIP",
    model_class="ChineseCLIPModel",
    processor_class="ChineseCLIPProcessor",
    adapted=AdaptedModules(rf"{CLIP_VISION}|text_model\.encoder\.layer\.\d+\.{BERT_ATTENTION}"),
    small_config=partial(small_dual, "ChineseCLIPConfig", lambda size: {}),
)
METACLIP_2 = replace(
    CLIP,
    title="MetaCLIP 2",
    model_class="MetaClip2Model",
    small_config=partial(small_dual, "MetaClip2Config", lambda size: {}),
)
CLIPSEG = replace(
    CLIP,
    title="CLIPSeg",
    model_class="CLIPSegModel",
    processor_class="CLIPSegProcessor",
    small_config=partial(small_dual, "CLIPSegConfig", lambda size: {}),
    own_classes={"CLIPSegModel": CLIPSegModel},
)
OWLVIT = replace(
    CLIP,
    title="OWL-ViT",
    model_class="OwlViTModel",
    processor_class="OwlViTProcessor",
    small_config=partial(small_dual, "OwlViTConfig", lambda size: {}),
)
AIMV2 = replace(
    CLIP,
    title="AIMv2",
    model_class="Aimv2Model",
    function=aimv2,
    layers={"itc": pooled_layers},
    adapted=AdaptedModules(
        r"(vision|text)_model\.encoder\.layers\.\d+\.attention\.([qkv]|out)_proj|vision_model\.head\.(k|v|output)_proj"
    ),
    modules=None,
    small_config=partial(small_dual, "Aimv2Config", lambda size: {}),
)
SIGLIP = replace(
    CLIP,
    title="SigLIP",
    model_class="SiglipModel",
    processor_class="SiglipProcessor",
    function=siglip,
    layers={"itc": pooled_layers},
    losses={"loss_itc": sigmoid_loss},
    modules=None,
    small_config=partial(small_dual, "SiglipConfig", lambda size: dict(projection_size=size.width)),
)
SIGLIP_2 = replace(
    SIGLIP,
    title="SigLIP 2 (naflex)",
    model_class="Siglip2Model",
    processor_class="Siglip2Processor",
    small_config=small_siglip_2,
)
