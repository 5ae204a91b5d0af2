"""A world over two hosts: the same tokens, a dead rank named with its host, one model for all.

A host is a process in its own network, mount and UTS namespaces: its own name, its own /etc/hosts,
scratch and model files under the same paths as on the other, and one veth cable between the two.
Nothing is made outside these namespaces, so nothing can be left behind: they go with their last
process, and a host ends when the test that holds its standard input does, however that ends.
Exits 77 (skipped) where namespaces are not allowed.
"""
import os
import shutil
import signal
import subprocess
import sys
import tempfile

from harness import *

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "models", "llama")
IDS = ",".join(str(1 + i * 37 % 90) for i in range(23))
ASK = ["--prompt-ids", IDS, "--max-tokens", 12, "--ignore-eos", "-o", "json"]
NAMES = ("toroid-h1", "toroid-h2")
ADDRESSES = ("198.18.0.1", "198.18.0.2")  # on the cable alone


def succeeded(*command):
    """Runs a tool of the system."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=20)
    if done.returncode != 0:
        raise OSError(f"{' '.join(map(str, command))}: {done.stdout.decode('utf-8', 'replace')}")


class TwoHosts:
    """Two hosts and the cable. `model` and `scratch` are paths that every host fills by itself."""

    def __init__(self):
        self.top = tempfile.mkdtemp(prefix="toroid-two-hosts-")
        self.model, self.scratch = (os.path.join(self.top, name) for name in ("model", "scratch"))
        self.hosts = []

    def __enter__(self):
        try:
            for name in (self.model, self.scratch):
                os.mkdir(name)
            hosts_file = self.write("hosts", "127.0.0.1 localhost\n" + "".join(
                f"{address} {name}\n" for address, name in zip(ADDRESSES, NAMES)))
            for name in NAMES:
                self.hosts.append(self.start_host(name, hosts_file))
            first, second = (str(host.pid) for host in self.hosts)
            succeeded(*self.inside(0), "ip", "link", "add", "cable", "type", "veth", "peer", "name",
                      "cable", "netns", second)
            for i, address in enumerate(ADDRESSES):
                succeeded(*self.inside(i), "ip", "address", "add", f"{address}/30", "dev", "cable")
                succeeded(*self.inside(i), "ip", "link", "set", "cable", "up")
            # What mpirun has instead of ssh. As there, the environment is not carried.
            self.agent = self.write("agent", "\n".join([
                "#!/bin/sh",
                "host=$1; shift",
                f"[ \"$host\" = {NAMES[1]} ] || exit 1",
                f"exec {' '.join(self.inside(1))} env -i PATH=\"$PATH\" TMPDIR={self.scratch}"
                f" {MARK}={environment()[MARK]} sh -c \"$*\"", ""]))
            os.chmod(self.agent, 0o700)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for host in self.hosts:
            host.stdin.close()
            host.wait(timeout=20)
        shutil.rmtree(self.top)

    def write(self, name, text):
        path = os.path.join(self.top, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def start_host(self, name, hosts_file):
        own = {path: os.path.join(self.top, name, os.path.basename(path))
               for path in (self.model, self.scratch)}
        shutil.copytree(GOLDEN, own[self.model])
        os.mkdir(own[self.scratch])
        script = "set -e; hostname \"$1\"; ip link set lo up; mount --bind \"$2\" /etc/hosts\n"
        script += "mount -t tmpfs none /dev/shm\n"
        for path, source in own.items():
            script += f"mount --bind '{source}' '{path}'\n"
        script += "echo up; exec cat"
        host = subprocess.Popen(["unshare", "--net", "--uts", "--mount", "sh", "-c", script, "host",
                                 name, hosts_file], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
        said = host.stdout.readline().decode("utf-8", "replace")
        if said != "up\n":
            host.stdin.close()
            rest = host.stdout.read().decode("utf-8", "replace")
            host.wait(timeout=20)
            raise OSError(f"cannot make a host: {said}{rest}")
        return host

    def inside(self, host):
        return ["nsenter", "-t", str(self.hosts[host].pid), "--net", "--uts", "--mount"]

    def launch(self, *words):
        """`toroid launch` typed on the first host."""
        command = self.inside(0) + [TOROID, "launch", *map(str, words)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE,
                                env=environment({"TMPDIR": self.scratch,
                                                 "OMPI_MCA_plm_rsh_agent": self.agent}))

    def both(self, *words):
        return self.launch("-q", "--hosts", ",".join(f"{name}:2" for name in NAMES), *words)

    def ranks_on(self, host):
        """Pids of the ranks that live on that host."""
        space = os.readlink(f"/proc/{self.hosts[host].pid}/ns/uts")
        found = []
        for pid in processes(r"^\S*toroid generate "):
            try:
                if os.readlink(f"/proc/{pid}/ns/uts") == space:
                    found.append(pid)
            except OSError:
                continue
        return found


def test_the_same_tokens():
    with TwoHosts() as hosts:
        mesh = ["generate", hosts.model, "--mesh", "ring=2,tensor=2", *ASK]
        one = finish(hosts.launch("-q", "-n", 4, *mesh))
        check(one.code == 0, one.err)
        two = finish(hosts.both(*mesh))
        check(two.code == 0, two.err)
        check(len(two.json()["ids"]) == 12 and two.json()["ids"] == one.json()["ids"], one.out, two.out)
        check(os.listdir(os.path.join(hosts.top, NAMES[1], "scratch")) == [], "scratch is left")
    no_orphans()


def test_a_killed_rank_is_named_with_its_host():
    with TwoHosts() as hosts:
        client = hosts.both("generate", MODEL, "--mesh", "ring=2,tensor=2", "--prompt", "x",
                            "--max-tokens", 30000, "--ignore-eos")
        check(client.stdout.read(1), "no token")
        ranks = hosts.ranks_on(1)
        check(len(ranks) == 2 and len(hosts.ranks_on(0)) == 2, ours())
        os.kill(ranks[-1], signal.SIGKILL)
        result = finish(client)
        check(result.code == 1, result.code, result.err)
        check(len(result.said()) == 1 and NAMES[1] in result.said()[0], result.err)
    no_orphans()


def test_another_model_on_one_host_is_refused():
    with TwoHosts() as hosts:
        copy = os.path.join(hosts.top, NAMES[1], "model", "model.safetensors")
        with open(copy, "r+b") as file:
            file.seek(-2, os.SEEK_END)
            last = file.read(1)
            file.seek(-2, os.SEEK_END)
            file.write(bytes([last[0] ^ 0x7F]))
        result = finish(hosts.both("generate", hosts.model, "--mesh", "ring=2,tensor=2", *ASK))
        refused(result, 3, NAMES[1])
    no_orphans()


if __name__ == "__main__":
    try:
        if os.geteuid() != 0:  # whoever may have a user namespace is root in it
            mapped = ["unshare", "--user", "--map-root-user"]
            succeeded(*mapped, "true")
            os.execvp(mapped[0], [*mapped, sys.executable, *sys.argv])
        with TwoHosts():
            pass
    except OSError as why:
        print(f"SKIPPED: hosts need namespaces of their own: {why}")
        sys.exit(77)
    main()
