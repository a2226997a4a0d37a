"""Many clients that wait for jobs, in a process of their own: ``python -m benchmarks.waiters PORT STREAMS POLLS``

The key comes from the environment (WAITERS_KEY), the jobs' ids from standard input. It prints a line when every client
has sent its first request, and a summary as JSON when it is told to stop. Some of the clients read the job's events,
the others poll with ``?wait=``; one that is answered comes back after a moment, as a well-behaved client does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

KEY = "WAITERS_KEY"
READY = "all clients have asked"
POLL_SECONDS = 50
#: A client's first wait is between this and that: as many come back at any moment as of clients that came over time.
SHORTEST_FIRST_POLL_SECONDS = 5
#: A wait that ends sooner was no wait.
EARLY_SECONDS = 2.0
#: How long a client that was answered stays away.
BACK_OFF_SECONDS = 1.0
#: Clients that connect at once: a thousand in the same instant would be another measurement.
AT_ONCE = 20


@dataclass
class Summary:
    """How requests went, of all clients."""

    #: Waited, or wait still.
    held: int = 0
    #: Answered with 200, but at once.
    early: int = 0
    #: Another status than 200.
    refused: int = 0
    #: Connections that failed or ended without an answer.
    broken: int = 0


class Waiters:
    """The clients, and how many of them were taken on."""

    def __init__(self, port: int, key: str, jobs: Sequence[str]) -> None:
        self.summary = Summary()
        self._port = port
        self._key = key
        self._jobs = jobs
        self._entrance = asyncio.Semaphore(AT_ONCE)
        self._left_out = 0
        self._open = 0

    async def run(self, streams: int, polls: int) -> Summary:
        """Until SIGTERM; clients come back whenever they are answered."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        self._left_out = streams + polls
        clients = [asyncio.create_task(self._client(number, number < streams)) for number in range(streams + polls)]
        await stop.wait()
        self.summary.held += self._open
        for client in clients:
            client.cancel()
        return self.summary

    async def _client(self, number: int, stream: bool) -> None:
        job = self._jobs[number % len(self._jobs)]
        seconds, first = random.randint(SHORTEST_FIRST_POLL_SECONDS, POLL_SECONDS), True
        while True:
            try:
                async with self._entrance:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    writer.write(self._stream(job) if stream else self._poll(job, seconds))
                    seconds = POLL_SECONDS
                    await writer.drain()
                if first:
                    first = False
                    self._note_sent()
                await self._read(reader)
                writer.close()
            except OSError:
                self.summary.broken += 1
            await asyncio.sleep(BACK_OFF_SECONDS)

    def _note_sent(self) -> None:
        self._left_out -= 1
        if self._left_out == 0:
            print(READY, flush=True)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        began = time.monotonic()
        self._open += 1
        try:
            words = (await reader.readline()).split()
            while await reader.read(65_536):
                continue
        finally:
            self._open -= 1
        if len(words) < 2:
            self.summary.broken += 1
        elif words[1] != b"200":
            self.summary.refused += 1
        elif time.monotonic() - began < EARLY_SECONDS:
            self.summary.early += 1
        else:
            self.summary.held += 1

    def _stream(self, job: str) -> bytes:
        return self._request(f"/v1/jobs/{job}/events", "text/event-stream")

    def _poll(self, job: str, seconds: int) -> bytes:
        return self._request(f"/v1/jobs/{job}?wait={seconds}", "application/json")

    def _request(self, path: str, accept: str) -> bytes:
        lines = (
            f"GET {path} HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {self._key}",
            f"Accept: {accept}",
            "Connection: close",
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


def main() -> None:
    port, streams, polls = (int(argument) for argument in sys.argv[1:4])
    jobs = sys.stdin.read().split()
    summary = asyncio.run(Waiters(port, os.environ[KEY], jobs).run(streams, polls))
    print(json.dumps(dataclasses.asdict(summary)), flush=True)


if __name__ == "__main__":
    main()
