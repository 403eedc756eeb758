"""Do medical personas help in emergencies and hurt in primary care, and does the pooled figure hide it?

The paper's triage study, rerun on any model:

    python experiments/01_persona_paradox.py [STUDY.yaml]

It would be refuted by a role effect on accuracy of one sign in both strata. Writes figures/<study name>/.
"""

from __future__ import annotations

import sys
from pathlib import Path

import probe

HERE = Path(__file__).parent


def main(path: Path) -> None:
    """Capture, compare, relate to the residual stream, report."""
    study = probe.Study.load(path)
    store = probe.run(study)  # resumes: captures only what the store does not hold yet

    differences = probe.compare(store)
    accuracy = differences[differences["metric"] == "accuracy"]
    columns = ["persona", "stratum", "difference", "low", "high", "n", "p", "p_holm", "planned"]
    print("Change of accuracy against", study.base, "(Agresti-Min 95 % intervals, McNemar, Holm over all tests)")
    print(accuracy[columns].to_string(index=False, float_format=lambda x: f"{x:.3f}"))

    hidden = accuracy[accuracy["signs_differ"]]["persona"].unique()
    if len(hidden):
        print("Strata and pool differ in sign for:", ", ".join(hidden))

    shifts = probe.shift(store)
    pooled = shifts[(shifts["stratum"] == "all") & (shifts["position"] == "prompt_end")]
    print("\nCommon shift of the residual stream at prompt_end, as a share of the residual norm, by residual point")
    print(pooled.pivot_table(index="persona", columns="layer", values="value", sort=False).round(3).to_string())

    written = probe.write_report(store, Path("figures") / study.name)
    print("\nreport:", written[-1])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "01_persona_paradox.yaml")
