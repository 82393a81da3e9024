"""ALBEF's objectives: ITC, ITM and MLM with momentum distillation and hard negatives (arXiv 2107.07651, §3)."""

import re
from copy import deepcopy
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .configuration_albef import AlbefConfig, AlbefTextConfig
from .gradcam import gradcam, leaving_inference_mode, resolve_image_index
from .modeling_albef import (
    AlbefEncoderOutput,
    AlbefModel,
    AlbefPreTrainedModel,
    AlbefTextModel,
    AlbefVisionModel,
    cls_states,
    first_tokens,
    match_attention,
    recorded_outputs,
    tokens_to_explain,
)

TEMPERATURE_RANGE = 0.001, 0.5


@dataclass
class AlbefForPreTrainingOutput(ModelOutput):
    """Output of `AlbefForPreTraining`.

    - `loss`: the sum of those below. `loss_itc`: image-text contrast. `loss_itm`: image-text matching. `loss_mlm`:
      masked words; None without `mlm_labels`. `loss_absent`: phrases that fit nothing; None where there are none.
    - `itm_logits` (num_phrases, 2): of the phrases and their images. `negative_itm_logits` (2 * num_phrases, 2): in
      training, of each phrase with a negative image, then of each phrase's image with a negative phrase.
    - `mlm_logits` (num_masked, vocab_size): at the masked positions, in row order.
    - `heatmaps` (num_phrases, rows, columns): explanation of `itm_logits[:, 1]`, differentiable in training.
    - `image_features` (num_images, projection_dim), `text_features` (num_phrases, projection_dim): ITC, unit length;
      without the phrases that are absent.
    - `hidden_states`, `attentions`, `cross_attentions`: of the text and fusion layers with the true pairs, when asked
      for. `vision_model_output`: of the image encoder.
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
    image_features: torch.FloatTensor | None = None
    text_features: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    vision_model_output: AlbefEncoderOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class MomentumTargets:
    """What the momentum encoders say of one micro-batch, and the candidates it is contrasted with.

    - `image_embeds` (num_images, 1 + num_patches, hidden_size): momentum image states.
    - `image_features`, `text_features` (num_phrases, projection_dim): momentum features of the pairs.
    - `image_ids`, `text_ids` (num_phrases,): fingerprints of what counts as the same picture and the same text.
    - `image_candidates`, `text_candidates` (num_candidates, projection_dim), `candidate_image_ids`,
      `candidate_text_ids` (num_candidates,): the pairs of all processes and micro-batches of the step, then the queue.
    - `position`: where this micro-batch begins among the candidates.
    """

    image_embeds: torch.Tensor
    image_features: torch.Tensor
    text_features: torch.Tensor
    image_ids: torch.Tensor
    text_ids: torch.Tensor
    image_candidates: torch.Tensor | None = None
    text_candidates: torch.Tensor | None = None
    candidate_image_ids: torch.Tensor | None = None
    candidate_text_ids: torch.Tensor | None = None
    position: int = 0


class AlbefMlmHead(nn.Module):
    """BERT's masked-language-model head; `decoder.weight` is tied to the word embeddings."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layernorm(self.activation(self.dense(hidden_states))))


class AlbefMomentumEncoder(nn.Module):
    """Slowly moving copies of the encoders, projections and MLM head: the teacher. Always in evaluation mode."""

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
    of the whole step (all processes, all micro-batches) and of the queue, so that neither the number of processes nor
    gradient accumulation changes the objective. Hard negatives for ITM come from the process' own micro-batch.

    In evaluation the losses depend on the encoders and the batch alone: neither teacher nor queue takes part.

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
        # An empty place is a candidate of similarity 0, and of no picture and no text: fingerprints are not negative.
        self.register_buffer("image_queue", torch.zeros(config.queue_size, config.projection_dim))
        self.register_buffer("text_queue", torch.zeros(config.queue_size, config.projection_dim))
        self.register_buffer("image_id_queue", torch.full((config.queue_size,), -1))
        self.register_buffer("text_id_queue", torch.full((config.queue_size,), -1))
        self.register_buffer("queue_pointer", torch.zeros(1, dtype=torch.long))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlbefForPreTraining):
            # The momentum encoders begin as copies; children come before their parent, so the originals are ready.
            for copy, original in module._momentum_pairs():
                init.copy_(copy, original)
            for buffer in (module.image_queue, module.text_queue, module.queue_pointer):
                init.zeros_(buffer)
            for buffer in (module.image_id_queue, module.text_id_queue):
                init.constant_(buffer, -1)

    def get_input_embeddings(self) -> nn.Module:
        return self.albef.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.albef.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.mlm_head.decoder = new_embeddings

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """As ever; a checkpoint without the teacher, which then begins as a copy, is not taken for a corrupted one."""
        source = self._tied_weights_keys["momentum_encoder.mlm_head.decoder.weight"]
        is_missing = missing_keys is not None and source in missing_keys
        if is_missing:
            missing_keys.remove(source)
        super().tie_weights(missing_keys, recompute_mapping)
        if is_missing:
            missing_keys.add(source)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Module:
        """As ever; the teacher's embeddings get the student's new rows and keep their own."""
        teacher = self.momentum_encoder
        known = teacher.text_model.get_input_embeddings().weight, teacher.mlm_head.decoder.bias
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        teacher.text_model.set_input_embeddings(deepcopy(embeddings).requires_grad_(False))
        teacher.mlm_head.decoder = deepcopy(self.mlm_head.decoder).requires_grad_(False)
        with torch.no_grad():
            for resized, old in zip(
                (teacher.text_model.get_input_embeddings().weight, teacher.mlm_head.decoder.bias), known
            ):
                count = min(len(resized), len(old))
                resized[:count] = old[:count]
        self.tie_weights()
        return embeddings

    def save_pretrained(self, save_directory: str | PathLike, *args, **kwargs) -> None:
        """As ever; remote code that is saved along also serves `AutoModel`, which takes the model that grounds."""
        if self._auto_class is not None:
            known = getattr(self.config, "auto_map", None) or {}
            self.config.auto_map = {**known, "AutoModel": f"{AlbefModel.__module__.split('.')[-1]}.AlbefModel"}
        super().save_pretrained(save_directory, *args, **kwargs)

    @leaving_inference_mode
    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        mlm_input_ids: torch.Tensor | None = None,
        mlm_labels: torch.Tensor | None = None,
        alpha: float | None = None,
        output_heatmaps: bool = False,
        negative_image_index: torch.Tensor | None = None,
        negative_text_index: torch.Tensor | None = None,
        momentum_targets: MomentumTargets | None = None,
        is_absent: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForPreTrainingOutput:
        """
        Args:
            pixel_values: (num_images, 3, height, width).
            input_ids, attention_mask: (num_phrases, num_tokens): true phrases of the images.
            image_index: (num_phrases,), which image each phrase belongs to; none: phrase i belongs to image i.
            image_ids: (num_images,) whole numbers, not negative: equal numbers are the same picture. None: all differ.
            mlm_input_ids, mlm_labels: (num_phrases, num_tokens), masked tokens and what they were (-100: not masked).
            alpha: weight of the momentum model's soft labels; default `config.alpha`; in evaluation always 0.
            output_heatmaps: explain the match of the true pairs; differentiable unless gradients are off.
            negative_image_index: (num_phrases,), a wrong image for each phrase; negative_text_index: (num_phrases,), a
                wrong phrase for each phrase's image. None: drawn by their similarity; in evaluation the most similar.
            momentum_targets: of this micro-batch, from `momentum_step`; None: computed here.
            is_absent: (num_phrases,) of bool: phrases that fit nothing in their image, which ITM alone learns from. The
                negatives' indices then count the others only, and stand for them only.
            output_hidden_states, output_attentions: of all layers, with the true pairs. return_dict: False returns a
                tuple of what is there.

        Returns: `AlbefForPreTrainingOutput`.

        Raises:
            ValueError: inputs that do not fit each other or the model.
        """
        if attention_mask is not None and attention_mask.ndim != 2:
            shape = tuple(attention_mask.shape)
            raise ValueError(f"The objectives need an attention_mask (num_phrases, num_tokens), not {shape}.")
        kwargs = recorded_outputs(self.config, kwargs)
        alpha = 0.0 if not self.training else self.config.alpha if alpha is None else alpha
        image_index = resolve_image_index(pixel_values, input_ids, image_index)
        own_image = torch.arange(len(input_ids), device=input_ids.device) if image_index is None else image_index
        if momentum_targets is None and self.training:
            batch = dict(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
            batch |= dict(image_index=image_index, image_ids=image_ids, is_absent=is_absent)
            (momentum_targets,) = self.momentum_step([batch])
        # Not by clamp alone: from torch 2.14 on it has no gradient at the ends of the range, and there it would stay.
        temperature = self.albef.temperature
        temperature = temperature + (temperature.clamp(*TEMPERATURE_RANGE) - temperature).detach()

        vision = self.albef.vision_model(pixel_values, **kwargs)
        image_key_values = self.albef.text_model.project_images(vision.last_hidden_state)
        text_embeds = masked_embeds = None
        # Where the states of every layer are asked for, the true pairs need a pass of their own from the words on.
        is_recorded = any(kwargs.get(name) for name in ("output_hidden_states", "output_attentions"))
        if mlm_labels is not None and not is_recorded:
            texts = torch.cat([input_ids, mlm_input_ids])
            masks = None if attention_mask is None else attention_mask.repeat(2, 1)
            text_embeds, masked_embeds = self.albef.text_model(texts, masks).last_hidden_state.chunk(2)
        elif mlm_labels is not None:
            masked_embeds = self.albef.text_model(mlm_input_ids, attention_mask).last_hidden_state
        encoded, itm_logits, heatmaps = self._match_true_pairs(
            input_ids,
            attention_mask,
            image_key_values,
            image_index,
            self.albef.patch_grid(pixel_values) if output_heatmaps else None,
            text_embeds=text_embeds,
            **kwargs,
        )
        text_embeds, text_mask, true_itm_logits = encoded.text_hidden_state, attention_mask, itm_logits
        loss_absent = None
        if is_absent is not None and is_absent.any():
            match_logit = (itm_logits[:, 1] - itm_logits[:, 0]).float()
            loss_absent = F.softplus(match_logit[is_absent]).mean()
            if is_absent.all():
                # Every parameter has a gradient, which distributed wrappers wait for.
                zero = sum((parameter * 0).sum() for parameter in self.parameters() if parameter.requires_grad)
                return AlbefForPreTrainingOutput(
                    loss=loss_absent + zero,
                    loss_itc=zero,
                    loss_itm=zero,
                    loss_mlm=None if mlm_labels is None else zero,
                    loss_absent=loss_absent,
                    itm_logits=itm_logits,
                    heatmaps=heatmaps,
                )
            per_phrase = text_embeds, text_mask, true_itm_logits, own_image, masked_embeds, mlm_input_ids, mlm_labels
            text_embeds, text_mask, true_itm_logits, own_image, masked_embeds, mlm_input_ids, mlm_labels = (
                None if rows is None else rows[~is_absent] for rows in per_phrase
            )
        image_features = self.albef.itc_image_features(vision.last_hidden_state)
        text_features = self.albef.itc_text_features(text_embeds, text_mask)
        if momentum_targets is None:
            pairs = slice(None) if is_absent is None else ~is_absent
            ids = (
                self._image_ids(image_ids, pixel_values)[own_image],
                text_fingerprints(input_ids, attention_mask)[pairs],
            )
            own_pairs = image_features[own_image], text_features, *ids
            momentum_targets = MomentumTargets(vision.last_hidden_state, *own_pairs, *own_pairs)
        matches = known_matches(momentum_targets)
        loss_itc, image_to_text, text_to_image = contrastive_loss(
            image_features[own_image], text_features, momentum_targets, matches, temperature, alpha
        )

        # A row without any allowed negative, as in a batch of one, has its true pair only.
        num_pairs = len(own_image)
        own = slice(momentum_targets.position, momentum_targets.position + num_pairs)
        wrong_texts, wrong_images = (~known[:, own] for known in matches)
        has_negative = torch.cat([wrong_images.any(dim=1), wrong_texts.any(dim=1)])
        is_chosen = negative_image_index is None, negative_text_index is None
        choose = draw_negatives if self.training else hardest_negatives
        if negative_image_index is None:
            negative_image_index = own_image[choose(text_to_image, wrong_images)]
        if negative_text_index is None:
            negative_text_index = choose(image_to_text, wrong_texts)
        texts, images = [text_embeds, text_embeds[negative_text_index]], [negative_image_index, own_image]
        masks = None if text_mask is None else [text_mask, text_mask[negative_text_index]]
        if mlm_labels is not None:
            texts.append(masked_embeds)
            images.append(own_image)
            masks = None if masks is None else [*masks, text_mask]
        states = self.albef.text_model(
            text_embeds=torch.cat(texts),
            attention_mask=None if masks is None else torch.cat(masks),
            image_key_values=image_key_values,
            image_index=torch.cat(images),
        ).last_hidden_state.tensor_split(len(texts))
        negative_mask = None if masks is None else torch.cat(masks[:2])
        negative_itm_logits = self.albef.itm_logits(torch.cat(states[:2]), negative_mask)
        is_given = ~torch.tensor(is_chosen, device=has_negative.device).repeat_interleave(num_pairs)
        loss_itm = matching_loss(true_itm_logits, negative_itm_logits, has_negative | is_given)

        loss_mlm, mlm_logits = None, None
        if mlm_labels is not None:
            teacher = None
            if alpha > 0:
                teacher = self._momentum_mlm_logits(mlm_input_ids, text_mask, mlm_labels, own_image, momentum_targets)
            loss_mlm, mlm_logits = self._masked_language_loss(states[2], mlm_labels, teacher, alpha)
        return AlbefForPreTrainingOutput(
            loss=sum(loss for loss in (loss_itc, loss_itm, loss_mlm, loss_absent) if loss is not None),
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            loss_mlm=loss_mlm,
            loss_absent=loss_absent,
            itm_logits=itm_logits,
            # Of an evaluation they would depend on what else is in the batch, as nothing else does but the losses.
            negative_itm_logits=negative_itm_logits if self.training else None,
            mlm_logits=mlm_logits,
            heatmaps=heatmaps,
            image_features=image_features,
            text_features=text_features,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            cross_attentions=encoded.cross_attentions,
            vision_model_output=vision,
        )

    def _match_true_pairs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_key_values: list[tuple[torch.Tensor, torch.Tensor]],
        image_index: torch.Tensor | None,
        grid: tuple[int, int] | None,
        **kwargs,
    ) -> tuple[AlbefEncoderOutput, torch.Tensor, torch.Tensor | None]:
        """What the text and fusion layers gave, ITM logits (num_phrases, 2) and, where the `grid` of patches is given,
        heatmaps (num_phrases, *grid)."""
        pairs = input_ids, attention_mask, image_key_values, image_index
        if grid is None:
            return *self.albef.match(*pairs, **kwargs), None
        create_graph = torch.is_grad_enabled()
        key, _ = image_key_values[self.config.grounding_layer - self.config.text_config.fusion_layer]
        if create_graph and not key.requires_grad:  # all weights below the explained attention are frozen
            key.requires_grad_()
        token_mask = tokens_to_explain(input_ids, attention_mask)
        encoded, itm_logits = self.albef.match(*pairs, self.config.grounding_layer, create_graph, **kwargs)
        heatmaps = gradcam(match_attention(itm_logits, encoded, token_mask, grid), create_graph)
        return encoded, (itm_logits if create_graph else itm_logits.detach()), heatmaps

    def _masked_language_loss(
        self, states: torch.Tensor, mlm_labels: torch.Tensor, teacher_logits: torch.Tensor | None, alpha: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy at the masked positions, blended with the teacher's soft labels; 0 where nothing is masked.

        Args:
            states: (num_phrases, num_tokens, hidden_size) of the fusion encoder.
            teacher_logits: (num_masked, vocab_size).

        Returns: the loss and the logits (num_masked, vocab_size).
        """
        masked = mlm_labels != -100
        if self.config.mlm_distillation_axis == "sequence":
            all_logits = self.mlm_head(states).float()
            logits, student = all_logits[masked], all_logits.log_softmax(dim=1)[masked]
        else:
            logits = self.mlm_head(states[masked]).float()
            student = logits.log_softmax(dim=-1)
        count = masked.sum().clamp(min=1)
        loss = F.cross_entropy(logits, mlm_labels[masked], reduction="sum") / count
        if teacher_logits is not None:
            distilled = -(teacher_logits.softmax(dim=-1) * student).sum() / count
            loss = (1 - alpha) * loss + alpha * distilled
        return loss, logits

    @torch.no_grad()
    def _momentum_mlm_logits(
        self,
        mlm_input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mlm_labels: torch.Tensor,
        own_image: torch.Tensor,
        targets: MomentumTargets,
    ) -> torch.Tensor:
        """(num_masked, vocab_size): what the teacher would write at the masked positions."""
        text_model = self.momentum_encoder.text_model
        states = text_model(
            mlm_input_ids,
            attention_mask,
            image_key_values=text_model.project_images(targets.image_embeds),
            image_index=own_image,
        ).last_hidden_state
        return self.momentum_encoder.mlm_head(states[mlm_labels != -100]).float()

    @torch.compiler.disable
    @torch.no_grad()
    def momentum_step(self, micro_batches: list[dict[str, torch.Tensor]]) -> list[MomentumTargets]:
        """Moves the teacher, lets it encode all micro-batches of one optimizer step, and rolls them into the queues.

        The temperature is pulled back into its range as well. With several processes every one of them must call this:
        features are gathered from all. In evaluation mode nothing moves and nothing is gathered.

        Args:
            micro_batches: each with `pixel_values`, `input_ids`, and `attention_mask`, `image_index`, `image_ids`,
                `is_absent` where there are any; see `forward`.
        """
        if self.training:
            self._move_momentum_encoder()
            # By its data: autograd need not know, and a graph that is not yet differentiated stays valid.
            self.albef.temperature.data.clamp_(*TEMPERATURE_RANGE)
        targets = [self._encode_momentum(**batch) for batch in micro_batches]
        gather = gather_rows if self.training else lambda rows: (rows, 0)
        image_features, position = gather(torch.cat([target.image_features for target in targets]))
        text_features, _ = gather(torch.cat([target.text_features for target in targets]))
        image_ids, _ = gather(torch.cat([target.image_ids for target in targets]))
        text_ids, _ = gather(torch.cat([target.text_ids for target in targets]))
        candidates = {
            "image_candidates": torch.cat([image_features, self.image_queue]),
            "text_candidates": torch.cat([text_features, self.text_queue]),
            "candidate_image_ids": torch.cat([image_ids, self.image_id_queue]),
            "candidate_text_ids": torch.cat([text_ids, self.text_id_queue]),
        }
        for index, target in enumerate(targets):
            targets[index] = replace(target, position=position, **candidates)
            position += len(target.text_features)
        if self.training:
            self._enqueue(image_features, text_features, image_ids, text_ids)
        return targets

    def _encode_momentum(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        is_absent: torch.Tensor | None = None,
    ) -> MomentumTargets:
        image_index = resolve_image_index(pixel_values, input_ids, image_index)
        image_ids = self._image_ids(image_ids, pixel_values)
        teacher = self.momentum_encoder
        image_embeds = teacher.vision_model(pixel_values).last_hidden_state
        text_embeds = teacher.text_model(input_ids, attention_mask).last_hidden_state
        image_features = F.normalize(teacher.vision_projection(image_embeds[:, 0]), dim=-1)
        if image_index is not None:
            image_features, image_ids = image_features[image_index], image_ids[image_index]
        pairs = slice(None) if is_absent is None else ~is_absent  # what is absent enters no queue
        return MomentumTargets(
            image_embeds=image_embeds,
            image_features=image_features[pairs],
            text_features=F.normalize(teacher.text_projection(cls_states(text_embeds, attention_mask)), dim=-1)[pairs],
            image_ids=image_ids[pairs],
            text_ids=text_fingerprints(input_ids, attention_mask)[pairs],
        )

    def _image_ids(self, image_ids: torch.Tensor | None, pixel_values: torch.Tensor) -> torch.Tensor:
        """(num_images,), given or else all different."""
        if image_ids is None and self.training:  # fingerprints that no picture of the queue or of another process has
            return torch.randint(2**62, (len(pixel_values),), device=pixel_values.device)
        if image_ids is None:  # as different from all in the queue, and the same every time
            return -2 - torch.arange(len(pixel_values), device=pixel_values.device)
        if image_ids.shape != (len(pixel_values),):
            raise ValueError(
                f"image_ids must be {len(pixel_values)} whole numbers, one an image, not {tuple(image_ids.shape)}."
            )
        return image_ids

    def _momentum_pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(copy, original) for every parameter of the momentum encoders; of layers that peft adapted, as if merged."""
        self.drop_teacher_adapters()
        originals = {**dict(self.albef.named_parameters()), **dict(self.named_parameters())}
        originals = {re.sub(r"\.(base_layer|original_module)\.", ".", name): value for name, value in originals.items()}
        for name, layer in self.named_modules():
            name = name.removeprefix("albef.")
            if hasattr(layer, "base_layer"):
                merged = deepcopy(layer)
                merged.merge()
                originals |= {f"{name}.{part}": value for part, value in merged.base_layer.named_parameters()}
            elif hasattr(layer, "modules_to_save"):
                trained = layer.modules_to_save[layer.active_adapters[0]]
                originals |= {f"{name}.{part}": value for part, value in trained.named_parameters()}
        return [(copy, originals[name]) for name, copy in self.momentum_encoder.named_parameters()]

    def drop_teacher_adapters(self) -> None:
        """Takes out adapters that `get_peft_model` put into the teacher too, since their names are the student's."""
        for module in list(self.momentum_encoder.modules()):
            for name, child in module.named_children():
                for own in ("base_layer", "original_module"):
                    if hasattr(child, own):
                        setattr(module, name, getattr(child, own))

    @torch.no_grad()
    def restart_momentum_encoder(self) -> None:
        """The teacher becomes a copy of the student, as in the beginning; the queues stay."""
        for copy, original in self._momentum_pairs():
            copy.copy_(original)

    def _move_momentum_encoder(self) -> None:
        copies, originals = zip(*self._momentum_pairs())
        # FSDP's parameters are in pieces, the teacher's are not.
        whole = [original.full_tensor() if hasattr(original, "full_tensor") else original for original in originals]
        torch._foreach_lerp_(copies, [original.to(copies[0].dtype) for original in whole], 1 - self.config.momentum)

    def _enqueue(self, *columns: torch.Tensor) -> None:
        """Writes the newest (image features, text features, image ids, text ids) over the oldest rows of the queues."""
        queues = self.image_queue, self.text_queue, self.image_id_queue, self.text_id_queue
        count = min(len(columns[0]), self.config.queue_size)
        index = (self.queue_pointer + torch.arange(count, device=self.queue_pointer.device)) % self.config.queue_size
        for queue, rows in zip(queues, columns):
            # What overflowed spoils the step that it is in, and no later one.
            queue[index] = rows[-count:].to(queue.dtype).nan_to_num(0.0, 0.0, 0.0)
        self.queue_pointer.copy_((self.queue_pointer + count) % self.config.queue_size)


def contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    targets: MomentumTargets,
    matches: tuple[torch.Tensor, torch.Tensor],
    temperature: torch.Tensor,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ITC with soft targets α · softmax(momentum similarity) + (1 − α) · one-hot, both directions (ALBEF, eq. 1 and 6).

    Candidates that are known to fit, besides the pair itself, are neither its positives nor its negatives.

    Args:
        image_features, text_features: (num_phrases, projection_dim) of the true pairs.
        matches: from `known_matches`.

    Returns: the loss, and the similarities over temperature of each image to the phrases and of each phrase to the
        images of this micro-batch, both (num_phrases, num_phrases).
    """
    num_phrases = len(text_features)
    own = targets.position + torch.arange(num_phrases, device=text_features.device)
    one_hot = F.one_hot(own, len(targets.text_candidates))
    losses, similarities = [], []
    for features, momentum_features, candidates, known in (
        (image_features, targets.image_features, targets.text_candidates, matches[0]),
        (text_features, targets.text_features, targets.image_candidates, matches[1]),
    ):
        ignored = known & (one_hot == 0)
        # Divided by the temperature, what bfloat16 rounds off is whole logits.
        with torch.autocast(features.device.type, enabled=False):
            similarity = features.float() @ candidates.float().T / temperature
            soft = momentum_features.float() @ candidates.float().T / temperature.detach()
        soft_targets = alpha * soft.masked_fill(ignored, -torch.inf).softmax(dim=1) + (1 - alpha) * one_hot
        # Not -inf: an ignored candidate's target is 0, and 0 · inf is not a number.
        log_probabilities = similarity.masked_fill(ignored, torch.finfo(torch.float32).min).log_softmax(dim=1)
        losses.append(-(soft_targets * log_probabilities).sum(dim=1).mean())
        similarities.append(similarity.detach()[:, own])
    return (losses[0] + losses[1]) / 2, *similarities


def matching_loss(
    itm_logits: torch.Tensor, negative_itm_logits: torch.Tensor, has_negative: torch.Tensor
) -> torch.Tensor:
    """ITM: binary cross-entropy over each phrase's true pair and its two negatives, the mean over 3 · num_phrases rows.

    A negative that does not exist (`has_negative` False) contributes nothing, so that the loss of a batch is the mean
    of the losses of its parts.

    Args:
        itm_logits: (num_phrases, 2). negative_itm_logits: (2 * num_phrases, 2). has_negative: (2 * num_phrases,).
    """
    logits = torch.cat([itm_logits, negative_itm_logits]).float()
    is_true = torch.arange(len(logits), device=logits.device) < len(itm_logits)
    loss = F.cross_entropy(logits, is_true.long(), reduction="none")
    return loss.where(torch.cat([torch.ones_like(has_negative[: len(itm_logits)]), has_negative]), 0).mean()


def known_matches(targets: MomentumTargets) -> tuple[torch.Tensor, torch.Tensor]:
    """Which texts are known to fit each image, and which images each text: all of these are no negatives.

    A text fits a picture if any pair of the step or the queue says so: equal pictures share their texts, equal texts
    their pictures. A picture with the phrases "a dog" and "a man" is no negative for another picture's "a dog".

    Returns: two (num_phrases, num_candidates) of bool: image i with text j, text i with image j.
    """
    same_image = targets.image_ids[:, None] == targets.candidate_image_ids
    same_text = targets.text_ids[:, None] == targets.candidate_text_ids
    return spread(same_image, targets.candidate_text_ids), spread(same_text, targets.candidate_image_ids)


def spread(chosen: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Chooses beside each chosen candidate all that share its id.

    Args:
        chosen: (num_rows, num_candidates) of bool. ids: (num_candidates,).
    """
    values, group = ids.unique(return_inverse=True)
    chosen_groups = torch.zeros(len(chosen), len(values), device=ids.device).index_add_(1, group, chosen.float())
    return chosen_groups[:, group] > 0


def draw_negatives(similarity: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Hard negatives: for each row one allowed column, drawn by softmax of its similarity (ALBEF, §3.2).

    Args:
        similarity, allowed: (num_phrases, num_phrases). A row without an allowed column, or with a similarity that is
            not finite (of a step that is about to be skipped), gets an arbitrary one.
    """
    # Of a row of -inf alone, too, the softmax is not a number.
    probabilities = similarity.masked_fill(~allowed, -torch.inf).softmax(dim=1)
    is_drawable = probabilities.isfinite().all(dim=1, keepdim=True)
    return torch.multinomial(probabilities.where(is_drawable, 1.0), num_samples=1)[:, 0]


def hardest_negatives(similarity: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """For each row the allowed column of the highest similarity; arguments as of `draw_negatives`."""
    return similarity.masked_fill(~allowed, -torch.inf).argmax(dim=1)


def text_fingerprints(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(num_phrases,): equal for equal phrases, however far they are padded; 62 bits, not negative."""
    # A polynomial in a fixed odd number modulo 2^64, which is how int64 products wrap.
    powers = torch.full((input_ids.shape[1],), 6364136223846793005, device=input_ids.device).cumprod(0)
    tokens = input_ids + 1 if attention_mask is None else (input_ids + 1) * attention_mask
    if (first := first_tokens(attention_mask)) is not None:
        powers = powers[(torch.arange(len(powers), device=powers.device) - first[:, None]).clamp(min=0)]
    return (tokens * powers).sum(dim=1) & (2**62 - 1)


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
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
    everything = torch.cat([part[:count] for part, count in zip(gathered, counts)])
    return everything, sum(counts[: distributed.get_rank()])


__all__ = ["AlbefForPreTraining", "AlbefForPreTrainingOutput", "MomentumTargets"]
