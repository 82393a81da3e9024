"""Reading JSON a record at a time: what `json.loads` reads of the whole file, whatever is cut where by the chunks."""

import json
import random
from functools import partial

import pytest

from dataset_scripts import json_files
from dataset_scripts.json_files import (
    first_character,
    read_json,
    read_record,
    read_text,
    stream_json_lists,
    stream_json_records,
)

stream_json_array = partial(stream_json_records, lines=False)

VALUES = [
    *(0, -1, 12345678901234567890, 1.5e-7, 1e400, True, False, None, "", "plain", 'a "quoted"\n\\ word', "é漢😀"),
    *([], {}, [[1, 2.5], [3]], {"a": {"b": [None, "]}"]}}),
]


@pytest.fixture(params=[1, 2, 3, 7, 50, 2**24])
def chunk(request, monkeypatch):
    monkeypatch.setattr(json_files, "_CHUNK", request.param)


def written(tmp_path, text: str, encoding: str = "utf-8"):
    path = tmp_path / "records.json"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_an_array_comes_out_as_it_is_whole(tmp_path, chunk, options):
    values = random.Random(0).choices(VALUES, k=60)
    path = written(tmp_path, "\r\n " + json.dumps(values, **options) + " \n")
    assert list(stream_json_array(path)) == values == read_json(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_lines_come_out_like_an_array(tmp_path, chunk, encoding):
    values = [{"a": value} for value in random.Random(0).choices(VALUES, k=60)]
    for text in (json.dumps(values), "\r\n".join(map(json.dumps, values)) + "\n"):
        path = written(tmp_path, text, encoding)
        assert list(stream_json_records(path)) == values
        assert first_character(path) == text[0] and read_text(path).splitlines() == text.splitlines()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": False}])
def test_lists_come_out_with_their_places(tmp_path, chunk, options, encoding):
    draw = random.Random(1)
    content = {
        "info": {"annotations": [1, 2]},
        "annotations": draw.choices(VALUES, k=30),
        "licenses": [1, [2]],
        "categories": [],
        "images": draw.choices(VALUES, k=30),
        "version": 1,
    }
    path = written(tmp_path, json.dumps(content, **options).replace("\n", "\r\n"), encoding)
    found = {"images": [], "categories": [], "annotations": []}
    with path.open("rb") as file:
        for name, record, place in stream_json_lists(path, list(found)):
            found[name].append(record)
            assert read_record(file, place) == record
    assert found == {name: content[name] for name in found}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "is not JSON, or was cut off, after 2 records: .*at byte 5"),
        ('[1, "ab', "after 1 records: Unterminated string.*at byte 4"),
        ("[1, 2 3]", "after 2 records: expecting , or ], at byte 6"),
        ("[1, nonsense]", "after 1 records: Expecting value"),
        ("[1] 2", "something follows the end, after 1 records: '2'"),
        ("[1, " + "7" * 5000 + "]", "record 1 has too long a number"),
        ("[1, " + "[" * 100_000, "record 1 is nested too deep"),
        ("{}", r"does not begin with '\['"),
        ("", r"does not begin with '\['"),
    ],
)
def test_a_broken_array_is_named_with_the_place(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"records\.json.*{message}"):
        list(stream_json_array(written(tmp_path, text)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "needs the lists a and b"),
        ('{"a": [], "b": {}}', "needs the lists a and b"),
        ('{"a": [], "b": [], "a": []}', "has the list a twice"),
        ('{"a": [1, 2], "b": [3', "is not JSON, or was cut off, after 3 records"),
        ('{"a": [1] "b": []}', "after 1 records: expecting , or }, at byte 10"),
        ('{"a" [1], "b": []}', "expecting :"),
        ("{a: []}", "expecting a name, at byte 1"),
        ('{"a": [], "b": []}]', r"something follows the end.*'\]'"),
        ('{"a": [], "b": [], "c": ' + "7" * 5000 + "}", "too long a number"),
        ("<html>", "is not JSON.*expecting {, at byte 0"),
        ("", "is not JSON"),
    ],
)
def test_broken_lists_are_named_with_the_place(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"records\.json.*{message}"):
        list(stream_json_lists(written(tmp_path, text), ["a", "b"]))


def test_another_encoding_a_missing_file_and_a_number_of_thousands_of_digits_are_named(tmp_path):
    path = tmp_path / "records.json"
    with pytest.raises(ValueError, match=r"records\.json: No such file"):
        list(stream_json_lists(path, ["a"]))
    with pytest.raises(ValueError, match=r"records\.json is not JSON.*4300"):
        read_json(written(tmp_path, "7" * 5000))
    path.write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"records\.json is not UTF-8"):
        list(stream_json_array(path))


def test_a_file_that_changes_is_noticed(tmp_path):
    path = written(tmp_path, '{"a": [[1, 2]]}')
    ((_, record, place),) = stream_json_lists(path, ["a"])
    assert record == [1, 2]
    path.write_text("[" * 20)
    with path.open("rb") as file, pytest.raises(ValueError, match="has changed while it was read"):
        read_record(file, place)
