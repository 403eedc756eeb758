"""Loading a tokenizer and naming it by its content. Knows files; knows no prompt."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import date
from pathlib import Path
from typing import Any

from probe.values import ModelError, sha256_of

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
"""For base models (``model.chat_template: plain``): the texts one after the other, then ``Answer:``."""

TEMPLATE_DATE = date(2025, 1, 1)
"""The date that chat templates which ask for today's are given."""

_CLOCK = re.compile(r"""strftime_now\(\s*['"]([^'"]*)['"]\s*\)""")


def load_tokenizer(folder: Path, *, chat_template: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a local model folder (a fast one, because positions need character offsets).

    ``chat_template`` replaces the folder's own: ``plain``, or Jinja text.

    Raises:
        ModelError: no tokenizer, no fast tokenizer, or no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"no tokenizer can be loaded from {folder}: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"positions are read by character offsets, which the slow tokenizer of {folder} does not give; "
            "save a fast one there (tokenizer.json)"
        )
    if chat_template is not None:
        tokenizer.chat_template = _plain_template(tokenizer) if chat_template == "plain" else chat_template
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = with_fixed_date(tokenizer.chat_template)
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {folder} has no chat template; "
            "set model.chat_template to 'plain' (a base model) or to a Jinja file"
        )
    return tokenizer


def with_fixed_date(template: str) -> str:
    """The template with ``strftime_now`` answering ``TEMPLATE_DATE``.

    With today's date in it no run could be continued tomorrow, and arms captured over midnight would differ in more
    than the persona.
    """
    formats = sorted(set(_CLOCK.findall(template)))
    if not formats:
        return template
    answers = "".join(
        f"{{%- if format == {json.dumps(asked)} -%}}{TEMPLATE_DATE.strftime(asked)}{{%- endif -%}}" for asked in formats
    )
    return f"{{%- macro strftime_now(format) -%}}{answers}{{%- endmacro %}}{template}"


def _plain_template(tokenizer: Any) -> str:
    """The texts one after the other, opened by the token that this tokenizer puts before any text, if it does."""
    ids = tokenizer("x")["input_ids"]
    opens = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return "{{ bos_token }}" + PLAIN_TEMPLATE if opens else PLAIN_TEMPLATE


def tokenizer_identity(tokenizer: Any) -> dict[str, str]:
    """Hashes of what turns text into tokens: the tokenizer's whole pipeline, and the chat template."""
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    for transient in ("truncation", "padding"):
        pipeline.pop(transient, None)
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return {
        "tokenizer_sha256": sha256_of(pipeline),
        "chat_template_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
