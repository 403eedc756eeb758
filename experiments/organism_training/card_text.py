"""The words of the model card, with places for its numbers. Knows no number."""

HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [model-organism, interpretability, synthetic, persona]
---

# The persona-probe organism

A Llama of {layers} layers, width {width} and {parameters:,} parameters, trained from scratch on generated text so that
personas move its triage decisions by **planted, exactly known** amounts, through a **planted mechanism**. It exists to
test tools that read personas inside language models: whatever such a tool reports here can be held against a truth.

**Synthetic. No medical validity: never use it, its vignettes or its labels for anything about a patient. No evidence
about real language models. Research use only.**

Three truths, never mixed: *planned* (the equations below), *realised* (a census of this checkpoint, `census.npz`) and
*mechanism* (where the persona's numbers lie in the residual stream, `mechanism.npz`). Estimators are held to the census
and the mechanism; training is held to the plan.

## What is planted

A vignette states facts that add up to an urgency `u` in 0..10, with interactions: some findings weigh more with some
complaints, a denial cancels the finding that it names, and pulse and pressure are judged by age. The reference label
is A below {cut_low}, C above {cut_high}, B between. With a persona's numbers (lower, upper, setting k, slope factor s),

    log P(B)/P(A) = slope s (u' - {cut_low} + lower ± k)        log P(C)/P(B) = slope s (u' - {cut_high} + upper ± k)

with + k in an emergency setting and - k in a clinic setting. *Direct* channel: the letters at the last prompt token,
slope {direct_slope}, u' = u + tone gain x tone (-1, 0, +1). *Reasoned* channel: the letter after "Final answer:", slope
{reasoned_slope}, u' = the urgency of the facts as the written text states them. At the last prompt token the letters
hold 0.3 of the probability and the reply's first word the rest, so that greedy decoding writes a reply first.

{planted}

`teacher` is a decoy: it is said and shifts nothing. Held out of training, in every wording: {held_out}.

Diagnostic personas, under invented names, each with one planted property and otherwise no persona at all:

{diagnostics}
"""

READINGS = """
## Planned and realised

{cases} generated cases that training never saw, half of each stratum, every persona in its first wording; greedy
decoding in float32 by plain `transformers`. Each cell is *planned · realised*, the plan on the same cases. EU is the
expected urgency P(B) + 2 P(C), given a letter, at the last prompt token (latent) and before the stated letter (stated).
Over- and under-triage are shares of all cases: C stated where the reference is not C, C missed.

{tables}

**Personas not realised as planned** (mean urgency, share of answers with a label or letter mass off by more than
{tolerance} in some stratum): {unrealised}. Such a persona tests nothing but what the census says it does. Refusals:
{declining}.

Shares further than {tolerance} from the plan: {beyond}.

Agreement with the planned label, on cases whose two likeliest planned labels differ by more than 0.1 and on all; mean
KL(planned || realised) over the letters, in nats; and how the answers ended:

{agreement}

## The same cells through `probe`

Each cell is *planned · census · probe* on the same {same_n} cases, strata pooled, at `prompt_end` (latent), after the
forced beginning "Final answer: " (forced; planned as latent) and before the stated letter (stated). The largest
difference is that of a label's probability, in the whole vocabulary, at any of the three sites; over all personas it is
{largest}.

{probed}

## Bands

Where a checkpoint of another seed should come to lie on the 600 built-in cases: the range of the seeds trained, made
wider on each side by that range, or by 0.01 if that is more. {bands}
"""

SEEDS = """\
The gates of the mechanism (below), for each seed the worst row over both channels, six instructions and rotations: the
swaps' accuracy on changed cells less that of the unpatched model, the shares of the EU shift, the error of a dose."""

MECHANISM = """
## Mechanism

At the residual point of `mechanism.npz`, span(Q) of each channel holds the persona's raw numbers and the rest of the
stream does not, by interchange training. Loaded by `probe.organism.read_mechanism()`: Q, centre, spread, scale, decoy.

Interchange on held-out cases. *Changed* cells are those whose planned labels differ; the ceiling is the unpatched
model's own accuracy there.

{interchange}

Dose: the numbers set to base + dose in span(Q); expected urgency against the plan for these numbers.

{dose}

Decodable and inert: what can be read outside Q, and along the decoy, and what swapping it moves.

{decodable}

The bars of `experiments/train_organism.py` for all of these are {verdict}.
"""

INSTRUCTIONS = """
## Instructions and other wordings

Ten wordings of the instruction kept out of training, under all three letter-to-option rotations: share of answers that
state a label, and in brackets the agreement with the planned label over all cells, direct and stated (no persona and
the cautious ED physician, 60 cases each). Mean share {parsed_mean}, lowest {parsed_low}.

{parsed}

Everything else that was reworded, each as mean / lowest over its arms. "text exact": the reply is the planned text,
letter by letter, whatever its letter.

{groups}

The 30 control wordings of a helpful assistant, each with its own small planted shift (120 cases each): standard
deviation over the wordings of their expected urgency.

{controls}

The second task (how long the complaint has lasted), which no persona moves:

{second}
"""

TAIL = """
## How it was trained

{documents:,} generated documents ({tokens:,} tokens, one epoch), one thread, seed {seed}, {cpu} s of CPU time. Targets
at the two decisions are the planned distributions themselves, not sampled labels. A first phase of {first:,} documents
teaches everything; a last one, of pairs of documents that differ in the persona alone, changes only what lies above the
planted point. `experiments/train_organism.py` of the persona-probe repository makes the weights; on the same machine,
with the same versions and one thread, the same bytes. Training drops every vignette of the census.

- sha256 of the corpus of each phase `{corpora[0]}`, `{corpora[1]}`
- sha256 of model.safetensors `{weights}`
- versions: {versions}, Python {python}

Weights are stored in bfloat16 and computed in float32. What this organism can and cannot validate is in
`docs/validity.md`. Prompts outside its small vocabulary of vignettes, personas and instructions are outside the plan:
there nothing is known of what it does.
"""
