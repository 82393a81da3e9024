"""Models over two devices, as device_map="auto" splits it: emulated, with tensors that have devices but no data.

Such tensors refuse to meet across devices, as those of GPUs do.
"""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from modeling_albef_amc import AlbefModel, modeling_albef
from modeling_albef_amc.families import dual
from modeling_albef_amc.families.decoders import DECODERS
from modeling_albef_amc.families.registry import explain_function, explainable
from modeling_albef_amc.families.relevance import relevance
from modeling_albef_amc.families.training import groundable
from modeling_albef_amc.gradcam import gradcam
from tests.helpers.models import TINY, tiny_config
from tests.helpers.versions import needs
from trainer.amc_loss import attention_mask_consistency_loss

FIRST, SECOND = torch.device("cpu:1"), torch.device("cpu:2")
SPLITS = {
    "text on the second": ["text_model"],
    "images on the second": ["vision_model"],
    "heads on the second": ["itm_head", "text_projection"],
    "in the middle of both": ["vision_model.layers.1", "vision_model.layernorm", "text_model.layers.3", "itm_head"],
    "text, but for its last layer": ["text_model.embeddings", *(f"text_model.layers.{index}" for index in range(4))],
    "all but the words": ["vision_model", "text_model.layers", "vision_projection", "text_projection", "itm_head"],
}
# Their models gather positions with numbers of another device, which nothing moves there.
MOVED = dict.fromkeys(("bridgetower", "altclip"), needs("transformers>=5.18", "positions of a Roberta on two devices"))


def split(model: torch.nn.Module, seconds: list[str]) -> torch.nn.Module:
    """Inputs follow to where the weights are, before every module that has some: accelerate's hooks do the same."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_second = any(f"{prefix}.{name}".startswith(f"{part}.") for part in seconds)
            empty = torch.empty(parameter.shape, device=SECOND if is_second else FIRST)
            setattr(module, name, torch.nn.Parameter(empty))
    for module in model.modules():
        own = next(module.parameters(), None)
        if own is not None and module is not model:

            def follow(module, args, kwargs, device=own.device):
                return tree_map(lambda value: value.to(device) if torch.is_tensor(value) else value, (args, kwargs))

            module.register_forward_pre_hook(follow, with_kwargs=True)
    return model


@pytest.mark.parametrize("seconds", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize(("explanation", "create_graph"), [(None, False), ("itm", True), ("itc", True)])
def test_all_parts_meet(seconds, explanation, create_graph, monkeypatch):
    monkeypatch.setattr(modeling_albef, "group_by_image", lambda index, num_images: None)  # as on a GPU
    with torch.device("meta"):
        model = AlbefModel(tiny_config()).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        split(model, seconds)
        images = torch.randn(2, 3, 32, 32, device=FIRST)
        phrases = {"input_ids": torch.ones(3, 6, dtype=torch.long, device=FIRST)}
        phrases["attention_mask"] = torch.ones_like(phrases["input_ids"])
        index = torch.zeros(3, dtype=torch.long, device=FIRST)
        options = {}
        if explanation is not None:
            options = dict(output_heatmaps=True, explanation=explanation, create_graph=create_graph)
        if explanation == "itm":
            options["heatmap_token_mask"] = phrases["attention_mask"]
        for inputs in (dict(pixel_values=images, image_index=index), dict(pixel_values=images[:1])):
            output = model(**inputs, **phrases, **options)
            assert output.itm_logits.shape == (3, 2)
            if explanation is not None:
                assert output.heatmaps.shape == (3, 4, 4)
                if create_graph:
                    output.heatmaps.sum().backward()


@pytest.mark.parametrize("seconds", SPLITS.values(), ids=SPLITS)
def test_layers_meet_for_relevance(seconds, monkeypatch):
    monkeypatch.setattr(modeling_albef, "group_by_image", lambda index, num_images: None)  # as on a GPU
    with torch.device("meta"):
        model = AlbefModel(tiny_config()).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        split(model, seconds)
        phrases = torch.ones(3, 6, dtype=torch.long, device=FIRST)
        explained = explain_function(model, "relevance")(model, torch.randn(1, 3, 32, 32, device=FIRST), phrases)
        assert relevance(explained).shape == (3, 4, 4)


@needs("torch>=2.8", "a fake gather over devices")
# What generative models themselves ask of values, a pretended device has no answer to.
@pytest.mark.parametrize(
    "family", [pytest.param(each, marks=MOVED.get(each, ())) for each in TINY if each not in DECODERS]
)
@pytest.mark.parametrize("second", ["text", "images"])
def test_parts_of_other_families_meet(family, second, monkeypatch):
    monkeypatch.setattr(dual, "check_end", lambda *_: None)  # fake tensors have no values
    text = "text_model", "text_encoder", "text_projection", "text_to_mm_projection", "qformer", "vilt.encoder"
    images = "vision_model", "visual_projection", "image_model", "image_to_mm_projection", "vilt.embeddings"
    parts = {"text": text, "images": images}
    prefixes = [f"{family}.{part}" if family in ("bridgetower", "flava") else part for part in parts[second]]
    model = explainable(TINY[family]())
    with FakeTensorMode(allow_non_fake_inputs=True):
        split(model, prefixes)
        images = torch.randn(2, 3, 32, 32, device=FIRST)
        phrases = torch.ones(3, 6, dtype=torch.long, device=FIRST)
        index = torch.zeros(3, dtype=torch.long, device=FIRST)
        for create_graph in (False, True):
            attention = explain_function(model)(model, images, phrases, None, index, create_graph)
            assert gradcam(attention, create_graph).shape == (3, 4, 4)


@needs("torch>=2.8", "a fake gather over devices")
def test_regions_meet_heatmaps_that_are_trained(monkeypatch):
    """What accelerate puts around a model brings outputs back to where inputs were; without it, masks follow."""
    monkeypatch.setattr(dual, "check_end", lambda *_: None)
    masks, has_region = torch.ones(3, 16, 16), torch.ones(3, dtype=torch.bool)
    for is_hooked in (True, False):
        model = TINY["clip"]()
        with FakeTensorMode(allow_non_fake_inputs=True):
            split(model, ["vision_model", "visual_projection"])
            if is_hooked:
                add_hook_to_module(model, AlignDevicesHook(execution_device=FIRST, io_same_device=True))
            batch = dict(pixel_values=torch.randn(3, 3, 32, 32, device=FIRST))
            batch |= dict(input_ids=torch.ones(3, 6, dtype=torch.long, device=FIRST))
            heatmaps = groundable(model)(**batch, output_heatmaps=True, objectives=[]).heatmaps
            assert heatmaps.device == (FIRST if is_hooked else SECOND)
            losses = attention_mask_consistency_loss(heatmaps, masks.to(FIRST), has_region.to(FIRST))
            assert losses["loss_amc_max"].device == heatmaps.device
