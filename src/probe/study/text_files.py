"""Text from a file, or one sentence that says where it is not plain UTF-8. Knows bytes; knows no YAML or JSON."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

from probe.values import StudyError

_FOREIGN_MARKS = (
    (codecs.BOM_UTF8, "a byte order mark (BOM)"),
    (codecs.BOM_UTF16_LE, "a UTF-16 byte order mark"),
    (codecs.BOM_UTF16_BE, "a UTF-16 byte order mark"),
)


def read_text(path: Path, *, windows: bool = False) -> str:
    """The text of a UTF-8 file with Unix line ends, unchanged; with ``windows``, CRLF is read as a line end too.

    Raises:
        StudyError: the file cannot be read, is empty, or holds a byte order mark, a NUL, a carriage return or a byte
            that is not UTF-8; nothing is repaired silently, because the text is hashed and shown to a model.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise StudyError(f"{path}: there is no such file. Check the path") from None
    except OSError as error:
        raise StudyError(f"{path}: the file cannot be read ({error.strerror}). Check the path and its rights") from None
    if not raw.strip():
        raise StudyError(f"{path}:1:1: the file is empty. `probe new DIR` writes files to start from")
    for mark, name in _FOREIGN_MARKS:
        if raw.startswith(mark):
            raise StudyError(f"{path}:1:1: the file starts with {name}. Save it as UTF-8 without BOM")
    if windows:
        raw = raw.replace(b"\r\n", b"\n")  # every place is still right: a line keeps its number and its columns
    for byte, name, remedy in (
        (b"\0", "a NUL byte", "Remove it: this is not a plain text file"),
        (b"\r", "a carriage return (Windows line end)", "Save it with Unix line ends (LF)"),
    ):
        found = raw.find(byte)
        if found >= 0:
            raise StudyError(f"{path}:{_line_and_column(raw, found)}: the file holds {name}. {remedy}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _line_and_column(raw, error.start)
        byte_text = f"0x{raw[error.start]:02X}"
        raise StudyError(f"{path}:{place}: the byte {byte_text} is not UTF-8 text. Save the file as UTF-8") from None


def is_there(test: Callable[[], bool]) -> bool:
    """Whether ``path.is_file`` or ``path.is_dir`` says yes; a name that no file system can hold is not there."""
    try:
        return test()
    except OSError:
        return False


def _line_and_column(raw: bytes, offset: int) -> str:
    start = raw.rfind(b"\n", 0, offset) + 1
    column = len(raw[start:offset].decode("utf-8", "replace")) + 1
    line = raw.count(b"\n", 0, offset) + 1
    return f"{line}:{column}"
