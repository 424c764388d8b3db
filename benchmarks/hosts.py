"""Several machines on one: hosts with an address, a name and processes of their own, joined by a switch.

Each host is a set of Linux namespaces (network, process numbers, mounts, name) that its first process holds; a virtual
cable leads to a bridge in a namespace of its own. Killing that process ends everything on the host at once, as a power
cut does; links can be cut and slowed. All of it ends with the process that made it, however that ends. Needs Linux,
iproute2, util-linux, and the right to make namespaces.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_NETWORK = "10.77.0"
_START_TIMEOUT_S = 10.0


def why_not() -> str | None:
    """Return why no hosts can be made here; None where they can."""
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            return f"there is no `{program}` ({package})"
    try:
        with Lan("host"):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return f"no network namespaces can be made here: {said[-1] if said else error}"


class _Namespaces:
    """Namespaces that last as long as the process which holds them."""

    def __init__(self, *kinds: str) -> None:
        """Make them; raises `OSError` if the system refuses."""
        # `cat` ends with its input, which ends with this process.
        self._holder = subprocess.Popen(
            ["unshare", *kinds, "--fork", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._find_child()

    def _find_child(self) -> int:
        """Return the number of the process that is inside."""
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        until = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < until and self._holder.poll() is None:
            found = children.read_text(encoding="ascii").split()
            if found and Path(f"/proc/{found[0]}/comm").read_text(encoding="ascii").strip() == "cat":
                return int(found[0])
            time.sleep(0.01)
        self._holder.kill()
        _, said = self._holder.communicate()
        raise OSError(said.strip() or "unshare did not start in time")

    def close(self) -> None:
        """End every process inside."""
        if self._holder.stdin:
            self._holder.stdin.close()
        self._holder.wait()
        if self._holder.stderr:
            self._holder.stderr.close()


class Host:
    """One of the machines."""

    def __init__(self, name: str, address: str, port: str) -> None:
        """Start it, without a cable; `port` is where the switch takes the cable in."""
        self.name, self.address, self.port = name, address, port
        self._inside = _Namespaces("--net", "--uts", "--mount", "--pid", "--mount-proc")

    @property
    def pid(self) -> int:
        """Number of its first process, by which its namespaces go."""
        return self._inside.pid

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs `words` on this host."""
        return ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--pid", "--", *words]

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program on this host; `options` are those of `subprocess.Popen`."""
        return subprocess.Popen(self.command(*words), text=True, **options)

    def kill(self) -> None:
        """End all its processes at once, without a word to the others."""
        self._inside.close()


class Lan:
    """Some hosts at one switch, in use from `with` on."""

    def __init__(self, *names: str) -> None:
        """Describe hosts by their names."""
        self.hosts: list[Host] = []
        self._host_names = names
        self._cables = itertools.count(1)

    def __enter__(self) -> Self:
        """Start the switch and the hosts.

        Raises:
            OSError: namespaces cannot be made.
            subprocess.CalledProcessError: `ip` refuses.
        """
        self._switch = _Namespaces("--net")
        self._folder = tempfile.TemporaryDirectory(prefix="thumbnet-hosts-")
        self._names = Path(self._folder.name) / "hosts"
        lines = [f"{_NETWORK}.{number} {name}" for number, name in enumerate(self._host_names, 1)]
        self._names.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n", encoding="ascii")
        try:
            self._at_switch("ip", "link", "add", "switch", "type", "bridge")
            self._at_switch("ip", "link", "set", "switch", "up")
            for number in range(1, len(self._host_names) + 1):
                self.hosts.append(self._connect(number))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything."""
        self.close()

    def close(self) -> None:
        """End all processes on the hosts, and the hosts."""
        for host in self.hosts:
            host.kill()
        self._switch.close()
        self._folder.cleanup()

    def _at_switch(self, *words: str) -> None:
        """Run a command where the switch is."""
        subprocess.run(
            ["nsenter", "--target", str(self._switch.pid), "--net", "--", *words],
            check=True,
            capture_output=True,
            text=True,
        )

    def _connect(self, number: int) -> Host:
        """Start a host and lay its cable."""
        # The port of a host that was killed stays for a moment, so each cable gets one of its own.
        host = Host(self._host_names[number - 1], f"{_NETWORK}.{number}", f"port{next(self._cables)}")
        try:
            self._at_switch(*f"ip link add {host.port} type veth peer name eth0 netns {host.pid}".split())
            self._at_switch(*f"ip link set {host.port} master switch up".split())
            for line in (
                f"ip address add {host.address}/24 dev eth0",
                "ip link set eth0 up",
                "ip link set lo up",
                f"echo {host.name} > /proc/sys/kernel/hostname",
                f"mount --bind {self._names} /etc/hosts",
            ):
                subprocess.run(host.command("sh", "-c", line), check=True, capture_output=True, text=True)
        except BaseException:
            host.kill()
            raise
        return host

    def cut(self, host: Host) -> None:
        """Cut the cable of a host: packets vanish, nobody is told."""
        self._at_switch("ip", "link", "set", host.port, "down")

    def heal(self, host: Host) -> None:
        """Join the cable again."""
        self._at_switch("ip", "link", "set", host.port, "up")

    def replace(self, host: Host) -> Host:
        """Start a host anew under the name and address of one that was killed."""
        new = self._connect(self.hosts.index(host) + 1)
        self.hosts[self.hosts.index(host)] = new
        return new

    def limit(self, host: Host, bits_per_s: int) -> None:
        """Let a host send no faster than this, frames of Ethernet included."""
        # The bucket must hold what a timer tick of the kernel lets through, and few frames more.
        burst_bytes = max(bits_per_s // 8 // 250, 16_000)
        words = f"tc qdisc replace dev eth0 root tbf rate {bits_per_s}bit burst {burst_bytes} latency 200ms"
        subprocess.run(host.command(*words.split()), check=True, capture_output=True, text=True)
