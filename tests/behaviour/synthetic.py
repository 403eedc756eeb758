"""A table of cells with a planted persona effect, for tests. Knows the columns of a table of cells and nothing else."""

import numpy as np
import pandas as pd

OPTIONS = ("A", "B", "C")
# (shift of the urgency in emergency cases, in primary care, added in the reasoned channel)
PERSONAS = {
    "none": (0.0, 0.0, 0.0),
    "helpful_assistant": (0.1, 0.1, 0.0),
    "ed_physician": (1.4, 1.4, 0.4),
    "ed_nurse": (1.1, 1.0, 0.2),
    "bold_ed_physician": (0.8, 0.7, -0.6),
    "cautious_ed_physician": (2.0, 2.1, 1.0),
}


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def ladder(urgency, slope):
    """Log-probabilities of A, B, C for cuts at 3.5 and 6.5 on the urgency."""
    first, second = slope * (urgency - 3.5), slope * (urgency - 6.5)
    return log_softmax(np.stack([np.zeros_like(first), first, first + second], -1))


def synthetic_table(n=300, seed=0, personas=PERSONAS, unparsed=0.02):
    """Cells of these personas on ``n`` cases in each of two strata; the base under-triages emergencies."""
    rng = np.random.default_rng(seed)
    frames = []
    urgency = {"emergency": rng.normal(6.6, 1.5, n), "primary_care": rng.normal(4.0, 1.3, n)}
    target = {s: np.array(OPTIONS)[ladder(u, 5.0).argmax(-1)] for s, u in urgency.items()}
    for persona, (emergency, primary, reasoned) in personas.items():
        for stratum, shift in (("emergency", emergency), ("primary_care", primary)):
            u = urgency[stratum] + shift - (1.2 if stratum == "emergency" else 0.4)
            planned, planned_stated = ladder(u, 1.5), ladder(u + reasoned, 1.8)
            direct = log_softmax(planned + rng.normal(0, 0.25, planned.shape))
            answer = log_softmax(planned_stated + rng.normal(0, 0.35, planned.shape))
            mass = rng.uniform(0.95, 1.0, n)
            parsed = rng.random(n) >= unparsed
            y_gen = np.where(parsed, np.array(OPTIONS)[answer.argmax(-1)], None)
            frame = pd.DataFrame({"case": [f"{stratum}-{i:03d}" for i in range(n)], "persona": persona})
            frame["stratum"], frame["condition"] = stratum, "system"
            frame["target"], frame["y_latent"] = target[stratum], np.array(OPTIONS)[direct.argmax(-1)]
            frame["y_gen"] = y_gen
            frame["status"] = np.where(parsed, "parsed", np.where(rng.random(n) < 0.5, "refused", "unparsable"))
            frame["label_mass"], frame["n_gen"] = mass, rng.integers(20, 40, n)
            for i, option in enumerate(OPTIONS):
                frame[f"logp_{option}"] = direct[:, i] + np.log(mass)
                frame[f"stated_logp_{option}"] = np.where(parsed, answer[:, i], np.nan)
                frame[f"planned_logp_{option}"] = planned[:, i]
                frame[f"planned_stated_logp_{option}"] = planned_stated[:, i]
            frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"options": list(OPTIONS), "high_risk": "C"}
    return table
