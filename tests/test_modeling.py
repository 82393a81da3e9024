"""ALBEF as a transformers model: configuration, saving and loading, attention implementations, shapes, errors."""

from functools import partial

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, BertConfig, BertModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_albef_amc import (
    AlbefConfig,
    AlbefForPreTraining,
    AlbefModel,
    AlbefTextConfig,
    AlbefTextModel,
    AlbefVisionConfig,
    AlbefVisionModel,
)
from modeling_albef_amc.attention_albef import eager_attention_forward
from modeling_albef_amc.families.registry import explain_function
from modeling_albef_amc.families.relevance import relevance
from tests.helpers.models import enable_checkpointing, masked_batch, tiny_batch, tiny_config
from trainer.amc_loss import attention_mask_consistency_loss


def grounding_model(**overrides) -> AlbefModel:
    return AlbefModel(tiny_config(**overrides)).eval()


def amc_total(model, batch, output_heatmaps: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All objectives with AMC, as in training, and the heatmaps."""
    model.choose_negatives = lambda *_: (torch.tensor([1, 2, 3, 0]),) * 2
    output = model(**batch, image_ids=torch.arange(4), output_heatmaps=output_heatmaps, alpha=0.4)
    if not output_heatmaps:
        return output.loss, None
    masks = torch.zeros(4, 16, 16)
    masks[:, 4:9, 3:12] = 1
    return output.loss + sum(attention_mask_consistency_loss(output.heatmaps, masks).values()), output.heatmaps


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


# Configuration --------------------------------------------------------------------------------------------------------


def test_the_defaults_are_albef_base():
    config = AlbefConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (768, 3072, 12)
    assert (vision.num_attention_heads, vision.patch_size, vision.image_size, vision.grid) == (12, 16, 256, (16, 16))
    assert (vision.layer_norm_eps, vision.hidden_act) == (1e-6, "gelu")
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (768, 3072, 12)
    assert (text.num_attention_heads, text.fusion_layer, text.encoder_hidden_size) == (12, 6, 768)
    assert (text.vocab_size, text.max_position_embeddings, text.type_vocab_size) == (30522, 512, 2)
    assert (text.layer_norm_eps, text.hidden_act) == (1e-12, "gelu")
    assert (text.hidden_dropout_prob, text.attention_probs_dropout_prob) == (0.1, 0.1)
    assert (config.projection_dim, config.temperature, config.grounding_layer) == (256, 0.07, 8)
    assert (config.momentum, config.queue_size, config.alpha) == (0.995, 65536, 0.4)
    assert config.mlm_distillation_axis == "vocabulary"


def test_the_size_of_albef_base():
    """209.3 million parameters, counted from the sizes of the paper's parts."""

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        model = AlbefForPreTraining(AlbefConfig())
    width, mlp = 768, 3072
    norm, attention = 2 * width, 4 * (width * width + width)
    block = attention + (width * mlp + mlp) + (mlp * width + width) + 2 * norm
    vision = (3 * 16 * 16 * width + width) + width + 257 * width + 12 * block + norm
    text = (30522 + 512 + 2) * width + norm + 12 * block + 6 * (attention + norm)
    heads = 2 * (width * 256 + 256) + (2 * width + 2) + 1
    assert count(model.albef) == vision + text + heads == 209_315_075
    mlm_head = width * width + width + norm + 30522  # its decoder is tied to the word embeddings
    assert count(model.mlm_head) - 30522 * width == mlm_head
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == count(model.albef) + mlm_head == 209_937_725
    assert count(model.momentum_encoder) == vision + text + heads - (2 * width + 2) - 1 + mlm_head
    assert tuple(model.image_queue.shape) == (65536, 256)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (tiny_config, {"grounding_layer": 1}, r"grounding_layer 1 has no cross-attention: choose one of 2\.\.4"),
        (tiny_config, {"grounding_layer": 5}, "grounding_layer 5"),
        (tiny_config, {"vision_grounding_layer": 2}, "vision_grounding_layer 2 is outside the 2 layers"),
        (tiny_config, {"mlm_distillation_axis": "batch"}, "mlm_distillation_axis"),
        (tiny_config, {"queue_size": "many"}, "queue_size"),
        (AlbefVisionConfig, {"image_size": 250}, "not a whole number of patches of 16 pixels"),
        (AlbefVisionConfig, {"image_size": (256, 100)}, "not a whole number of patches"),
        (AlbefVisionConfig, {"num_attention_heads": 7}, "hidden_size 768 is not divisible by num_attention_heads 7"),
        (AlbefTextConfig, {"num_attention_heads": 5}, "not divisible"),
        (AlbefTextConfig, {"fusion_layer": 12}, r"fusion_layer 12 must lie in 0\.\.11"),
    ],
)
def test_configurations_that_are_refused(config, options, message):
    with pytest.raises(Exception, match=message):  # the types are checked by huggingface_hub's own error
        config(**options)


def test_the_configuration_survives_its_file(tmp_path):
    config = tiny_config(
        vision_config=dict(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=(32, 48),
            patch_size=8,
        ),
        momentum=0.9,
        mlm_distillation_axis="sequence",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is AlbefConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    assert loaded.vision_config.grid == (4, 6)
    assert loaded.text_config.encoder_hidden_size == 16
    assert (loaded.momentum, loaded.mlm_distillation_axis) == (0.9, "sequence")


# Initialisation, saving and loading -----------------------------------------------------------------------------------


def test_a_new_model_begins_with_its_momentum_encoder_as_a_copy():
    model = AlbefForPreTraining(tiny_config())
    copies = list(model._momentum_pairs())
    assert len(copies) == len(list(model.momentum_encoder.parameters()))
    assert all(torch.equal(copy, original) for copy, original in copies)
    assert sum(copy.std() > 0.01 for copy, _ in copies if copy.ndim > 1) > 40  # of something drawn at random
    for queue in (model.image_queue, model.text_queue):
        assert (queue == 0).all()
    assert (model.image_id_queue == -1).all()
    assert (model.text_id_queue == -1).all()
    assert model.queue_pointer.tolist() == [0]
    assert model.albef.temperature.item() == pytest.approx(0.07)
    assert model.mlm_head.decoder.weight is model.get_input_embeddings().weight


def test_saved_and_loaded_the_pretraining_model_is_the_same(tmp_path):
    model = AlbefForPreTraining(tiny_config()).train()
    amc_total(model, masked_batch())  # the momentum encoder differs from the model, the queues are not new
    model.eval().save_pretrained(tmp_path)
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is AlbefForPreTraining
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert loaded.mlm_head.decoder.weight is loaded.get_input_embeddings().weight
    momentum = loaded.momentum_encoder
    assert momentum.mlm_head.decoder.weight is momentum.text_model.get_input_embeddings().weight
    for one, other in zip(amc_total(loaded, masked_batch()), amc_total(model, masked_batch())):
        assert torch.equal(one, other)


def test_the_pretraining_checkpoint_gives_the_grounding_model(tmp_path):
    model = AlbefForPreTraining(tiny_config()).train()
    model(**masked_batch())
    model.eval().save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is AlbefModel
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = tiny_batch()
    expected, actual = (part(**batch, output_heatmaps=True) for part in (model.albef, loaded))
    assert expected.keys() == actual.keys()
    torch.testing.assert_close(actual.to_tuple(), expected.to_tuple(), rtol=0, atol=0)


def test_the_grounding_checkpoint_gives_a_pretraining_model(tmp_path):
    model = grounding_model()
    with torch.no_grad():
        model.temperature.fill_(0.2)
    model.save_pretrained(tmp_path)
    loaded, info = AlbefForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    # The head that is new is reported; what is no more than a copy or empty is not.
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"mlm_head"}
    assert all(torch.equal(tensor, loaded.albef.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(copy, original) for copy, original in loaded._momentum_pairs())
    assert (loaded.image_queue == 0).all() and (loaded.text_id_queue == -1).all()
    assert (loaded.image_id_queue == -1).all()
    assert loaded.queue_pointer.tolist() == [0]
    assert loaded.mlm_head.dense.weight.std() > 0.1


@pytest.mark.parametrize("encoder", [AlbefVisionModel, AlbefTextModel])
def test_an_encoder_of_a_whole_checkpoint(encoder, tmp_path):
    model = grounding_model()
    model.save_pretrained(tmp_path)
    expected = model.get_submodule(encoder.base_model_prefix).state_dict()
    loaded = encoder.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)


# Attention, checkpointing, precision ----------------------------------------------------------------------------------


def trained_once(state: dict, prepare=lambda model: None, autocast: bool = False):
    """The loss, heatmaps and gradients of one step from these weights, and the model."""
    model = AlbefForPreTraining(tiny_config()).train()
    model.load_state_dict(state)
    prepare(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss, heatmaps = amc_total(model, masked_batch())
    loss.backward()
    return loss.detach(), heatmaps.detach(), gradients(model), model


def test_sdpa_equals_eager():
    state = AlbefForPreTraining(tiny_config()).state_dict()
    results = [
        trained_once(state, lambda model, name=name: model.set_attn_implementation(name)) for name in ("eager", "sdpa")
    ]
    for (*_, model), name in zip(results, ("eager", "sdpa")):
        assert {part.config._attn_implementation for part in (model.albef.text_model, model.albef.vision_model)} == {
            name
        }
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(results[1][2], results[0][2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("implementation", "reentrant"), [("eager", False), ("sdpa", False), ("sdpa", True)])
def test_activation_checkpointing_changes_nothing(implementation, reentrant):
    """Reentrant checkpointing cuts the graph of heatmaps: there, of the other objectives alone."""
    results, state = [], AlbefForPreTraining(tiny_config()).state_dict()
    for checkpointing in (False, True):
        model, passes = AlbefForPreTraining(tiny_config()).train(), []
        model.load_state_dict(state)
        model.set_attn_implementation(implementation)
        model.albef.vision_model.layers[0].intermediate.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        if checkpointing:
            enable_checkpointing(model, {"use_reentrant": reentrant})
        total, _ = amc_total(model, masked_batch(), output_heatmaps=not reentrant)
        total.backward()
        # Computed again in the backward pass: proof that it is on.
        assert len(passes) == 1 + checkpointing
        results.append((total.detach(), gradients(model)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def test_bfloat16_autocast_trains_with_heatmaps():
    state = AlbefForPreTraining(tiny_config()).state_dict()
    (exact, _, expected, _), (loss, heatmaps, found, _) = (trained_once(state, autocast=on) for on in (False, True))
    assert heatmaps.dtype == torch.float32 and (heatmaps.amax(dim=(1, 2)) > 0).all()
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)
    # No parameter loses its gradient to a cast that was made without one.
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].isfinite().all(), name
        if gradient.norm() > 0.1:
            similarity = torch.nn.functional.cosine_similarity(gradient.flatten(), found[name].flatten(), dim=0)
            assert similarity > 0.7, name


def test_eager_attention_hands_out_probabilities_before_dropout():
    module = torch.nn.Module().train()
    states = torch.randn(2, 3, 5, 4)
    _, probabilities = eager_attention_forward(module, states, states, states, None, scaling=0.5, dropout=0.9)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(2, 3, 5))


# Shapes and recorded outputs ------------------------------------------------------------------------------------------


def test_a_fusion_encoder_without_text_layers_below():
    text = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, fusion_layer=0)
    model = grounding_model(text_config=dict(**text, vocab_size=40), grounding_layer=1)
    model.set_attn_implementation("eager")
    output = model(**tiny_batch(), output_attentions=True, output_hidden_states=True)
    assert (len(output.hidden_states), len(output.attentions), len(output.cross_attentions)) == (4, 3, 3)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    # The first phrase has two padded slots, which nothing attends to.
    assert all((attention[0, :, :, -2:] < 1e-6).all() for attention in output.attentions)
    assert model(**tiny_batch(), output_heatmaps=True).heatmaps.shape == (4, 4, 4)


# Many phrases an image ------------------------------------------------------------------------------------------------


def test_image_index_says_which_image_a_phrase_belongs_to():
    model, batch, encoded = grounding_model(), tiny_batch(), []
    images, index = batch.pop("pixel_values")[:2], torch.tensor([1, 0, 0, 1])
    repeated = model(images[index], **batch)
    model.vision_model.register_forward_pre_hook(lambda _, args, kwargs: encoded.append(len(args[0])), with_kwargs=True)
    for dtype in (torch.long, torch.int32):
        shared = model(images, **batch, image_index=index.to(dtype))
        torch.testing.assert_close(shared.itm_logits, repeated.itm_logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shared.image_features[index], repeated.image_features, rtol=1e-4, atol=1e-5)
    assert encoded == [2, 2]
    # A single image is everyone's; an image may have no phrase.
    single = model(images[:1], **batch).itm_logits
    torch.testing.assert_close(single, model(images[[0, 0, 0, 0]], **batch).itm_logits, rtol=1e-4, atol=1e-5)
    spare = model(images, **batch, image_index=torch.zeros(4, dtype=torch.long)).itm_logits
    torch.testing.assert_close(spare, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pixel_values": torch.zeros(4, 3, 32, 30)},
            "Images of 32 x 30 pixels are not a whole number of patches of 8",
        ),
        (
            {"pixel_values": torch.zeros(4, 1, 32, 32)},
            r"must be \(num_images, 3, height, width\), not \(4, 1, 32, 32\)",
        ),
        ({"pixel_values": torch.zeros(4, 32, 32)}, r"pixel_values must be"),
        (
            {"input_ids": torch.ones(4, 21).long(), "attention_mask": None},
            "Text of 21 tokens: at most 20 have a position",
        ),
        ({"pixel_values": torch.zeros(2, 3, 32, 32)}, "4 phrases for 2 images: say which belongs to which"),
        ({"image_index": torch.tensor([0, 1])}, r"image_index must be 4 whole numbers, one a phrase, not \(2,\)"),
        ({"image_index": torch.zeros(4, 1).long()}, "image_index must be 4 whole numbers"),
        ({"image_index": torch.zeros(4)}, r"not \(4,\) of torch\.float32"),
    ],
)
def test_inputs_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        grounding_model()(**{**tiny_batch(), **change})


def test_the_text_model_takes_words_or_states():
    model = grounding_model().text_model
    states = torch.zeros(1, 2, 24)
    for inputs in ({}, {"input_ids": torch.ones(1, 2, dtype=torch.long), "text_embeds": states}):
        with pytest.raises(ValueError, match="either input_ids or text_embeds"):
            model(**inputs)


# Positions on other grids ---------------------------------------------------------------------------------------------


def test_positions_vary_along_the_axis_they_were_learned_on():
    embeddings = grounding_model().vision_model.embeddings
    rows = torch.arange(4.0)[:, None].expand(4, 4)
    for ramp, still in ((rows, 1), (rows.T, 0)):
        with torch.no_grad():
            embeddings.position_embeddings[0, 1:] = ramp.reshape(16, 1)
        patches = embeddings.interpolated_positions((8, 12))[0, 1:, 0].unflatten(0, (8, 12))
        torch.testing.assert_close(patches, patches.select(still, 0).unsqueeze(still).expand(8, 12))
        assert (patches.select(still, 0).diff() > 0).all()
    assert torch.equal(embeddings.interpolated_positions((8, 12))[0, 0], embeddings.position_embeddings[0, 0])


# Inputs that users have -----------------------------------------------------------------------------------------------


def padded_left(batch: dict[str, torch.Tensor], extra: int = 3) -> dict[str, torch.Tensor]:
    """The same phrases, each at the end of its row."""
    moved = {}
    for name in ("input_ids", "attention_mask"):
        rows = torch.nn.functional.pad(batch[name], (0, extra))
        shifts = (extra + (batch["attention_mask"] == 0).sum(dim=1)).tolist()
        moved[name] = torch.stack([row.roll(shift) for row, shift in zip(rows, shifts)])
    return {**batch, **moved}


def test_padding_on_the_left_changes_nothing():
    model, batch = grounding_model().double(), tiny_batch(dtype=torch.float64)  # sums go by other orders
    for explanation in ("itm", "itc"):
        options = dict(output_heatmaps=True, explanation=explanation)
        expected, found = model(**batch, **options), model(**padded_left(batch), **options)
        for name in ("itm_logits", "heatmaps", "text_features"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)
    words = model(**padded_left(batch), output_token_heatmaps=True).token_heatmaps
    plain = model(**batch, output_token_heatmaps=True).token_heatmaps
    torch.testing.assert_close(words[0, 5:], plain[0, :4], rtol=1e-10, atol=1e-12)  # 2 + 3 places of padding before it


def test_losses_of_phrases_padded_on_the_left():
    model, results = AlbefForPreTraining(tiny_config()), []
    for inputs in (tiny_batch(), padded_left(tiny_batch())):
        twin = AlbefForPreTraining(tiny_config()).train()
        twin.load_state_dict(model.state_dict())
        twin.choose_negatives = lambda *_: (torch.tensor([1, 2, 3, 0]),) * 2
        results.append((twin(**inputs, image_ids=torch.arange(4)), twin.text_id_queue))
    (expected, ids), (found, left_ids) = results
    assert torch.equal(ids, left_ids)
    for name in ("loss_itc", "loss_itm"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_features_of_images_and_phrases_alone():
    model, batch = grounding_model(), tiny_batch()
    both, pixels = model(**batch), batch.pop("pixel_values")
    for features in (model(pixels).image_features, model.get_image_features(pixels).pooler_output):
        torch.testing.assert_close(features, both.image_features)
    for features in (model(**batch).text_features, model.get_text_features(**batch).pooler_output):
        torch.testing.assert_close(features, both.text_features)
    image, text = model.get_image_features(pixels, return_dict=False), model.get_text_features(**batch)
    torch.testing.assert_close(image[1], both.image_features)
    assert text.last_hidden_state.shape == (4, 6, 24) and image[0].shape == (4, 17, 16)
    assert len(model.get_text_features(**batch, output_hidden_states=True).hidden_states) == 3  # words, two layers
    model.config.return_dict, model.config.output_hidden_states = False, True
    (features, _, states), (_, vision) = model(**batch), model(pixels)
    torch.testing.assert_close(features, both.text_features)
    alone = model.get_text_features(**batch), model.get_image_features(pixels)
    assert len(states) == len(alone[0][2]) == 3 and len(vision[1]) == len(alone[1][2]) == 3
    model.config.return_dict, model.config.output_hidden_states = True, False
    with pytest.raises(ValueError, match="Give pixel_values, input_ids or both"):
        model()
    with pytest.raises(ValueError, match="Heatmaps need both"):
        model(pixels, output_heatmaps=True)
    for name in ("inputs_embeds", "position_ids", "labels", "return_loss"):
        for read in (
            partial(model, pixels),
            partial(model.get_text_features, **batch),
            partial(model.text_model, **batch),
        ):
            with pytest.raises(ValueError, match=f"ALBEF reads no {name} here"):
                read(**{name: batch["input_ids"]})


def test_positions_that_must_not_be_interpolated():
    model, batch = grounding_model(), tiny_batch()
    expected = model(**batch)
    torch.testing.assert_close(model(**batch, interpolate_pos_encoding=False).itm_logits, expected.itm_logits)
    larger = {**batch, "pixel_values": torch.randn(4, 3, 48, 32)}
    assert model(**larger).itm_logits.shape == (4, 2)
    for call in (model, lambda **inputs: model.get_image_features(inputs["pixel_values"], False)):
        with pytest.raises(ValueError, match=r"48 x 32 pixels have no learned positions"):
            call(**{**larger, "interpolate_pos_encoding": False})


def test_relevance_of_text_padded_on_the_left():
    model, batch = grounding_model(), tiny_batch()
    right, left = (
        relevance(explain_function(model, "relevance")(model, **inputs)) for inputs in (batch, padded_left(batch))
    )
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-7)
    assert right.amax(dim=(1, 2)).min() > 0


def test_a_row_without_any_token_has_a_heatmap_of_zeros_and_leaves_the_others_alone():
    model, batch = grounding_model(), tiny_batch()
    expected = model(**batch, output_heatmaps=True)
    batch["attention_mask"][1] = 0
    output = model(**batch, output_heatmaps=True)
    assert output.itm_logits.isfinite().all() and (output.heatmaps[1] == 0).all()
    others = [0, 2, 3]
    torch.testing.assert_close(output.heatmaps[others], expected.heatmaps[others])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masks_of_four_dimensions_padded_on_the_left(implementation):
    model, batch = grounding_model(), padded_left(tiny_batch())
    model.set_attn_implementation(implementation)
    expected, mask = model(**batch), batch["attention_mask"][:, None, None].bool()
    hidden = torch.finfo(torch.float32).min, torch.finfo(torch.float16).min, -1e4
    to_add = [torch.zeros(mask.shape).masked_fill(~mask, value) for value in hidden]
    for four in (mask, *to_add, mask.expand(-1, -1, mask.shape[-1], -1)):
        output = model(**{**batch, "attention_mask": four})
        for name in ("itm_logits", "text_features"):
            torch.testing.assert_close(output[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [torch.ones(4, 6, 6), torch.ones(4, 1, 1, 6, dtype=torch.long)])
def test_masks_that_are_none(mask):
    with pytest.raises(ValueError, match=r"attention_mask must be .*, or four-dimensional of bool"):
        grounding_model()(**{**tiny_batch(), "attention_mask": mask})
    for model in (grounding_model(), AlbefForPreTraining(tiny_config()).eval()):
        with pytest.raises(ValueError, match=r"attention_mask must be \(num_phrases, num_tokens\) here, not \(4, "):
            model(**{**tiny_batch(), "attention_mask": mask}, output_heatmaps=True)


@pytest.mark.parametrize("layer", [2, 3, 4])
def test_attentions_are_those_of_all_layers_or_none(layer):
    """In training, explained layers run eagerly and record theirs; the others, by SDPA, do not."""
    for model_class in (AlbefModel, AlbefForPreTraining):
        model = model_class(tiny_config(grounding_layer=layer)).train()
        output = model(**tiny_batch(), output_heatmaps=True, output_attentions=True)
        assert len(output.attentions) in (0, 5) and len(output.cross_attentions) in (0, 3)


@pytest.mark.parametrize("part", ["config", "vision_config", "text_config"])
def test_a_configuration_that_asks_for_all_states(part):
    """Also where MLM shares a pass with the true pairs, which then need one of their own."""
    model, batch = AlbefForPreTraining._from_config(tiny_config(), attn_implementation="eager").eval(), tiny_batch()
    labels = batch["input_ids"].where(torch.arange(6) == 2, -100)
    inputs = {**batch, "mlm_input_ids": batch["input_ids"], "mlm_labels": labels}
    expected = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(expected.hidden_states) == 6 and len(expected.attentions) == 5 and len(expected.cross_attentions) == 3
    asked = model.config if part == "config" else getattr(model.config, part)
    asked.output_hidden_states = asked.output_attentions = True
    found = model(**inputs)
    for name in ("hidden_states", "attentions", "cross_attentions"):
        torch.testing.assert_close(found[name], expected[name])
    assert len(found.vision_model_output.hidden_states) == 3
    torch.testing.assert_close(model.albef(**batch).hidden_states, expected.hidden_states)


@pytest.mark.parametrize("model_class", [AlbefModel, AlbefForPreTraining])
def test_saving_takes_what_transformers_takes_in_its_order(model_class, tmp_path):
    model = model_class(tiny_config())
    model.save_pretrained(tmp_path / "not the main process", False)
    BertModel(BertConfig(num_hidden_layers=0)).save_pretrained(tmp_path / "another", False)  # before 5.9 it was saved
    assert len(list(tmp_path.rglob("not*/*.safetensors"))) == len(list(tmp_path.rglob("another/*.safetensors")))
    model.save_pretrained(tmp_path / "main", True)
    assert list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(("explanation", "grounding_layer"), [("itm", 3), ("itm", 4), ("itc", 3)])
def test_reentrant_checkpointing_says_what_to_set(explanation, grounding_layer):
    """Also where no checkpointed layer lies between the explained one and the score."""
    model = AlbefModel(tiny_config(grounding_layer=grounding_layer)).train()
    enable_checkpointing(model, {"use_reentrant": True})
    with pytest.raises(RuntimeError, match=r"use_reentrant.*False"):
        model(**tiny_batch(), output_heatmaps=True, explanation=explanation)
    enable_checkpointing(model, {"use_reentrant": False})
    model(**tiny_batch(), output_heatmaps=True, explanation=explanation).heatmaps.sum().backward()


@pytest.mark.parametrize(("name", "model_class"), [("vision_model", AlbefVisionModel), ("text_model", AlbefTextModel)])
def test_an_encoder_is_a_checkpoint_of_its_own(name, model_class, tmp_path):
    encoder = getattr(grounding_model(), name)
    encoder.save_pretrained(tmp_path)
    inputs = tiny_batch()
    inputs = {"pixel_values": inputs["pixel_values"]} if name == "vision_model" else {"input_ids": inputs["input_ids"]}
    expected = encoder(**inputs).last_hidden_state
    # In the order of AutoModel: transformers before 5.9 does not look for what an import imports.
    for name in (f"configuration_albef.{model_class.config_class.__name__}", f"modeling_albef.{model_class.__name__}"):
        own = get_class_from_dynamic_module(name, str(tmp_path))
    assert type(AutoConfig.from_pretrained(tmp_path)) is model_class.config_class
    for loaded in (AutoModel.from_pretrained(tmp_path), own.from_pretrained(tmp_path)):
        assert type(loaded).__name__ == model_class.__name__
        assert torch.equal(loaded.eval()(**inputs).last_hidden_state, expected)
