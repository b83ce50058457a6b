#!/usr/bin/env python3
"""What a fleet costs the gateway by its size, and a request on disk by the rate of requests and by the size of the fleet.

First the gateway alone, with 10, 100 and 1,000 targets that nobody sends requests to: the share of a processor that polls,
probes and views take, with and without the start, and resident memory. The targets are one simulated pod on as many loopback
addresses, so its own work is not counted. Then 60 targets, and 10, 100 and 1,000 requests per second at a steady pace; and
100 requests per second to 16, 60, 1,000 and 10,000 targets: bytes in the store's files per request, samples counted in, once
everything is checkpointed, and of these the bytes of the records alone. A record does not grow with the fleet. Its samples
are stored once for all records that refer to them within half a minute, so a large fleet, whose records seldom refer to the
same ones, has more of them for each: up to the 16 that it looked at, and no more however large it is.

It fails (exit code 1, with each reason) when
  - polling took more than fleet.cpu_share and a fifth,
  - a record of the largest fleet takes over a tenth more than one of the smallest that has 16 candidates,
  - a request failed, or the store has not one record for each.
"""

import argparse
import json
import os
import re
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from soak import PATIENCE, ROOT, port_of, resident_mib, run

CPU_SHARE = 0.1
CONNECTIONS = 8
WIDTH = 16
"""Targets that a decision looks at, as choice.width is by default."""
RECORD_GROWTH_MAX = 0.1
"""Numbers that name targets and samples have more digits in a large fleet: nothing else of a record may grow."""
BODY = b'{"model":"llama-3.1-8b","prompt":"scale","max_tokens":1}'
REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: scale\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(name, default, help):
        parser.add_argument(name, type=int, nargs="+", default=default, metavar="N", help=f"{help} (default: %(default)s)")

    parser.add_argument("--seconds", type=float, default=20.0, metavar="N", help="for each row (default: %(default)s)")
    numbers("--fleets", [10, 100, 1_000], "numbers of targets that nobody sends requests to")
    numbers("--rates", [10, 100, 1_000], "requests per second")
    parser.add_argument("--targets", type=int, default=60, metavar="N", help="targets that get them (default: %(default)s)")
    numbers("--served", [16, 60, 1_000, 10_000], "numbers of targets that get requests at --rate")
    parser.add_argument("--rate", type=int, default=100, metavar="N", help="requests per second to them (default: %(default)s)")
    default = os.environ.get("SNAPGATE_BIN", ROOT / "target/release/snapgate")
    parser.add_argument("--binary", type=Path, default=default, metavar="FILE",
                        help="the program (default: the release build, or what SNAPGATE_BIN names)")
    chosen = parser.parse_args()
    fleets = [chosen.targets, *chosen.fleets, *chosen.served]
    if min(chosen.seconds, chosen.rate, *chosen.rates, *fleets) < 1 or max(fleets) > 62_500:
        parser.error("it takes a second, a target and a request a second at least, and 62,500 targets at most")
    return chosen


class Gateway:
    """Its process, and what the system says of it."""

    def __init__(self, processes, directory, port, targets):
        addresses = (f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(targets))
        # In a file, for a variable may not be as long.
        named = (f'[[targets]]\nname = "t{number}"\nurl = "http://{address}:{port}"\n' for number, address in enumerate(addresses))
        config = directory / "snapgate.toml"
        config.write_text("".join(named))
        self.data = directory / "data"
        begun = time.monotonic()
        self.process, event = processes.snapgate(
            "serve", "--config", str(config), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", str(self.data),
            SNAPGATE_FLEET_CPU_SHARE=str(CPU_SHARE), SNAPGATE_STORE_BALLAST_BYTES="0")
        self.listen, self.admin = port_of(event["listen"]), event["admin"]
        while self.known() < targets:
            if time.monotonic() > begun + PATIENCE + targets / 10:
                sys.exit(f"{self.known()} of {targets} pages were read within {time.monotonic() - begun:.0f} s")
            time.sleep(0.2)
        self.starting = time.monotonic() - begun

    def known(self):
        """Targets whose page was read."""
        with urllib.request.urlopen(f"http://{self.admin}/v1/fleet", timeout=PATIENCE) as page:
            return sum(target["state"]["waiting"] is not None for target in json.load(page)["targets"])

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)


def measure_fleets(directory, chosen, processes, port):
    print(f"{'targets':>8} {'known after s':>14} {'CPU % until then':>17} {'CPU % after':>12} {'resident MiB':>13}")
    wrong = []
    for targets in chosen.fleets:
        with tempfile.TemporaryDirectory(dir=directory) as own:
            gateway = Gateway(processes, Path(own), port, targets)
            took, used = gateway.starting, gateway.cpu_seconds()
            begun = time.monotonic()
            time.sleep(chosen.seconds)
            share = (gateway.cpu_seconds() - used) / (time.monotonic() - begun)
            resident = resident_mib(gateway.process.pid)
            if code := gateway.stop():
                wrong.append(f"the gateway of {targets} targets ended with {code}")
        print(f"{targets:8} {took:14.1f} {100 * used / took:17.1f} {100 * share:12.1f} {resident:13.1f}", flush=True)
        if share > CPU_SHARE * 1.2:
            wrong.append(f"{targets} targets took {100 * share:.1f} % of a processor")
    return wrong


def ask(port, times, failed):
    """Sends a request at each of these moments, or as soon as the one before is answered."""
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
            for moment in times:
                time.sleep(max(0.0, moment - time.monotonic()))
                connection.sendall(REQUEST)
                head = answered(connection)
                if not head.startswith(b"HTTP/1.1 200"):
                    failed.append(head.decode(errors="replace"))
    except (OSError, ValueError) as error:
        failed.append(str(error))


def answered(connection):
    """The head of the next answer, which is read to its end."""
    answer, length = b"", None
    while length is None or len(answer) < length:
        part = connection.recv(1 << 16)
        if not part:
            raise ValueError("the gateway closed the connection")
        answer += part
        if length is None and b"\r\n\r\n" in answer:
            head = answer.split(b"\r\n\r\n", 1)[0]
            length = len(head) + 4 + int(re.search(rb"content-length: (\d+)", head.lower())[1])
    return head


def send(port, rate, seconds):
    begin, failed = time.monotonic() + 0.1, []
    moments = [begin + number / rate for number in range(int(rate * seconds))]
    threads = [threading.Thread(target=ask, args=(port, moments[n::CONNECTIONS], failed)) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(moments), time.monotonic() - begin, failed


HEAD = f"{'bytes a request':>16} {'of its record':>14} {'samples a request':>18}"


def measure_rates(directory, chosen, processes, port):
    print(f"\n{'requests/s':>11} {'sent':>8} {HEAD}")
    wrong = []
    for rate in chosen.rates:
        measure_store(directory, chosen, processes, port, chosen.targets, rate, f"at {rate} requests a second", wrong)
    return wrong


def measure_served(directory, chosen, processes, port):
    print(f"\n{'targets':>8} {'requests/s':>11} {'sent':>8} {HEAD}")
    wrong, records = [], {}
    for targets in chosen.served:
        print(f"{targets:8} ", end="", flush=True)
        what = f"with {targets} targets"
        records[targets] = measure_store(directory, chosen, processes, port, targets, chosen.rate, what, wrong)
    wide = {targets: size for targets, size in records.items() if targets >= WIDTH}
    if wide and wide[max(wide)] > wide[min(wide)] * (1 + RECORD_GROWTH_MAX):
        grown = f"{wide[max(wide)]:.0f} bytes with {max(wide)} targets, and {wide[min(wide)]:.0f} with {min(wide)}"
        wrong.append(f"a record grows with the fleet: {grown}")
    return wrong


def measure_store(directory, chosen, processes, port, targets, rate, what, wrong):
    """Prints what a request takes in the store, and answers the bytes of its record alone."""
    with tempfile.TemporaryDirectory(dir=directory) as own:
        gateway = Gateway(processes, Path(own), port, targets)
        sent, took, failed = send(gateway.listen, rate, chosen.seconds)
        if code := gateway.stop():
            wrong.append(f"{what} the gateway ended with {code}")
        (store,) = gateway.data.glob("*.db")
        bytes_all = sum(file.stat().st_size for file in gateway.data.glob(f"{store.name}*"))
        connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
        (stored,) = connection.execute("SELECT count(*) FROM records").fetchone()
        (samples,) = connection.execute("SELECT count(*) FROM samples").fetchone()
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(records)")]
        length = " + ".join(f'ifnull(length(CAST("{name}" AS BLOB)), 0)' for name in columns)
        (record,) = connection.execute(f"SELECT avg({length}) FROM records").fetchone()
        connection.close()
    print(f"{sent / took:11.0f} {sent:8} {bytes_all / sent:16.0f} {record or 0:14.0f} {samples / sent:18.2f}", flush=True)
    if failed:
        wrong.append(f"{what} {len(failed)} requests failed, the first: {failed[0]}")
    if stored != sent:
        wrong.append(f"{what} {sent} requests were sent and {stored} are stored")
    return record or 0


def scale(directory, chosen, processes):
    _, event = processes.snapgate("sim", "--listen", "0.0.0.0:0", "--ttft", "1ms", "--token-time", "1ms", "--capacity", "100000")
    port = port_of(event["listen"])
    measures = (measure_fleets, measure_rates, measure_served)
    wrong = [reason for measure in measures for reason in measure(directory, chosen, processes, port)]
    for reason in wrong:
        print(reason, file=sys.stderr)
    return wrong


if __name__ == "__main__":
    chosen = options()
    sys.exit(run("scale", chosen.binary, lambda directory, processes: scale(directory, chosen, processes)))
