"""Facts written by hand, shared by the organism's tests."""

import dataclasses

import pytest

from probe.organism import Facts


@pytest.fixture
def swollen_leg() -> Facts:
    """Leg swelling 3.8, moderate 0, since yesterday 0.1, fever 0.6, asthma 0.3: urgency 4.8; a frightened patient."""
    return Facts(
        template=0,
        age=50,
        sex="woman",
        setting="brought by ambulance",
        complaint="leg swelling",
        severity="moderate",
        duration="since yesterday",
        findings=("fever",),
        denied="",
        history="asthma",
        pulse=82,
        pressure=130,
        sats=98,
        tone="frightened",
        aside=0,
        relative="",
        order=(0, 1, 2, 3, 4, 5, 6),
    )


@pytest.fixture
def headache(swollen_leg: Facts) -> Facts:
    """Headache 3.7 with a stiff neck: 1.0 and, for the pair, 1.0 more; since yesterday 0.1, asthma 0.3: urgency 6.1."""
    return dataclasses.replace(swollen_leg, complaint="headache", findings=("stiff neck",))
