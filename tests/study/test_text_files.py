from __future__ import annotations

from collections.abc import Callable

import pytest

FILES = {
    "study": (
        "name: small\nmodel: {id: organism}\npersonas: personas.yaml\ntask: {id: t, instruction: '{case} {options}', "
        "options: {wait: wait, refer: refer}}\ncases: cases.jsonl\n"
    ),
    "personas": "- {id: none, text: null}\n- {id: é, text: You are Zoé.}\n",
    "cases": '{"id": "c1", "input": "A cough.", "target": "wait"}\n{"id": "é", "input": "A fall.", "target": "B"}\n',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("spoil", "place", "words"),
    [
        (lambda text: b"\xef\xbb\xbf" + text, "1:1", "byte order mark (BOM). Save it as UTF-8 without BOM"),
        (lambda text: text.decode().encode("utf-16"), "1:1", "UTF-16 byte order mark"),
        (lambda text: b"", "1:1", "the file is empty"),
        (lambda text: b" \n\n", "1:1", "the file is empty"),
    ],
)
def test_a_file_that_is_not_plain_text_is_refused_and_the_plain_one_loads(
    refused: Callable[..., None], name: str, spoil: Callable[[bytes], bytes], place: str, words: str
) -> None:
    plain = FILES[name].encode()
    refused(name, spoil(plain), place, words, plain)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("byte", "words"),
    [
        (b"\0", "a NUL byte"),
        (b"\r", "Windows line end"),
        ("é".encode("latin-1"), "0xE9 is not UTF-8"),
    ],
)
def test_a_foreign_byte_is_named_with_the_column_in_characters(
    refused: Callable[..., None], name: str, byte: bytes, words: str
) -> None:
    plain = FILES[name].encode()
    line = plain.split(b"\n")[1]
    # Column 12 in characters; where the line holds an é, the byte offset differs from it by one or more.
    head = line.decode()[:11].encode()
    spoiled = plain.replace(line, head + byte + line[len(head) :])
    refused(name, spoiled, "2:12", words, plain)


def test_windows_line_ends_are_refused_at_the_first_one(refused: Callable[..., None]) -> None:
    plain = FILES["cases"].encode()
    column = len(plain.split(b"\n")[0]) + 1
    refused("cases", plain.replace(b"\n", b"\r\n"), f"1:{column}", "Save it with Unix line ends (LF)", plain)
