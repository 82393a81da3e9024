"""Learning to tell right pairs from wrong ones in a batch, for models that have no loss for it in transformers."""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..gradcam import PhraseAttention
from ..modeling_albef_pretraining import text_fingerprints

NUM_CANDIDATES = 3


def known_matches(
    own_image: torch.Tensor,
    image_ids: torch.Tensor | None,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """`fits` of the phrases of a batch; arguments of `matching_loss`."""
    image_of = own_image if image_ids is None else image_ids[own_image]
    return fits(image_of, text_fingerprints(input_ids, attention_mask))


def fits(image_ids: torch.Tensor, text_ids: torch.Tensor) -> torch.Tensor:
    """(num_pairs, num_pairs) of bool: phrase i is known to fit the image of phrase j, its own or an equal phrase's.

    `image_ids`, `text_ids` (num_pairs,) are equal for equal images and for equal texts.
    """
    same_text, same_image = (ids[:, None] == ids for ids in (text_ids, image_ids))
    return same_text.float() @ same_image.float() > 0


def other_image(own_image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(num_phrases,): for each an image of the batch that it is not known to fit, drawn at random; without one, any."""
    exists = ~known.all(dim=1)
    probabilities = (~known).float().where(exists[:, None], 1.0)
    return own_image[torch.multinomial(probabilities, num_samples=1)[:, 0]]


def following_images(own_image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(NUM_CANDIDATES, num_phrases): as `other_image`, but images of the next phrases, the same every time."""
    rows = torch.arange(len(own_image), device=own_image.device)
    following = (rows[:, None] + rows + 1) % len(rows)
    wrong_first = following.gather(1, known.gather(1, following).int().argsort(dim=1, stable=True))
    num_wrong = (~known).sum(dim=1, keepdim=True).clamp(min=1)
    turns = torch.arange(NUM_CANDIDATES, device=rows.device) % num_wrong
    return own_image[wrong_first.gather(1, turns)].T


def matching_loss(  # noqa: PLR0913  a batch, and what is known of it
    model: PreTrainedModel,
    explain: Callable[..., PhraseAttention],
    true_pairs: PhraseAttention,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    own_image: torch.Tensor,
    image_ids: torch.Tensor | None = None,
    is_drawn: bool = False,
) -> torch.Tensor:
    """Cross-entropy of telling each phrase's own image from a hard negative: the wrong image that fits it best.

    The negative is the best by score of a few (3) images of the batch, drawn at random in training. A phrase for which
    there is no wrong image contributes its true pair only, or nothing where the model has no log-odds, which the loss
    then compares with each other: `softplus(wrong - right)` of the scores.

    Args:
        explain: the family's function. true_pairs: what it gave for the true pairs, in the graph.
        pixel_values: (num_images, 3, height, width). input_ids, attention_mask: (num_phrases, num_tokens).
        own_image: (num_phrases,), each phrase's image. image_ids: (num_images,), equal for equal images.
        is_drawn: in training the negative is one of the few by their chances, the softmax of the scores, as in ALBEF.
            The best alone keeps a model that cannot tell any pairs yet from learning to.

    Source: image-text matching with hard negatives, ALBEF §3.2 (arXiv 2107.07651), without a contrastive model to
    choose them.
    """
    known = known_matches(own_image, image_ids, input_ids, attention_mask)
    if model.training:
        candidates = torch.stack([other_image(own_image, known) for _ in range(NUM_CANDIDATES)])
    else:
        candidates = following_images(own_image, known)
    exists = ~known.all(dim=1)
    scores = scores_of_images(model, explain, candidates, pixel_values, input_ids, attention_mask)
    chosen = scores.argmax(dim=0)
    if is_drawn and model.training:
        chosen = torch.multinomial(scores.T.softmax(dim=1), num_samples=1)[:, 0]
    negative = candidates.gather(0, chosen[None])[0]
    wrong_pairs = explain(model, pixel_values, input_ids, attention_mask, negative, torch.is_grad_enabled())
    if true_pairs.match_logit is None:
        loss = F.softplus(wrong_pairs.score.float() - true_pairs.score.float())
        return loss.where(exists, 0).mean()
    right, wrong = F.softplus(-true_pairs.match_logit.float()), F.softplus(wrong_pairs.match_logit.float())
    return (right + wrong.where(exists, 0)).mean()


def caption_loss(
    model: PreTrainedModel,
    explain: Callable[..., PhraseAttention],
    true_pairs: PhraseAttention,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    own_image: torch.Tensor,
    image_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of a generative model's saying each phrase of its image: the mean over tokens, then phrases.

    Arguments: of `matching_loss`. Where it is the likelihood that is explained, that is what `true_pairs` have.
    """
    if true_pairs.match_logit is None:
        return -true_pairs.score.mean()
    batch = pixel_values, input_ids, attention_mask, own_image, torch.is_grad_enabled()
    return -explain(model, *batch, explanation="likelihood").score.mean()


def absent_loss(phrases: PhraseAttention, own_image: torch.Tensor, is_absent: torch.Tensor) -> torch.Tensor:
    """What a model learns from phrases of which people said that nothing in the image fits them; 0 where there is none.

    Cross-entropy of "does not fit" where the model has log-odds. One that only compares learns to score them lower than
    the image's true phrases in the batch: `softplus(absent - true)`. `own_image`, `is_absent`: (num_phrases,).
    """
    if phrases.match_logit is not None:
        losses, counts = F.softplus(phrases.match_logit.float()), is_absent
    else:
        score = phrases.score.float()
        losses = F.softplus(score[:, None] - score)
        counts = is_absent[:, None] & ~is_absent & (own_image[:, None] == own_image)
    return losses.where(counts, 0).sum() / counts.sum().clamp(min=1)


@torch.no_grad()
def scores_of_images(
    model: PreTrainedModel,
    explain: Callable[..., PhraseAttention],
    candidates: torch.Tensor,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """(num_candidates, num_phrases): how well the images of such numbers fit each phrase; zeros if they are all one.

    A GPU is not asked whether they are, for it would be waited for.
    """
    if candidates.device.type == "cpu" and (candidates == candidates[0]).all():
        return torch.zeros(candidates.shape, device=candidates.device)
    scores = []
    for images in candidates:
        pairs = explain(model, pixel_values, input_ids, attention_mask, images)
        scores.append((pairs.score if pairs.match_logit is None else pairs.match_logit).detach().float())
    return torch.stack(scores)
