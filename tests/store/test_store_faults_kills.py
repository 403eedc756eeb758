"""Writers that are killed, alone and three at a time, and a power that is cut: the small counts of `make torture`."""

from __future__ import annotations

import fault_disks
import pytest
import store_samples as samples
from fault_order import check
from store_processes import run_python

CHAINS = """
import pathlib, sys
import fault_kills
shares = tuple(sys.argv[3].split()) or ("",)
found = fault_kills.chains(pathlib.Path(sys.argv[1]), int(sys.argv[2]), 10, n_cases=24, shares=shares)
print(found.kills >= 10, found.chains >= 1, found.acknowledged > 0, found.lost, "torch" in sys.modules)
"""
CALLS = """
import pathlib, sys
import fault_kills
found = fault_kills.every_call(pathlib.Path(sys.argv[1]), step=17)
print(found.kills >= 6, found.kills == found.chains, found.lost)
"""


def test_a_writer_killed_ten_times_ends_with_the_bytes_of_an_undisturbed_one_and_loses_no_acknowledged_row(tmp_path):
    assert run_python(CHAINS, tmp_path, 1, "") == "True True True [] False\n"


def test_three_writers_of_one_plan_killed_ten_times_end_with_the_same_bytes_and_no_row_twice(tmp_path):
    assert run_python(CHAINS, tmp_path, 2, "0/3 1/3 2/3") == "True True True [] False\n"


def test_a_writer_killed_before_a_system_call_continues_to_the_same_bytes(tmp_path):
    assert run_python(CALLS, tmp_path) == "True True []\n"


def test_every_file_is_durable_before_its_name_and_every_name_before_the_row_is_reported(tmp_path):
    assert check(tmp_path / "s", samples.plan(n_cases=2)) >= 4 + 2  # rows; manifest and plan


def test_a_power_cut_loses_no_reported_row_and_does_lose_a_file_that_was_not_fsynced(tmp_path):
    if word := fault_disks.why_not(tmp_path / "try", "ext4"):
        pytest.skip(word)
    code = "import sys, pathlib, fault_disks; print(fault_disks.cut_power(pathlib.Path(sys.argv[1]), 1, 2, n_cases=30))"
    found = run_python(code, tmp_path)
    assert "cuts=2" in found
    assert "acknowledged=0" not in found
    assert "plain_lost=2" in found


def test_a_full_disk_keeps_what_was_reported_and_the_rerun_ends_with_the_same_bytes(tmp_path):
    if word := fault_disks.why_not(tmp_path / "try", "tmpfs"):
        pytest.skip(word)
    found = fault_disks.fill(tmp_path, 1, 2, n_cases=40)
    assert found.full == 2
    assert found.safe_rows > 0
