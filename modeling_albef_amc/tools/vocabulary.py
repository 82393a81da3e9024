"""A tokenizer for training from scratch on a small set of phrases."""

import string
from collections.abc import Iterable

from transformers import BertTokenizer, PreTrainedTokenizerFast

from ..tokenization_albef import albef_tokenizer, clean_text

SPECIAL_TOKENS = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


def tokenizer_from_texts(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Every word of the texts is one token, and any other word of Latin letters and digits falls into its characters.

    The vocabulary: BERT's five special tokens ([PAD] is 0), the distinct words after `clean_text` in sorted order, then
    single characters, then the same as continuations (`##a`).

    Returns: the tokenizer, with [CLS] in front and no [SEP].

    >>> tokenizer = tokenizer_from_texts(["A red dog!", "the tree"])
    >>> tokenizer.tokenize("red tree ox")
    ['red', 'tree', 'o', '##x']
    """
    backend = BertTokenizer().backend_tokenizer
    words = set()
    for text in texts:
        normalized = backend.normalizer.normalize_str(clean_text(text))
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized))
    characters = sorted({*string.ascii_lowercase, *string.digits, *"".join(words)})
    pieces = [*SPECIAL_TOKENS, *sorted(words), *characters, *(f"##{character}" for character in characters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return albef_tokenizer(BertTokenizer(vocab=vocabulary))
