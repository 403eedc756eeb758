"""Who is told of tickets in the tests of engines. Remembers everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from probe.engines import Listener, Ticket


@dataclass
class Heard:
    receipts: list[Ticket] = field(default_factory=list)
    lost: list[tuple[Ticket, int, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def listener(self) -> Listener:
        return Listener(
            lambda ticket, _: self.receipts.append(ticket), lambda *loss: self.lost.append(loss), self.notices.append
        )

    @property
    def rows(self) -> list[str]:
        return sorted(row for ticket in self.receipts for row in ticket.rows)
