"""Hosts on one machine, for what crosses a network.

A host is a process in its own network, mount and UTS namespaces: its own name and its own
/etc/hosts, with veth cables to others. Nothing is made outside these namespaces, so nothing can be
left behind: they go with their last process, and a host ends when the test that holds its standard
input does, however that ends.
"""
import os
import shutil
import subprocess
import sys
import tempfile

from harness import MARK, environment, processes


def succeeded(*command):
    """Runs a tool of the system."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=20)
    if done.returncode != 0:
        raise OSError(f"{' '.join(map(str, command))}: {done.stdout.decode('utf-8', 'replace')}")


class Hosts:
    """The hosts and cables that lay() makes, from `with` on; OSError where that is not allowed."""

    def __init__(self):
        self.top = tempfile.mkdtemp(prefix="toroid-hosts-")
        self.hosts = []

    def __enter__(self):
        try:
            self.lay()
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

    def add_host(self, name, table, own=()):
        """table: its /etc/hosts. own: paths and what stands there on this host alone."""
        script = "set -e; hostname \"$1\"; ip link set lo up; mount --bind \"$2\" /etc/hosts\n"
        script += "mount -t tmpfs none /dev/shm\n"
        for path, source in own:
            script += f"mount --bind '{source}' '{path}'\n"
        script += "echo up; exec cat"
        host = subprocess.Popen(["unshare", "--net", "--uts", "--mount", "sh", "-c", script, "host", name,
                                 self.write(f"hosts-of-{name}", table)],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = host.stdout.readline().decode("utf-8", "replace")
        if said != "up\n":
            host.stdin.close()
            rest = host.stdout.read().decode("utf-8", "replace")
            host.wait(timeout=20)
            raise OSError(f"cannot make a host: {said}{rest}")
        self.hosts.append(host)

    def lay_cable(self, *ends):
        """Between two hosts: of each its number, what the cable is called there, and its address."""
        (one, first, _), (other, second, _) = ends
        succeeded(*self.inside(one), "ip", "link", "add", first, "type", "veth", "peer", "name", second, "netns",
                  str(self.hosts[other].pid))
        for host, name, address in ends:
            succeeded(*self.inside(host), "ip", "address", "add", f"{address}/30", "dev", name)
            succeeded(*self.inside(host), "ip", "link", "set", name, "up")

    def inside(self, host):
        return ["nsenter", "-t", str(self.hosts[host].pid), "--net", "--uts", "--mount"]

    def rsh_agent(self, host, name, scratch):
        """What mpirun has in place of ssh to reach that host, by its name. As there, the environment is not carried."""
        path = self.write("agent", "\n".join([
            "#!/bin/sh",
            "host=$1; shift",
            f"[ \"$host\" = {name} ] || exit 1",
            f"exec {' '.join(self.inside(host))} env -i PATH=\"$PATH\" TMPDIR={scratch}"
            f" {MARK}={environment()[MARK]} sh -c \"$*\"", ""]))
        os.chmod(path, 0o700)
        return path

    def ranks_on(self, host, verb):
        """Pids of the ranks of that verb that live on that host."""
        space = os.readlink(f"/proc/{self.hosts[host].pid}/ns/uts")
        found = []
        for pid in processes(rf"^\S*toroid {verb} "):
            try:
                if os.readlink(f"/proc/{pid}/ns/uts") == space:
                    found.append(pid)
            except OSError:
                continue
        return found


def only_with_hosts(probe):
    """Exits 77 (skipped) where probe() cannot make hosts. Whoever may have a user namespace is root in one."""
    try:
        if os.geteuid() != 0:
            mapped = ["unshare", "--user", "--map-root-user"]
            succeeded(*mapped, "true")
            os.execvp(mapped[0], [*mapped, sys.executable, *sys.argv])
        probe()
    except OSError as why:
        print(f"SKIPPED: hosts need namespaces of their own: {why}")
        sys.exit(77)
