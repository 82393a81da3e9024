"""Agreement with the original ALBEF and AMC code, by its recorded results (`../shared/golden`)."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from modeling_albef_amc import AlbefConfig, AlbefForPreTraining, AlbefModel, normalize_heatmaps
from modeling_albef_amc.tools.albef_checkpoint_layout import convert_state_dict, rename
from trainer.amc_loss import attention_mask_consistency_loss

pytestmark = pytest.mark.shared

RUNS = ["train_alpha0", "train_alpha04", "train_alpha04_partial", "train_alpha04_noamc"]
AMC_RUNS = RUNS[:3]
WEIGHTS = {"loss_itc": 1.0, "loss_itm": 1.0, "loss_mlm": 1.0, "loss_amc_mean": 0.2, "loss_amc_max": 0.8}
BERT_FIELDS = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
BERT_FIELDS += ["fusion_layer", "max_position_embeddings", "hidden_dropout_prob", "attention_probs_dropout_prob"]
ORIGINAL_NAMES = {"loss_itc": "loss_ita", **{name: name for name in WEIGHTS if name != "loss_itc"}}


class Golden:
    """The folder of recorded results, and our classes with its weights."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cache  # noqa: B019
    def arrays(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    @cache  # noqa: B019
    def table(self, name: str):
        return json.loads((self.folder / f"{name}.json").read_text())

    def batch(self, index: int = 0, images: str = "images") -> dict[str, torch.Tensor]:
        inputs = self.arrays("inputs")
        return {
            "pixel_values": inputs[f"b{index}.{images}"].float(),
            "input_ids": inputs[f"b{index}.input_ids"],
            "attention_mask": inputs[f"b{index}.attention_mask"],
        }

    def masks(self, index: int = 0) -> torch.Tensor:
        return self.arrays("inputs")[f"b{index}.box_masks"].float()

    def config(self, axis: str = "sequence") -> AlbefConfig:
        model, bert = (self.table("config")[name] for name in ("model", "bert"))
        weights = self.arrays("model")
        return AlbefConfig(
            vision_config=dict(
                hidden_size=model["vision_width"],
                intermediate_size=len(weights["visual_encoder.blocks.0.mlp.fc1.weight"]),
                num_hidden_layers=model["vit_depth"],
                num_attention_heads=model["vit_heads"],
                image_size=model["image_res"],
            ),
            text_config={name: bert[name] for name in BERT_FIELDS},
            projection_dim=model["embed_dim"],
            queue_size=model["queue_size"],
            momentum=model["momentum"],
            grounding_layer=model["cam_layer"],
            mlm_distillation_axis=axis,
        )

    def model(self, axis: str = "sequence") -> AlbefForPreTraining:
        model = AlbefForPreTraining(self.config(axis))
        loaded = model.load_state_dict(convert_state_dict(self.arrays("model")), strict=False)
        # The original keeps no record of what its queues hold; all the rest has to be there, under our names.
        assert loaded.unexpected_keys == []
        assert loaded.missing_keys == ["image_id_queue", "text_id_queue"]
        return model.train()

    def albef(self) -> AlbefModel:
        return self.model().albef.eval()


@pytest.fixture(scope="module")
def golden(shared_dir) -> Golden:
    return Golden(shared_dir / "golden")


def deviation(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def norm_deviation(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()


def over_peak(maps: torch.Tensor) -> torch.Tensor:
    return maps / maps.amax(dim=(-2, -1), keepdim=True)


def replay(
    model, batch, draws, masks=None, has_region=None, alpha=0.4, original_scale: bool = False
) -> SimpleNamespace:
    """One training forward pass with recorded random draws; losses under their names, AMC by the original's means.

    `original_scale`: heatmaps divided by all token slots, as in the original, not by the valid tokens. To the loss this
    is the same but for the 1e-7 beside the maximum.
    """
    model.choose_negatives = lambda *_: (draws["neg_image_index"], draws["neg_text_index"])
    output = model(
        **batch,
        mlm_input_ids=draws["mlm_input_ids"],
        mlm_labels=draws["mlm_labels"],
        alpha=alpha,
        output_heatmaps=masks is not None,
    )
    losses = {name: output[name] for name in ("loss_itc", "loss_itm", "loss_mlm")}
    torch.testing.assert_close(output.loss, sum(losses.values()))
    amc = torch.zeros(())
    if masks is not None:
        share = batch["attention_mask"].float().mean(dim=1)[:, None, None] if original_scale else 1
        terms = attention_mask_consistency_loss(output.heatmaps * share, masks, has_region, reduction="batch")
        amc = sum(WEIGHTS[name] * term for name, term in terms.items())
        losses |= terms
    return SimpleNamespace(output=output, losses=losses, amc=amc, total=output.loss + amc)


def replay_run(golden: Golden, run: str, axis: str = "sequence") -> tuple[AlbefForPreTraining, SimpleNamespace]:
    model, draws = golden.model(axis), golden.arrays(run)
    uses_amc = run != "train_alpha04_noamc"
    masks = golden.masks() if uses_amc else None
    has_region = draws["indicator"].bool() if uses_amc and "indicator" in draws else None
    alpha = draws["alpha"].item() if "alpha" in draws else 0.4
    return model, replay(model, golden.batch(), draws, masks, has_region, alpha)


# Weights --------------------------------------------------------------------------------------------------------------


def test_the_released_file_gives_the_same_weights(golden):
    released = torch.load(golden.folder / "model.pth", weights_only=True)["model"]
    converted, expected = convert_state_dict(released), convert_state_dict(golden.arrays("model"))
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_every_original_tensor_has_its_own_name_in_ours(golden):
    model = golden.model()
    names = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    renamed = [rename(name) for name in golden.arrays("model") if not name.endswith(("position_ids", "queue_ptr_txt"))]
    # The MLM head's bias is in the original's dictionary twice.
    assert len(renamed) - 2 == len(set(renamed))
    assert set(renamed) == names.keys() - {"image_id_queue", "text_id_queue"}


# Forward --------------------------------------------------------------------------------------------------------------


def test_encoder_outputs(golden):
    model, expected, batch = golden.model().eval(), golden.arrays("forward"), golden.batch()
    with torch.no_grad():
        output = model.albef(**batch, output_hidden_states=True)
        whole = model.albef(**batch).last_hidden_state  # text and fusion without a stop between them
        vision = model.albef.vision_model(batch["pixel_values"]).last_hidden_state
        patches = model.albef.vision_model.embeddings.patch_embedding(batch["pixel_values"]).flatten(2).transpose(1, 2)
    assert deviation(patches, expected["vit_patch_embed"]) < 1e-4
    assert len(output.vision_model_output.hidden_states) == 4
    for index in range(3):
        assert deviation(output.vision_model_output.hidden_states[index + 1], expected[f"vit_block{index}"]) < 1e-4
    assert deviation(vision, expected["image_embeds"]) < 1e-4
    # Text states and fusion states share the one in the middle.
    names = [f"text_hidden{index}" for index in range(4)] + [f"fusion_hidden{index}" for index in (1, 2, 3)]
    assert len(output.hidden_states) == len(names)
    for states, name in zip(output.hidden_states, names):
        assert deviation(states, expected[name]) < 1e-4, name
    assert deviation(output.hidden_states[3], expected["fusion_hidden0"]) < 1e-4
    assert deviation(output.last_hidden_state, expected["fusion_last"]) < 1e-4
    assert deviation(whole, expected["multimodal_last"]) < 1e-4


def test_logits_and_features(golden):
    model, expected = golden.model().eval(), golden.arrays("forward")
    with torch.no_grad():
        output = model.albef(**golden.batch())
        mlm_logits = model.mlm_head(output.last_hidden_state)
        similarity = output.image_features @ output.text_features.T / model.albef.temperature
    assert deviation(output.itm_logits, expected["itm_logits"]) < 1e-4
    assert deviation(output.image_features, expected["itc_image_feat"]) < 1e-4
    assert deviation(output.text_features, expected["itc_text_feat"]) < 1e-4
    assert deviation(similarity, expected["itc_sim"]) < 1e-4
    assert deviation(mlm_logits, expected["mlm_logits"]) < 1e-4


def test_momentum_encoders(golden):
    momentum, expected, batch = golden.model().momentum_encoder, golden.arrays("forward"), golden.batch()
    assert not momentum.training
    with torch.no_grad():
        image_embeds = momentum.vision_model(batch["pixel_values"]).last_hidden_state
        text_embeds = momentum.text_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        states = momentum.text_model(
            text_embeds=text_embeds,
            attention_mask=batch["attention_mask"],
            image_key_values=momentum.text_model.project_images(image_embeds),
        ).last_hidden_state
        mlm_logits = momentum.mlm_head(states)
    assert deviation(image_embeds, expected["image_embeds_m"]) < 1e-4
    assert deviation(text_embeds, expected["text_embeds_m"]) < 1e-4
    assert deviation(mlm_logits, expected["mlm_logits_m"]) < 1e-4


def test_interpolated_positions(golden):
    model, expected = golden.model(), golden.arrays("pos_embed")
    for encoder, suffix in ((model.albef, ""), (model.momentum_encoder, "_m")):
        embeddings = encoder.vision_model.embeddings
        assert torch.equal(embeddings.interpolated_positions((4, 4)), expected[f"in{suffix}_4x4"])
        assert deviation(embeddings.interpolated_positions((6, 6)), expected[f"out{suffix}_6x6"]) < 1e-5


# Heatmaps -------------------------------------------------------------------------------------------------------------

SIZES = [(64, "images"), (96, "images_96")]


@pytest.mark.parametrize(("size", "images"), SIZES)
@pytest.mark.parametrize("layer", [3, 4, 5])
def test_itm_heatmaps(golden, size, images, layer):
    model, batch, expected = golden.albef(), golden.batch(images=images), golden.arrays("eval_cam")
    output = model(**batch, output_heatmaps=True, grounding_layer=layer)
    recorded = expected[f"itm_cam_res{size}_layer{layer}"]
    assert deviation(over_peak(output.heatmaps), over_peak(recorded)) < 1e-4
    # The original divides by all token slots, padding included; ours by the valid tokens.
    share = batch["attention_mask"].float().mean(dim=1)[:, None, None]
    assert share.min() < 0.5
    assert deviation(output.heatmaps * share, recorded) < 1e-4
    assert deviation(output.itm_logits, expected[f"itm_logits_res{size}"]) < 1e-4


@pytest.mark.parametrize(("size", "images"), SIZES)
def test_explained_attention_and_its_gradient(golden, size, images):
    model, batch, expected = golden.albef(), golden.batch(images=images), golden.arrays("eval_cam")
    for create_graph in (False, True):
        explained = model.explain(**batch, layer=4, create_graph=create_graph)
        (gradient,) = torch.autograd.grad(explained.score.sum(), explained.attention)
        assert deviation(explained.attention, expected[f"itm_attn_res{size}_layer4"]) < 1e-4
        assert deviation(gradient, expected[f"itm_attn_grad_res{size}_layer4"]) < 1e-4
    image_embeds = model.vision_model(batch["pixel_values"]).last_hidden_state
    assert deviation(image_embeds, expected[f"image_embeds_res{size}"]) < 1e-4


def test_heatmap_of_one_unpadded_phrase_has_the_original_scale(golden):
    model, batch = golden.albef(), golden.batch()
    recorded = golden.arrays("eval_cam")["itm_cam_res64_layer4_sample3_alone_unpadded"]
    length = int(batch["attention_mask"][3].sum())
    assert length == 4
    alone = {name: values[3:, :length] if values.ndim == 2 else values[3:] for name, values in batch.items()}
    assert deviation(model(**alone, output_heatmaps=True).heatmaps[0], recorded) < 1e-4
    # Where the original's raw map shrinks with padding, ours does not.
    assert deviation(model(**batch, output_heatmaps=True).heatmaps[3], recorded) < 1e-4


@pytest.mark.parametrize(("size", "images"), SIZES)
@pytest.mark.parametrize("block", [0, 1, 2])
def test_itc_heatmaps(golden, size, images, block):
    output = golden.albef()(
        **golden.batch(images=images), output_heatmaps=True, explanation="itc", grounding_layer=block
    )
    recorded = golden.arrays("eval_cam")[f"itc_cam_res{size}_block{block}"]
    assert deviation(over_peak(output.heatmaps), over_peak(recorded)) < 1e-4
    assert deviation(output.heatmaps, recorded) < 1e-4


# Training -------------------------------------------------------------------------------------------------------------


def gradients(loss: torch.Tensor, model: AlbefForPreTraining) -> dict[str, torch.Tensor]:
    """By name; zeros where the loss does not depend on the parameter."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: torch.zeros_like(named[name]) if value is None else value for name, value in zip(named, found)}


def is_noise(name: str) -> bool:
    """A bias of keys adds the same to all of a query's scores: its gradient is zero but for rounding."""
    return name.endswith("key.bias")


def check_losses(result: SimpleNamespace, recorded: dict[str, torch.Tensor]) -> None:
    assert ("loss_amc_mean" in recorded) == ("loss_amc_mean" in result.losses)
    for name, loss in result.losses.items():
        assert loss.item() == pytest.approx(recorded[ORIGINAL_NAMES[name]].item(), rel=1e-4, abs=1e-7), name
    assert result.total.item() == pytest.approx(recorded["loss_total"].item(), rel=1e-4)
    if "loss_amc_weighted" in recorded:
        assert result.amc.item() == pytest.approx(recorded["loss_amc_weighted"].item(), rel=1e-4)


def check_gradients(ours: dict[str, torch.Tensor], recorded: dict[str, torch.Tensor], prefix: str) -> None:
    full = [name for name in recorded if name.startswith(prefix)]
    assert full
    for name in full:
        original = name.removeprefix(prefix)
        assert is_noise(original) or norm_deviation(ours[rename(original)], recorded[name]) < 1e-3, name


@pytest.mark.parametrize("run", RUNS)
def test_recorded_runs(golden, run):
    """Losses, what they are made of, what the step leaves behind, and the gradient of every parameter."""
    recorded, norms, before = golden.arrays(run), golden.table(f"{run}_gradnorms"), golden.model().state_dict()
    model, result = replay_run(golden, run)
    check_losses(result, recorded)
    output = result.output
    assert deviation(output.image_features, recorded["ita.image_feat"]) < 1e-4
    assert deviation(output.text_features, recorded["ita.text_feat"]) < 1e-4
    logits = torch.cat([output.itm_logits, output.negative_itm_logits])
    assert deviation(logits, recorded["itm.itm_logits_all"]) < 1e-4
    masked = recorded["mlm_labels"] != -100
    assert deviation(output.mlm_logits, recorded["mlm.mlm_logits"][masked]) < 1e-4
    assert (output.heatmaps is None) == (run not in AMC_RUNS)
    if run in AMC_RUNS:
        chosen = recorded["indicator"].bool()
        share = golden.batch()["attention_mask"].float().mean(dim=1)[:, None, None]
        assert deviation((output.heatmaps * share)[chosen], recorded["amc.cam_raw"]) < 1e-4
        assert deviation(normalize_heatmaps(output.heatmaps)[chosen], recorded["amc.cam_norm"]) < 1e-4

    assert model.queue_pointer.tolist() == recorded["after.queue_ptr_img"].tolist() == [2]
    assert deviation(model.image_queue.T, recorded["after.image_queue"]) < 1e-4
    assert deviation(model.text_queue.T, recorded["after.text_queue"]) < 1e-4
    parameters = dict(model.named_parameters(remove_duplicate=False))
    momentum = [name for name in recorded if name.startswith("after.") and "queue" not in name]
    assert len(momentum) == 6
    for name in momentum:
        ours = rename(name.removeprefix("after."))
        assert deviation(parameters[ours], recorded[name]) < 1e-5, name
        assert not torch.equal(parameters[ours], before[ours])

    objectives = [("grad.", "grad_norm_total_loss", result.total), ("grad_amc.", "grad_norm_amc_only", result.amc)]
    for prefix, table, loss in objectives[: 1 + (run in AMC_RUNS)]:
        ours = gradients(loss, model)
        # Not one parameter is left out: the names are the same, and each norm is compared.
        assert {rename(name) for name in norms[table]} == ours.keys()
        for name, norm in norms[table].items():
            found = ours[rename(name)].norm().item()
            assert is_noise(name) or found == pytest.approx(norm or 0.0, rel=1e-3, abs=1e-6), (prefix, name)
        if run != "train_alpha0":
            check_gradients(ours, recorded, prefix)


def test_the_upstream_distillation(golden):
    recorded = golden.arrays("train_alpha04_upstream_distill")
    model, result = replay_run(golden, "train_alpha04_upstream_distill", axis="vocabulary")
    check_losses(result, recorded)
    assert abs(result.losses["loss_mlm"].item() / golden.arrays("train_alpha04")["loss_mlm"].item() - 1) > 1e-2
    check_gradients(gradients(result.total, model), recorded, "grad.")


@pytest.mark.parametrize(
    ("dtype", "original_scale", "tolerance"), [(torch.float64, True, 1e-4), (torch.float32, False, 2e-3)]
)
def test_three_steps(golden, dtype, original_scale, tolerance):
    """Forward, backward and AdamW, three times, with the original's optimizer groups.

    AdamW's first step is the sign of the gradient: one weight of the patch embedding, whose gradient is 1e-5 of its
    neighbours', goes up or down by rounding alone, and moves later losses by 1e-3. So only float64 can be held tight.
    """
    model, recorded, groups = golden.model().to(dtype), golden.arrays("trajectory"), golden.table("optimizer_groups")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = {key: list(dict.fromkeys(rename(name) for name in groups[key])) for key in ("no_decay", "decay")}
    trainable = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert sorted(names["no_decay"] + names["decay"]) == trainable
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameters[name] for name in names["no_decay"]], "weight_decay": 0.0},
            {"params": [parameters[name] for name in names["decay"]], "weight_decay": 0.02},
        ],
        lr=1e-3,
    )
    for step in range(3):
        draws = {name.removeprefix(f"s{step}."): array for name, array in recorded.items()}
        result = replay(model, golden.batch(step), draws, golden.masks(step), original_scale=original_scale)
        for name, loss in result.losses.items():
            expected = recorded[f"s{step}.{ORIGINAL_NAMES[name]}"].item()
            assert loss.item() == pytest.approx(expected, rel=tolerance if step else 1e-4), (step, name)
        assert result.total.item() == pytest.approx(recorded[f"s{step}.loss_total"].item(), rel=1e-4)
        heatmaps = normalize_heatmaps(result.output.heatmaps)
        assert deviation(heatmaps, recorded[f"s{step}.cam_norm"]) < tolerance
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()

    assert model.queue_pointer.tolist() == recorded["final.queue_ptr_img"].tolist() == [10]
    assert deviation(model.image_queue.T, recorded["final.image_queue"]) < tolerance
    assert deviation(model.text_queue.T, recorded["final.text_queue"]) < tolerance
    before = convert_state_dict(golden.arrays("model"))
    for name, expected in recorded.items():
        # The gradient of a key bias is rounding noise: AdamW makes steps of the learning rate of it.
        if name.startswith("final.") and "queue" not in name and not name.endswith("key.bias"):
            ours = rename(name.removeprefix("final."))
            assert norm_deviation(parameters[ours], expected) < 1e-4, name
            # Of the steps, not of the weights that they are small beside.
            moved = parameters[ours] - before[ours]
            assert norm_deviation(moved, expected - before[ours]) < 0.05, name
    norms = golden.table("trajectory_final_param_norms")
    assert {rename(name) for name in norms} == dict(model.named_parameters()).keys()
    for name, norm in norms.items():
        if not name.endswith("key.bias"):
            # The image encoder's key biases are a third of one tensor.
            rel = 2e-3 if name.endswith("qkv.bias") else 1e-4
            assert parameters[rename(name)].norm().item() == pytest.approx(norm, rel=rel), name


# The AMC loss ---------------------------------------------------------------------------------------------------------

CASES = ["typical", "tiny_values_eps_matters", "hinges_inactive", "one_mask_all_ones", "one_mask_empty"]
CASES += ["all_masks_all_ones", "all_masks_empty", "zero_map", "constant_map", "negative_values", "single_sample"]
CASES += ["soft_mask"]


@pytest.mark.parametrize("case", CASES)
def test_amc_loss(golden, case):
    assert set(CASES) == golden.table("functions")["amc_loss"].keys()
    arrays, expected = golden.arrays("amc_loss"), golden.table("functions")["amc_loss"][case]
    cam, mask = arrays[f"{case}.cam"].clone().requires_grad_(), arrays[f"{case}.mask"].float()
    normalized = normalize_heatmaps(cam)
    torch.testing.assert_close(normalized, arrays[f"{case}.cam_norm"], rtol=1e-5, atol=1e-6)
    losses = attention_mask_consistency_loss(cam, mask, reduction="batch")
    (0.2 * losses["loss_amc_mean"] + 0.8 * losses["loss_amc_max"]).backward()
    assert torch.isfinite(cam.grad).all()
    assert losses["loss_amc_max"].item() == pytest.approx(expected["loss_max"], rel=1e-4, abs=1e-6)
    if expected["loss_mean"] == "nan":
        # The mean over no pixel counts as 0.
        upsampled = torch.nn.functional.interpolate(normalized.detach()[:, None], mask.shape[1:], mode="bilinear")
        full = case == "all_masks_all_ones"
        defined = max(0.0, 0.1 - upsampled.mean().item() if full else 0.1 + upsampled.mean().item())
        assert losses["loss_amc_mean"].item() == pytest.approx(defined, rel=1e-5)
        return
    assert losses["loss_amc_mean"].item() == pytest.approx(expected["loss_mean"], rel=1e-4, abs=1e-6)
    # A constant map's extremes are ties, whose gradient is a matter of taste.
    gradient = arrays[f"{case}.grad_of_weighted_loss"]
    if case != "constant_map":
        torch.testing.assert_close(cam.grad, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item() + 1e-9)


# Situations that the original does not survive ------------------------------------------------------------------------


def test_batch_of_two_has_the_recorded_losses(golden):
    """Two pairs have but one negative each: nothing is left to chance but the masked words."""
    batch = {name: values[:2] for name, values in golden.batch().items()}
    output = golden.model()(**batch, alpha=0.4, output_heatmaps=True)
    amc = attention_mask_consistency_loss(output.heatmaps, golden.masks()[:2], reduction="batch")
    (_, itc, itm, amc_mean, amc_max), _ = golden.table("edge_cases")["batch_2"]
    assert output.loss_itc.item() == pytest.approx(itc, rel=1e-4)
    assert output.loss_itm.item() == pytest.approx(itm, rel=1e-4)
    assert amc["loss_amc_mean"].item() == pytest.approx(amc_mean, rel=1e-4)
    assert amc["loss_amc_max"].item() == pytest.approx(amc_max, rel=1e-4)


@pytest.mark.parametrize("case", ["one_annotated_of_4", "all_masks_ones", "all_masks_zero"])
def test_odd_masks_have_the_recorded_losses(golden, case):
    draws = golden.arrays("train_alpha04")
    masks, has_region = golden.masks(), None
    if case == "one_annotated_of_4":
        has_region = torch.tensor([False, True, False, False])
    else:
        masks = torch.full_like(masks, case == "all_masks_ones")
    losses = replay(golden.model(), golden.batch(), draws, masks, has_region).losses
    mlm, itc, itm, amc_mean, amc_max = golden.table("edge_cases")[case][0]
    expected = {"loss_mlm": mlm, "loss_itc": itc, "loss_itm": itm, "loss_amc_mean": amc_mean, "loss_amc_max": amc_max}
    for name, value in expected.items():
        if value == value:
            assert losses[name].item() == pytest.approx(value, rel=1e-4), name
        else:
            assert torch.isfinite(losses[name])


def test_queue_smaller_than_the_batch_keeps_the_newest(golden):
    config = golden.config()
    config.queue_size = 3
    model = AlbefForPreTraining(config)
    state = convert_state_dict(golden.arrays("model"))
    state = {name: tensor for name, tensor in state.items() if "queue" not in name}
    model.load_state_dict(state, strict=False)
    model.queue_pointer.fill_(1)
    model.train()(**golden.batch(), alpha=0.4)
    recorded = golden.arrays("train_alpha04")
    assert model.queue_pointer.tolist() == [1]
    # Rows 1, 2 and 3 of the batch, from position 1 on and round the end.
    assert deviation(model.image_queue[[1, 2, 0]], recorded["ita.image_feat_m"][1:]) < 1e-4
    assert deviation(model.text_queue[[1, 2, 0]], recorded["ita.text_feat_m"][1:]) < 1e-4
