"""Every family, however it is loaded or wrapped, gives the answers of the plain model."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_albef_amc import AutoGrounder, AutoModelForVisualGrounding
from modeling_albef_amc.families.registry import explain_function
from modeling_albef_amc.families.training import groundable
from tests.helpers.data import picture, tiny_albef, tiny_dataset, tiny_processor
from tests.helpers.models import TINY, tiny_batch, tiny_family_processor
from tests.helpers.training import collator_of, make_trainer

TEXTS = ["a red dog", "a man on the left"]
FAMILIES = ["albef", *TINY]
every_family = pytest.mark.parametrize("family", FAMILIES)
# Linear layers that attend, whatever the family calls them.
LORA = LoraConfig(target_modules=["query", "value", "qkv", "q_proj", "v_proj"], r=2, lora_alpha=8)


def build(family: str):
    """A model and its processor."""
    if family == "albef":
        return tiny_albef().albef.eval(), tiny_processor()
    return TINY[family](), tiny_family_processor(family, TEXTS)


@pytest.fixture
def folder(family, tmp_path):
    for part in build(family):
        part.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


def same(found: list[dict], expected: list[dict]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=1e-4) and one["point"] == other["point"]
        np.testing.assert_allclose(one["heatmap"], other["heatmap"], rtol=1e-3, atol=1e-4 * other["heatmap"].max())


@every_family
def test_every_way_to_a_checkpoint(family, folder):
    """By its path, as the class that transformers gives it, and as an object with whatever attention."""
    ground = AutoGrounder.from_pretrained(folder, device="cpu").ground
    expected = ground(picture(), TEXTS)
    same(pipeline("visual-grounding", model=folder, device="cpu")(picture(), TEXTS), expected)
    model = AutoModelForVisualGrounding.from_pretrained(folder)
    same(AutoGrounder(model, build(family)[1], device="cpu").ground(picture(), TEXTS), expected)
    trainable = groundable(AutoModelForVisualGrounding.from_pretrained(folder))
    assert trainable(**tiny_batch(), output_heatmaps=True).heatmaps.max() > 0


def wrapped_in_peft(model):
    """In peft's wrapper, with adapters that change it; and a plain model of the same values."""
    adapted = get_peft_model(copy.deepcopy(model), LORA)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapted.eval(), copy.deepcopy(adapted).merge_and_unload().eval()


@every_family
def test_in_wrappers(family):
    model, processor = build(family)
    adapted, merged = wrapped_in_peft(model)
    for wrapped, plain in (
        (adapted, merged),
        (torch.compile(model, backend="eager"), model),
        (torch.compile(adapted, backend="eager"), merged),
    ):
        same(*(AutoGrounder(each, processor, device="cpu").ground(picture(), TEXTS) for each in (wrapped, plain)))
        found, expected = (explain_function(each, "attention")(each, **tiny_batch()) for each in (wrapped, plain))
        torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*(explain_function(each)(each, **tiny_batch()).score for each in (model, merged)))


def test_what_adapts_the_input_is_refused():
    sizes = dict(num_virtual_tokens=2, token_dim=16, num_layers=3, num_attention_heads=2, num_transformer_submodules=1)
    wrapped = get_peft_model(TINY["clip"](), PromptTuningConfig(task_type="FEATURE_EXTRACTION", **sizes))
    with pytest.raises(ValueError, match="only LoRA and its like"):
        explain_function(wrapped)(wrapped, **tiny_batch())


@every_family
def test_phrases_padded_on_the_left(family):
    """ALBEF finds their first token; the others are never given any, and say so if they are."""
    model, processor = build(family)
    expected = AutoGrounder(model, processor, device="cpu").ground(picture(), TEXTS)
    processor.tokenizer.padding_side = "left"
    same(AutoGrounder(model, processor, device="cpu").ground(picture(), TEXTS), expected)
    if family == "albef":
        return
    batch = tiny_batch()
    batch |= {name: batch[name].roll(2, dims=1) for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="pad on the right"):
        explain_function(model)(model, **batch)


# Training -------------------------------------------------------------------------------------------------------------


def first_step(model, folder, **settings) -> tuple[dict, dict]:
    """Logs and, of the trained layers, gradients of one training step."""
    trainer = make_trainer(folder, model, tiny_dataset(8), collator_of(), max_steps=1, **settings)
    trainer.train()
    return trainer.state.log_history[0], trainer


def test_albef_in_peft_is_trained_by_all_of_its_objectives(tmp_path):
    """`get_peft_model` puts adapters into the teacher too; its values follow the merged student's."""
    plain = tiny_albef()
    wrapped = get_peft_model(copy.deepcopy(plain), LORA)
    logs, _ = first_step(plain, tmp_path / "plain")
    found, trainer = first_step(wrapped, tmp_path / "peft")
    names = "loss", "loss_itc", "loss_itm", "loss_mlm", "loss_amc_mean", "loss_amc_max"
    assert {name: found[name] for name in names} == pytest.approx({name: logs[name] for name in names}, rel=1e-5)
    assert trainer.model.queue_pointer == 4
    teacher, student = trainer.model.momentum_encoder, wrapped.merge_and_unload().albef
    assert not [name for name, _ in teacher.named_modules() if "lora" in name]
    with torch.no_grad():
        trainer.model.restart_momentum_encoder()
    for name, parameter in teacher.vision_model.named_parameters():
        torch.testing.assert_close(parameter, student.vision_model.get_parameter(name))


def test_albef_of_a_checkpoints_own_code_is_trained_by_all_of_its_objectives(tmp_path):
    plain = tiny_albef()
    plain.save_pretrained(tmp_path / "checkpoint")
    own = "modeling_albef_pretraining.AlbefForPreTraining"
    remote = get_class_from_dynamic_module(own, str(tmp_path / "checkpoint")).from_pretrained(tmp_path / "checkpoint")
    assert type(remote).__module__.startswith("transformers_modules.")
    (logs, _), (found, _) = first_step(plain, tmp_path / "plain"), first_step(remote, tmp_path / "remote")
    for name in ("loss", "loss_itc", "loss_itm", "loss_mlm", "loss_amc_max"):
        assert found[name] == pytest.approx(logs[name], rel=1e-5)


def test_a_model_without_the_objectives_is_refused(tmp_path):
    with pytest.raises(ValueError, match="AlbefModel has no ITC and no MLM: load AlbefForPreTraining with from_pretr"):
        make_trainer(tmp_path, tiny_albef().albef)
    make_trainer(tmp_path, tiny_albef().albef, itc_weight=0.0, mlm_weight=0.0).train()
    with pytest.raises(ValueError, match="set torch_compile=True"):
        make_trainer(tmp_path, torch.compile(tiny_albef(), backend="eager"))
    with pytest.raises(ValueError, match="torch_compile must be False for CLIPModel"):
        make_trainer(tmp_path, TINY["clip"](), torch_compile=True, torch_compile_backend="eager")
