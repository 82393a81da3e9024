"""LoRA: what trains, what the teacher follows, and adapters saved, loaded, resumed, merged and described."""

import copy
import json
import re
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import train
from modeling_albef_amc import AlbefForPreTraining, AlbefModel, AutoGrounder
from modeling_albef_amc.families import auto
from modeling_albef_amc.families.auto import base_of, load_model, load_processor
from modeling_albef_amc.families.decoders import DECODERS
from modeling_albef_amc.families.registry import FAMILIES
from tests.helpers.data import PHRASES, picture, tiny_albef, tiny_dataset, tiny_processor, tiny_records, write_folder
from tests.helpers.models import TINY, check_by_finite_differences, tiny_batch, tiny_blip, tiny_family_processor
from tests.helpers.training import (
    RUN,
    Watcher,
    blip_processor,
    collator_of,
    is_equal,
    make_trainer,
    snapshot,
    write_yaml,
)
from trainer import evaluate_grounding, lora
from trainer.amc_loss import attention_mask_consistency_loss
from trainer.commands import main as albef_amc
from trainer.lora import add_adapters, load_checkpoint, whole_pattern

pytest.importorskip("peft")
# By hand from their default sizes: layers times the linear modules of their attention, and heads.
COUNTS = {
    "blip": 12 * 2 + 12 * 8,
    "blip-2": 39 * 2 + 12 * 4 + 6 * 4,
    "vilt": 12 * 4,
    "bridgetower": 12 * 4 + 6 * 8 * 2 + 12 * 2,
    "flava": (12 + 12 + 6) * 4,
    "altclip": 12 * 4 + 24 * 4,
    "aimv2": (24 + 12) * 4 + 3,
    **dict.fromkeys(("clip", "chinese_clip", "metaclip_2", "clipseg", "owlvit", "siglip", "siglip2"), 12 * 4 * 2),
}
# Linear layers between image encoder and language model; Gemma 3 has a matrix there that is no layer.
PROJECTORS = dict.fromkeys(DECODERS, 2) | dict(smolvlm=1, idefics3=1, paligemma=1, gemma3=0, mistral3=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("albef") / "base", tiny_albef(), tiny_processor())


@pytest.fixture(scope="module")
def blip_base(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("blip") / "blip", tiny_blip(), blip_processor())


def saved(folder: Path, *parts) -> str:
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


def adapted(base: str, is_random: bool = True, **options):
    """A model with adapters; those that are new change nothing, random ones do."""
    model = load_model(base, training=True)
    add_adapters(model, **{"rank": 2, "alpha": 4.0, **options})
    if is_random:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
    return model


def upper_half() -> torch.Tensor:
    return torch.tensor([1.0, 1, 0, 0])[None, :, None].expand(4, 4, 4)


def heatmaps(model: AlbefModel, **options) -> torch.Tensor:
    return model(**tiny_batch(), output_heatmaps=True, **options).heatmaps.detach()


# What is adapted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", COUNTS)
def test_default_modules_of_every_family(model_type):
    cls = FAMILIES[model_type].load(FAMILIES[model_type].model_class)
    with torch.device("meta"):
        model = cls(cls.config_class())
    family = FAMILIES[model_type].adapted
    names = lora.adapted_names(model, whole_pattern(model, family.pattern, family.never), family.pattern)
    assert len(names) == COUNTS[model_type]
    assert all(any(name.endswith(head) for name, _ in model.named_modules()) for head in family.heads)


@pytest.mark.parametrize("name", DECODERS)
def test_default_modules_of_generative_models(name):
    model, family = TINY[name](), FAMILIES[name].adapted
    names = lora.adapted_names(model, whole_pattern(model, family.pattern, family.never), family.pattern)
    # An encoder of three layers, and a decoder of as many with two attentions each; the projector's own attention.
    expected = {"florence2": 3 * 4 + 3 * 8 + 1, "kosmos-2": 3 * 4 + 1 + 4, "mllama": 3 * 4 + 1}.get(name)
    if expected is None:
        num_layers = sum(hasattr(layer, "self_attn") for layer in model.get_decoder().layers)  # some are linear
        expected = 4 * num_layers + PROJECTORS[name]
    assert len(names) == expected


def test_default_modules_of_albef(base):
    model = adapted(base)
    layers = {name.removesuffix(".base_layer") for name, _ in model.named_modules() if name.endswith(".base_layer")}
    assert len(layers) == 2 * 2 + 2 * 4 + 3 * 8 and all(name.startswith("albef.") for name in layers)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    heads = {f"albef.itm_head.modules_to_save.default.{name}" for name in ("weight", "bias")}
    assert trained == heads | {f"{name}.lora_{side}.default.weight" for name in layers for side in "AB"}
    assert type(model) is AlbefForPreTraining


def test_new_adapters_change_nothing(base):
    expected = heatmaps(load_model(base))
    assert torch.equal(heatmaps(adapted(base, is_random=False).albef), expected)
    assert not torch.allclose(heatmaps(adapted(base).albef), expected, rtol=0.01)


def test_wrong_settings_are_named(base, tmp_path):
    for options, message in (
        ({"pattern": "no_such_layer"}, r"lora_modules: 'no_such_layer' is the whole name of no module .*vision_model"),
        ({"pattern": "momentum_encoder.*query"}, "whole name of no module"),
        ({"pattern": r"text_model\.layers\.0"}, r"also names albef\.text_model\.layers\.0, a AlbefTextLayer: only lin"),
        ({"pattern": "query("}, "is no regular expression"),
        ({"pattern": r".*\.layers\.\d+\.output", "dropout": 0.1}, "lora_dropout must be 0 with adapters in albef"),
    ):
        with pytest.raises(ValueError, match=message):
            adapted(base, **options)
    with pytest.raises(ValueError, match="lora_rank needs --model"):
        add_adapters(tiny_albef(), rank=2)
    model = adapted(base)
    with pytest.raises(ValueError, match=r"lora_rank begins new adapters, but .*base comes with some"):
        add_adapters(model, rank=2)


def test_a_pattern_of_ones_own_loads_in_the_base_model_too(base, tmp_path):
    model = adapted(base, pattern=r"text_model\..*\.query|mlm_head\.dense")
    layers = [name for name, _ in model.named_modules() if name.endswith(".base_layer")]
    assert len(layers) == 5 + 3 + 1 and not any("momentum" in name for name in layers)
    model.save_pretrained(tmp_path / "adapters")
    assert torch.equal(heatmaps(AlbefModel.from_pretrained(tmp_path / "adapters")), heatmaps(model.eval().albef))


def test_without_peft_the_error_says_so(base, tmp_path, monkeypatch):
    adapted(base).save_pretrained(tmp_path / "adapters")
    monkeypatch.setattr(auto, "is_peft_available", lambda: False)
    with pytest.raises(ImportError, match=r"adapters has LoRA adapters, which need peft: pip install 'albef-amc\[lora"):
        load_model(str(tmp_path / "adapters"))
    with pytest.raises(ImportError, match="lora_rank needs peft"):
        add_adapters(load_model(base), rank=2)


@pytest.mark.parametrize(
    ("package", "version", "fits"),
    [
        ("transformers", "5.17.0", "LoRA goes with transformers 5.18"),
        ("peft", "0.17.0", "peft 0.20 .* with transformers"),
    ],
)
def test_of_versions_that_do_not_fit_the_error_says_which_do(package, version, fits, monkeypatch):
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version if name == package else installed(name))
    with pytest.raises(ImportError, match=rf"{package}>=.* but found {package}=={version}.\n.*{fits}"):
        auto.check_peft("lora_rank needs")


# Training -------------------------------------------------------------------------------------------------------------


def test_only_adapters_and_heads_have_gradients_with_amc(base, tmp_path):
    model, watcher = adapted(base, is_random=False), Watcher()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = snapshot(model)
    make_trainer(tmp_path / "run", model, watcher=watcher).train()
    for gradients in watcher.gradients:
        assert {name for name, gradient in gradients.items() if gradient is not None} == trainable
    # The second step: until B has moved, A has no gradient.
    assert all(watcher.gradients[1][name].abs().max() > 0 for name in trainable)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    still = {name for name in moved if not name.startswith("momentum_encoder.") and "queue" not in name}
    assert still == trainable


def test_adapters_above_the_explained_layer_alone(base):
    """All of them lie behind the attention that is explained, whose graph begins there."""
    model = adapted(base, pattern=r"text_model\.layers\.4\..*\.query").train()
    masks = upper_half()
    maps = model(**tiny_batch(), output_heatmaps=True).heatmaps
    sum(attention_mask_consistency_loss(maps, masks).values()).backward()
    layer = model.albef.text_model.layers[4].self_attention.query
    assert layer.lora_A["default"].weight.grad.abs().max() > 0


def test_second_order_gradients_through_adapters(base):
    model = adapted(base).double().eval()
    batch, masks = tiny_batch(dtype=torch.float64), upper_half().double()

    def loss_of(create_graph):
        maps = model.albef(**batch, output_heatmaps=True, create_graph=create_graph).heatmaps
        return sum(attention_mask_consistency_loss(maps, masks, margin_mean=1.0, margin_max=1.0).values())

    parts = {
        "vision_model.layers.0.attention.qkv.lora_A", "text_model.layers.0.self_attention.query.lora_B",
        "text_model.layers.3.cross_attention.query.lora_A", "text_model.layers.3.cross_attention.key.lora_B",
        "text_model.layers.4.cross_attention.value.lora_A", "itm_head.modules_to_save.default.weight",
    }  # fmt: skip
    check_by_finite_differences(model, loss_of, parts)


def test_the_teacher_follows_the_adapted_student(base):
    model = adapted(base).train()
    model.config.momentum = 0.9
    before = snapshot(model.momentum_encoder)
    model.momentum_step([tiny_batch()])
    layer = model.albef.text_model.layers[3].cross_attention.key
    student = layer.base_layer.weight + 4 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    name = "text_model.layers.3.cross_attention.key"
    after = snapshot(model.momentum_encoder)
    torch.testing.assert_close(after[f"{name}.weight"], 0.9 * before[f"{name}.weight"] + 0.1 * student.detach())
    torch.testing.assert_close(after[f"{name}.bias"], before[f"{name}.bias"])
    assert (after[f"{name}.weight"] - before[f"{name}.weight"]).abs().max() > 1e-3
    assert not any(parameter.requires_grad for parameter in model.momentum_encoder.parameters())
    model.restart_momentum_encoder()
    torch.testing.assert_close(model.momentum_encoder.text_model.layers[3].cross_attention.key.weight, student)


def test_a_resumed_run_goes_on_as_if_nothing_had_been(base, tmp_path):
    settings = dict(max_steps=4, save_strategy="steps", save_steps=2, lr_scheduler_type="linear")
    settings |= dict(lr_scheduler_kwargs={}, alpha_ramp_epochs=2.0)
    collator, dataset = collator_of(mlm_probability=0.0), tiny_dataset(16)
    straight = make_trainer(tmp_path / "straight", adapted(base), dataset, collator, **settings)
    straight.train()
    checkpoint = tmp_path / "straight" / "checkpoint-2"
    assert not (checkpoint / "model.safetensors").exists()
    resumed = make_trainer(tmp_path / "resumed", adapted(base), dataset, collator, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert is_equal(straight.model.state_dict(), resumed.model.state_dict())
    for folder, model, message in (
        (checkpoint, adapted(base, rank=3), "another rank or sit in other modules"),
        (Path(base), adapted(base), "has no adapters .* trained without LoRA"),
    ):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(model, folder)


def test_the_best_checkpoint_is_loaded_in_the_end(base, tmp_path):
    settings = dict(max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1)
    settings |= dict(load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True)
    trainer = make_trainer(tmp_path / "run", adapted(base), **settings)
    trainer.train()
    best = lora.load_file(Path(trainer.state.best_model_checkpoint) / lora.ADAPTER_WEIGHTS)
    name = "albef.text_model.layers.3.cross_attention.query.lora_B"
    loaded = trainer.model.state_dict()[f"{name}.default.weight"]
    assert torch.equal(loaded, best[f"base_model.model.{name}.weight"])


# Folders --------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_adapters_give_the_same_maps(base, tmp_path):
    model = adapted(base)
    model.save_pretrained(tmp_path / "adapters")
    files = {path.name for path in (tmp_path / "adapters").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files and "config.json" not in files
    expected = heatmaps(model.eval().albef)
    path = str(tmp_path / "adapters")
    assert base_of(path) == (base, {}) and base_of(base) == (base, {})
    for loaded in (load_model(path), load_model(path, training=True).albef, AutoModel.from_pretrained(path)):
        assert torch.equal(heatmaps(loaded.eval()), expected)


def test_a_base_in_a_folder_is_found_from_another_one(base, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(base).parent)
    adapted(Path(base).name).save_pretrained(tmp_path / "adapters")
    monkeypatch.chdir(tmp_path / "adapters")
    assert base_of(".") == (str(Path(base).resolve()), {})
    assert load_model(".").active_adapters()
    file = tmp_path / "adapters" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match=r"adapter_config\.json names a base model .*gone that cannot be loaded: "):
        load_model(".")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_equals_adapted(base, tmp_path, dtype):
    """In float32: a base in half precision would lose most of it."""
    tiny_albef().to(dtype).save_pretrained(base)
    model = adapted(base)
    model.save_pretrained(tmp_path / "adapters")
    tiny_processor().save_pretrained(tmp_path / "adapters")
    albef_amc(["merge", str(tmp_path / "adapters"), "--output", str(tmp_path / "merged")])
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_albef.py", "processing_albef.py"} <= files
    assert "adapter_config.json" not in files
    merged, plain = AlbefForPreTraining.from_pretrained(tmp_path / "merged"), AlbefForPreTraining.from_pretrained(base)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(heatmaps(merged.eval().albef), heatmaps(model.eval().albef), rtol=1e-5, atol=1e-5)
    assert torch.equal(merged.momentum_encoder.vision_model.layers[0].attention.qkv.weight,
                       merged.albef.vision_model.layers[0].attention.qkv.weight)  # fmt: skip
    with pytest.raises(ValueError, match=r"merged has no adapters .*: there is nothing to merge"):
        lora.merge(str(tmp_path / "merged"), tmp_path / "again")
    for path in (str(tmp_path / "mergde"), "nobody/mergde"):
        with pytest.raises((ValueError, OSError), match=f"there is no folder {path}, and "):
            lora.merge(path, tmp_path / "again")
    for folder in (tmp_path / "adapters", Path(base)):
        with pytest.raises(ValueError, match=f"{folder.name} exists and is not an empty folder: choose another"):
            lora.merge(str(tmp_path / "adapters"), folder)


def save_of_peft(folder: Path, family: str, **options):
    """A base model without objectives, adapters that peft put into it, and the model with both, which is returned."""
    import peft

    names = ["q_proj", "v_proj"] if family in ("clip", "qwen2_5_vl") else ["query", "value"]
    if family.startswith("albef"):
        model = tiny_albef() if family == "albef with objectives" else tiny_albef().albef
        processor = tiny_processor()
    else:
        model, processor = TINY[family](), tiny_family_processor(family, PHRASES)
    base = saved(folder / "base", model, processor)
    model = peft.get_peft_model(type(model).from_pretrained(base), peft.LoraConfig(target_modules=names, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder / "adapters")
    return model.get_base_model().albef if family == "albef with objectives" else model, processor


def scores(model, processor=None) -> torch.Tensor:
    is_folder = processor is None
    grounder = AutoGrounder.from_pretrained(str(model), device="cpu") if is_folder else AutoGrounder(model, processor)
    return torch.tensor(grounder.score(picture(), PHRASES[:3]))


HEADS = dict.fromkeys(("albef", "albef with objectives", "blip"), "itm_head")
HEADS |= {"clip": "text_projection", "qwen2_5_vl": "lm_head"}


@pytest.mark.parametrize("kind", ["lora", "dora", "heads"])
@pytest.mark.parametrize("family", HEADS)
def test_adapters_of_peft_and_merged_ones_give_the_scores_of_the_live_model(family, kind, tmp_path):
    options = {"dora": {"use_dora": True}, "heads": {"modules_to_save": [HEADS[family]]}}.get(kind, {})
    expected = scores(*save_of_peft(tmp_path, family, **options))
    assert (expected - scores(tmp_path / "base")).abs().max() > 1e-4
    if kind == "dora":
        with pytest.raises(ValueError, match=r"cannot be loaded\. Merge them into a plain checkpoint: albef-amc merge"):
            load_model(str(tmp_path / "adapters"))
    else:
        torch.testing.assert_close(scores(tmp_path / "adapters"), expected, rtol=1e-4, atol=1e-6)
    lora.merge(str(tmp_path / "adapters"), tmp_path / "merged")
    torch.testing.assert_close(scores(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-6)
    if kind == "heads":  # they go on being trained in a model with objectives around
        model = load_model(str(tmp_path / "adapters"), training=True)
        inside = model.albef if family.startswith("albef") else model
        found = scores(inside, load_processor(str(tmp_path / "base"), inside))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        lora.train_adapters(model)
        assert inside.get_submodule(HEADS[family]).weight.requires_grad
    if family == "albef":  # heads that the base lacks are in no file
        assert type(AutoModel.from_pretrained(tmp_path / "merged")) is AlbefModel
        merged = load_model(str(tmp_path / "merged"), training=True)
        assert any(name.startswith("mlm_head.") for name in merged.newly_initialized)


def test_adapters_of_the_model_inside_leave_the_heads_around_it(base, tmp_path):
    import peft

    model = peft.get_peft_model(AlbefModel.from_pretrained(base), peft.LoraConfig(target_modules=["query"]))
    model.save_pretrained(tmp_path / "adapters")
    lora.merge(str(tmp_path / "adapters"), tmp_path / "merged")
    plain, merged = (AlbefForPreTraining.from_pretrained(folder).state_dict() for folder in (base, tmp_path / "merged"))
    names = {name for name in plain if name.startswith(("albef.", "mlm_head."))}
    assert is_equal({name: merged[name] for name in names}, {name: plain[name] for name in names})


def test_merges_by_the_names_before_transformers_4_52(tmp_path):
    expected = scores(*save_of_peft(tmp_path, "qwen2_5_vl"))
    file = tmp_path / "adapters" / lora.ADAPTER_WEIGHTS
    state = {name.replace(".language_model.", "."): value for name, value in lora.load_file(file).items()}
    assert all("language_model" not in name for name in state)
    lora.save_file(state, file, metadata={"format": "pt"})
    lora.merge(str(tmp_path / "adapters"), tmp_path / "merged")
    torch.testing.assert_close(scores(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query.lora_A": None}, r"lacks base_model\.model\.text_model\S*query\.lora_A\.weight\. It is damaged, or"),
        ({"query.lora_A": "queries.lora_A"}, r"lacks base_model\.model\.text_model\S*query\.lora_A\.weight\."),
        ({"itm_head.": None}, r"lacks base_model\.model\.itm_head\.bias\. It is damaged, or they are of another model"),
        ({"text_model.": "bert."}, r"lacks base_model\.model\.text_model\.layers"),
        ({}, r"has base_model\.model\.text_model\.layers\.9\.more\.weight, which fits no module"),
        ({"itm_head.weight": 7}, r"has base_model\.model\.itm_head\.weight of another size than the base model's"),
    ],
)
def test_adapters_that_are_not_used_to_the_last_tensor_are_not_merged(change, message, tmp_path):
    save_of_peft(tmp_path, "albef", modules_to_save=["itm_head"])
    file = tmp_path / "adapters" / lora.ADAPTER_WEIGHTS
    state = lora.load_file(file)
    for old, new in change.items():
        if isinstance(new, int):
            name = next(name for name in state if name.endswith(old))
            state[name] = torch.zeros(new, 1)
            continue
        renamed = {name: new and name.replace(old, new) for name in state if old in name}
        state = {renamed.get(name, name): value for name, value in state.items() if renamed.get(name, name)}
    if not change:
        state["base_model.model.text_model.layers.9.more.weight"] = torch.zeros(2)
    lora.save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"adapters: the file of the adapters {message}"):
        lora.merge(str(tmp_path / "adapters"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_adapters_of_a_vocabulary_with_new_tokens_say_so(tmp_path):
    import peft

    model = load_model(saved(tmp_path / "base", TINY["clip"](), tiny_family_processor("clip", PHRASES)))
    model.text_model.resize_token_embeddings(model.config.text_config.vocab_size + 5)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["token_embedding"])
    peft.get_peft_model(model, settings).save_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match="adapters: its adapters are of another size than its base model"):
        load_model(str(tmp_path / "adapters"))
    with pytest.raises(ValueError, match=r"token_embedding\S*weight of another size than the base model's"):
        lora.merge(str(tmp_path / "adapters"), tmp_path / "merged")


def test_a_bias_for_a_layer_without_one_is_not_merged(tmp_path):
    import peft

    processor = tiny_family_processor("qwen2_5_vl", PHRASES)
    model = load_model(saved(tmp_path / "base", TINY["qwen2_5_vl"](), processor))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["o_proj"], lora_bias=True))
    adapted.save_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match=r"adapters: peft cannot merge these: .*lora_bias=True"):
        lora.merge(str(tmp_path / "adapters"), tmp_path / "merged")


def test_what_adapts_the_input_is_not_merged(base, tmp_path):
    settings = {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": base, "num_virtual_tokens": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="PROMPT_TUNING adapts a model's input, which cannot be merged"):
        lora.merge(str(tmp_path), tmp_path / "merged")


@pytest.mark.parametrize("family", ["base", "blip_base"])
def test_train_ground_go_on_and_merge_by_command(family, request, tmp_path):
    start = request.getfixturevalue(family)
    data = write_folder(tmp_path / "data-set", train=tiny_records(8), validation=tiny_records(5))
    weights = {"mlm_weight": 0.0, "learning_rate": 1e-2}
    config = write_yaml(tmp_path, dataset=data, output_dir=tmp_path / "run", **RUN, **weights, report_to="none")
    options = ["--lora_rank", "2", "--lora_alpha", "4", "--revision", "v1"]
    metrics = train.main([config, "--model", start, *options, "--save_strategy", "epoch"])
    run = tmp_path / "run"
    recorded = json.loads((run / "adapter_config.json").read_text())
    assert (recorded["base_model_name_or_path"], recorded["r"], recorded["lora_alpha"]) == (start, 2, 4)
    assert recorded["revision"] == "v1" and base_of(str(run)) == (start, {"revision": "v1"})
    assert recorded["modules_to_save"] == ["itm_head"] and not (run / "momentum.safetensors").exists()
    card = (run / "README.md").read_text()
    assert re.search(r"^- lora$", card, re.MULTILINE) and "library_name: transformers" in card
    assert "| rank | 2, scaled by 4 / 2, dropout 0 |" in card and "`itm_head`" in card
    assert start not in card and f"local folder “{Path(start).name}”" in card

    # Adapters, and what is merged of them, point where the trained model pointed.
    albef_amc(["merge", str(run), "--output", str(tmp_path / "merged")])
    models = [f"adapters={run}", f"merged={tmp_path / 'merged'}", f"start={start}"]
    command = ["--models", *models, "--dataset", str(data), "--splits", "validation", "--cpu"]
    results = evaluate_grounding.main([*command, "--num_pictured", "0", "--output", str(tmp_path / "out")])
    for name in ("adapters", "merged"):
        assert results[name]["validation"] == pytest.approx(metrics["validation_pointing_game"])
    answers = [AutoGrounder.from_pretrained(str(path)).ground(picture(), PHRASES[:2]) for path in (run, start)]
    assert answers[0][0]["score"] != answers[1][0]["score"]

    # They go on being trained as they are.
    train.main([config, "--model", str(run), "--output_dir", str(tmp_path / "more"), "--max_steps", "1"])
    first, more = (lora.load_file(folder / lora.ADAPTER_WEIGHTS) for folder in (run, tmp_path / "more"))
    assert first.keys() == more.keys() and not is_equal(first, more)
    again = json.loads((tmp_path / "more" / "adapter_config.json").read_text())
    assert (again["base_model_name_or_path"], again["revision"]) == (start, "v1")

    # Neither whole weights nor adapters come to lie beside the others, which would be put into them.
    shutil.rmtree(tmp_path / "more")
    shutil.move(run / "checkpoint-3", tmp_path / "checkpoint-3")
    shutil.rmtree(run / "checkpoint-2")
    for wrong in (["--output_dir", str(run)], ["--resume_from_checkpoint", str(tmp_path / "checkpoint-3")]):
        with pytest.raises(ValueError, match=r"holds LoRA adapters \(adapter_config.json\), and this run trains whole"):
            train.main([config, "--model", start, "--output_dir", str(tmp_path / "more"), *wrong])
    with pytest.raises(ValueError, match=r"merged holds a whole model \(config.json\), and this run trains LoRA"):
        train.main([config, "--model", start, "--lora_rank", "2", "--output_dir", str(tmp_path / "merged")])
    with pytest.raises(ValueError, match="lora_rank begins new adapters"):
        train.main([config, "--model", str(run), "--lora_rank", "2"])
    options = ["--push_to_hub", "--hub_model_id", "org/adapters"]
    with pytest.raises(ValueError, match="push_to_hub: adapters are of no use without their base model"):
        train.main([config, "--model", start, "--lora_rank", "2", *options])


@pytest.mark.parametrize("frozen", [["--lora_rank", "2"], ["--freeze", "mlm_head"]])
def test_what_the_checkpoint_lacks_does_not_stay_random(tmp_path, frozen):
    tiny_albef().albef.save_pretrained(tmp_path / "base")
    tiny_processor().save_pretrained(tmp_path / "base")
    data = write_folder(tmp_path / "data-set", train=tiny_records(8))
    config = write_yaml(tmp_path, dataset=data, output_dir=tmp_path / "run", **RUN, report_to="none")
    command = [config, "--model", str(tmp_path / "base"), "--max_steps", "1"]
    with pytest.raises(ValueError, match=r"mlm_head\.\S+ is not in the checkpoint .*base: it would be random and"):
        train.main([*command, *frozen])
    train.main([*command, *frozen, "--mlm_weight", "0"])
    train.main([*command, "--output_dir", str(tmp_path / "whole")])


@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config"])
def test_adapters_of_ones_own_go_on(base, tmp_path, kind):
    """Which `get_peft_model` puts into the teacher too."""
    import peft

    more = {"r": 2} if kind == "LoraConfig" else {"feedforward_modules": []}
    model = peft.get_peft_model(load_model(base, training=True), getattr(peft, kind)(target_modules=["query"], **more))
    trainer = make_trainer(tmp_path, model)
    trainer.train()
    trainer.save_model(tmp_path / "adapters")
    again = make_trainer(tmp_path, load_model(str(tmp_path / "adapters"), training=True))
    one, other = ({n: v for n, v in t.model.state_dict().items() if "query" in n and "momentum" not in n}
                  for t in (trainer, again))  # fmt: skip
    assert is_equal(one, other) and one


def test_loaded_adapters_train_with_a_teacher_of_their_own(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapters")
    model = load_model(str(tmp_path / "adapters"), training=True)
    lora.train_adapters(model)
    fresh = adapted(base)
    trainable = [{name for name, p in of.named_parameters() if p.requires_grad} for of in (model, fresh)]
    assert trainable[0] == trainable[1]
    twin = copy.deepcopy(model)
    twin.restart_momentum_encoder()
    assert is_equal(model.state_dict(), twin.state_dict())
    key = "vision_model.layers.1.attention.qkv.weight"
    assert not torch.equal(model.momentum_encoder.state_dict()[key], fresh.momentum_encoder.state_dict()[key])
