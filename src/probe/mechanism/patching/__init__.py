"""Activation patching between a persona's run and its base run: what is patched, and what the reads then say."""
