"""Tests of the comparison itself: python3 -m unittest discover benches/compare

The last class runs all of it, with a slow stand-in for snapgate; it needs nginx and wrk.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import backend
import load
import processes
import subjects
import table
from processes import Failure

STAND_IN = """\
#!{python}
import http.client, http.server, itertools, json, os, sys, threading
arguments = sys.argv[2:]
value = lambda name: arguments[arguments.index(name) + 1]
pods = [arguments[at + 1].split("=http://")[1] for at, each in enumerate(arguments) if each == "--target"]
fault, turn, local, done = os.environ.get("STAND_IN_FAULT"), itertools.count(), threading.local(), {{}}
store, log = os.environ["SNAPGATE_STORE_ENABLED"] == "true", value("--json-log")
log = None if log == "off" else open(log, "ab", buffering=0)
dropped = 0
class Server(http.server.ThreadingHTTPServer):
    request_queue_size, daemon_threads = 256, True
class Data(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, log_message = "HTTP/1.1", -1, lambda *_: None
    def do_POST(self):
        global dropped
        number, body = next(turn), self.rfile.read(int(self.headers["content-length"]))
        pod = http.client.HTTPConnection(pods[number % len(pods)])
        pod.request("POST", self.path, body)
        answer = pod.getresponse()
        body, key = answer.read(), f"{{number:032x}}"
        pod.close()
        if fault == "bytes": body = body.replace(b"tokens", b"Tokens")
        if fault == "die" and number > 40: os._exit(3)
        if log and fault in ("drop", "lose") and number % 10 == 9: dropped += fault == "drop"
        elif log: log.write(json.dumps({{"id": key if fault != "twice" else "0" * 32}}).encode() + b"\\n")
        if store: done[key] = True
        self.send_response(503 if fault == "status" and number > 40 else 200)
        self.send_header("x-snapshot-id", key)
        self.send_header("x-pod", answer.headers["x-pod"])
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
class Admin(Data):
    def do_GET(self):
        key = self.path.split("/")[-1].split("?")[0]
        page = f'snapgate_snapshots_dropped_total{{{{exit="json_log",reason="queue_full"}}}} {{dropped}}\\n'
        body = page if key == "metrics" else json.dumps({{"id": key, "phase": "complete"}})
        self.send_response(200 if key == "metrics" or key in done else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())
        self.wfile.flush()
def serve(address, handler):
    host, port = value(address).split(":")
    return Server((host, int(port)), handler).serve_forever
threading.Thread(target=serve("--admin", Admin), daemon=True).start()
serve("--listen", Data)()
"""


class Answers(unittest.TestCase):
    def test_a_stream_is_events_of_one_size_and_an_end(self) -> None:
        answer = backend.workload("stream").answer
        events = answer.split(b"\n\n")
        self.assertEqual(events[-2:], [b"data: [DONE]", b""])
        self.assertEqual([len(event) + 2 for event in events[:-2]], [backend.EVENT_BYTES] * backend.EVENTS)

    def test_bodies_have_the_size_of_real_ones(self) -> None:
        self.assertAlmostEqual(len(backend.workload("json").request), 600, delta=60)
        self.assertAlmostEqual(len(backend.workload("json").answer), 700, delta=60)
        self.assertAlmostEqual(len(backend.metrics_page()), 51_000, delta=6_000)

    def test_a_metrics_page_is_read_back(self) -> None:
        page = subjects.parse_metrics(backend.metrics_page())
        self.assertEqual(page["vllm:num_requests_waiting", 'engine="0",model_name="llama-3.1-8b"'], 2.0)


class Reading(unittest.TestCase):
    GOOD = '"requests":10,"duration_us":2000000,"bytes":9000,"p50_us":1,"p99_us":2,"max_us":3'
    NONE = '"connect":0,"read":0,"write":0,"timeout":0,"status":0'

    def test_what_wrk_says(self) -> None:
        seen = load.parse_wrk(f'noise\nRESULT {{{self.GOOD},"errors":{{{self.NONE}}}}}\n', 900, 0.5)
        self.assertEqual((seen.per_second, seen.p99_us, seen.cpu_seconds), (5.0, 2, 0.5))

    def test_any_error_fails(self) -> None:
        cases = [
            (self.GOOD, self.NONE.replace('"status":0', '"status":4'), "4 status errors"),
            (self.GOOD, self.NONE.replace('"read":0', '"read":1'), "1 read errors"),
            (self.GOOD.replace(":10,", ":0,"), self.NONE, "not one request"),
            (self.GOOD.replace(":9000", ":8999"), self.NONE, "some are short"),
        ]
        for numbers, errors, part in cases:
            with self.subTest(part), self.assertRaisesRegex(Failure, part):
                load.parse_wrk(f'RESULT {{{numbers},"errors":{{{errors}}}}}', 900, 0.0)
        with self.assertRaisesRegex(Failure, "no result"):
            load.parse_wrk("unable to connect", 900, 0.0)

    def test_every_place_of_a_template_is_filled(self) -> None:
        with self.assertRaisesRegex(ValueError, "has no @OTHER@"):
            processes.render(HERE / "nginx-proxy.conf", {"OTHER": "1"})

    def test_cpu_time_is_of_the_whole_tree(self) -> None:
        burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
        child = (
            f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {burn!r}])\n{burn}\ntime.sleep(60)"
        )
        with tempfile.TemporaryDirectory() as directory:
            process = processes.Process("burner", [sys.executable, "-c", child], Path(directory))
            try:
                deadline = time.monotonic() + 30
                while processes.cpu_seconds([process.pid])[process.pid] < 0.59 and time.monotonic() < deadline:
                    time.sleep(0.02)
                self.assertGreater(processes.cpu_seconds([process.pid])[process.pid], 0.58)
            finally:
                process.stop()
            with self.assertRaisesRegex(Failure, "burner has ended"):
                process.check()


class Tables(unittest.TestCase):
    @staticmethod
    def round(subject: str, number: int, requests: int, cpu: float, dropped: int = 0) -> table.Round:
        seen = load.Load(requests, 2.0, 1000, 2000, 3000, 0.1)
        books = subjects.Books(requests, {"queue_full": dropped} if dropped else {})
        return table.Round(subject, number, seen, books, cpu, cpu, 0.0)

    def test_ratios_are_taken_within_a_round(self) -> None:
        rounds = [self.round("nginx", number, speed, 1.0) for number, speed in enumerate((100, 200, 400), 1)]
        rounds += [self.round("snapgate", number, speed, 2.0) for number, speed in enumerate((90, 190, 380), 1)]
        row = table.summarise(rounds, [], ["nginx", "snapgate"])[1]
        self.assertEqual(row.ratio, (0.95, 0.9, 0.95))
        self.assertAlmostEqual(row.cpu_ratio or 0, 2 / 0.95)

    def test_goals_are_met_without_failures_and_drops_only(self) -> None:
        base = [self.round("nginx", number, 100, 1.0) for number in (1, 2)]
        failure = table.FailedRound("snapgate", 2, "3 read errors")
        cases: list[tuple[list[table.Round], list[table.FailedRound], str]] = [
            ([self.round("snapgate", 1, 95, 1.0)], [], "0.95, met"),
            ([self.round("snapgate", 1, 85, 1.0)], [], "0.85, NOT MET"),
            ([self.round("snapgate", 1, 95, 1.0)], [failure], "0.95, NOT MET"),
            ([self.round("snapgate", 1, 95, 1.0, dropped=7)], [], "0.95, NOT MET"),
        ]
        for mine, failed, part in cases:
            rows = table.summarise(base + mine, failed, ["nginx", "snapgate"])
            remarks = "\n".join(table.remarks(rows, failed, "nginx"))
            self.assertIn(part, remarks)
            self.assertEqual("FAILED: snapgate, round 2: 3 read errors" in remarks, bool(failed))
            self.assertEqual("dropped 7 records" in remarks, bool(mine[0].books.dropped))


@unittest.skipUnless(
    shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") and shutil.which("wrk"), "needs nginx and wrk"
)
class Whole(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.snapgate = self.directory / "snapgate"
        self.snapgate.write_text(textwrap.dedent(STAND_IN.format(python=sys.executable)))
        self.snapgate.chmod(0o755)
        self.work = self.directory / "work"
        self.work.mkdir()

    def command(self, *more: str) -> list[str]:
        options = ["--rounds", "1", "--seconds", "1", "--connections", "4", "--snapgate", str(self.snapgate)]
        return [str(HERE / "run"), *options, "--directory", str(self.work), *more]

    def run_it(self, fault: str, *more: str) -> tuple[int, str]:
        done = subprocess.run(
            self.command(*more),
            env={**os.environ, "STAND_IN_FAULT": fault},
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.assertEqual(list(self.work.iterdir()), [], "the temporary directory is removed")
        return done.returncode, done.stdout + done.stderr

    def test_all_is_well(self) -> None:
        said_file = self.directory / "out.json"
        subject_names = "nginx,snapgate,snapgate-record,snapgate-store,snapgate-log,direct"
        code, said = self.run_it("", "--subjects", subject_names, "--json", str(said_file))
        self.assertEqual(code, 0, said)
        for name in subject_names.split(","):
            self.assertEqual(said.count(f"\n| {name} |"), 4, said)
        self.assertTrue(said_file.exists())

    def test_faults_are_seen(self) -> None:
        cases = [
            ("bytes", 1, "does not pass the answer on as it is"),
            ("status", 1, "status errors among"),
            ("die", 1, "has ended by itself"),
            ("lose", 1, "owns up to no drops"),
            ("twice", 1, "names the same id twice"),
            ("drop", 0, 'records over all rounds: dropped exit="json_log",reason="queue_full"'),
        ]
        for fault, expected, part in cases:
            with self.subTest(fault):
                code, said = self.run_it(fault, "--subjects", "snapgate-log", "--workload", "json")
                self.assertEqual(code, expected, said)
                self.assertIn(part, said)

    def test_nothing_is_left_after_an_interrupt(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number.name):
                command = self.command("--subjects", "nginx,snapgate", "--workload", "json", "--seconds", "60")
                running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                mine = self._wait_for_load(running.pid)
                running.send_signal(number)
                self.assertNotEqual(running.wait(60), 0)
                left = [Path("/proc", str(pid), "stat").read_text() for pid in mine if Path("/proc", str(pid)).exists()]
                self.assertEqual(left, [])
                self.assertEqual(list(self.work.iterdir()), [])

    def _wait_for_load(self, root: int) -> list[int]:
        """All descendants, once wrk is among them."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found, names = [root], []
            for pid in found:
                try:
                    found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                    names.append(Path(f"/proc/{pid}/cmdline").read_text())
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it ended while we looked
            if any("load.lua" in name for name in names):
                return found[1:]
            time.sleep(0.05)
        self.fail("wrk was never started")


if __name__ == "__main__":
    unittest.main()
