"""Prompts from cells, and labels from answers. Knows a tokenizer and its chat template; knows no model."""

from probe.prompts.answer_sites import AnswerSites, ForcedText, Reopener, Reopening, SiteReads
from probe.prompts.labels import LabelTokens, LetterVocabulary, continuation, label_tokens
from probe.prompts.parser import PARSER_VERSION, Parsed, parse_answer, parser_name
from probe.prompts.rendering import BUILDER_VERSION, ChatTemplate, Prompt, PromptBuilder
from probe.prompts.tokenizers import load_tokenizer, tokenizer_identity

__all__ = [
    "BUILDER_VERSION",
    "PARSER_VERSION",
    "AnswerSites",
    "ChatTemplate",
    "ForcedText",
    "LabelTokens",
    "LetterVocabulary",
    "Parsed",
    "Prompt",
    "PromptBuilder",
    "Reopener",
    "Reopening",
    "SiteReads",
    "continuation",
    "label_tokens",
    "load_tokenizer",
    "parse_answer",
    "parser_name",
    "tokenizer_identity",
]
