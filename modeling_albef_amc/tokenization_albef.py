"""How ALBEF reads a phrase: its cleaning, and BERT's word pieces with [CLS] in front and no [SEP] at the end.

The tokenizer is a plain `PreTrainedTokenizerFast`: `BertTokenizer` puts the [SEP] back whenever it is loaded.
"""

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.processing_utils import TextKwargs

DROPPED_CHARACTERS = ",.'!?\"()*#:;~"
# A backend that was saved while it cut or padded gives these whenever it is loaded; nobody asked for them.
OF_LAST_CUT = {"max_length", "stride"}
OF_LAST_PADDING = {"max_length", "pad_to_multiple_of"}
KEPT = ("name_or_path", "extra_special_tokens", "split_special_tokens", "clean_up_tokenization_spaces")
KEPT += ("chat_template", "response_template", "chat_control_tokens")
REPLACEMENTS = str.maketrans({**dict.fromkeys(DROPPED_CHARACTERS), "-": " ", "/": " "})


def clean_text(text: str, max_words: int = 50) -> str:
    """Lower-cases, drops `, . ' ! ? " ( ) * # : ; ~`, turns `-` and `/` into blanks, collapses white space, cuts.

    Args:
        text: a phrase or caption. "<person>", by which some data sets hide names, becomes "person".
        max_words: number of words kept: 50, and 30 for referring expressions.

    Returns: the words, parted by single blanks; "" where nothing is left.

    >>> clean_text("A <person>'s two-story house!")
    'a persons two story house'
    """
    if max_words < 1:
        raise ValueError(f"max_words must be at least 1, got {max_words}")
    check_characters(text)
    return " ".join(cleaned_words(text)[:max_words])


def check_characters(text: str) -> None:
    """ValueError: half a character is in the text, as JSON can write it ("\\ud83d" without what follows)."""
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"half a character (a lone surrogate) is in {text!r:.80}: decode it anew or leave it out")


def is_blank(text: str) -> bool:
    """Whether there is nothing in it to see; of zero-width blanks, too, tokenizers leave nothing."""
    return not any(each.isprintable() and each != " " for each in text)


def cleaned_words(text: str) -> list[str]:
    """All words of a text after the cleaning of `clean_text`."""
    text = text.lower().translate(REPLACEMENTS).replace("<person>", "person")
    # A single tab or line break inside the text stays: word pieces part there too.
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return text.split(" ") if text else []


def cleaned_span(text: str, span: Sequence[int], max_words: int = 50) -> tuple[int, int]:
    """Where words of a caption, as of `span_characters`, are in `clean_text(text, max_words)`.

    >>> start, end = cleaned_span("A two-story house!", (1, 3))
    >>> clean_text("A two-story house!")[start:end]
    'two story house'
    """
    span_characters(text, span)
    words, (first, end) = text.split(" "), span
    # The blank after the words keeps what ends and what begins with white space apart, as in the whole caption.
    before, until = (len(cleaned_words(" ".join([*words[:number], ""]))) for number in (first, end))
    if before == until:
        raise ValueError(f"nothing is left of {words[first:end]} after cleaning: leave the phrase out")
    if before >= max_words:
        raise ValueError(f"{words[first:end]} lies behind the {max_words} words that are kept (max_words)")
    return span_characters(clean_text(text, max_words), (before, min(until, max_words)))


def span_characters(text: str, span: Sequence[int]) -> tuple[int, int]:
    """(start, end) in characters of the words `text.split(" ")[first:end]`, where `span` is (first, end)."""
    words = text.split(" ")
    is_pair = isinstance(span, list | tuple) and len(span) == 2 and all(isinstance(number, int) for number in span)
    if not (is_pair and 0 <= span[0] < span[1] <= len(words)):
        raise ValueError(f"the span {span!r} must be (first, end) with 0 <= first < end <= {len(words)}, the words")
    first, end = span
    start = sum(len(word) + 1 for word in words[:first])
    return start, start + len(" ".join(words[first:end]))


def albef_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer that puts [CLS] in front and nothing at the end, as ALBEF's weights were trained."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is not backed by the tokenizers library: pass a BertTokenizer")
    if tokenizer.cls_token is None or tokenizer.pad_token is None:
        raise ValueError(f"{type(tokenizer).__name__} needs a cls_token and a pad_token: pass a BertTokenizer")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    # The last call's truncation and padding stick to the backend; as defaults they would cut later phrases silently.
    backend.no_truncation()
    backend.no_padding()
    cls_token = str(tokenizer.cls_token)
    backend.post_processor = TemplateProcessing(
        single=f"{cls_token} $A", pair=f"{cls_token} $A $B", special_tokens=[(cls_token, tokenizer.cls_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **init_arguments(tokenizer), model_input_names=["input_ids", "attention_mask"]
    )


def init_arguments(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a plain `PreTrainedTokenizerFast` of the same backend must be built with to do as this tokenizer does now.

    Not what was meant for an image processor loaded by the same call: a processor would give it to that again.
    """
    loaded = tokenizer.init_kwargs
    defaults = set(TextKwargs.__annotations__) & set(loaded)
    if loaded.get("padding") != "max_length" and not loaded.get("truncation"):
        defaults -= OF_LAST_CUT if "truncation_strategy" in loaded else set()
        defaults -= OF_LAST_PADDING if "pad_token_type_id" in loaded else set()
    return {
        **{name: loaded[name] for name in defaults},
        **{name: value for name in KEPT if (value := getattr(tokenizer, name, None))},
        **tokenizer.special_tokens_map,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }
