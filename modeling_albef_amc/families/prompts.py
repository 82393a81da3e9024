"""How a generative model is asked about a phrase: its chat template around it, cut into token ids once and for all."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

QUESTION = "Does the image show {}? Answer yes or no."
REQUEST, ANSWER = "What does the image show?", "The image shows {}"
# Phrases to look for in a whole prompt; their first and last words differ.
SAMPLES = "a black cat", "the man on the left", "two dogs"


@dataclass(frozen=True)
class Prompt:
    """Token ids around an image and a phrase; what is there of the image depends on its size.

    - `before`: what comes before the image. `row_end`: what is between two rows of its patches.
    - `question`, `after`: between the image and the phrase, and behind the phrase, where the answer is yes or no.
    - `yes`, `no`: the first token of each answer; None of a model that is asked nothing.
    - `caption`: between the image and the phrase, where the phrase is (the end of) the answer.
    - `lead`: what a phrase is tokenized with in front of it, to be what it is within a text.
    """

    before: list[int]
    question: list[int]
    after: list[int]
    caption: list[int]
    yes: int | None
    no: int | None
    row_end: list[int]
    lead: str = ""

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Prompt":
        """The prompt that a model's configuration holds; ValueError: none has been made."""
        if "grounding" not in vars(config):
            raise ValueError(
                f"How to ask this {config.model_type} about a phrase is not known yet: call whole_images(processor, "
                "model.config) with its processor, as AutoGrounder and AmcTrainer do."
            )
        return cls(**config.grounding["prompt"])

    def keep(self, config: PreTrainedConfig, **more: Any) -> None:
        """Writes it into the configuration, with which it is saved."""
        config.grounding = {**vars(config).get("grounding", {}), "prompt": asdict(self), **more}


@dataclass(frozen=True)
class ImageText:
    """What a family's processor makes of the place of an image in a text.

    Args:
        place: what the chat template puts there; None: the image token itself.
        text: what that becomes, with the image token, "{}", once. row_end: token between two rows of patches.
        plain: the whole text where there is no chat template, with "{}" for what is said; None: there must be one.
        answers: yes and no as the model says them. token: stands for an image; None: `config.image_token_id`.
    """

    place: str | None = None
    text: str = "{}"
    row_end: str | None = None
    plain: str | None = None
    answers: tuple[str, str] = ("Yes", "No")
    token: str | None = None


@dataclass(frozen=True)
class ChatTemplate:
    """A model's own way to put an image and a text into a prompt. Arguments and errors: of `make_prompt`."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    image_text: ImageText

    @property
    def image_id(self) -> int:
        token = self.image_text.token
        return self.config.image_token_id if token is None else self.tokenizer.convert_tokens_to_ids(token)

    def text(self, said: str) -> str:
        """The whole prompt, as far as the answer."""
        tokenizer, plain = self.tokenizer, self.image_text.plain
        image = tokenizer.convert_ids_to_tokens(self.image_id)
        if self.chat_template is None and plain is None:
            raise ValueError(f"There is no chat template to ask this {self.config.model_type} by: set the tokenizer's.")
        if self.chat_template is None:
            return plain.format(said, image=image, bos=tokenizer.bos_token or "")
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": said}]}]
        options = dict(chat_template=self.chat_template, tokenize=False, add_generation_prompt=True)
        whole, place = tokenizer.apply_chat_template(chat, **options), self.image_text.place or image
        if whole.count(place) != 1:
            raise ValueError(f"The chat template has {whole.count(place)} places ({place}) for one image.")
        return whole.replace(place, self.image_text.text.format(image))

    def encode(self, text: str) -> list[int]:
        has_own = text.startswith(self.tokenizer.bos_token or "\0") or self.image_text.plain is not None
        return self.tokenizer(text, add_special_tokens=not has_own)["input_ids"]

    def gap(self, text: str) -> str:
        """What is between a text and what goes on from it."""
        is_apart = text[-1].isspace() or self.encode(text)[-1] in self.tokenizer.all_special_ids
        return "" if is_apart else " "

    def cut(self, text_of: Callable[[str], str], *leads: str) -> tuple[list[int], list[int], list[int], str]:
        """Token ids before and behind the image, and behind the phrase; and the lead of a phrase."""
        wholes = [self.encode(text_of(sample)) for sample in SAMPLES]
        for lead in leads:
            phrases = [self.tokenizer(lead + sample, add_special_tokens=False)["input_ids"] for sample in SAMPLES]
            for start in range(len(wholes[0])):
                front, back = wholes[0][:start], wholes[0][start + len(phrases[0]) :]
                if all(whole == [*front, *phrase, *back] for whole, phrase in zip(wholes, phrases)):
                    if self.image_id not in front:
                        raise ValueError("The chat template puts the image behind the text, which does not see it.")
                    at = front.index(self.image_id)
                    return front[:at], front[at + 1 :], back, lead
        raise ValueError(
            f"A phrase has other tokens in a prompt than alone, which cannot be cut: {text_of(SAMPLES[0])!r}"
        )

    def answer(self, word: str) -> int:
        """The token that begins an answer."""
        text = self.text(QUESTION.format(SAMPLES[0]))
        whole, gap = self.encode(text), self.gap(text)
        for spoken in (gap + word, gap + word.lower(), word, word.lower()):
            *start, last = self.encode(text + spoken)
            if start == whole:
                return last
        raise ValueError(f"{word!r} is no single token of {type(self.tokenizer).__name__}: yes and no must be.")


def make_prompt(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, chat_template: str | None, image_text: ImageText
) -> Prompt:
    """Cuts the model's own chat template into a `Prompt`.

    Raises ValueError: it puts the image behind the phrase or leaves it out; yes and no are not two single tokens; or
        the pieces, tokenized apart, are not the whole.
    """
    template, row_end = ChatTemplate(config, tokenizer, chat_template, image_text), image_text.row_end
    if tokenizer.convert_ids_to_tokens(template.image_id) is None:
        raise ValueError(f"The tokenizer has no token {template.image_id}, which is this model's image token.")
    before, question, after, lead = template.cut(lambda sample: template.text(QUESTION.format(sample)), "", " ")
    yes, no = map(template.answer, image_text.answers)
    if yes == no:
        raise ValueError("yes and no are the same token of this tokenizer (unknown words?): it cannot answer.")
    request = template.text(REQUEST)
    request += template.gap(request)
    _, caption, rest, _ = template.cut(lambda sample: request + ANSWER.format(sample), lead)
    if rest:
        raise ValueError(f"This tokenizer puts {rest} behind a text that is to go on: do without its special tokens.")
    ends = [] if row_end is None else tokenizer.convert_tokens_to_ids([row_end])
    return Prompt(before, question, after, caption, yes, no, ends, lead)
