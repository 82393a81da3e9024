"""Every model family: its maps, their second order, and AMC training on nothing but them."""

import copy
import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel
from transformers.models.siglip2 import Siglip2ImageProcessorPil

from modeling_albef_amc import (
    AlbefForPreTraining,
    AlbefModel,
    PhraseAttention,
    explain_function,
    gradcam,
    groundable,
)
from modeling_albef_amc.families.decoders import DECODERS
from modeling_albef_amc.families.dual import contrastive_loss, own_pairs, padded_as_trained, seeded, sigmoid_loss
from modeling_albef_amc.families.fusion import BLIP
from modeling_albef_amc.families.objectives import following_images, known_matches, matching_loss, other_image
from modeling_albef_amc.families.registry import FAMILIES as KNOWN
from modeling_albef_amc.families.training import step_targets
from tests.helpers.models import (
    SIZE,
    TINY,
    check_by_finite_differences,
    relative_difference,
    tiny_batch,
    tiny_blip,
    tiny_config,
)
from tests.helpers.versions import needs
from trainer.amc_loss import attention_mask_consistency_loss
from trainer.klal_loss import kl_attention_loss

FAMILIES = {
    "albef": lambda: AlbefModel(tiny_config()),
    "albef_pretraining": lambda: AlbefForPreTraining(tiny_config()),
    **TINY,
}
every_family = pytest.mark.parametrize("family", FAMILIES)
ROUNDED = {"qwen3_5": needs("transformers>=5.18", "Qwen3.5 in bfloat16")}


def build(family: str):
    return FAMILIES[family]().eval()


def heatmaps_of(model, batch, create_graph=False) -> torch.Tensor:
    return gradcam(explain_function(model)(model, **batch, create_graph=create_graph), create_graph)


def region_masks(num_phrases: int = 4) -> torch.Tensor:
    masks = torch.zeros(num_phrases, 16, 16)
    for i in range(num_phrases):
        masks[i, 4 * i : 4 * i + 4, 2 : 10 - i] = 1
    return masks


def close_maps(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * expected.max().item())


# Maps -----------------------------------------------------------------------------------------------------------------


@every_family
def test_maps(family):
    """They have heat and differ, are the same differentiably and of a frozen model, and of any grid."""
    model, batch = build(family), tiny_batch()
    heatmaps = heatmaps_of(model, batch)
    assert heatmaps.shape == (4, 4, 4)
    assert (heatmaps >= 0).all() and (heatmaps.amax(dim=(1, 2)) > 1e-7).all()
    assert not torch.allclose(heatmaps[1], heatmaps[2], rtol=0.01)
    differentiable = heatmaps_of(model, batch, create_graph=True)
    assert differentiable.requires_grad
    close_maps(differentiable.detach(), heatmaps)
    wide = {**batch, "pixel_values": torch.randn(4, 3, 24, 48)}
    if getattr(KNOWN[model.config.model_type], "only_squares", False):
        with pytest.raises(ValueError, match="takes square images, not 24 x 48 pixels"):
            heatmaps_of(model, wide)
    else:
        assert heatmaps_of(model, wide).shape == (4, 3, 6)
    close_maps(heatmaps_of(model.requires_grad_(False), batch), heatmaps)


# Of generative models, see tests/test_decoders.py.
@pytest.mark.parametrize("family", [*(family for family in TINY if family not in DECODERS), "aimv2_native"])
@pytest.mark.parametrize("size", [(24, 48), (16, 64)])
def test_the_grid(family, size):
    """How much a patch is attended to depends most on its own pixels; (16, 64) has as many patches as (32, 32)."""
    options = {"is_native": True} if family == "aimv2_native" else {}
    model = KNOWN[family.removesuffix("_native")].small_model(replace(SIZE, std=0.1), **options)
    pixel_values = torch.randn(4, 3, *size, requires_grad=True)
    explained = explain_function(model)(model, **tiny_batch() | {"pixel_values": pixel_values}, create_graph=True)
    rows, columns = explained.grid
    attended = explained.attention[..., explained.queries, explained.patches].log().sum(dim=(0, 1, 2))
    for patch in range(rows * columns):
        (gradient,) = torch.autograd.grad(attended[patch] - attended.mean(), pixel_values, retain_graph=True)
        cells = gradient.square().sum(dim=(0, 1)).unflatten(1, (columns, 8)).unflatten(0, (rows, 8)).sum(dim=(1, 3))
        assert cells.argmax() == patch


@every_family
def test_padding_and_the_rest_of_the_batch_do_not_matter(family):
    model, batch = build(family), tiny_batch()
    expected = heatmaps_of(model, batch)
    padded = {
        "pixel_values": batch["pixel_values"].flip(0),
        "input_ids": F.pad(batch["input_ids"].flip(0), (0, 3), value=7),
        "attention_mask": F.pad(batch["attention_mask"].flip(0), (0, 3)),
    }
    close_maps(heatmaps_of(model, padded).flip(0), expected)
    alone = {"pixel_values": batch["pixel_values"][:1], "input_ids": batch["input_ids"][:1, :-2]}
    close_maps(heatmaps_of(model, alone), expected[:1])


@pytest.mark.parametrize("family", [pytest.param(each, marks=ROUNDED.get(each, ())) for each in FAMILIES])
def test_weights_in_bfloat16(family):
    """Images come in float32."""
    model, batch = build(family), tiny_batch()
    expected, found = heatmaps_of(model, batch), heatmaps_of(model.bfloat16(), batch, create_graph=True)
    assert torch.corrcoef(torch.stack([found.detach().flatten(), expected.flatten()]))[0, 1] > 0.99
    found.sum().backward()
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)


@every_family
def test_many_phrases_of_an_image(family):
    model, batch = build(family), tiny_batch()
    index = torch.tensor([1, 0, 1, 1])
    images = batch["pixel_values"][:2]
    shared = heatmaps_of(model, {**batch, "pixel_values": images, "image_index": index})
    close_maps(shared, heatmaps_of(model, {**batch, "pixel_values": images[index]}))
    one_image = heatmaps_of(model, {**batch, "pixel_values": images[:1]})
    close_maps(one_image, heatmaps_of(model, {**batch, "pixel_values": images[[0, 0, 0, 0]]}))
    with pytest.raises(ValueError, match="say which belongs to which with image_index"):
        heatmaps_of(model, {**batch, "pixel_values": images})


@every_family
def test_callers_without_gradients(family):
    model, batch = build(family), tiny_batch() | {"image_index": torch.tensor([3, 1, 2, 0])}
    expected = heatmaps_of(model, batch)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for inputs in (batch, {name: value.clone() for name, value in batch.items()}):
                heatmaps = heatmaps_of(model, inputs)
                assert not heatmaps.requires_grad
        assert torch.equal(heatmaps, expected)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("layer", [None, 0, 2])
def test_blip_by_its_own_recorded_attention(layer):
    """The other way to BLIP's attention: its text encoder's `output_attentions`. Layer 2 of 3 is the default."""
    model, batch = tiny_blip().eval(), tiny_batch()
    image_embeds = model.vision_model(batch["pixel_values"]).last_hidden_state
    output = model.text_encoder(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        encoder_hidden_states=image_embeds,
        output_attentions=True,
    )
    score = model.itm_head(output.last_hidden_state[:, 0])[:, 1]
    attention = output.cross_attentions[2 if layer is None else layer]
    (gradient,) = torch.autograd.grad(score.sum(), attention)
    token_maps = (attention * gradient.clamp(min=0))[..., 1:].mean(dim=1).unflatten(-1, (4, 4))
    valid = batch["attention_mask"][:, :, None, None].float()
    expected = (token_maps * valid).sum(dim=1) / valid.sum(dim=1)
    explained = BLIP.explain(model, **batch, layer=layer)
    close_maps(gradcam(explained), expected.detach())
    torch.testing.assert_close(explained.score, score, rtol=1e-4, atol=1e-5)
    own_score = model(batch["input_ids"], batch["pixel_values"], attention_mask=batch["attention_mask"]).itm_score[:, 1]
    torch.testing.assert_close(explained.score, own_score, rtol=1e-4, atol=1e-5)


def score_of_clip(model, batch) -> torch.Tensor:
    return model(**batch, interpolate_pos_encoding=True).logits_per_text.diagonal()


def score_of_siglip(model, batch) -> torch.Tensor:
    """Naflex by its own image processor, which pads to 20 patches and masks them."""
    ids, images = padded_as_trained(model, batch["input_ids"], batch["attention_mask"]), batch["pixel_values"]
    inputs = {"pixel_values": images, "interpolate_pos_encoding": True}
    if model.config.model_type == "siglip2":
        unchanged = dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), False)
        processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=20, **unchanged)
        inputs = processor(list(images.numpy()), return_tensors="pt")
        assert inputs["pixel_attention_mask"].sum(dim=1).tolist() == [images[0, 0].numel() // 64] * 4
    return model(ids, **inputs).logits_per_text.diagonal()


def score_of_flava(model, batch) -> torch.Tensor:
    return model(**batch, return_loss=False).itm_logits[:, 1]


POOLING = "siglip", "siglip2", "aimv2"
CLIPS = "clip", "altclip", "chinese_clip", "metaclip_2", "clipseg", "owlvit", "aimv2"
OWN_SCORES = {
    "blip-2": lambda model, batch: model(**batch, use_image_text_matching_head=True).logits_per_image[:, 1],
    "vilt": lambda model, batch: model(**batch, pixel_mask=torch.ones(4, 32, 32)).logits[:, 0],
    "bridgetower": lambda model, batch: model(**batch).logits[:, 1],
    "flava": score_of_flava,
    **dict.fromkeys(CLIPS, score_of_clip),
    **dict.fromkeys(("siglip", "siglip2"), score_of_siglip),
}


def check_own_score(model, batch) -> None:
    with torch.no_grad():
        own = OWN_SCORES[model.config.model_type](model, batch)
    torch.testing.assert_close(explain_function(model)(model, **batch).score.detach(), own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", OWN_SCORES)
def test_the_score_is_the_one_that_transformers_computes(family):
    check_own_score(build(family), tiny_batch())


@pytest.mark.parametrize("family", [*CLIPS, "siglip", "siglip2"])
def test_the_score_of_images_that_are_not_square(family):
    """AIMv2 takes them where its positions are not learned."""
    model = TINY[family](**{"is_native": True} if family == "aimv2" else {})
    check_own_score(model, tiny_batch() | {"pixel_values": torch.randn(4, 3, 24, 48)})


def test_learned_positions_of_aimv2_are_stretched_to_larger_images():
    model, batch = build("aimv2"), tiny_batch() | {"pixel_values": torch.randn(4, 3, 48, 48)}
    larger, weights = KNOWN["aimv2"].small_model(replace(SIZE, image_size=48)), model.state_dict()
    name = "vision_model.embeddings.position_embedding.weight"
    table = weights[name].view(1, 4, 4, -1).permute(0, 3, 1, 2)
    weights[name] = F.interpolate(table, (6, 6), mode="bicubic").permute(0, 2, 3, 1).view(36, -1)
    larger.load_state_dict(weights)
    with torch.no_grad():
        own = score_of_clip(larger, batch)
    torch.testing.assert_close(explain_function(model)(model, **batch).score.detach(), own, rtol=1e-4, atol=1e-5)


def test_the_scale_of_aimv2_is_bounded():
    model = build("aimv2")
    model.logit_scale.data.fill_(7.0)  # above log(100)
    check_own_score(model, tiny_batch())


def test_images_of_naflex_that_are_no_whole_number_of_patches():
    model = build("siglip2")
    with pytest.raises(ValueError, match="30 x 32 pixels are not a whole number of patches of 8"):
        heatmaps_of(model, tiny_batch() | {"pixel_values": torch.randn(4, 3, 30, 32)})


@pytest.mark.parametrize(("family", "end"), [("clip", 3), ("clipseg", 3), ("metaclip_2", 2), ("aimv2", 2)])
def test_phrases_without_the_end_token_that_is_read(family, end):
    """transformers would read the first place; CLIP and CLIPSeg take 2 for an old configuration."""
    model, batch = KNOWN[family].small_model(replace(SIZE, eos=end)), tiny_batch()
    batch["input_ids"][:, 2] = end
    check_own_score(model, batch)
    batch["input_ids"][1] = 9
    with pytest.raises(ValueError, match=rf"no end token \(id {end}\), which the model reads"):
        heatmaps_of(model, batch)


@pytest.mark.parametrize(
    ("family", "dropout"),
    [
        ("blip-2", {"attention_probs_dropout_prob": 0.5}),
        ("vilt", {"attention_probs_dropout_prob": 0.5}),
        ("bridgetower", {"attention_probs_dropout_prob": 0.5}),
        ("flava", {"attention_probs_dropout_prob": 0.5}),
        ("clip", {"attention_dropout": 0.5}),
        ("aimv2", {"attention_dropout": 0.5}),
        ("siglip2", {"attention_dropout": 0.5}),
    ],
)
def test_attention_is_recorded_without_its_dropout(family, dropout):
    model, batch = TINY[family](**dropout).train(), tiny_batch()
    attention = explain_function(model)(model, **batch).attention.detach()
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]), rtol=1e-4, atol=1e-5)
    assert (attention > 0).all() or family in ("vilt", "flava")  # whose padded words are masked out
    # Everywhere else it is on, and it is back when the pass is over.
    again = explain_function(model)(model, **batch).score
    assert not torch.equal(again, explain_function(model)(model, **batch).score)


@pytest.mark.parametrize("family", TINY)
def test_nothing_is_left_behind(family):
    model = build(family)
    heatmaps_of(model, tiny_batch())  # transformers' own hooks, which stay
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    hooks = {name: (*part._forward_hooks, *part._forward_pre_hooks) for name, part in model.named_modules()}
    heatmaps_of(model, tiny_batch(), create_graph=True)
    for name, part in model.named_modules():
        after = vars(part)
        assert after.keys() == before[name].keys(), name
        assert (*part._forward_hooks, *part._forward_pre_hooks) == hooks[name]
        assert all(after[key] == before[name][key] for key in after if isinstance(after[key], float | bool))


@pytest.mark.parametrize(
    "family", ["clip", *POOLING, pytest.param("blip-2", marks=needs("transformers>=5.18", "BLIP-2 with sdpa"))]
)
def test_attention_that_is_not_handed_out(family):
    model = build(family)
    model.set_attn_implementation("sdpa")
    layer = 0 if family in POOLING else None  # whose pooling head is written out in any case
    with pytest.raises(ValueError, match="attn_implementation='eager'"):
        gradcam(explain_function(model)(model, **tiny_batch(), layer=layer))


def test_a_phrase_too_long_for_siglip():
    model, batch = build("siglip"), tiny_batch(num_tokens=21)
    with pytest.raises(ValueError, match="21 word pieces, the model takes 20"):
        heatmaps_of(model, batch)


def test_an_image_encoder_below_the_explained_layer_keeps_no_graph():
    model, graphs = tiny_blip(), []
    model.vision_model.post_layernorm.register_forward_hook(lambda _, __, output: graphs.append(output.requires_grad))
    for create_graph in (False, True):
        heatmaps_of(model, tiny_batch(), create_graph)
        assert set(graphs) == {create_graph}
        graphs.clear()


def test_an_unknown_family_is_named():
    model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ValueError, match=r"models of type 'bert' \(known: albef, blip, .*\)\. Pass explain="):
        explain_function(model)
    with pytest.raises(ValueError, match="models of type 'bert'"):
        groundable(model)


# Second order ---------------------------------------------------------------------------------------------------------


def amc_loss(heatmaps: torch.Tensor) -> torch.Tensor:
    # Margins so wide that no hinge is closed.
    terms = attention_mask_consistency_loss(heatmaps, region_masks(), margin_mean=1.0, margin_max=1.0)
    assert all(term > 0 for term in terms.values())
    return terms["loss_amc_mean"] + terms["loss_amc_max"]


def amc_loss_of(model, batch, create_graph: bool) -> torch.Tensor:
    return amc_loss(heatmaps_of(model, batch, create_graph))


@pytest.fixture
def exact_attention(monkeypatch):
    """Softmax and norms of transformers are in float32 whatever the model is in, which finite differences would see."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of Kosmos-2's mask
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("exact_attention")
@pytest.mark.parametrize("family", ["albef", *TINY])
def test_second_order_gradients_of_every_parameter(family):
    """Of vision, text below, at and above the explained layer, and of the head that no attention depends on."""
    model, batch = build(family).double(), tiny_batch(dtype=torch.float64)
    of_clip = "patch_embedding vision_model.encoder.layers.0 layers.2.self_attn.q_proj visual_projection text_model"
    parts = {
        "albef": "patch_embedding vision_model.layers.0 vision_model.layernorm word_embeddings text_model.layers.0 "
        "layers.2.cross_attention layers.3.self_attention layers.3.cross_attention.query "
        "layers.3.cross_attention.value layers.4.cross_attention.query layers.4.self_attention itm_head.weight",
        "blip": "patch_embedding vision_model.encoder.layers.0 post_layernorm word_embeddings layer.0.attention "
        "layer.1.crossattention layer.2.crossattention.self.query layer.2.crossattention.self.value layer.2.output "
        "itm_head.weight",
        "blip-2": "query_tokens patch_embedding vision_model.encoder.layers.0 word_embeddings qformer.encoder.layer.0 "
        "qformer.encoder.layer.2.crossattention.attention.query itm_head.weight",
        "vilt": "patch_embeddings word_embeddings layer.0.attention layer.2.attention pooler.dense rank_output.weight",
        "bridgetower": "visual.embeddings resblocks.0 text_model.embeddings text_model.encoder.layer.0 link_tower "
        "cross_modal_text_layers.0 cross_modal_text_layers.1.crossattention itm_score.fc.weight",
        "siglip": "patch_embedding vision_model.encoder.layers.2 text_model.encoder.layers.0 head.probe "
        "head.attention.in_proj_weight",
        "siglip2": "patch_embedding vision_model.embeddings.position_embedding vision_model.encoder.layers.2 "
        "text_model.encoder.layers.0 head.probe head.attention.in_proj_weight",
        "aimv2": "patch_embed vision_model.embeddings.position_embedding vision_model.encoder.layers.2 text_model "
        "head.cls_token head.k_proj head.v_proj head.output_proj visual_projection text_projection",
        "flava": "patch_embeddings word_embeddings image_model.encoder.layer.2 text_model.encoder.layer.0 "
        "image_to_mm_projection multimodal_model.cls_token multimodal_model.encoder.layer.1.attention "
        "multimodal_model.encoder.layer.2 itm_head",
        "florence2": "convs.0 blocks image_projection encoder.layers.0.self_attn.v_proj shared "
        "decoder.layers.0.self_attn.v_proj decoder.layers.1.encoder_attn.q_proj decoder.layers.2.encoder_attn.k_proj",
        "kosmos-2": "patch_embedding vision_model.model.encoder.layers.0 projection.dense latent_query x_attn.q_proj "
        "text_model.model.layers.0.self_attn.v_proj text_model.model.layers.2 embed_tokens",
    }
    of_decoder = "patch layers.0.self_attn.v_proj layers.1.self_attn.q_proj layers.1.self_attn.o_proj embed_tokens"
    if family == "qwen3_5":  # its first layer is a linear one
        of_decoder = of_decoder.replace("layers.0.self_attn.v_proj", "layers.0.linear_attn.in_proj_qkv")
    default = of_decoder if family in DECODERS else f"{of_clip} text_projection"
    parts = set(parts.get(family, default).split())
    check_by_finite_differences(model, partial(amc_loss_of, model, batch), parts)


def test_second_order_gradients_with_layers_above_the_explained_one_in_blip():
    model, batch = tiny_blip().eval().double(), tiny_batch(dtype=torch.float64)

    def loss_of(create_graph):
        return amc_loss(gradcam(BLIP.explain(model, **batch, create_graph=create_graph, layer=0), create_graph))

    check_by_finite_differences(
        model, loss_of, {"layer.0.crossattention", "layer.2.crossattention", "layer.1.attention"}
    )


def test_second_order_gradients_of_the_itc_explanation():
    model, batch = build("albef").double(), tiny_batch(dtype=torch.float64)

    def loss_of(create_graph):
        options = dict(output_heatmaps=True, explanation="itc", grounding_layer=0, create_graph=create_graph)
        return amc_loss(model(**batch, **options).heatmaps)

    parts = {"vision_model.layers.0", "vision_model.layers.1", "text_model.layers.0", "vision_projection"}
    check_by_finite_differences(model, loss_of, parts)


def test_second_order_gradients_with_shared_images_and_sdpa():
    model, batch = build("albef").double(), tiny_batch(dtype=torch.float64)
    model.set_attn_implementation("sdpa")
    batch["pixel_values"], batch["image_index"] = batch["pixel_values"][:2], torch.tensor([0, 1, 1, 0])
    parts = {"vision_model.layers.1", "text_model.layers.1", "text_model.layers.4.self_attention"}
    check_by_finite_differences(model, partial(amc_loss_of, model, batch), parts)


# groundable -----------------------------------------------------------------------------------------------------------


@every_family
def test_amc_alone_trains_the_model(family):
    model = groundable(FAMILIES[family]()).train()
    batch, masks = tiny_batch(), region_masks()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        terms = attention_mask_consistency_loss(model(**batch, output_heatmaps=True).heatmaps, masks)
        losses.append(sum(terms.values()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        if losses[-1] < 0.7 * losses[0]:
            break
    else:
        raise AssertionError(losses)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    parts = {
        "albef": ("vision_model", "text_", "itm_head.weight"),
        "blip": ("vision_model", "text_", "itm_head.weight"),
        "florence2": ("convs", "layer"),
    }
    for part in parts.get(family, ("patch", "layer")):
        assert any(part in name and "momentum" not in name for name in moved), part


def test_the_pretraining_model_needs_no_change():
    model = AlbefForPreTraining(tiny_config())
    assert groundable(model) is model
    assert "forward" not in vars(model)


@pytest.mark.parametrize("family", ["albef_pretraining", *TINY])
def test_attention_maps_are_the_attention_that_is_explained(family):
    model, batch = groundable(build(family)), tiny_batch()
    explained = explain_function(model)(model, **batch)
    rows = explained.attention[:, :, explained.queries, explained.patches].detach()
    counts = explained.token_mask[:, None, :, None]
    found = model(**batch, output_attention_maps=True)
    assert found.heatmaps is None
    torch.testing.assert_close(found.attention_maps.flatten(2), (rows * counts).sum(dim=2) / counts.sum(dim=2))
    kl_attention_loss(found.attention_maps, region_masks())["loss_klal"].backward()
    moved = [name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()]
    assert any(part in name for name in moved for part in ("patch", "visual", "convs"))
    with torch.no_grad():
        assert not model(**batch, output_attention_maps=True).attention_maps.requires_grad


@pytest.mark.parametrize("family", ["albef", *TINY])
def test_groundable_forward(family):
    """With two pictures there is but one wrong image for each phrase, and the matching loss can be written down."""
    model, batch = build(family), tiny_batch()
    images, index = batch["pixel_values"][:2], torch.tensor([0, 1, 1, 0])
    inputs = {**batch, "pixel_values": images}
    explain = explain_function(model)
    with torch.no_grad():
        right, wrong = (explain(model, **inputs, image_index=which) for which in (index, 1 - index))
    keys, expected = list(model.state_dict()), heatmaps_of(model, {**inputs, "image_index": index})
    assert groundable(model) is model
    assert list(model.state_dict()) == keys
    output = model(**inputs, image_index=index, image_ids=torch.tensor([4, 5]), output_heatmaps=True, alpha=0.4)
    expected_losses, inputs_of_own = set(KNOWN[model.config.model_type].losses), {**inputs, "image_index": index}
    assert {name for name in output if name.startswith("loss_")} == expected_losses
    torch.testing.assert_close(output.loss, sum(output[name] for name in expected_losses))
    if "loss_itm" in expected_losses:
        if right.match_logit is None:  # it only compares
            loss = F.softplus(wrong.score - right.score)
        else:
            loss = F.softplus(-right.match_logit) + F.softplus(wrong.match_logit)
        torch.testing.assert_close(output.loss_itm, loss.mean(), rtol=1e-4, atol=1e-6)
    if "loss_caption" in expected_losses:
        likelihood = KNOWN[family].explain(model, **inputs_of_own, explanation="likelihood").score
        torch.testing.assert_close(output.loss_caption, -likelihood.mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.scores, right.score, rtol=1e-4, atol=1e-5)
    close_maps(output.heatmaps.detach(), expected)
    assert output.heatmaps.requires_grad
    assert output.loss.requires_grad
    assert model(**inputs, image_index=index).heatmaps is None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            copies = {name: value.clone() for name, value in inputs.items()}
            again = model(**copies, image_index=index.clone(), output_heatmaps=True)
        close_maps(again.heatmaps, expected)
        assert not any(value.requires_grad for value in again.values())


def test_a_family_of_ones_own():
    model, calls = tiny_blip(), []

    def explain(model, *inputs):
        calls.append(len(inputs))
        return BLIP.explain(model, *inputs, layer=0)

    batch = tiny_batch(2)
    heatmaps = groundable(model, explain)(**batch, output_heatmaps=True).heatmaps
    assert calls == [5, 5]  # the true pairs, the wrong ones: with two images there is nothing to choose
    close_maps(heatmaps.detach(), gradcam(BLIP.explain(model, **batch, layer=0)))


def test_other_images_show_other_pictures_of_other_phrases():
    own, ids = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([10, 11, 12, 10])
    tokens = torch.tensor([[5, 6, 0], [7, 8, 9], [5, 5, 5], [5, 6, 9], [4, 4, 4]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]])
    # Images 0 and 3 are the same picture, and what phrase 0 says of it, phrase 3 says of image 2 (all but padding).
    allowed = [{1}, {1, 2}, {0, 2, 3}, {1}, {1, 2}]
    seen = [set() for _ in allowed]
    for _ in range(100):
        for found, image in zip(seen, other_image(own, known_matches(own, ids, tokens, mask)).tolist()):
            found.add(image)
    assert seen == allowed
    # In evaluation those of the next phrases: after the last one comes the first.
    following = following_images(own, known_matches(own, ids, tokens, mask)).T.tolist()
    assert following == [[1, 1, 1], [1, 2, 1], [2, 3, 0], [1, 1, 1], [1, 2, 1]]
    assert following_images(torch.tensor([0, 0]), torch.ones(2, 2, dtype=torch.bool)).tolist() == [[0, 0]] * 3


def test_the_hardest_of_the_drawn_images_is_the_negative():
    model, batch = tiny_blip().eval(), tiny_batch()
    own = torch.arange(4)
    true_pairs = BLIP.explain(model, **batch)
    images = [torch.full((4,), image) for image in own]
    scores = torch.stack([BLIP.explain(model, **batch, image_index=image).match_logit for image in images])
    inputs = batch["pixel_values"], batch["input_ids"], batch["attention_mask"], own
    right, losses = F.softplus(-true_pairs.match_logit).mean(), set()
    for _ in range(40):
        losses.add(round((matching_loss(model, BLIP.explain, true_pairs, *inputs) - right).item() * 4, 3))
    wrong = F.softplus(scores).masked_fill(torch.eye(4, dtype=torch.bool), -1)
    most = wrong.amax(dim=0).sum().item()
    assert max(losses) == pytest.approx(most, abs=2e-3)
    # Without log-odds the scores are compared with each other; without wrong images nothing is.
    ranked = matching_loss(model, BLIP.explain, true_pairs._replace(match_logit=None), *inputs, torch.zeros(4).long())
    assert ranked == 0


def test_negatives_that_are_drawn():
    """Of three candidates each by its chances: the mean loss is the one over all ways to draw candidates and one."""
    scores = torch.tensor([[4.0, 0.0, 1.5], [0.0, 3.0, 0.5], [1.0, -1.0, 2.0]])  # of phrase and image
    batch = torch.zeros(3, 3, 8, 8), torch.arange(9).view(3, 3), None, torch.arange(3)

    def explain(model, pixel_values, input_ids, attention_mask, images, create_graph=False):
        found = scores[torch.arange(3), images]
        return PhraseAttention(found, None, None, None, None, match_logit=found)

    expected = 0.0
    for own in range(3):
        wrong = [image for image in range(3) if image != own]
        for candidates in itertools.product(wrong, repeat=3):
            fits = scores[own, list(candidates)]
            expected += (fits.softmax(dim=0) @ F.softplus(fits)).item() / 8 / 3
    right = explain(None, *batch[:3], torch.arange(3))
    expected += F.softplus(-right.match_logit).mean().item()
    model = SimpleNamespace(training=True)
    losses = [matching_loss(model, explain, right, *batch, is_drawn=True).item() for _ in range(4000)]
    assert sum(losses) / len(losses) == pytest.approx(expected, abs=0.02)
    model.training = False  # the best, every time the same
    best = F.softplus(scores.masked_fill(torch.eye(3).bool(), -torch.inf).amax(dim=1)).mean()
    loss = matching_loss(model, explain, right, *batch, is_drawn=True)
    torch.testing.assert_close(loss, best + F.softplus(-right.match_logit).mean())


def test_losses_of_dual_encoders_by_hand():
    """The first two phrases are equal: the images of both fit both, and are no negatives of each other."""
    batch, own = tiny_batch(3), torch.arange(3)
    ids, mask = batch["input_ids"][[1, 1, 2]], batch["attention_mask"][[1, 1, 2]]
    inputs = batch["pixel_values"], ids, mask, own
    negatives = {0: [2], 1: [2], 2: [0, 1]}
    for family in ("clip", "aimv2"):
        model, expected = TINY[family](), []
        logits = model(ids, batch["pixel_values"], mask).logits_per_text
        for table in (logits, logits.T):
            for i, others in negatives.items():
                expected.append(torch.logsumexp(torch.stack([table[i, i], *table[i, others]]), dim=0) - table[i, i])
        actual = contrastive_loss(model, None, None, *inputs)
        torch.testing.assert_close(actual, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
    model = TINY["siglip"]()
    logits = model(padded_as_trained(model, ids, mask), batch["pixel_values"]).logits_per_text
    expected = [F.softplus(-logits[i, i]) + F.softplus(logits[i, others]).sum() for i, others in negatives.items()]
    actual = sigmoid_loss(model, None, None, *inputs)
    torch.testing.assert_close(actual, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def test_phrases_without_a_mask_are_not_padded():
    """AIMv2 without one lets words look at those behind them."""
    model, batch = build("aimv2"), tiny_batch(3)
    inputs = batch["pixel_values"][1:], batch["input_ids"][1:], None, torch.arange(2)
    expected = model(inputs[1], inputs[0], torch.ones_like(inputs[1])).text_embeds
    torch.testing.assert_close(own_pairs(model, *inputs).texts, expected)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", [*CLIPS, "siglip", "siglip2"])
def test_accumulation_contrasts_all_pairs_of_the_step(family, training):
    """Gradients of the halves of a batch, weighted by their pairs, add up to those of the whole; so do the losses."""
    model, twin = groundable(TINY[family]().train(training)), groundable(TINY[family]().train(training))
    twin.load_state_dict(model.state_dict())
    batch = {**tiny_batch(6), "image_ids": torch.arange(6), "is_absent": torch.tensor([0, 0, 0, 0, 1, 0]).bool()}
    batch["input_ids"][5], batch["attention_mask"][5] = batch["input_ids"][1], 1  # fits the image of phrase 1 as well
    whole = model(**batch)
    whole.loss_itc.backward()
    parts = [{name: rows[part] for name, rows in batch.items()} for part in (slice(0, 4), slice(4, 5), slice(5, 6))]
    targets, total = step_targets(twin, parts), 0
    for part, target in zip(parts, targets):
        loss = twin(**part, **target).loss_itc * ((~part["is_absent"]).sum() / 5)
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, whole.loss_itc.detach(), rtol=1e-5, atol=1e-6)
    gradients = ({name: part.grad for name, part in each.named_parameters()} for each in (model, twin))
    assert relative_difference(*gradients) < 1e-5


def test_the_features_of_a_step_have_the_dropout_of_the_pass_that_is_differentiated():
    model = groundable(TINY["altclip"](attention_dropout=0.5).train())
    batch = {**tiny_batch(4), "image_ids": torch.arange(4)}
    (first, second) = step_targets(model, [batch, batch])
    assert not torch.equal(first["step_pairs"].images[:4], first["step_pairs"].images[4:])
    for step in (first["step_pairs"], second["step_pairs"]):
        with seeded(step.seed, torch.device("cpu")):
            own = own_pairs(model, batch["pixel_values"], batch["input_ids"], batch["attention_mask"], torch.arange(4))
        torch.testing.assert_close(step.images[step.position : step.position + 4], own.images.detach())


def test_step_targets():
    halves = [{**tiny_batch(2), "boxes": None}, tiny_batch(2)]
    assert step_targets(tiny_blip(), halves) == [{}, {}]
    model = AlbefForPreTraining(tiny_config()).train()
    twin = copy.deepcopy(model)
    targets = [step["momentum_targets"] for step in step_targets(model, halves)]
    assert [target.position for target in targets] == [0, 2]
    assert model.queue_pointer.tolist() == [4]
    expected = twin.momentum_step([{name: half[name] for name in tiny_batch()} for half in halves])
    assert torch.equal(targets[1].candidates.text_features, expected[1].candidates.text_features)
