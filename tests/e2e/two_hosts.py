"""A world over two hosts: the same tokens, a dead rank named with its host, one model for all.

Hosts are namespaces (hosts.py) with one cable between them; model files and scratch lie under the
same paths on both, and are not the same.
Exits 77 (skipped) where namespaces are not allowed.
"""
import os
import shutil
import signal
import subprocess

from harness import *
from hosts import Hosts, only_with_hosts

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "models", "llama")
IDS = ",".join(str(1 + i * 37 % 90) for i in range(23))
ASK = ["--prompt-ids", IDS, "--max-tokens", 12, "--ignore-eos", "-o", "json"]
NAMES = ("toroid-h1", "toroid-h2")
ADDRESSES = ("198.18.0.1", "198.18.0.2")  # on the cable alone


class TwoHosts(Hosts):
    """Two hosts and the cable. `model` and `scratch` are paths that every host fills by itself."""

    def lay(self):
        self.model, self.scratch = (os.path.join(self.top, name) for name in ("model", "scratch"))
        for name in (self.model, self.scratch):
            os.mkdir(name)
        table = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for address, name in zip(ADDRESSES, NAMES))
        for name in NAMES:
            own = [(path, os.path.join(self.top, name, os.path.basename(path))) for path in (self.model, self.scratch)]
            shutil.copytree(GOLDEN, own[0][1])
            os.mkdir(own[1][1])
            self.add_host(name, table, own)
        self.lay_cable(*((i, "cable", address) for i, address in enumerate(ADDRESSES)))
        self.agent = self.rsh_agent(1, NAMES[1], self.scratch)

    def launch(self, *words):
        """`toroid launch` typed on the first host."""
        command = self.inside(0) + [TOROID, "launch", *map(str, words)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE,
                                env=environment({"TMPDIR": self.scratch,
                                                 "OMPI_MCA_plm_rsh_agent": self.agent}))

    def both(self, *words):
        return self.launch("-q", "--hosts", ",".join(f"{name}:2" for name in NAMES), *words)


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
        ranks = hosts.ranks_on(1, "generate")
        check(len(ranks) == 2 and len(hosts.ranks_on(0, "generate")) == 2, ours())
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


def make_hosts():
    with TwoHosts():
        pass


if __name__ == "__main__":
    only_with_hosts(make_hosts)
    main()
