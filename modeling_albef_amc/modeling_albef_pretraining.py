"""ALBEF's objectives: ITC, ITM and MLM with momentum distillation and hard negatives (arXiv 2107.07651, §3)."""

import re
import secrets
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .configuration_albef import AlbefConfig, AlbefTextConfig
from .gradcam import PhraseAttention, attention_map, gradcam, leaving_inference_mode, resolve_image_index
from .modeling_albef import (
    AlbefEncoderOutput,
    AlbefModel,
    AlbefOutput,
    AlbefPreTrainedModel,
    AlbefTextModel,
    AlbefVisionModel,
    KeyValue,
    cls_states,
    first_tokens,
    match_attention,
    recorded_outputs,
    tokens_to_explain,
)

TEMPERATURE_RANGE = 0.001, 0.5
TwoTensors = tuple[Tensor, Tensor]


@dataclass
class AlbefForPreTrainingOutput(ModelOutput):
    """Output of `AlbefForPreTraining`.

    - `loss`: the sum of the others. `loss_mlm`, `loss_absent`: None without `mlm_labels`, without absent phrases.
    - `negative_itm_logits` (2 * num_phrases, 2): in training, of each phrase with a negative image, then of each
      phrase's image with a negative phrase.
    - `mlm_logits` (num_masked, vocab_size): at the masked positions, in row order.
    - `heatmaps` (num_phrases, rows, columns): explanation of `itm_logits[:, 1]`, differentiable in training.
    - `attention_maps` (num_phrases, num_heads, rows, columns): what their tokens look at on average, differentiable.
    - `text_features` (num_phrases, projection_dim): without the phrases that are absent.
    - The others: of the phrases and their images, as of `AlbefOutput`.
    """

    loss: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    loss_mlm: torch.FloatTensor | None = None
    loss_absent: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None
    negative_itm_logits: torch.FloatTensor | None = None
    mlm_logits: torch.FloatTensor | None = None
    heatmaps: torch.FloatTensor | None = None
    attention_maps: torch.FloatTensor | None = None
    image_features: torch.FloatTensor | None = None
    text_features: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    vision_model_output: AlbefEncoderOutput | None = None

    to_tuple = AlbefOutput.to_tuple


class PairFeatures(NamedTuple):
    """ITC features (num_pairs, projection_dim), and what counts as the same image and the same text (num_pairs,)."""

    image_features: Tensor
    text_features: Tensor
    image_ids: Tensor
    text_ids: Tensor


@dataclass
class MomentumTargets:
    """What the momentum encoders say of one micro-batch, and the candidates it is contrasted with.

    - `image_embeds` (num_images, 1 + num_patches, hidden_size). `pairs`: the true pairs of the micro-batch.
    - `candidates`: all pairs of the step, then the queue. `position`: where this micro-batch begins among them.
    """

    image_embeds: Tensor
    pairs: PairFeatures
    candidates: PairFeatures
    position: int = 0


@dataclass
class TruePairs:
    """Phrases with their own images, as far as the encoders have taken them: a row a phrase in every field.

    - `own_image` (num_phrases,). `input_ids`, `attention_mask`, `mlm_input_ids`, `mlm_labels`: of `forward`.
    - `text_embeds`, `masked_embeds` (num_phrases, num_tokens, hidden_size): what the text layers give of the phrases,
      and of those with masked words. `itm_logits` (num_phrases, 2). `masked` (num_masked,): places in `mlm_labels`.
    """

    own_image: Tensor
    input_ids: Tensor
    attention_mask: Tensor | None = None
    mlm_input_ids: Tensor | None = None
    mlm_labels: Tensor | None = None
    text_embeds: Tensor | None = None
    masked_embeds: Tensor | None = None
    itm_logits: Tensor | None = None
    masked: Tensor | None = None

    def select(self, rows: Tensor) -> "TruePairs":
        return TruePairs(**{name: None if column is None else column[rows] for name, column in vars(self).items()})


class AlbefMlmHead(nn.Module):
    """BERT's masked-language-model head; `decoder.weight` is tied to the word embeddings."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.decoder(self.layernorm(self.activation(self.dense(hidden_states))))


class AlbefMomentumEncoder(nn.Module):
    """Slowly moving copies of the encoders, projections and MLM head. Always in evaluation mode."""

    def __init__(self, config: AlbefConfig):
        super().__init__()
        self.vision_model = AlbefVisionModel(config.vision_config)
        self.text_model = AlbefTextModel(config.text_config)
        self.vision_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.mlm_head = AlbefMlmHead(config.text_config)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "AlbefMomentumEncoder":
        return super().train(False)


class AlbefForPreTraining(AlbefPreTrainedModel):
    """`AlbefModel` with the objectives it is trained by.

    The momentum encoders and the queues move in training mode only: once a forward pass, or once an optimizer step
    where `momentum_step` was called for all micro-batches of the step. ITC contrasts a pair with the momentum features
    of the whole step (all processes, all micro-batches) and of the queue, ITM with the process' own micro-batch.
    In evaluation the losses depend on the encoders and the batch alone.

    >>> from modeling_albef_amc import AlbefConfig, AlbefForPreTraining
    >>> small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    >>> vision, text = dict(**small, image_size=32, patch_size=8), dict(**small, fusion_layer=1, vocab_size=40)
    >>> config = AlbefConfig(vision_config=vision, text_config=text, grounding_layer=1, queue_size=8)
    >>> model, images, phrases = AlbefForPreTraining(config), torch.zeros(2, 3, 32, 32), torch.tensor([[2, 7], [2, 8]])
    >>> outputs = model(images, phrases, mlm_input_ids=phrases, mlm_labels=phrases, output_heatmaps=True)
    >>> [name for name in outputs if "loss" in name], outputs.heatmaps.shape
    (['loss', 'loss_itc', 'loss_itm', 'loss_mlm'], torch.Size([2, 4, 4]))
    """

    _tied_weights_keys = {
        "mlm_head.decoder.weight": "albef.text_model.embeddings.word_embeddings.weight",
        "momentum_encoder.mlm_head.decoder.weight": "momentum_encoder.text_model.embeddings.word_embeddings.weight",
    }
    # The momentum encoders of a checkpoint that has none begin as copies, the queues empty: nothing to warn about.
    _keys_to_ignore_on_load_missing = [r"^momentum_encoder\.", r"_queue$", r"^queue_pointer$"]

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.albef = AlbefModel(config)
        self.mlm_head = AlbefMlmHead(config.text_config)
        self.momentum_encoder = AlbefMomentumEncoder(config)
        # An empty place is a candidate of similarity 0, and of no image and no text: fingerprints are not negative.
        for part in ("image", "text"):
            self.register_buffer(f"{part}_queue", torch.zeros(config.queue_size, config.projection_dim))
            self.register_buffer(f"{part}_id_queue", torch.full((config.queue_size,), -1))
        self.register_buffer("queue_pointer", torch.zeros(1, dtype=torch.long))
        self.post_init()

    def initialize_weights(self) -> None:
        """What no file has, or has of another size. The momentum encoders begin as copies; not in `_init_weights`,
        which is not asked about a model whose buffers all come from the file."""
        super().initialize_weights()
        for copy, original in self._momentum_pairs():
            init.copy_(copy, original)
        for buffer in (self.image_queue, self.text_queue, self.queue_pointer):
            init.zeros_(buffer)
        for buffer in (self.image_id_queue, self.text_id_queue):
            init.constant_(buffer, -1)

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.mlm_head.decoder = new_embeddings

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        # The momentum MLM head may be missing with the momentum encoder, which starts as a copy.
        source = self._tied_weights_keys["momentum_encoder.mlm_head.decoder.weight"]
        is_missing = missing_keys is not None and source in missing_keys
        if is_missing:
            missing_keys.remove(source)
        super().tie_weights(missing_keys, recompute_mapping)
        if is_missing:
            missing_keys.add(source)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Module:
        """Resizes both text encoders; new rows of the momentum encoder are copies, the others its own."""
        text_model, mlm_head = self.momentum_encoder.text_model, self.momentum_encoder.mlm_head
        known = text_model.get_input_embeddings().weight, mlm_head.decoder.bias
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        text_model.set_input_embeddings(deepcopy(embeddings).requires_grad_(False))
        mlm_head.decoder = deepcopy(self.mlm_head.decoder).requires_grad_(False)
        with torch.no_grad():
            for resized, old in zip((text_model.get_input_embeddings().weight, mlm_head.decoder.bias), known):
                count = min(len(resized), len(old))
                resized[:count] = old[:count]
        self.tie_weights()
        return embeddings

    def save_pretrained(self, save_directory: str | PathLike, *args, **kwargs) -> None:
        """Saves the model; its remote code also serves `AutoModel`, which loads the `AlbefModel` inside."""
        if self._auto_class is not None:
            known = getattr(self.config, "auto_map", None) or {}
            self.config.auto_map = {**known, "AutoModel": f"{AlbefModel.__module__.split('.')[-1]}.AlbefModel"}
        super().save_pretrained(save_directory, *args, **kwargs)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        return self.albef.encode_images(pixel_values)

    def explain(self, *args, **kwargs) -> PhraseAttention:
        return self.albef.explain(*args, **kwargs)

    @leaving_inference_mode
    @can_return_tuple
    @merge_with_config_defaults
    def forward(  # noqa: PLR0913 - inputs of a model
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        image_ids: Tensor | None = None,
        mlm_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        alpha: float | None = None,
        output_heatmaps: bool = False,
        output_attention_maps: bool = False,
        momentum_targets: MomentumTargets | None = None,
        is_absent: Tensor | None = None,
        num_absent: int | None = None,
        num_masked: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForPreTrainingOutput:
        """
        Args:
            pixel_values: (num_images, 3, height, width).
            input_ids, attention_mask: (num_phrases, num_tokens): true phrases of the images.
            image_index: (num_phrases,), which image each phrase belongs to; none: phrase i belongs to image i.
            image_ids: (num_images,) whole numbers, not negative: equal numbers are the same image. None: all differ.
            mlm_input_ids, mlm_labels: (num_phrases, num_tokens), masked tokens and what they were (-100: not masked).
            alpha: weight of the momentum model's soft labels; default `config.alpha`; in evaluation always 0.
            output_heatmaps, output_attention_maps: explain the match of the true pairs, by the gradient and without it.
            momentum_targets: of this micro-batch, from `momentum_step`; None: computed here.
            is_absent: (num_phrases,) of bool: phrases that fit nothing in their image, which ITM alone learns from.
            num_absent, num_masked: of absent phrases, of masked words in the others; None: counted, while a GPU waits.
            kwargs: `output_hidden_states`, `output_attentions`, with the true pairs; `return_dict`.
        """
        tokens_to_explain(input_ids, attention_mask)  # which refuses other masks
        kwargs = recorded_outputs(self.config, kwargs)
        alpha = 0.0 if not self.training else self.config.alpha if alpha is None else alpha
        image_index = resolve_image_index(pixel_values, input_ids, image_index)
        own_image = torch.arange(len(input_ids), device=input_ids.device) if image_index is None else image_index
        if momentum_targets is None and self.training:
            batch = dict(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
            batch |= dict(image_index=image_index, image_ids=image_ids, is_absent=is_absent, num_absent=num_absent)
            (momentum_targets,) = self.momentum_step([batch])

        pairs, losses = TruePairs(own_image, input_ids, attention_mask, mlm_input_ids, mlm_labels), {}
        kwargs |= dict(output_heatmaps=output_heatmaps, output_attention_maps=output_attention_maps)
        image_key_values, found = self._encode(pixel_values, pairs, image_index, **kwargs)
        absent_rows, true_rows = ((), own_image) if is_absent is None else parted(is_absent, num_absent)
        if len(absent_rows):
            match_logit = (pairs.itm_logits[:, 1] - pairs.itm_logits[:, 0]).float()
            losses["loss_absent"] = F.softplus(match_logit[absent_rows]).mean()
            if not len(true_rows):
                # Every parameter has a gradient, which distributed wrappers wait for.
                zero = sum((parameter * 0).sum() for parameter in self.parameters() if parameter.requires_grad)
                losses |= dict.fromkeys(("loss_itc", "loss_itm", *(() if mlm_labels is None else ("loss_mlm",))), zero)
                return AlbefForPreTrainingOutput(loss=losses["loss_absent"] + zero, **losses, **found)
            pairs = pairs.select(true_rows)

        image_embeds = found["vision_model_output"].last_hidden_state
        image_features = self.albef.itc_image_features(image_embeds)
        text_features = self.albef.itc_text_features(pairs.text_embeds, pairs.attention_mask)
        of_pairs = image_features[pairs.own_image], text_features
        if momentum_targets is None:
            image_ids = self._image_ids(image_ids, pixel_values)[pairs.own_image]
            own = PairFeatures(*of_pairs, image_ids, text_fingerprints(pairs.input_ids, pairs.attention_mask))
            momentum_targets = MomentumTargets(image_embeds, pairs=own, candidates=own)
        losses["loss_itc"], *negatives = self._itc(*of_pairs, momentum_targets, alpha)
        losses["loss_itm"], negative_itm_logits, masked_states = self._itm(pairs, image_key_values, *negatives)
        if mlm_labels is not None:
            pairs.masked, _ = parted(pairs.mlm_labels.flatten() != -100, num_masked)
            losses["loss_mlm"], found["mlm_logits"] = self._mlm(pairs, masked_states, momentum_targets, alpha)
        return AlbefForPreTrainingOutput(
            loss=sum(losses.values()),
            # Of an evaluation they would depend on what else is in the batch, as nothing else does but the losses.
            negative_itm_logits=negative_itm_logits if self.training else None,
            image_features=image_features,
            text_features=text_features,
            **losses,
            **found,
        )

    def _encode(
        self,
        pixel_values: Tensor,
        pairs: TruePairs,
        image_index: Tensor | None,
        output_heatmaps: bool,
        output_attention_maps: bool,
        **kwargs,
    ) -> tuple[list[KeyValue], dict[str, Any]]:
        """Encodes images and phrases and matches them: fills in `text_embeds`, `masked_embeds` and `itm_logits`.

        Returns: keys and values of the images, and fields of the output.
        """
        vision, text_model = self.albef.vision_model(pixel_values, **kwargs), self.albef.text_model
        image_key_values, mask = text_model.project_images(vision.last_hidden_state), pairs.attention_mask
        # Where the states of every layer are asked for, the true pairs need a pass of their own from the words on.
        is_recorded = any(kwargs.get(name) for name in ("output_hidden_states", "output_attentions"))
        if pairs.mlm_labels is not None and not is_recorded:
            texts = torch.cat([pairs.input_ids, pairs.mlm_input_ids])
            states = text_model(texts, None if mask is None else mask.repeat(2, 1)).last_hidden_state
            kwargs["text_embeds"], pairs.masked_embeds = states.chunk(2)
        elif pairs.mlm_labels is not None:
            pairs.masked_embeds = text_model(pairs.mlm_input_ids, mask).last_hidden_state
        input_ids = None if "text_embeds" in kwargs else pairs.input_ids
        inputs, maps = (input_ids, mask, image_key_values, image_index), {}
        if not (output_heatmaps or output_attention_maps):
            encoded, pairs.itm_logits = self.albef.match(*inputs, **kwargs)
        else:
            create_graph, layer = torch.is_grad_enabled(), self.config.grounding_layer
            key, _ = image_key_values[layer - self.config.text_config.fusion_layer]
            if create_graph and not key.requires_grad:  # all weights below the explained attention are frozen
                key.requires_grad_()
            token_mask, grid = tokens_to_explain(pairs.input_ids, mask), self.albef.patch_grid(pixel_values)
            encoded, itm_logits = self.albef.match(*inputs, layer, create_graph=create_graph, **kwargs)
            explained = match_attention(itm_logits, encoded, token_mask, grid)
            maps = {"heatmaps": gradcam(explained, create_graph)} if output_heatmaps else {}
            maps |= {"attention_maps": attention_map(explained, per_head=True)} if output_attention_maps else {}
            pairs.itm_logits = itm_logits if create_graph else itm_logits.detach()
        pairs.text_embeds = encoded.text_hidden_state
        found = {name: encoded.get(name) for name in ("hidden_states", "attentions", "cross_attentions")}
        return image_key_values, found | dict(itm_logits=pairs.itm_logits, vision_model_output=vision, **maps)

    def _itc(
        self, image_features: Tensor, text_features: Tensor, targets: MomentumTargets, alpha: float
    ) -> tuple[Tensor, TwoTensors, Tensor]:
        """The ITC loss, the hard negatives of `choose_negatives`, and which of them exist, (2 * num_phrases,)."""
        matches, temperature = known_to_fit(targets), self.albef.temperature
        # Not by clamp alone: from torch 2.14 on it has no gradient at the ends of the range, and there it would stay.
        temperature = temperature + (temperature.clamp(*TEMPERATURE_RANGE) - temperature).detach()
        loss, to_texts, to_images = itc_loss(image_features, text_features, targets, matches, temperature, alpha)
        own = slice(targets.position, targets.position + len(text_features))
        allowed_texts, allowed_images = (~known[:, own] for known in matches)
        # A row without any allowed negative, as in a batch of one, has its true pair only.
        has_negative = torch.cat([allowed_images.any(dim=1), allowed_texts.any(dim=1)])
        return loss, self.choose_negatives(to_texts, to_images, allowed_texts, allowed_images), has_negative

    def choose_negatives(
        self, image_to_text: Tensor, text_to_image: Tensor, allowed_texts: Tensor, allowed_images: Tensor
    ) -> TwoTensors:
        """For each phrase the row of a wrong image, for each image that of a wrong phrase: drawn by similarity, or in
        evaluation the most similar. All are (num_phrases, num_phrases), similarities over temperature."""
        images = draw_negatives(text_to_image, allowed_images, hardest=not self.training)
        return images, draw_negatives(image_to_text, allowed_texts, hardest=not self.training)

    def _itm(
        self, pairs: TruePairs, image_key_values: list[KeyValue], negatives: TwoTensors, has_negative: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass of the fusion layers over the negatives of ITM and, if there are any, the masked words of MLM.

        Returns: the ITM loss, the logits (2 * num_phrases, 2) of the negatives, and states of the masked phrases.
        """
        negative_images, negative_texts = negatives
        texts = [pairs.text_embeds, pairs.text_embeds[negative_texts]]
        images = [pairs.own_image[negative_images], pairs.own_image]
        mask, split = pairs.attention_mask, 2 * len(negative_texts)
        masks = [] if mask is None else [mask, mask[negative_texts]]
        if pairs.masked_embeds is not None:
            texts, images, masks = [*texts, pairs.masked_embeds], [*images, pairs.own_image], [*masks, *masks[:1]]
        inputs = dict(text_embeds=torch.cat(texts), attention_mask=torch.cat(masks) if masks else None)
        inputs |= dict(image_key_values=image_key_values, image_index=torch.cat(images))
        states = self.albef.text_model(**inputs).last_hidden_state
        logits = self.albef.itm_logits(states[:split], torch.cat(masks[:2]) if masks else None)
        return itm_loss(pairs.itm_logits, logits, has_negative), logits, states[split:]

    def _mlm(self, pairs: TruePairs, states: Tensor, targets: MomentumTargets, alpha: float) -> TwoTensors:
        """Cross-entropy at the masked positions, blended with the momentum encoder's; 0 where nothing is masked.

        Returns: the loss and the logits (num_masked, vocab_size). `states` are those of the fusion encoder.
        """
        masked, count = pairs.masked, max(len(pairs.masked), 1)
        if self.config.mlm_distillation_axis == "sequence":
            all_logits = self.mlm_head(states).float()
            logits, log_probabilities = (of.flatten(0, 1)[masked] for of in (all_logits, all_logits.log_softmax(dim=1)))
        else:
            logits = self.mlm_head(states.flatten(0, 1)[masked]).float()
            log_probabilities = logits.log_softmax(dim=-1)
        loss = F.cross_entropy(logits, pairs.mlm_labels.flatten()[masked], reduction="sum") / count
        if alpha > 0:
            with torch.no_grad():
                text_model, own_image = self.momentum_encoder.text_model, pairs.own_image
                images = dict(image_key_values=text_model.project_images(targets.image_embeds), image_index=own_image)
                states = text_model(pairs.mlm_input_ids, pairs.attention_mask, **images).last_hidden_state
                soft_labels = self.momentum_encoder.mlm_head(states.flatten(0, 1)[masked]).float().softmax(dim=-1)
            loss = (1 - alpha) * loss - alpha * (soft_labels * log_probabilities).sum() / count
        return loss, logits

    @torch.compiler.disable
    @torch.no_grad()
    def momentum_step(self, micro_batches: list[dict[str, Any]]) -> list[MomentumTargets]:
        """Moves the momentum encoders, encodes all micro-batches of an optimizer step by them, and fills the queues.

        The temperature is pulled back into its range as well. With several processes every one of them must call this:
        features are gathered from all. In evaluation mode nothing moves and nothing is gathered.

        Args:
            micro_batches: arguments of `forward`, of which `pixel_values` and `input_ids` are needed.
        """
        if self.training:
            self._move_momentum_encoder()
            # By its data: autograd need not know, and a graph that is not yet differentiated stays valid.
            self.albef.temperature.data.clamp_(*TEMPERATURE_RANGE)
        encoded = [self._encode_momentum(batch) for batch in micro_batches]
        rows = [torch.cat(column) for column in zip(*(pairs for _, pairs in encoded))]
        position, targets = 0, []
        if self.training:
            rows, (position, *_) = zip(*map(gather_rows, rows))
        queues = self.image_queue, self.text_queue, self.image_id_queue, self.text_id_queue
        candidates = PairFeatures(*map(torch.cat, zip(rows, queues)))
        for image_embeds, pairs in encoded:
            targets.append(MomentumTargets(image_embeds, pairs, candidates, position))
            position += len(pairs.text_ids)
        if self.training:
            self._enqueue(rows, queues)
        return targets

    def _encode_momentum(self, batch: dict[str, Any]) -> tuple[Tensor, PairFeatures]:
        """Momentum states of the images, and the true pairs: what is absent enters no queue."""
        pixel_values, input_ids, attention_mask = batch["pixel_values"], batch["input_ids"], batch.get("attention_mask")
        image_index = resolve_image_index(pixel_values, input_ids, batch.get("image_index"))
        image_ids, is_absent = self._image_ids(batch.get("image_ids"), pixel_values), batch.get("is_absent")
        encoder = self.momentum_encoder
        image_embeds = encoder.vision_model(pixel_values).last_hidden_state
        text_embeds = cls_states(encoder.text_model(input_ids, attention_mask).last_hidden_state, attention_mask)
        image_features = F.normalize(encoder.vision_projection(image_embeds[:, 0]), dim=-1)
        if image_index is not None:
            image_features, image_ids = image_features[image_index], image_ids[image_index]
        text_features = F.normalize(encoder.text_projection(text_embeds), dim=-1)
        rows = image_features, text_features, image_ids, text_fingerprints(input_ids, attention_mask)
        true_rows = slice(None) if is_absent is None else parted(is_absent, batch.get("num_absent"))[1]
        return image_embeds, PairFeatures(*(column[true_rows] for column in rows))

    def _image_ids(self, image_ids: Tensor | None, pixel_values: Tensor) -> Tensor:
        """(num_images,), given or else all different."""
        if image_ids is None and self.training:
            return unlike_any(len(pixel_values), pixel_values.device)
        if image_ids is None:  # as different from all in the queue, and the same every time
            return -2 - torch.arange(len(pixel_values), device=pixel_values.device)
        if image_ids.shape != (len(pixel_values),):
            found = tuple(image_ids.shape)
            raise ValueError(f"image_ids must be {len(pixel_values)} numbers, one an image, not {found}.")
        return image_ids

    def _momentum_pairs(self) -> list[TwoTensors]:
        """(copy, original) for every parameter of the momentum encoders; of layers that peft adapted, as if merged."""
        self.drop_momentum_adapters()
        originals = {**dict(self.albef.named_parameters()), **dict(self.named_parameters())}
        originals = {re.sub(r"\.(base_layer|original_module)\.", ".", name): value for name, value in originals.items()}
        for name, layer in self.named_modules():
            name = name.removeprefix("albef.").removesuffix(".token_adapter")
            if hasattr(layer, "base_layer"):
                merged = deepcopy(layer)
                merged.merge()
                originals |= {f"{name}.{part}": value for part, value in merged.base_layer.named_parameters()}
            elif hasattr(layer, "modules_to_save"):
                trained = layer.modules_to_save[layer.active_adapters[0]]
                originals |= {f"{name}.{part}": value for part, value in trained.named_parameters()}
        return [(copy, originals[name]) for name, copy in self.momentum_encoder.named_parameters()]

    def drop_momentum_adapters(self) -> None:
        """Takes out what `get_peft_model` put into the momentum encoders, whose modules have the same names."""
        for module in list(self.momentum_encoder.modules()):
            for name, child in module.named_children():
                for own in ("base_layer", "original_module"):
                    if hasattr(child, own):
                        setattr(module, name, getattr(child, own))

    @torch.no_grad()
    def restart_momentum_encoder(self) -> None:
        """The momentum encoders become copies of the encoders, as in the beginning; the queues stay."""
        for copy, original in self._momentum_pairs():
            copy.copy_(original)

    def _move_momentum_encoder(self) -> None:
        copies, originals = zip(*self._momentum_pairs())
        # FSDP's parameters are in pieces, the copies are not.
        whole = [original.full_tensor() if hasattr(original, "full_tensor") else original for original in originals]
        torch._foreach_lerp_(copies, [original.to(copies[0].dtype) for original in whole], 1 - self.config.momentum)

    def _enqueue(self, columns: Sequence[Tensor], queues: Sequence[Tensor]) -> None:
        """Writes the newest rows of each column over the oldest rows of its queue."""
        count = min(len(columns[0]), self.config.queue_size)
        index = (self.queue_pointer + torch.arange(count, device=self.queue_pointer.device)) % self.config.queue_size
        for queue, rows in zip(queues, columns):
            # What overflowed spoils the step that it is in, and no later one.
            queue[index] = rows[-count:].to(queue.dtype).nan_to_num(0.0, 0.0, 0.0)
        self.queue_pointer.copy_((self.queue_pointer + count) % self.config.queue_size)


def itc_loss(
    image_features: Tensor,
    text_features: Tensor,
    targets: MomentumTargets,
    matches: tuple[Tensor, Tensor],
    temperature: Tensor,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """ITC with soft targets α · softmax(momentum similarity) + (1 − α) · one-hot, both directions (ALBEF, eq. 1 and 6).

    Candidates that are known to fit (`matches`), besides the pair itself, are neither its positives nor its negatives.
    Features are (num_phrases, projection_dim).

    Returns: the loss, and the similarities over temperature of each image to the phrases and of each phrase to the
        images of this micro-batch, both (num_phrases, num_phrases).
    """
    pairs, candidates = targets.pairs, targets.candidates
    own = targets.position + torch.arange(len(text_features), device=text_features.device)
    one_hot = own[:, None] == torch.arange(len(candidates.text_ids), device=own.device)
    losses, similarities = [], []
    for features, momentum_features, others, known in (
        (image_features, pairs.image_features, candidates.text_features, matches[0]),
        (text_features, pairs.text_features, candidates.image_features, matches[1]),
    ):
        ignored = known & ~one_hot
        # Divided by the temperature, what bfloat16 rounds off is whole logits.
        with torch.autocast(features.device.type, enabled=False):
            similarity = features.float() @ others.float().T / temperature
            soft = momentum_features.float() @ others.float().T / temperature.detach()
        soft_targets = alpha * soft.masked_fill(ignored, -torch.inf).softmax(dim=1) + (1 - alpha) * one_hot
        # Not -inf: an ignored candidate's target is 0, and 0 · inf is not a number.
        log_probabilities = similarity.masked_fill(ignored, torch.finfo(torch.float32).min).log_softmax(dim=1)
        losses.append(-(soft_targets * log_probabilities).sum(dim=1).mean())
        similarities.append(similarity.detach()[:, own])
    return (losses[0] + losses[1]) / 2, *similarities


def itm_loss(itm_logits: Tensor, negative_itm_logits: Tensor, has_negative: Tensor) -> Tensor:
    """ITM: binary cross-entropy over each phrase's true pair, of `itm_logits` (num_phrases, 2), and its two negatives,
    of `negative_itm_logits` (2 * num_phrases, 2): the mean over 3 · num_phrases rows. A negative that does not exist
    contributes nothing, so that the loss of a batch is the mean of those of its parts.
    """
    logits = torch.cat([itm_logits, negative_itm_logits]).float()
    is_true = torch.arange(len(logits), device=logits.device) < len(itm_logits)
    loss = F.cross_entropy(logits, is_true.long(), reduction="none")
    return loss.where(torch.cat([torch.ones_like(has_negative[: len(itm_logits)]), has_negative]), 0).mean()


def known_to_fit(targets: MomentumTargets) -> TwoTensors:
    """Which texts fit each image, and which images each text, by what any pair of the step or the queue says.

    Returns: two (num_phrases, num_candidates) of bool: image i with text j, text i with image j.
    """
    pairs, candidates = targets.pairs, targets.candidates
    same_image = pairs.image_ids[:, None] == candidates.image_ids
    same_text = pairs.text_ids[:, None] == candidates.text_ids
    return spread(same_image, candidates.text_ids), spread(same_text, candidates.image_ids)


def spread(chosen: Tensor, ids: Tensor) -> Tensor:
    """Chooses beside each chosen candidate (num_rows, num_candidates) all that share its id (num_candidates,)."""
    ordered, order = ids.sort()  # as for `unique`, whose result has a size that a GPU would be waited for
    group = torch.empty_like(order).scatter_(0, order, F.pad(ordered[1:] != ordered[:-1], (1, 0)).cumsum(0))
    return torch.zeros(chosen.shape, device=ids.device).index_add_(1, group, chosen.float())[:, group] > 0


def parted(chosen: Tensor, count: int | None = None) -> TwoTensors:
    """Which rows of `chosen` (num_rows,) are True, and which are not; a GPU is waited for to `count` the former."""
    order = chosen.byte().argsort(descending=True, stable=True)
    return order.tensor_split([int(chosen.sum()) if count is None else count])


def draw_negatives(similarity: Tensor, allowed: Tensor, hardest: bool = False) -> Tensor:
    """For each row one allowed column: drawn by softmax of its similarity (ALBEF, §3.2), or the most similar.

    A row without an allowed column, or with a similarity that is not finite, gets an arbitrary one.
    """
    similarity = similarity.masked_fill(~allowed, -torch.inf)
    if hardest:
        return similarity.argmax(dim=1)
    probabilities = similarity.softmax(dim=1)  # of a row of -inf alone not a number
    is_drawable = probabilities.isfinite().all(dim=1, keepdim=True)
    return torch.multinomial(probabilities.where(is_drawable, 1.0), num_samples=1)[:, 0]


def unlike_any(num_images: int, device: torch.device) -> Tensor:
    """Ids (num_images,) that no image of the queue or of another process has, all of which may have the same seed."""
    return torch.tensor([secrets.randbits(62) for _ in range(num_images)], device=device)


def text_fingerprints(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(num_phrases,): equal for equal phrases, however far they are padded; 62 bits, not negative."""
    # A polynomial in a fixed odd number modulo 2^64, which is how int64 products wrap.
    powers = torch.full((input_ids.shape[1],), 6364136223846793005, device=input_ids.device).cumprod(0)
    tokens = input_ids + 1 if attention_mask is None else (input_ids + 1) * attention_mask
    if (first := first_tokens(attention_mask)) is not None:
        powers = powers[(torch.arange(len(powers), device=powers.device) - first[:, None]).clamp(min=0)]
    return (tokens * powers).sum(dim=1) & (2**62 - 1)


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes in order of rank, and where this process' rows begin. Counts may differ."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows, 0
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    counts = [int(count) for count in counts]
    padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, max(counts) - len(rows))).contiguous()
    gathered = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts)]), sum(counts[: distributed.get_rank()])
