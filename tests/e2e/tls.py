"""TLS: certificates made by `toroid pki`, a cluster that speaks nothing else, and who is refused."""
import os
import stat
import tempfile

from cluster import PROMPT, Up
from harness import *


class Pki:
    """A CA in a directory of its own; folders of certificates by host."""

    def __init__(self, *hosts):
        self.dir = tempfile.TemporaryDirectory(prefix="toroid-pki-")
        self.ca = os.path.join(self.dir.name, "pki")
        made = run("pki", "init", self.ca)
        check(made.code == 0, made.err)
        issued = run("pki", "issue", self.ca, *hosts)
        check(issued.code == 0, issued.err)
        self.folders = issued.out.split()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.dir.cleanup()


def test_a_cluster_over_tls():
    alone = run("generate", MODEL, *PROMPT, "-o", "json", env={"TOROID_CONTROLLER": None}).json()
    with Pki("head,10.0.0.5", "laptop") as pki, Pki("laptop") as other:
        head, laptop = pki.folders
        check(stat.S_IMODE(os.stat(os.path.join(head, "key.pem")).st_mode) == 0o600, "key.pem")
        with Up(1, 2, "--tls-dir", head, "--listen", "0.0.0.0:0") as up:
            port = up.address.split(":")[1]
            address = f"127.0.0.1:{port}"

            def ask(tls, *words, host=address):
                return run(*words, "--controller", host, env={"TOROID_TLS_DIR": tls})

            made = ask(laptop, "generate", MODEL, *PROMPT, "-o", "json")
            check(made.code == 0, made.err)
            check(made.json()["ids"] == alone["ids"], made.out)
            spec = os.path.join(pki.dir.name, "job.textproto")
            with open(spec, "w") as file:
                file.write('name: "tls" model { path: "%s" } mesh { ring: 2 }\n' % MODEL)
                file.write('generate { prompt { text: "abc" } max_tokens: 4 }\n')
            submitted = ask(laptop, "job", "submit", spec, "-o", "json")
            check(submitted.code == 0, submitted.err)
            watched = ask(laptop, "job", "watch", submitted.json()["id"])
            check(watched.code == 0 and "SUCCEEDED" in watched.out, watched.out, watched.err)
            refused(ask(other.folders[0], "pods"), 3, "not of the CA", address)
            refused(ask(None, "pods"), 3, "takes no plaintext", "--tls-dir")
            refused(ask(laptop, "pods", host=f"127.0.0.2:{port}"), 3, "127.0.0.2", "head")
            agent = ["agent", "--pod", "z", "--controller", address, "--slots", 1]
            refused(run(*agent, "--tls-dir", other.folders[0]), 3, "not of the CA")
            refused(run(*agent), 3, "takes no plaintext")
        check(up.result.code == 0, up.result.code, up.result.err)
        with Up(1, 1) as up:
            refused(run("pods", "--controller", up.address, "--tls-dir", laptop), 3, "plaintext")
    no_orphans()


def test_pki_refusals():
    with Pki("node1") as pki:
        refused(run("pki", "init", pki.ca), 3, "there is a CA")
        refused(run("pki", "issue", pki.ca), 2, "no host")
        refused(run("pki", "issue", pki.ca, "a b"), 3, "a b")
        refused(run("pki", "issue", pki.ca, "x", "--days", 3), 2, "--days")
        refused(run("pki", "issue", "--days", 0, pki.ca, "x"), 2, "--days")
        refused(run("pods", "--tls-dir", pki.ca), 3, "cert.pem")
        refused(run("controller", "--listen", "0.0.0.0:0", "--state", pki.ca), 3, "--tls-dir")
        refused(run("generate", MODEL, *PROMPT, "--tls-dir", pki.folders[0]), 2, "--controller")


if __name__ == "__main__":
    main()
