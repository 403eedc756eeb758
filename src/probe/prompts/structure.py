"""Which tokens a chat template is made of, and texts that name them. Knows a tokenizer; knows no template or task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

_LOOKS_STRUCTURAL = re.compile(r"^(<.+>|\[[A-Z_]+\])$", re.DOTALL)

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, and the ``[start, end)`` of each in its characters."""

    ids: tuple[int, ...]
    offsets: tuple[Span, ...]


@dataclass(frozen=True)
class Outline:
    """What a chat template makes of marks in the places of its contents, and where its own structural tokens stand."""

    text: str
    encoded: Encoded
    structure: tuple[Span, ...]


class Structure:
    """The added tokens of a tokenizer that mean something to a chat template.

    These are all special tokens, and the others that are written like one (``<think>``): a text that holds one could
    end its turn, or open another.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        found = {
            token_id: token
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if (token.special or _LOOKS_STRUCTURAL.match(token.content)) and token_id != tokenizer.unk_token_id
        }
        self._texts: dict[int, str] = {token_id: token.content for token_id, token in found.items()}
        self._special = {token_id for token_id, token in found.items() if token.special}

    def encode(self, text: str, *, literal: bool = False) -> Encoded:
        """Tokens without any that the tokenizer would add; ``literal`` reads special tokens as the text they are."""
        found = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=literal
        )
        return Encoded(tuple(found["input_ids"]), tuple(found["offset_mapping"]))

    def outline(self, marked: str) -> Outline:
        """The outline of a rendering that holds marks in the places of its contents."""
        encoded = self.encode(marked)
        pairs = zip(encoded.ids, encoded.offsets, strict=True)
        return Outline(marked, encoded, tuple(span for token, span in pairs if token in self._texts))

    def count(self, ids: Sequence[int]) -> int:
        """How many of these tokens are structural."""
        return sum(token in self._texts for token in ids)

    def count_special(self, ids: Sequence[int]) -> int:
        """How many of these tokens are special ones: a tag like ``<think>`` often is not."""
        return sum(token in self._special for token in ids)

    def first_in(self, text: str, *, special: bool = False) -> tuple[str, int] | None:
        """The structural (or special) token that a text names first, and the character (from 0) at which it stands."""
        tokens = (token for token_id, token in self._texts.items() if token_id in self._special or not special)
        found = [(at, -len(token), token) for token in tokens if (at := text.find(token)) >= 0]
        return (min(found)[2], min(found)[0]) if found else None

    def encode_literally(self, outline: Outline, contents: Mapping[str, str], after: str = "") -> Encoded | None:
        """The outline with ``contents`` in the places of their marks, then ``after``: only the outline's own structural
        tokens are read as tokens, everything between them as plain text.

        None where this cannot be said with this tokenizer: it reads even the marked text differently in pieces.
        """
        if self._in_pieces(outline.text, outline.structure).ids != outline.encoded.ids:
            return None
        text, structure, shift = "", [], 0
        edges = [(0, 0), *outline.structure, (len(outline.text), len(outline.text))]
        for (_, start), (stop, end) in pairwise(edges):
            piece = outline.text[start:stop]
            for mark, content in contents.items():
                piece = piece.replace(mark, content)
            shift += len(piece) - (stop - start)
            structure.append((stop + shift, end + shift))
            text += piece + outline.text[stop:end]
        return self._in_pieces(text + after, structure[:-1])

    def _in_pieces(self, text: str, structure: Sequence[Span]) -> Encoded:
        ids: list[int] = []
        offsets: list[Span] = []
        edges = [(0, 0), *structure, (len(text), len(text))]
        for (_, start), (stop, end) in pairwise(edges):
            for piece, at, literal in ((text[start:stop], start, True), (text[stop:end], stop, False)):
                if piece:
                    encoded = self.encode(piece, literal=literal)
                    ids += encoded.ids
                    offsets += [(at + first, at + last) for first, last in encoded.offsets]
        return Encoded(tuple(ids), tuple(offsets))
