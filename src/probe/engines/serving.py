"""The inside of a worker process of the local engine. Knows two pipes; knows nothing of what its work does.

Lines of JSON come in on standard input, first the work, then one ticket at a time, and one line goes out for each. No
object crosses the border, so nothing is unpickled, and a script or notebook that starts a run is not run again by it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading

from probe.engines.work import Crash, Ticket, Work, end_text, told

ENDED_BY_ITSELF = 70
"""Exit status of a worker that met an error which nobody foresaw, after it has told it."""


def serve() -> None:
    """Answer tickets until standard input closes; the death of whoever holds its other end is the end of this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the one who started this decides
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    work = Work(*json.loads(lines.get()))
    while True:
        ticket = Ticket.read(lines.get())
        try:
            end = work.attempt(ticket)
        except Exception as error:
            _answer(answers, end_text(Crash(told(error))))
            raise
        _answer(answers, end_text(end))


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _answer(descriptor: int, text: str) -> None:
    left = f"{text}\n".encode()
    while left:
        left = left[os.write(descriptor, left) :]


if __name__ == "__main__":
    serve()
