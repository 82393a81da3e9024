"""Phrases grounded in their captions: which word pieces a span is, and the maps of these, everywhere."""

import json
import random
import re
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModel, BertTokenizer

from dataset_scripts.flickr30k_entities import read_sentences
from modeling_albef_amc import AlbefImageProcessorPil, AlbefProcessor, AutoGrounder
from modeling_albef_amc.families.processors import tokenize_phrases
from modeling_albef_amc.families.registry import FAMILIES
from modeling_albef_amc.gradcam import choose_tokens, gradcam
from modeling_albef_amc.processing_albef import post_process_grounding
from modeling_albef_amc.tokenization_albef import clean_text
from modeling_albef_amc.tools.vocabulary import tokenizer_from_texts
from tests.helpers.data import blip_processor, picture, tiny_albef, tiny_processor, tiny_records, write_folder
from tests.helpers.evaluation import evaluate, files, rows, run_ground, save_checkpoint
from tests.helpers.grounding import build, same
from tests.helpers.models import TINY, slow_siglip_processor, tiny_blip, tiny_family_processor
from trainer.blocks import by_image

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "##s", "two", "story", "house", "tree"]


@pytest.fixture
def processor() -> AlbefProcessor:
    tokenizer = BertTokenizer(vocab={piece: index for index, piece in enumerate(VOCABULARY)})
    return AlbefProcessor(AlbefImageProcessorPil(size={"height": 16, "width": 32}), tokenizer)


# --- which word pieces -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "span", "pieces", "mask"),
    [
        ("A red dog", (1, 3), "[CLS] a red dog", "0011"),
        ("Two , dogs ' house", (2, 3), "[CLS] two dog ##s house", "00110"),
        ("Two , dogs ' house", [1, 3], "[CLS] two dog ##s house", "00110"),
        ("a two-story/red house .", (1, 2), "[CLS] a two story red house", "001110"),
        ('" A dog , " red', (0, 2), "[CLS] a dog red", "0100"),
        ("... a (dog)", (2, 3), "[CLS] a dog", "001"),
        ("a - dogs", (1, 3), "[CLS] a dog ##s", "0011"),
        ("a -dog- red", (2, 3), "[CLS] a dog red", "0001"),
        ("red & dog", (2, 3), "[CLS] red [UNK] dog", "0001"),
        ("<person> 's dog", (2, 3), "[CLS] [UNK] [UNK] dog", "0001"),
        ("a  dog", (2, 3), "[CLS] a dog", "001"),
        ("  a dog ", (3, 4), "[CLS] a dog", "001"),
        ("a \tdog red", (1, 2), "[CLS] a dog red", "0010"),
        ("a\tdog red", (1, 2), "[CLS] a dog red", "0001"),
        ("\t a dog\n", (1, 2), "[CLS] a dog", "010"),
        ("a r\u00e9d dog", (1, 2), "[CLS] a red dog", "0010"),
        ("\u0130 re\u0301d dog", (1, 2), "[CLS] [UNK] red dog", "0010"),  # its lower case is two characters
    ],
)
def test_spans_by_hand(processor, caption, span, pieces, mask):
    encoded = processor(text=caption, phrase_spans=span)
    assert processor.tokenizer.convert_ids_to_tokens(encoded["input_ids"][0]) == pieces.split()
    assert encoded["heatmap_token_mask"] == [[int(value) for value in mask]]
    assert encoded["input_ids"] == processor(text=caption)["input_ids"]


@pytest.mark.shared
def test_phrases_of_real_captions_have_the_pieces_they_have_alone(shared_dir):
    """Of Flickr30k Entities' sentences the marked phrases; of many more captions words at random."""
    random.seed(0)
    asked = []
    for path in sorted((shared_dir / "data/flickr30k_entities/Sentences").glob("*.txt")):
        for sentence in read_sentences(path):
            asked += [(sentence.words, phrase.first, phrase.end) for phrase in sentence.phrases]
    assert len(asked) > 10
    for record in json.loads((shared_dir / "data/albef_json/flickr30k_test.json").read_text()):
        captions = [record["caption"]] if isinstance(record["caption"], str) else record["caption"]
        for words in (caption.split(" ") for caption in captions):
            asked.append((words, *sorted(random.sample(range(len(words) + 1), 2))))
    asked = [(words, first, end) for words, first, end in asked if clean_text(" ".join(words[first:end]))]
    captions, phrases = [" ".join(words) for words, _, _ in asked], [" ".join(w[first:end]) for w, first, end in asked]
    processor = AlbefProcessor(AlbefImageProcessorPil(), tokenizer_from_texts(captions[::2]), max_words=1000)
    encoded = processor(text=captions, phrase_spans=[(first, end) for _, first, end in asked])
    alone = processor(text=phrases, padding=False)["input_ids"]
    for ids, chosen, expected in zip(encoded["input_ids"], encoded["heatmap_token_mask"], alone, strict=True):
        assert [token for token, is_chosen in zip(ids, chosen, strict=True) if is_chosen] == expected[1:]


def test_spans_that_are_cut(processor):
    cut = processor(text="a , red dog", phrase_spans=(2, 4), max_words=2)
    assert (cut["input_ids"], cut["heatmap_token_mask"]) == ([[2, 5, 6]], [[0, 0, 1]])
    assert processor(text="two dogs", phrase_spans=(1, 2), max_length=3)["heatmap_token_mask"] == [[0, 0, 1]]
    assert processor(text="red", phrase_spans=(0, 1), max_length=4, padding="max_length")["heatmap_token_mask"] == [
        [0, 1, 0, 0]
    ]


def test_spans_are_laid_out_like_text(processor):
    photo = Image.new("RGB", (8, 8))
    nested = processor(
        images=[photo] * 3, text=[["a dog", "red"], [], ["house a"]], phrase_spans=[[(1, 2), None], [], [(0, 1)]]
    )
    assert nested["heatmap_token_mask"] == [[0, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert nested["image_index"] == [0, 0, 2]
    flat = processor(text=["a dog", "red"], phrase_spans=[None, (0, 1)], return_tensors="pt")
    assert flat["heatmap_token_mask"].tolist() == [[1, 1, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("caption", "span", "message"),
    [
        ("a , dog", (1, 2), r"phrase 0 \('a , dog'\): nothing is left of \[','\] after cleaning"),
        ("a red dog", (2, 3), r"phrase 0 .*\['dog'\] lies behind the 2 words that are kept \(max_words\)"),
        ("a \u200b dog", (1, 2), r"phrase 0 .*no token is left of the words of the span \(1, 2\)"),
        ("a dog", (1, 1), r"the span \(1, 1\) must be \(first, end\) with 0 <= first < end <= 2"),
        ("a dog", (-1, 1), "must be"),
        ("a dog", (0, 3), "must be"),
        ("a dog", (0.0, 1.0), "must be"),
        ("a dog", [1], "must be"),
        ("a dog", "ab", "must be"),
        (["a dog", "red"], [(0, 1), (1, 2)], r"phrase 1 \('red'\): the span \(1, 2\)"),
        (["a dog", "red"], [(0, 1)], r"laid out like text.*\[\(0, 1\)\] does not fit \['a dog', 'red'\]"),
        (["a dog"], (0, 1), "laid out like text"),
        ([["a dog"], ["red"]], [[(0, 1)], None], r"None does not fit \['red'\]"),
        ([["a dog"], ["red"]], [[(0, 1)], [None, None]], "laid out like text"),
        (None, (0, 1), "phrase_spans needs the captions"),
        (["a red", "a red dog"], [(1, 2), (2, 3)], r"phrase 1 .*no token is left of the words of the span \(2, 3\)"),
    ],
)
def test_spans_that_are_refused(processor, caption, span, message):
    image = Image.new("RGB", (8, 8)) if caption is None else None
    cut = {"max_length": 3} if "2, 3" in message else {"max_words": 2}
    with pytest.raises(ValueError, match=message):
        processor(images=image, text=caption, phrase_spans=span, **cut)


# --- their maps ------------------------------------------------------------------------------------------------------

CAPTION = "Here , the very-small red square ; on the left !"
CLEANED = "here the very small red square on the left"
# Span of words in CAPTION → positions of its word pieces by hand, [CLS] being 0: after ALBEF's cleaning, and where
# punctuation has tokens of its own.
POSITIONS = {
    (2, 6): ([2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8]),
    (7, 10): ([7, 8, 9], [10, 11, 12]),
    (0, 1): ([1], [1]),
    (4, 5): ([5], [7]),
}


def close(actual, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), expected, rtol=1e-5, atol=1e-5 * expected.max().item())


def test_processor_and_model_average_the_maps_of_the_words():
    model, processor = tiny_albef().albef.eval(), tiny_processor()
    spans = list(POSITIONS)
    inputs = processor(images=picture(), text=[CAPTION] * 4, phrase_spans=spans, return_tensors="pt")
    heatmaps = model(**inputs, output_heatmaps=True).heatmaps
    plain = processor(images=picture(), text=CLEANED, return_tensors="pt")
    token_heatmaps = model(**plain, output_token_heatmaps=True).token_heatmaps[0]
    for heatmap, span in zip(heatmaps, spans, strict=True):
        close(heatmap, token_heatmaps[POSITIONS[span][0]].mean(dim=0))
    assert len({tuple(heatmap.flatten().tolist()) for heatmap in heatmaps}) == 4


def test_other_families_are_asked_as_they_stand():
    model, processor = tiny_blip().eval(), blip_processor()
    inputs = tokenize_phrases(processor, [CAPTION, "red square"], spans=[(2, 6), None])
    assert inputs.keys() == {"input_ids", "attention_mask", "heatmap_token_mask"}
    assert inputs["heatmap_token_mask"][0].nonzero()[:, 0].tolist() == POSITIONS[2, 6][1]
    assert inputs["heatmap_token_mask"][1].tolist() == inputs["attention_mask"][1].tolist()
    with pytest.raises(ValueError, match=r"phrase 0 .*the span \(9, 12\) must be"):
        tokenize_phrases(processor, [CAPTION], spans=[(9, 12)])
    with pytest.raises(ValueError, match=r"ByT5Tokenizer does not tell which tokens .*: pass phrases without"):
        tokenize_phrases(slow_siglip_processor(), [CAPTION], spans=[(2, 6)])
    pixels = processor(images=picture(), return_tensors="pt")["pixel_values"]
    explained = FAMILIES["blip"].explain(model, pixels, inputs["input_ids"], inputs["attention_mask"])
    with pytest.raises(ValueError, match=r"\(2, 3\) tokens to choose from \(2, 14\)"):
        choose_tokens(explained, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("family", "num_rows", "options"),
    [("blip-2", 4, {}), ("kosmos-2", 4, {}), ("clip", 16, {}), ("albef", 16, {"explanation": "itc"})],
)
def test_captions_where_words_have_no_maps(family, num_rows, options):
    """Also of as many tokens as the attention has rows, which are queries or patches."""
    model, processor = tiny_albef().eval(), tiny_processor()
    if family != "albef":
        model, processor = TINY[family](), tiny_family_processor(family, [CAPTION])
    grounder = AutoGrounder(model, processor, device="cpu")
    for num_words in range(1, num_rows + 2):
        asked = {"caption": " ".join(["red"] * num_words), "caption_span": (0, 1)}
        with pytest.raises(ValueError, match="This explanation has no maps of words"):
            grounder.ground(picture(), [asked], **options)


# --- the evaluation engine -------------------------------------------------------------------------------------------


def records_in_captions(count: int = 8) -> list[dict]:
    """Two phrases a photo, from the caption above."""
    records = tiny_records(count, phrases_per_image=2)
    for row, record in enumerate(records):
        first, end = list(POSITIONS)[row % 4]
        phrase = " ".join(CAPTION.split(" ")[first:end])
        record |= {"caption": CAPTION, "caption_span": [first, end], "phrase": phrase}
    return records


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "captions", test=records_in_captions())


def test_the_engine_averages_the_maps_of_the_words(checkpoint, data, tmp_path):
    evaluate(checkpoint, data, tmp_path, "--in_caption", "--save_heatmaps")
    model, processor = AutoModel.from_pretrained(checkpoint).eval(), AlbefProcessor.from_pretrained(checkpoint)
    photos = datasets.load_dataset(str(data), split="test")["image"]
    found = rows(tmp_path)
    for row, record, photo in zip(found, records_in_captions(), photos, strict=True):
        assert row["phrase"] == record["phrase"] and row["error"] is None
        inputs = processor(images=photo.convert("RGB"), text=CLEANED, return_tensors="pt")
        output = model(**inputs, output_token_heatmaps=True)
        close(row["heatmap"], output.token_heatmaps[0, POSITIONS[tuple(record["caption_span"])][0]].mean(dim=0))
        assert row["score"] == pytest.approx(output.itm_logits.softmax(-1)[0, 1].item(), rel=1e-4)
    assert found[0]["score"] == found[1]["score"], "the score is not the caption's"


def test_the_engine_on_another_family(data, tmp_path):
    model, processor = tiny_blip().eval(), blip_processor()
    model.save_pretrained(tmp_path / "blip")
    processor.save_pretrained(tmp_path / "blip")
    run_ground(tmp_path / "blip", data, tmp_path / "out", "--in_caption", "--save_heatmaps")
    photos = datasets.load_dataset(str(data), split="test")["image"]
    for row, record, photo in zip(rows(tmp_path / "out"), records_in_captions(), photos, strict=True):
        inputs = processor(images=photo.convert("RGB"), text=[CAPTION], return_tensors="pt")
        token_heatmaps = gradcam(FAMILIES["blip"].explain(model, **inputs), per_token=True)[0]
        close(row["heatmap"], token_heatmaps[POSITIONS[tuple(record["caption_span"])][1]].mean(dim=0))


def test_results_say_how_was_asked(checkpoint, data, tmp_path, capsys):
    for name, more in {"alone": [], "in captions": ["--in_caption", "--gallery", "1"]}.items():
        results = evaluate(checkpoint, data, tmp_path / name, "--benchmark", "flickr30k", *more)
        protocol = json.loads((tmp_path / name / "report.json").read_text())["protocol"]
        assert ("caption" in protocol["text"]) == (name == "in captions")
        label = "tiny" if name == "alone" else "tiny, in captions"
        table = (tmp_path / name / "table.md").read_text()
        assert re.search(rf"\| {label} +\| +{100 * results['tiny']['test']:.2f} \|", table)
    assert (tmp_path / "in captions" / "gallery-tiny-test.png").is_file()


def test_records_of_both_kinds_do_not_mix(checkpoint, data, tmp_path):
    run_ground(checkpoint, data, tmp_path / "out", "--in_caption")
    whole = files(tmp_path / "out")
    with pytest.raises(ValueError, match=r"other settings \(protocol: .*the caption.*now .*the phrase alone"):
        run_ground(checkpoint, data, tmp_path / "out")
    assert files(tmp_path / "out") == whole
    (tmp_path / "out" / "data" / sorted(whole)[1]).unlink()
    run_ground(checkpoint, data, tmp_path / "out", "--in_caption")
    assert files(tmp_path / "out") == whole
    run_ground(checkpoint, data, tmp_path / "alone")
    assert files(tmp_path / "alone") != whole


def test_records_that_cannot_be_used(checkpoint, tmp_path):
    records = records_in_captions()
    reasons = {
        1: ({"caption": None}, "it has no caption to ground"),
        2: ({"caption_span": []}, "it has no caption_span, which says"),
        4: ({"caption_span": [1, 2]}, "nothing is left of [','] after cleaning"),
        5: ({"caption_span": [7, 12]}, "the span [7, 12] must be"),
        6: ({"caption": "red " * 25 + "square"}, "has 27 word pieces, the model takes 20"),
        7: ({"caption": "..."}, "is empty after cleaning"),
    }
    for row, (change, _) in reasons.items():
        records[row] |= change
    folder = write_folder(tmp_path / "broken", test=records)
    run_ground(checkpoint, folder, tmp_path / "out", "--in_caption")
    found = rows(tmp_path / "out")
    assert {number for number, row in enumerate(found) if row["error"] is not None} == set(reasons)
    for row, (_, reason) in reasons.items():
        assert reason in found[row]["error"] and found[row]["point"] is None
    whole = write_folder(tmp_path / "whole", test=records_in_captions())
    run_ground(checkpoint, whole, tmp_path / "of_whole", "--in_caption")
    expected = rows(tmp_path / "of_whole")
    assert [found[number]["point"] for number in (0, 3)] == [expected[number]["point"] for number in (0, 3)]
    with pytest.raises(ValueError, match=r"image 'scene-0', phrase .*: it has no caption to ground"):
        run_ground(checkpoint, folder, tmp_path / "strict", "--in_caption", "--strict")
    bare = write_folder(tmp_path / "bare", test=tiny_records(3))
    with pytest.raises(ValueError, match=r"no record that can be used; the first: .*no caption"):
        evaluate(checkpoint, bare, tmp_path / "of_bare", "--in_caption")


def test_several_phrases_of_a_caption_in_a_row(checkpoint, tmp_path):
    """Columns of other names; a row with several phrases has a span for each."""
    photo, spans = tiny_records(1)[0]["image"], [list(span) for span in POSITIONS]
    phrases = [" ".join(CAPTION.split(" ")[slice(*span)]) for span in spans]
    columns = {"image": [photo], "chunks": [phrases], "text": [CAPTION], "at": [spans]}
    (tmp_path / "photos" / "data").mkdir(parents=True)
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    dataset.to_parquet(tmp_path / "photos" / "data" / "test-00000.parquet")
    renamed = ["--columns", "phrase=chunks", "caption=text", "caption_span=at"]
    run_ground(checkpoint, tmp_path / "photos", tmp_path / "out", "--in_caption", "--save_heatmaps", *renamed)
    found = pq.read_table(tmp_path / "out" / "data").to_pylist()
    expected = [{**tiny_records(1)[0], "caption": CAPTION, "caption_span": span, "phrase": "x"} for span in spans]
    folder = write_folder(tmp_path / "singly", test=expected)
    run_ground(checkpoint, folder, tmp_path / "of_single", "--in_caption", "--save_heatmaps")
    for row, other, phrase in zip(found, rows(tmp_path / "of_single"), phrases, strict=True):
        assert row["phrase"] == phrase and row["point"] == other["point"]
        close(row["heatmap"], torch.tensor(other["heatmap"]))
    with pytest.raises(ValueError, match="caption_span has 2 entries for 3 phrases"):
        list(by_image([{"phrase": ["a", "b", "c"], "caption": "a b c", "caption_span": [0, 1]}]))


# --- the pipeline ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["albef", "blip"])
def test_the_pipeline_finds_words_of_a_caption(family):
    ground, photo = build(family), picture()
    words = [{"caption": CAPTION, "caption_span": span} for span in POSITIONS]
    answers = ground(photo, ["the red square", *words], phrase_batch_size=3)
    (alone,) = ground(photo, "the red square")
    assert answers[0]["phrase"] == "the red square" and answers[0]["point"] == alone["point"]
    close(answers[0]["heatmap"], torch.tensor(alone["heatmap"]))
    assert [answer["phrase"] for answer in answers[1:]] == ["the very-small red square", "on the left", "Here", "red"]
    inputs = ground.processor(images=photo, text=[CAPTION], return_tensors="pt")
    explained = FAMILIES[family].explain(ground.model, **inputs)
    token_heatmaps = gradcam(explained, per_token=True)[0]
    for answer, positions in zip(answers[1:], POSITIONS.values(), strict=True):
        expected = token_heatmaps[positions[family == "blip"]].mean(dim=0)
        (found,) = post_process_grounding(expected[None], (photo.height, photo.width))
        close(answer["heatmap"], found["heatmap"])
        assert answer["score"] == pytest.approx(explained.probability.item(), abs=1e-5)


def test_words_of_captions_in_records_and_batches():
    ground = build("albef")
    words = {"caption": CAPTION, "caption_span": [2, 6]}
    photos = [picture(), picture(50, 30), picture(33, 44)]
    records = [{"image": photos[0], "phrases": words}, {"image": photos[1], "phrases": ["red square here", words]}]
    records.append({"image": photos[2], "phrases": ["blue square"]})
    expected = [ground(record) for record in records]
    for batch_size in (1, 3):
        for answers, wanted in zip(ground(records, batch_size=batch_size), expected, strict=True):
            same(answers, wanted)
    assert expected[0][0]["phrase"] == "the very-small red square"
    same(ground(photos, words)[0], expected[0])


def test_words_without_a_map_are_warned_of(recwarn):
    """At the last layer, layer 4, the score is read of [CLS] alone."""
    ground, words = build("albef"), {"caption": CAPTION, "caption_span": [2, 6]}
    ground(picture(), [words, "red"], grounding_layer=3)
    ground(picture(), "red", grounding_layer=4)
    assert ground(picture(), words, grounding_layer=4, method="attention")[0]["heatmap"].any()
    assert not [warning for warning in recwarn if "grounding_layer" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"heatmaps of zeros, as at a last layer.*earlier grounding_layer"):
        assert not ground(picture(), ["red", words], grounding_layer=4)[1]["heatmap"].any()


@pytest.mark.parametrize(
    ("phrase", "options", "message"),
    [
        ({"caption": CAPTION}, {}, 'needs "caption" and "caption_span".*lacks {\'caption_span\'}'),
        ({"caption": " ", "caption_span": [0, 1]}, {}, "a phrase is empty"),
        ({"caption": 7, "caption_span": [0, 1]}, {}, "a phrase must be a string, not 7"),
        ({"caption": CAPTION, "caption_span": [1, 2]}, {}, r"nothing is left of \[','\] after cleaning"),
        ({"caption": CAPTION, "caption_span": []}, {}, r"the span \[\] must be"),
        ({"caption": CAPTION, "caption_span": [0, 1]}, {"explanation": "itc"}, "no maps of words .ALBEF's 'itm'"),
        ({"caption": "red " * 25, "caption_span": [0, 1]}, {}, "has 26 word pieces, the model takes 20"),
    ],
)
def test_words_of_captions_that_are_refused(phrase, options, message):
    with pytest.raises(ValueError, match=message):
        build("albef")(picture(), phrase, **options)
