"""What the end-to-end tests share: running the real binary, checking, and finding orphans.

A test is a function named test_*; main() runs them all, or those named on the command line, and
exits 1 if one failed. Standard library only.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid

TOROID = os.path.abspath(sys.argv[1])
MODEL = "random:tiny-gqa"
MARK = "TOROID_E2E_MARK"  # in the environment of all that a test starts


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


def check(condition, *what):
    if not condition:
        raise Failed(" ".join(str(w) for w in what))


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def json(self):
        lines = self.out.strip().split("\n")
        check(len(lines) == 1, "stdout holds exactly one object:", self.out)
        return json.loads(lines[0])

    def said(self):
        """The error lines of toroid itself."""
        return [line for line in self.err.split("\n") if line.startswith("toroid: ")]


def environment(extra=None):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TOROID_", "OMPI_", "SLURM_", "PMI"))}
    env[MARK] = mark
    env.update(extra or {})
    return {k: v for k, v in env.items() if v is not None}


def run(*arguments, env=None, stdin="", timeout=60, cwd=None, program=None):
    """Runs toroid to its end."""
    command = [program or TOROID, *map(str, arguments)]
    done = subprocess.run(command, input=stdin.encode(), env=environment(env), cwd=cwd,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout)
    return Result(done.returncode, done.stdout.decode("utf-8", "replace"),
                  done.stderr.decode("utf-8", "replace"))


def start(*arguments, env=None, program=None, **options):
    """Starts toroid and returns the Popen, its output in pipes."""
    return subprocess.Popen([program or TOROID, *map(str, arguments)], env=environment(env),
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)


def finish(process, timeout=30):
    out, err = process.communicate(timeout=timeout)
    return Result(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def launch(ranks, *arguments, **options):
    return run("launch", "-n", ranks, "-q", *arguments, **options)


def refused(result, code, *words):
    """One line of toroid's, with that exit code, holding every word."""
    check(result.code == code, "exit code", result.code, "instead of", code, ":", result.err)
    said = result.said()
    check(len(said) == 1, "one line instead of", said, "in", result.err)
    for word in words:
        check(str(word) in said[0], repr(word), "is missing in:", said[0])


def ours():
    """Living processes that the running test has started, directly or not: {pid: command line}."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if f"{MARK}={mark}".encode() not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{entry}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] in "ZX":
                    continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                found[int(entry)] = file.read().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
    return found


def wait_for(what, condition, seconds=20):
    """Polls until condition() is true; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        check(time.monotonic() < deadline, "not within", seconds, "s:", what, ours())
        time.sleep(0.02)


def no_orphans(seconds=10):
    wait_for("no process is left", lambda: not ours(), seconds)


def processes(pattern):
    return [pid for pid, line in sorted(ours().items()) if re.search(pattern, line)]


mark = ""


def main():
    """Runs the tests of the calling module."""
    global mark
    module = sys.modules["__main__"]
    names = sys.argv[2:] or [n for n in dir(module) if n.startswith("test_")]
    failures = 0
    for name in names:
        mark = uuid.uuid4().hex
        begin = time.monotonic()
        try:
            getattr(module, name)()
            word = "ok"
        except Skipped as why:
            word = f"SKIPPED: {why}"
        except Exception:  # a test's end must not hide the others
            failures += 1
            word = "FAILED"
            traceback.print_exc()
        finally:
            for pid in ours():
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
        print(f"{name}: {word} ({time.monotonic() - begin:.1f} s)", flush=True)
    sys.exit(1 if failures else 0)
