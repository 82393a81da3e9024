"""ALBEF's objectives against slow second implementations, and the rules by which momentum encoder and queues move."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from modeling_albef_amc import AlbefForPreTraining
from modeling_albef_amc.modeling_albef_pretraining import (
    MomentumTargets,
    PairFeatures,
    draw_negatives,
    itc_loss,
    itm_loss,
    known_to_fit,
    text_fingerprints,
    unlike_any,
)
from tests.helpers.models import masked_batch, tiny_batch, tiny_config


def pretraining_model(**overrides) -> AlbefForPreTraining:
    """In training mode, its momentum encoder a little away from it, as after some steps."""
    model = AlbefForPreTraining(tiny_config(**overrides)).train()
    with torch.no_grad():
        for parameter in model.momentum_encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# ITC ------------------------------------------------------------------------------------------------------------------


def log_softmax(values: list[float]) -> list[float]:
    high = max(values)
    total = high + math.log(sum(math.exp(value - high) for value in values))
    return [value - total for value in values]


def naive_contrast(features, momentum, candidates, allowed, own, temperature, alpha) -> float:
    """One direction of ITC, the mean over the rows, on plain numbers."""
    total = 0.0
    for i in range(len(features)):
        kept = [j for j in range(len(candidates)) if allowed[i][j] or j == own[i]]
        online = log_softmax([(features[i] @ candidates[j]).item() / temperature for j in kept])
        soft = [math.exp(v) for v in log_softmax([(momentum[i] @ candidates[j]).item() / temperature for j in kept])]
        for j, log_probability, probability in zip(kept, online, soft):
            total -= (alpha * probability + (1 - alpha) * (j == own[i])) * log_probability
    return total / len(features)


def naive_itc(image_features, text_features, targets: MomentumTargets, temperature: float, alpha: float) -> float:
    own = [targets.position + i for i in range(len(text_features))]
    pairs = list(zip(targets.candidates.image_ids.tolist(), targets.candidates.text_ids.tolist()))
    # A candidate is contrasted unless some pair, here or in the queue, says that it fits.
    wrong_texts = [[(image, text) not in pairs for _, text in pairs] for image in targets.pairs.image_ids.tolist()]
    wrong_images = [[(image, text) not in pairs for image, _ in pairs] for text in targets.pairs.text_ids.tolist()]
    online, momentum = (image_features, text_features), (targets.pairs.image_features, targets.pairs.text_features)
    candidates = targets.candidates.text_features, targets.candidates.image_features
    return sum(
        naive_contrast(a.double(), b.double(), c.double(), allowed, own, temperature, alpha) / 2
        for a, b, c, allowed in zip(online, momentum, candidates, (wrong_texts, wrong_images))
    )


def contrast(images, texts, targets: MomentumTargets, alpha: float = 0.4):
    return itc_loss(images, texts, targets, known_to_fit(targets), torch.tensor(0.07), alpha)


def random_targets(position: int = 0) -> MomentumTargets:
    """Four pairs among six of a step and five of a queue; the second pair shares its image, the third its words."""
    image_features, text_features = (F.normalize(torch.randn(11, 8), dim=-1) for _ in range(2))
    image_ids = torch.tensor([1, 2, 3, 4, 5, 2, 9, 2, 9, 9, -1])
    text_ids = torch.tensor([10, 20, 30, 40, 30, 60, 99, 99, 30, 99, -1])
    own = slice(position, position + 4)
    candidates = PairFeatures(image_features, text_features, image_ids, text_ids)
    return MomentumTargets(torch.empty(0), PairFeatures(*(rows[own] for rows in candidates)), candidates, position)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("position", [0, 2])
def test_itc_loss(alpha, position):
    targets = random_targets(position)
    images, texts = (F.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    loss, image_to_text, text_to_image = contrast(images, texts, targets, alpha)
    assert loss.item() == pytest.approx(naive_itc(images, texts, targets, 0.07, alpha), rel=1e-5)
    own = slice(position, position + 4)
    torch.testing.assert_close(image_to_text, images @ targets.candidates.text_features[own].T / 0.07)
    torch.testing.assert_close(text_to_image, texts @ targets.candidates.image_features[own].T / 0.07)


def test_itc_of_the_model_over_two_steps():
    """The second step meets its own images in the queue, where they are ignored."""
    model, batch = pretraining_model(), tiny_batch(5)
    batch["pixel_values"], batch["image_index"] = batch["pixel_values"][:3], torch.tensor([0, 0, 1, 2, 2])
    batch["input_ids"][4], batch["attention_mask"][4] = batch["input_ids"][2], batch["attention_mask"][2]
    image_ids, index = torch.tensor([70, 80, 90]), batch["image_index"]
    pairs = torch.tensor([70, 70, 80, 90, 90])
    queued_images, queued_texts = torch.full((12,), -1), torch.full((12,), -1)
    for step in range(2):
        queues = model.image_queue.clone(), model.text_queue.clone()
        output = model(**batch, image_ids=image_ids, alpha=0.3)
        with torch.no_grad():
            momentum = model.momentum_encoder
            image_embeds = momentum.vision_model(batch["pixel_values"]).last_hidden_state[index, 0]
            text_embeds = momentum.text_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state[:, 0]
            image_features = F.normalize(momentum.vision_projection(image_embeds), dim=-1)
            text_features = F.normalize(momentum.text_projection(text_embeds), dim=-1)
        texts = torch.tensor([0, 1, 2, 3, 2])  # the fifth caption repeats the third
        own = PairFeatures(image_features, text_features, pairs, texts)
        queued = queues[0], queues[1], queued_images, queued_texts
        targets = MomentumTargets(None, own, PairFeatures(*map(torch.cat, zip(own, queued))))
        temperature = model.albef.temperature.item()
        expected = naive_itc(output.image_features[index], output.text_features, targets, temperature, 0.3)
        assert output.loss_itc.item() == pytest.approx(expected, rel=1e-4), step
        queued_images[:5], queued_texts[:5] = pairs, texts


# ITM ------------------------------------------------------------------------------------------------------------------


def pair_logits(model, batch, images) -> torch.Tensor:
    """(num_texts, num_images, 2): the match of every phrase with every image, each pair by itself."""
    with torch.no_grad():
        return torch.stack(
            [model.albef(image[None], batch["input_ids"], batch["attention_mask"]).itm_logits for image in images],
            dim=1,
        )


def test_itm_loss():
    true, negative = (
        torch.tensor([[0.0, 2.0], [1.0, 0.0]]),
        torch.tensor([[0.0, 3.0], [0.0, 0.0], [1.0, 0.0], [9.0, 9.0]]),
    )
    # Softplus of the wrong logit minus the right one.
    parts = [-2.0, 1.0, 3.0, 0.0, -1.0]
    expected = sum(math.log1p(math.exp(part)) for part in parts) / 6
    has_negative = torch.tensor([True, True, True, False])
    assert itm_loss(true, negative, has_negative).item() == pytest.approx(expected, rel=1e-6)


def test_itm_with_given_negatives():
    model, batch = pretraining_model(), tiny_batch()
    images, texts = torch.tensor([1, 2, 3, 0]), torch.tensor([3, 3, 0, 1])
    model.choose_negatives = lambda *_: (images, texts)
    output = model(**batch)
    logits, phrases = pair_logits(model, batch, batch["pixel_values"]), torch.arange(4)
    expected = [logits[phrases, phrases], logits[phrases, images], logits[texts, phrases]]
    torch.testing.assert_close(output.itm_logits, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.negative_itm_logits, torch.cat(expected[1:]), rtol=1e-4, atol=1e-5)
    log_probabilities = torch.cat(expected).double().log_softmax(dim=1)
    loss = -(log_probabilities[:4, 1].sum() + log_probabilities[4:, 0].sum()) / 12
    assert output.loss_itm.item() == pytest.approx(loss.item(), rel=1e-5)


def test_itm_where_some_pairs_have_no_negative():
    """(image 0, A), (image 0, B), (image 1, A): A fits both images, so the second pair has no negative text."""
    model, batch = pretraining_model(), tiny_batch(3)
    images = batch.pop("pixel_values")[:2]
    batch["input_ids"][2], batch["attention_mask"][2] = batch["input_ids"][0], batch["attention_mask"][0]
    output = model(pixel_values=images, **batch, image_index=torch.tensor([0, 0, 1]))
    probabilities = pair_logits(model, batch, images).double().log_softmax(dim=-1)
    true = probabilities[0, 0, 1] + probabilities[1, 0, 1] + probabilities[2, 1, 1]
    # B was never said of image 1: the second pair's negative image, and the third one's negative text.
    negative = 2 * probabilities[1, 1, 0]
    assert output.loss_itm.item() == pytest.approx(-(true + negative).item() / 9, rel=1e-5)


def test_itm_where_no_pair_has_a_negative():
    model, batch = pretraining_model(), tiny_batch(3)
    output = model(**batch, image_ids=torch.tensor([5, 5, 5]))
    expected = -output.itm_logits.log_softmax(dim=1)[:, 1].sum() / 9
    assert output.loss_itm.item() == pytest.approx(expected.item(), rel=1e-5)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_hardest_negative_is_drawn_by_momentum_similarity():
    """At the lowest temperature the draw is a maximum; texts look for images, and images for texts."""
    model, batch = pretraining_model(), tiny_batch()
    with torch.no_grad():
        model.albef.temperature.fill_(0.001)
    output = model(**batch)
    with torch.no_grad():
        (targets,) = model.eval().momentum_step([batch])
    diagonal = torch.eye(4, dtype=torch.bool)
    hard_images = (output.text_features @ targets.pairs.image_features.T).masked_fill(diagonal, -9).argmax(dim=1)
    hard_texts = (output.image_features @ targets.pairs.text_features.T).masked_fill(diagonal, -9).argmax(dim=1)
    logits, phrases = pair_logits(model, batch, batch["pixel_values"]), torch.arange(4)
    expected = torch.cat([logits[phrases, hard_images], logits[hard_texts, phrases]])
    torch.testing.assert_close(output.negative_itm_logits, expected, rtol=1e-4, atol=1e-5)


def test_what_is_known_to_fit_is_no_negative():
    """Neither equal images nor equal phrases, in the batch of the model itself."""
    model, batch, asked = pretraining_model(), tiny_batch(5), []
    batch["input_ids"][3], batch["attention_mask"][3] = batch["input_ids"][1], batch["attention_mask"][1]
    draw = model.choose_negatives
    model.choose_negatives = lambda *given: asked.append(given[2:]) or draw(*given)
    model(**batch, image_ids=torch.tensor([7, 7, 8, 9, 10]))
    fits = torch.eye(5, dtype=torch.bool)
    fits[0, 1] = fits[1, 0] = fits[1, 3] = fits[3, 1] = True  # image 7 is two rows, their phrases fit both of them
    texts, images = fits.clone(), fits.clone()
    texts[0, 3], images[3, 0] = True, True  # image 7 has the phrase of row 3 by row 1; that phrase fits image 7
    assert torch.equal(~asked[0][0], texts) and torch.equal(~asked[0][1], images)


def test_what_is_known_to_fit():
    """An image keeps the texts of all its pairs, a text the images of all of its: in the step and in the queue."""
    targets = random_targets()
    texts, images = known_to_fit(targets)
    pairs = set(zip(targets.candidates.image_ids.tolist(), targets.candidates.text_ids.tolist()))
    for i, (image, text) in enumerate(zip(targets.pairs.image_ids.tolist(), targets.pairs.text_ids.tolist())):
        for j, (other_image, other_text) in enumerate(
            zip(targets.candidates.image_ids.tolist(), targets.candidates.text_ids.tolist())
        ):
            assert texts[i, j] == ((image, other_text) in pairs)
            assert images[i, j] == ((other_image, text) in pairs)
    # Image 2 is said to be 20, 60 and 99, and 30 to be images 3, 5 and 9.
    assert texts[1].nonzero().flatten().tolist() == [1, 5, 6, 7, 9]
    assert images[2].nonzero().flatten().tolist() == [2, 4, 6, 8, 9]


def test_draw_negatives_follows_the_softmax():
    similarity = torch.tensor([[5.0, 1.0, 0.0, -1.0], [0.0, 50.0, 2.0, 2.0], [0.0, 0.0, 900.0, -900.0]])
    allowed = torch.tensor([[False, True, True, True], [True, False, True, False], [True, True, False, True]])
    draws = torch.stack([draw_negatives(similarity, allowed) for _ in range(8000)])
    frequencies = torch.stack([(draws == column).double().mean(dim=0) for column in range(4)], dim=1)
    assert (frequencies[~allowed] == 0).all()
    weights = [[0, math.e, 1, 1 / math.e], [1, 0, math.e**2, 0], [1, 1, 0, 0]]
    expected = torch.tensor([[value / sum(row) for value in row] for row in weights], dtype=torch.double)
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.02)


def test_draw_negatives_survives_a_row_without_any():
    allowed = torch.tensor([[False, False], [True, False]])
    for similarity in (torch.zeros(2, 2), torch.tensor([[1e4, -1e4], [-1e4, 1e4]])):
        drawn = draw_negatives(similarity, allowed)
        assert drawn[0] in (0, 1)
        assert drawn[1] == 0


def test_evaluation_takes_the_hardest_negatives_and_repeats_itself():
    model, batch = pretraining_model().eval(), tiny_batch()
    with torch.no_grad():
        first, second = model(**batch), model(**batch, alpha=0.4)
    assert first.loss_itm == second.loss_itm and first.loss_itc == second.loss_itc
    assert first.negative_itm_logits is None
    diagonal = torch.eye(4, dtype=torch.bool)
    similarity = first.text_features @ first.image_features.T
    by_hand = [F.cross_entropy(rows / model.albef.temperature, torch.arange(4)) for rows in (similarity, similarity.T)]
    assert first.loss_itc.item() == pytest.approx(sum(by_hand).item() / 2, rel=1e-5)
    hard_images, hard_texts = (rows.masked_fill(diagonal, -9).argmax(dim=1) for rows in (similarity, similarity.T))
    model.choose_negatives = lambda *_: (hard_images, hard_texts)
    given = model(**batch)
    assert first.loss_itm.item() == pytest.approx(given.loss_itm.item(), rel=1e-6)


# MLM ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_mlm_loss(alpha):
    model, batch = pretraining_model(), masked_batch()
    output = model(**batch, alpha=alpha)
    positions = [(i, j) for i in range(4) for j in (1, 2)]
    encoder, total = model.momentum_encoder, 0.0
    with torch.no_grad():
        ids, mask = batch["mlm_input_ids"], batch["attention_mask"]
        online = model.mlm_head(model.albef(batch["pixel_values"], ids, mask).last_hidden_state).double()
        key_values = encoder.text_model.project_images(encoder.vision_model(batch["pixel_values"]).last_hidden_state)
        states = encoder.text_model(ids, mask, image_key_values=key_values).last_hidden_state
        momentum = encoder.mlm_head(states).double()
    for i, j in positions:
        log_probabilities = log_softmax(online[i, j].tolist())
        soft = [math.exp(value) for value in log_softmax(momentum[i, j].tolist())]
        hard = -log_probabilities[batch["mlm_labels"][i, j]]
        distilled = -sum(p * q for p, q in zip(soft, log_probabilities))
        total += (1 - alpha) * hard + alpha * distilled
    assert output.loss_mlm.item() == pytest.approx(total / len(positions), rel=1e-5)
    expected = torch.stack([online[position] for position in positions]).float()
    torch.testing.assert_close(output.mlm_logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, output.loss_itc + output.loss_itm + output.loss_mlm)
    without = model(**tiny_batch(), alpha=alpha)
    assert without.loss_mlm is None and without.mlm_logits is None
    torch.testing.assert_close(without.loss, without.loss_itc + without.loss_itm)


@pytest.mark.parametrize("axis", ["vocabulary", "sequence"])
def test_no_masked_word_costs_nothing(axis):
    model, batch = pretraining_model(mlm_distillation_axis=axis), masked_batch()
    batch["mlm_labels"] = torch.full_like(batch["mlm_labels"], -100)
    loss = model(**batch, alpha=0.4).loss_mlm
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


def test_alpha_comes_from_the_configuration():
    state = pretraining_model().state_dict()
    losses = []
    for configured, given in ((0.7, None), (0.1, 0.7), (0.1, None)):
        model = AlbefForPreTraining(tiny_config(alpha=configured)).train()
        model.load_state_dict(state)
        losses.append(model(**masked_batch(), alpha=given).loss_mlm.item())
    assert losses[0] == losses[1] != losses[2]


# Momentum encoder and queues -----------------------------------------------------------------------------------------


def test_the_momentum_encoder_moves_a_little_towards_the_model():
    model = pretraining_model(momentum=0.9)
    before = state_of(model)
    model(**masked_batch())
    after = model.state_dict()
    copies = [name for name in before if name.startswith("momentum_encoder.")]
    assert len(copies) > 100
    for name in copies:
        original = name.removeprefix("momentum_encoder.")
        original = original if original.startswith("mlm_head") else f"albef.{original}"
        torch.testing.assert_close(after[name], 0.9 * before[name] + 0.1 * before[original])
        assert torch.equal(after[original], before[original])
    assert not model.momentum_encoder.training
    assert not any(parameter.requires_grad for parameter in model.momentum_encoder.parameters())


def test_where_a_file_has_other_sizes_the_momentum_encoder_is_a_copy(tmp_path):
    model = pretraining_model()
    model.save_pretrained(tmp_path)
    config = copy.deepcopy(model.config)
    config.text_config.vocab_size += 3
    loaded = AlbefForPreTraining.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    new = [pair for pair in loaded._momentum_pairs() if len(pair[0]) == config.text_config.vocab_size]
    assert len(new) == 2 and all(torch.equal(copied, original) for copied, original in new)
    assert torch.equal(loaded.image_queue, model.image_queue)


def test_the_queues_go_round():
    model, batch = pretraining_model(), tiny_batch(5)
    before, written = state_of(model), []
    for step in range(3):
        model(**batch, image_ids=torch.arange(5) + 10 * step)
        with torch.no_grad():
            (targets,) = model.eval().momentum_step([batch])
        model.train()
        written.append((targets.pairs.image_features, targets.pairs.text_features, targets.pairs.text_ids))
        assert model.queue_pointer.tolist() == [[5], [10], [3]][step]
        if step == 0:
            assert torch.equal(model.image_queue[5:], before["image_queue"][5:])
            assert model.image_id_queue.tolist() == [0, 1, 2, 3, 4] + [-1] * 7
    # Twelve rows: the third step's last three have overwritten the first step's first three.
    sources = [(2, 2), (2, 3), (2, 4), (0, 3), (0, 4), *((1, i) for i in range(5)), (2, 0), (2, 1)]
    assert model.image_id_queue.tolist() == [10 * step + row for step, row in sources]
    for position, (step, row) in enumerate(sources):
        torch.testing.assert_close(model.image_queue[position], written[step][0][row])
        torch.testing.assert_close(model.text_queue[position], written[step][1][row])
        assert model.text_id_queue[position] == written[step][2][row]


def test_evaluation_moves_nothing():
    model = pretraining_model().eval()
    before = state_of(model)
    output = model(**masked_batch(), output_heatmaps=True)
    assert torch.isfinite(output.loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_temperature_stays_in_its_range_and_trains_there():
    for value, expected in ((1e-5, 0.001), (2.0, 0.5), (0.2, 0.2)):
        model = pretraining_model()
        with torch.no_grad():
            model.albef.temperature.fill_(value)
        (model(**masked_batch()).loss + model(**masked_batch()).loss).backward()  # two passes before the backward pass
        assert model.albef.temperature.item() == pytest.approx(expected)
        assert model.albef.temperature.grad.isfinite() and model.albef.temperature.grad != 0


def test_one_momentum_step_for_two_micro_batches_equals_the_joined_batch():
    joined_model = pretraining_model()
    model = copy.deepcopy(joined_model)
    batch = {**masked_batch(), "image_ids": torch.tensor([1, 2, 1, 3])}  # one image is in both halves
    joined_model.choose_negatives = lambda *_: (torch.tensor([1, 0, 3, 2]),) * 2
    model.choose_negatives = lambda *_: (torch.tensor([1, 0]),) * 2
    joined = joined_model(**batch, output_heatmaps=True)
    joined.loss.backward()

    halves = [{name: values[part] for name, values in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    names = ("pixel_values", "input_ids", "attention_mask", "image_ids")
    targets = model.momentum_step([{name: half[name] for name in names} for half in halves])
    assert [target.position for target in targets] == [0, 2]
    after_step = state_of(model)
    outputs = [model(**half, momentum_targets=target, output_heatmaps=True) for half, target in zip(halves, targets)]
    (sum(output.loss for output in outputs) / 2).backward()

    for name in ("loss_itc", "loss_itm", "loss_mlm"):
        mean = sum(output[name].item() for output in outputs) / 2
        assert joined[name].item() == pytest.approx(mean, rel=1e-5), name
    torch.testing.assert_close(torch.cat([o.heatmaps for o in outputs]), joined.heatmaps, rtol=1e-4, atol=1e-7)
    expected = dict(joined_model.named_parameters())
    for name, parameter in model.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5)
    # The forward passes moved nothing a second time.
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, after_step[name])
        torch.testing.assert_close(tensor, joined_model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_phrases_that_share_an_image_equal_copies_of_it():
    shared_model = pretraining_model()
    copies_model, batch = copy.deepcopy(shared_model), masked_batch()
    index, ids = torch.tensor([1, 0, 1, 1]), torch.tensor([5, 6])
    images = batch.pop("pixel_values")[:2]
    for model in (shared_model, copies_model):
        model.choose_negatives = lambda *_: (torch.tensor([1, 0, 1, 1]), torch.tensor([1, 2, 1, 1]))
    shared = shared_model(images, **batch, image_index=index, image_ids=ids, output_heatmaps=True)
    copies = copies_model(images[index], **batch, image_ids=ids[index], output_heatmaps=True)
    for name in ("loss_itc", "loss_itm", "loss_mlm"):
        assert shared[name].item() == pytest.approx(copies[name].item(), rel=1e-5), name
    torch.testing.assert_close(shared.heatmaps, copies.heatmaps, rtol=1e-4, atol=1e-7)
    assert shared.image_features.shape == (2, 8)


# Fingerprints and errors ----------------------------------------------------------------------------------------------


def test_images_without_ids_are_unlike_those_of_processes_of_the_same_seed():
    ids = []
    for _ in range(2):
        torch.manual_seed(0)
        ids += unlike_any(3, torch.device("cpu")).tolist()
    assert len({*ids}) == 6 and min(ids) >= 0


def test_fingerprints_do_not_see_padding():
    ids = torch.randint(1, 30522, (6, 9))
    mask = (torch.arange(9) < torch.tensor([[3], [9], [5], [1], [8], [9]])).long()
    prints = text_fingerprints(ids, mask)
    other_padding = F.pad(ids.where(mask == 1, 17), (0, 4), value=3)
    assert torch.equal(text_fingerprints(other_padding, F.pad(mask, (0, 4))), prints)
    for i, length in enumerate(mask.sum(dim=1).tolist()):
        assert text_fingerprints(ids[i : i + 1, :length], None) == prints[i]
    assert ((prints >= 0) & (prints < 2**62)).all()


def test_fingerprints_of_different_texts_differ():
    ids = torch.randint(1, 30522, (3000, 6))
    ids[1000:2000] = ids[:1000].flip(1)  # the same words in another order
    ids[2000:] = ids[:1000]
    ids[2000:, 5] += 1  # one word differs
    assert len(text_fingerprints(ids, None).unique()) == len(ids.unique(dim=0))
    # A phrase and its beginning, a padding id that counts as a token.
    row = torch.tensor([[4, 5, 0]])
    prints = {text_fingerprints(row[:, :length], None).item() for length in (1, 2, 3)}
    assert len(prints) == 3


@pytest.mark.parametrize(
    "option",
    [
        *({"grounding_layer": 2}, {"explanation": "itc"}, {"heatmap_token_mask": torch.ones(4, 6)}),
        *({"output_token_heatmaps": True}, {"create_graph": True}, {"position_ids": torch.arange(6).expand(4, -1)}),
    ],
    ids=lambda option: min(option),
)
def test_what_the_model_inside_alone_reads_is_refused(option):
    with pytest.raises(ValueError, match=f"ALBEF reads no {min(option)} here: see AlbefModel"):
        AlbefForPreTraining(tiny_config())(**masked_batch(), output_heatmaps=True, **option)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_ids": torch.arange(5)}, r"image_ids must be 4 numbers, one an image, not \(5,\)"),
        ({"image_index": torch.arange(3)}, "image_index must be 4 whole numbers"),
        ({"pixel_values": torch.zeros(4, 3, 32, 36)}, "not a whole number of patches"),
    ],
)
def test_errors_leave_the_queues_alone(change, message):
    model = pretraining_model()
    queues = model.image_queue.clone(), model.queue_pointer.clone()
    with pytest.raises(ValueError, match=message):
        model(**{**tiny_batch(), **change})
    assert torch.equal(model.image_queue, queues[0])
    assert torch.equal(model.queue_pointer, queues[1])
