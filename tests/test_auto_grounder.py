"""One way in to all families: from the path of a checkpoint alone, with whole photos."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPConfig,
    CLIPProcessor,
    PretrainedConfig,
    ViltConfig,
    ViltProcessor,
)
from transformers.models.blip import BlipImageProcessorPil
from transformers.models.clip import CLIPImageProcessorPil
from transformers.models.vilt import ViltImageProcessorPil

from modeling_albef_amc import AutoGrounder, AutoGroundingPipeline
from modeling_albef_amc.families.auto import load_model, load_processor
from modeling_albef_amc.families.fusion import blip
from modeling_albef_amc.families.processors import whole_images
from modeling_albef_amc.pipeline import max_tokens
from tests.helpers.data import blip_processor, tiny_albef, tiny_processor
from tests.helpers.models import TINY, tiny_blip, tiny_config, tiny_family_processor

PHRASES = ["a red dog", "a man"]


def picture(height: int = 30, width: int = 50) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def blip_folder(tmp_path):
    model = tiny_blip()
    model.config.text_config.vocab_size = len(tiny_processor().tokenizer)
    model = type(model)(model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    blip_processor().save_pretrained(tmp_path)
    return str(tmp_path)


def test_from_the_path_alone(blip_folder):
    grounder = AutoGrounder.from_pretrained(blip_folder, device="cpu")
    answers = grounder.ground(picture(), PHRASES)
    scores = grounder.score(picture(), PHRASES)
    assert scores == pytest.approx([answer["score"] for answer in answers], rel=1e-5)
    assert [answer["heatmap"].shape for answer in answers] == [(30, 50)] * 2
    assert grounder.model.config._attn_implementation == "eager"
    assert not grounder.model.training
    # The score is the model's own.
    inputs = blip_processor()(images=[picture()] * 2, text=PHRASES, padding=True, return_tensors="pt")
    with torch.no_grad():
        own = grounder.model(**inputs).itm_score.softmax(dim=-1)[:, 1]
    assert scores == pytest.approx(own.tolist(), rel=1e-4)


@pytest.mark.parametrize("family", TINY)
def test_every_family_as_transformers_saves_it(family, tmp_path):
    texts = ["a red dog", "a man on the left"]
    TINY[family]().save_pretrained(tmp_path)
    tiny_family_processor(family, texts).save_pretrained(tmp_path)
    grounder = AutoGrounder.from_pretrained(str(tmp_path), device="cpu")
    answers = grounder.ground(picture(), texts)
    assert [answer["heatmap"].shape for answer in answers] == [(30, 50)] * 2
    assert all(answer["heatmap"].max() > 0 for answer in answers)
    # Nor does it matter what else is asked.
    assert grounder.score(picture(), texts[::-1]) == pytest.approx([a["score"] for a in answers][::-1], rel=1e-4)
    alone = grounder.ground(picture(), texts[0])[0]
    np.testing.assert_allclose(alone["heatmap"], answers[0]["heatmap"], rtol=1e-3, atol=1e-4 * alone["heatmap"].max())


def test_several_photos_and_what_can_only_be_gone_through(blip_folder):
    grounder = AutoGrounder.from_pretrained(blip_folder, device="cpu")
    photos = [picture(), picture(40, 20)]
    expected = [grounder.score(photo, PHRASES) for photo in photos]
    for scores in (grounder.score(photos, PHRASES), list(grounder.score(iter(photos), PHRASES))):
        for actual, of_photo in zip(scores, expected, strict=True):
            assert actual == pytest.approx(of_photo, rel=1e-4)
    assert grounder.score([], PHRASES) == []
    assert grounder.score(picture(), []) == []


def test_albef_and_its_training_class(tmp_path):
    tiny_albef().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    assert type(load_model(str(tmp_path))).__name__ == "AlbefModel"
    assert type(load_model(str(tmp_path), training=True)).__name__ == "AlbefForPreTraining"
    grounder = AutoGrounder.from_pretrained(str(tmp_path), device="cpu", image_size=48)
    assert grounder.processor.image_processor.size["height"] == 48
    assert len(grounder.score(picture(), PHRASES)) == 2


def test_a_checkpoint_that_scores_nothing_is_named(tmp_path):
    BlipForConditionalGeneration(tiny_blip().config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"BlipForConditionalGeneration, without weights such as .*Choose one of Blip"):
        AutoGrounder.from_pretrained(str(tmp_path))


def test_an_unknown_family_is_named(tmp_path):
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of type 'bert', which cannot be explained here; known are albef, "):
        AutoGrounder.from_pretrained(str(tmp_path))


def test_a_function_of_ones_own(blip_folder):
    model = load_model(blip_folder)
    processor = load_processor(blip_folder, model)
    first_layer = AutoGrounder(model, processor, lambda *args, **options: blip(*args, layer=0, **options), "cpu")
    default = AutoGrounder(model, processor, device="cpu")
    ours, theirs = (grounder.ground(picture(), PHRASES)[0]["heatmap"] for grounder in (first_layer, default))
    expected = default.ground(picture(), PHRASES, grounding_layer=0)[0]["heatmap"]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6 * ours.max())
    assert not np.allclose(ours, theirs, rtol=0, atol=0.1 * ours.max())


# Processors -----------------------------------------------------------------------------------------------------------


def shown(processor, photo: Image.Image) -> np.ndarray:
    return processor(images=[photo], return_tensors="pt")["pixel_values"][0].numpy()


@pytest.mark.parametrize(
    ("processor_class", "image_processor", "config"),
    [
        (CLIPProcessor, CLIPImageProcessorPil(), CLIPConfig(vision_config={"image_size": 32})),
        (ViltProcessor, ViltImageProcessorPil(), ViltConfig(image_size=32)),
        (BlipProcessor, BlipImageProcessorPil(size={"height": 32, "width": 32}), PretrainedConfig()),
    ],
    ids=["clip", "vilt", "blip"],
)
def test_the_whole_photo_is_shown_and_saved_so(processor_class, image_processor, config, tmp_path):
    processor = whole_images(processor_class(image_processor, tiny_processor().tokenizer), config)
    # Grey but for its left and right edges, which a cut would lose.
    pixels = np.full((30, 90, 3), 127, dtype=np.uint8)
    pixels[:, :6], pixels[:, -6:] = 255, 0
    seen = shown(processor, Image.fromarray(pixels))
    assert seen.shape == (3, 32, 32)
    assert (seen[:, :, 0] > seen[:, :, 16]).all() and (seen[:, :, -1] < seen[:, :, 16]).all()
    processor.save_pretrained(tmp_path)
    again = whole_images(processor_class.from_pretrained(tmp_path), config)
    np.testing.assert_array_equal(shown(again, Image.fromarray(pixels)), seen)
    assert shown(whole_images(again, config, image_size=64), Image.fromarray(pixels)).shape == (3, 64, 64)


def test_a_pipeline_of_transformers_shows_whole_photos_too():
    processor = CLIPProcessor(CLIPImageProcessorPil(), tiny_processor().tokenizer)
    AutoGroundingPipeline(TINY["clip"](), processor, task="visual-grounding", device="cpu")
    assert processor.image_processor.do_center_crop is False


def test_max_tokens():
    assert max_tokens(tiny_config()) == 20
    assert max_tokens(tiny_blip().config) == 20
    assert max_tokens(ViltConfig(max_position_embeddings=11)) == 11
