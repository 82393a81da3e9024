"""How ALBEF reads a phrase: its cleaning, and BERT's word pieces with [CLS] in front and no [SEP] at the end.

The tokenizer is a plain `PreTrainedTokenizerFast` whose whole behaviour is in its `tokenizer.json`, so that
`AutoTokenizer` loads it without this code. `BertTokenizer` would not do: it puts the [SEP] back whenever it is loaded.
"""

import re
import string
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DROPPED_CHARACTERS = ",.'!?\"()*#:;~"
REPLACEMENTS = str.maketrans({**dict.fromkeys(DROPPED_CHARACTERS), "-": " ", "/": " "})


def clean_text(text: str, max_words: int = 50) -> str:
    """
    Lower-case, drop `, . ' ! ? " ( ) * # : ; ~`, turn `-` and `/` into blanks, collapse runs of white space, cut.

    Args:
        text: a phrase or caption. "<person>", by which some data sets hide names, becomes "person".
        max_words: number of words kept, words being what single blanks part: 50, and 30 for referring expressions.

    Raises:
        ValueError: `max_words` is not positive.
    """
    if max_words < 1:
        raise ValueError(f"max_words must be at least 1, got {max_words}")
    text = text.lower().translate(REPLACEMENTS).replace("<person>", "person")
    # A single tab or line break inside the text stays: word pieces part there too.
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def albef_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """
    A copy of a BERT tokenizer that puts [CLS] in front and nothing at the end, as ALBEF's weights were trained.

    Args:
        tokenizer: a stock BERT tokenizer, or any other of the tokenizers library that has a [CLS] and a padding token.
            It is left as it is.

    Raises:
        ValueError: it is not backed by the tokenizers library, or has no [CLS] or no padding token.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is not backed by the tokenizers library: pass a BertTokenizer")
    if tokenizer.cls_token is None or tokenizer.pad_token is None:
        raise ValueError(
            f"{type(tokenizer).__name__} needs a cls_token and a pad_token: set both, or pass a BertTokenizer"
        )
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    # The last call's truncation and padding stick to the backend; as defaults they would cut later phrases silently.
    backend.no_truncation()
    backend.no_padding()
    cls_token = str(tokenizer.cls_token)
    backend.post_processor = TemplateProcessing(
        single=f"{cls_token} $A", pair=f"{cls_token} $A $B", special_tokens=[(cls_token, tokenizer.cls_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokenizer.special_tokens_map,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=["input_ids", "attention_mask"],
    )


def tokenizer_from_texts(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """
    A tokenizer for training from scratch on a small set of phrases: every word of theirs is one token, and any other
    word of Latin letters and digits falls into its characters.

    The vocabulary: BERT's five special tokens ([PAD] is 0), the distinct words after `clean_text` in sorted order, then
    single characters, then the same as continuations (`##a`).

    Args:
        texts: phrases as they stand in the data.
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


__all__ = ["albef_tokenizer", "clean_text", "tokenizer_from_texts"]
