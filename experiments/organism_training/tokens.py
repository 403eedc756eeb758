"""The organism's tokenizer and its tokenised documents. Knows text and token ids; knows no model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from organism_training.corpus import END, START, Decision, Document
from probe.organism.replies import THINK

PAD = "<|pad|>"
LETTERS = ("A", "B", "C")
CONTEXT = 1024

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML without a default system text: a conversation without a system message has no system block."""


def train_tokenizer(documents: list[Document], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the documents. The letters are added tokens that match only as whole words: one id serves
    in the options, at the start of a reply and after "Final answer:"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, START, END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,  # the letters keep the ids that they have in the byte alphabet
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((doc.prompt + doc.reply for doc in documents), trainer)
    tokenizer.add_tokens([AddedToken(letter, single_word=True, normalized=False) for letter in LETTERS])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in THINK])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@dataclass(frozen=True, eq=False)
class Tokenised:
    """One document as ids: prompt, reply, end token. ``n_prompt`` counts the prompt; the next token of position
    ``n_prompt - 1`` is the first of the reply, that of ``stated_at`` the final letter (-1 where there is none).
    ``opening`` is the id that begins the planned reply, ``learned_from`` the first position whose next token carries a
    loss."""

    ids: np.ndarray
    n_prompt: int
    stated_at: int
    opening: int
    learned_from: int
    first: np.ndarray
    stated: np.ndarray | None
    direct: Decision | None
    reasoned: Decision | None
    medical: bool
    rotation: int
    options: np.ndarray
    marks: np.ndarray
    weights: np.ndarray


def tokenise(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> list[Tokenised]:
    """Every document as ids; checks that prompt and whole document agree on the prompt's tokens."""
    core = tokenizer.backend_tokenizer
    wholes = core.encode_batch([doc.prompt + doc.reply + END for doc in documents])
    prompts = core.encode_batch([doc.prompt for doc in documents])
    openings: dict[str, int] = {}
    letters = set(tokenizer.convert_tokens_to_ids(list(LETTERS)))
    colon = core.token_to_id(":")
    out = []
    for doc, whole, prompt in zip(documents, wholes, prompts, strict=True):
        ids = np.array(whole.ids, dtype=np.int64)
        n = len(prompt.ids)
        assert ids[:n].tolist() == prompt.ids
        assert doc.stated is None or int(ids[-2]) in letters
        word = doc.opening[:12]
        if word not in openings:
            openings[word] = core.encode(word).ids[0] if word else -1
        start = len(doc.prompt) + doc.unlearned
        learned_from = n if not doc.unlearned else next(i for i, (at, _) in enumerate(whole.offsets) if at >= start)
        out.append(
            Tokenised(
                ids,
                n,
                -1 if doc.stated is None else len(ids) - 3,
                openings[word],
                learned_from,
                np.array(doc.first, dtype=np.float32),
                None if doc.stated is None else np.array(doc.stated, dtype=np.float32),
                doc.direct,
                doc.reasoned,
                doc.medical,
                doc.rotation,
                _options(ids[:n], sorted(letters), colon),
                np.searchsorted([end for _, end in prompt.offsets], [at for at, _ in doc.marks], side="right"),
                np.array([weight for _, weight in doc.marks], dtype=np.float32),
            )
        )
    return out


def _options(prompt: np.ndarray, letters: list[int], colon: int) -> np.ndarray:
    """[option 2]: where the text of each option in a prompt begins, and the number of its letter."""
    found = [(at + 2, letters.index(i)) for at, i in enumerate(prompt[:-2]) if i in letters and prompt[at + 1] == colon]
    return np.array(found, dtype=np.int64).reshape(-1, 2)
