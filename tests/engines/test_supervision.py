"""Every ticket ends in a receipt, a row on record or a refusal, whatever dies meanwhile."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from probe.engines import Receipt, RunRefused, Ticket, supervise
from probe.engines.supervision import HOPELESS, LAST_TRIES, RETRIES
from probe.engines.work import Crash, End, Refused, end_text, read_end
from probe.values import ProbeError
from tests.engines.engine_listener import Heard

Ending = Callable[[Ticket, int], End | None]


@dataclass
class Fake:
    """A pool whose tickets end as ``ending`` says of a ticket and its attempt, in the order they were given."""

    ending: Ending
    size: int = 2
    running: deque[Ticket] = field(default_factory=deque)
    attempts: Counter[Ticket] = field(default_factory=Counter)
    given: list[Ticket] = field(default_factory=list)
    most: int = 0

    @property
    def workers(self) -> int:
        return self.size

    @property
    def room(self) -> int:
        return self.size - len(self.running)

    def give(self, ticket: Ticket) -> None:
        self.running.append(ticket)
        self.given.append(ticket)
        self.attempts[ticket] += 1
        self.most = max(self.most, len(self.running))

    def ended(self, seconds: float) -> list[tuple[Ticket, End | None]]:
        ticket = self.running.popleft()
        return [(ticket, self.ending(ticket, self.attempts[ticket]))]

    def close(self) -> None:
        """Nothing runs."""


def tickets(n: int, rows: int = 4) -> list[Ticket]:
    return [Ticket(k, tuple(f"{k}.{row}" for row in range(rows))) for k in range(n)]


def all_rows(given: list[Ticket]) -> list[str]:
    return sorted(row for ticket in given for row in ticket.rows)


def well(ticket: Ticket, attempt: int) -> End:
    return Receipt()


def test_every_ticket_runs_once_in_order_and_never_more_at_a_time_than_there_is_room() -> None:
    pool, heard = Fake(well, size=3), Heard()
    supervise(pool, tickets(10), heard.listener)
    assert pool.given == heard.receipts == tickets(10)
    assert pool.most == 3
    assert not heard.lost and not heard.notices


def test_tickets_are_made_when_their_turn_comes() -> None:
    made = []

    def lazily():
        for ticket in tickets(10):
            made.append(ticket)
            yield ticket

    def seen(ticket: Ticket, attempt: int) -> End:
        assert len(made) <= ticket.shard + 3  # two in flight, and one that is next
        return Receipt()

    supervise(Fake(seen), lazily(), Heard().listener)
    assert len(made) == 10


@pytest.mark.parametrize("deaths", range(1, RETRIES + 1))
def test_a_shard_whose_process_dies_is_run_again_whole_after_the_fresh_ones(deaths: int) -> None:
    def dies(ticket: Ticket, attempt: int) -> End:
        return Crash("lost its node") if ticket.shard == 1 and attempt <= deaths else Receipt()

    pool, heard = Fake(dies), Heard()
    supervise(pool, tickets(6), heard.listener)
    assert all(len(ticket.rows) == 4 for ticket in pool.given)
    assert heard.rows == all_rows(tickets(6))
    assert heard.receipts[-1].shard == 1
    assert heard.notices[-1] == f"shard 1: lost its node; it is run again ({deaths} of {RETRIES})"
    assert not heard.lost


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("poison", [["3.0"], ["3.0", "5.0"]])
def test_the_row_that_always_ends_its_process_is_found_and_every_other_row_is_captured(
    rows: int, poison: list[str]
) -> None:
    def dies(ticket: Ticket, attempt: int) -> End:
        return Crash("signal 9") if set(poison) & set(ticket.rows) else Receipt()

    pool, heard = Fake(dies), Heard()
    supervise(pool, tickets(7, rows), heard.listener)
    assert sorted(ticket.rows[0] for ticket, _, _ in heard.lost) == poison
    assert sorted([*heard.rows, *poison]) == all_rows(tickets(7, rows))
    halvings = (rows - 1).bit_length()
    least = 1 + RETRIES + (max(halvings - 2, 0) + LAST_TRIES if rows > 1 else 0)
    for _, deaths, reason in heard.lost:
        assert least <= deaths <= 1 + RETRIES + halvings + LAST_TRIES
        assert reason == "signal 9"


def test_what_was_never_begun_is_given_again_and_counts_for_nothing() -> None:
    def waits(ticket: Ticket, attempt: int) -> End | None:
        return None if attempt <= 3 * RETRIES else Receipt()

    pool, heard = Fake(waits), Heard()
    supervise(pool, tickets(3), heard.listener)
    assert heard.rows == all_rows(tickets(3))
    assert not heard.lost and not heard.notices


def test_a_refusal_ends_the_run_with_its_message_and_status_and_nothing_more_is_given() -> None:
    def refuses(ticket: Ticket, attempt: int) -> End:
        return Refused("the disk is full", 4) if ticket.shard == 2 else Receipt()

    pool, heard = Fake(refuses), Heard()
    with pytest.raises(RunRefused, match="the disk is full") as refused:
        supervise(pool, tickets(50), heard.listener)
    assert refused.value.exit_status == 4
    assert len(pool.given) <= 4
    assert [ticket.shard for ticket in heard.receipts] == [0, 1]


def test_where_every_process_dies_the_run_gives_up_and_says_why() -> None:
    pool = Fake(lambda ticket, attempt: Crash("no such module"))
    with pytest.raises(ProbeError, match=f"{HOPELESS + 2} workers died and no shard has ended; .* no such module"):
        supervise(pool, tickets(50), Heard().listener)
    assert len(pool.given) <= HOPELESS + 4


def test_a_pool_without_room_is_waited_for_and_that_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probe.engines.supervision.PATIENCE_SECONDS", -1)
    pool, heard = Fake(well, size=0), Heard()
    asked = []

    def none_yet(seconds: float) -> list[tuple[Ticket, End | None]]:
        asked.append(seconds)
        if len(asked) == 3:
            pool.size = 1
            del vars(pool)["ended"]
        return []

    vars(pool)["ended"] = none_yet
    supervise(pool, tickets(2), heard.listener)
    assert len(asked) == 3
    assert len(heard.notices) == 1
    assert heard.receipts == tickets(2)


@pytest.mark.parametrize("end", [Receipt({"shard": 3, "batches": [8, 4]}), Refused("no\nspace", 4), Crash("signal")])
def test_tickets_and_ends_survive_the_line_that_carries_them(end: End) -> None:
    assert read_end(end_text(end)) == end
    assert "\n" not in end_text(end)
    ticket = Ticket(7, ('["a\\nb", "ü"]', "c"))
    assert Ticket.read(ticket.text) == ticket
