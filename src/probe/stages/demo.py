"""The demonstration: the paper's triage study on the embedded organism. Knows one study file."""

from __future__ import annotations

from probe.study import Study


def demo_study(backend: str = "hf") -> Study:
    """Six personas on 600 held-out cases, greedy answers, every residual point."""
    return Study.from_mapping(
        {
            "name": "demo",
            "model": {"id": "organism", "backend": backend},
            "personas": "builtin:persona-paradox",
            "task": "builtin:triage",
            "cases": "builtin:triage",
            "generation": {"max_new_tokens": 128},
        }
    )
