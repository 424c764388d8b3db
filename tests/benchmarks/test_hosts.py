import importlib.util
import select
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hosts.py"
SERVER = """
import socket
server = socket.create_server(("0.0.0.0", 5000))
print("ready", flush=True)
connection, peer = server.accept()
print(peer[0], flush=True)
while data := connection.recv(100):
    print(data.decode(), flush=True)
"""
CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 5000), timeout=10)
for line in sys.stdin:
    connection.sendall(line.strip().encode())
"""


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hosts_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hosts() -> ModuleType:
    module = load_script()
    if why := module.why_not():
        pytest.skip(why)
    return module


def ask(host, *words: str) -> str:
    with host.start(words, stdout=subprocess.PIPE) as process:
        return process.communicate(timeout=30)[0].strip()


def start_python(host, code: str, *words: str) -> subprocess.Popen[str]:
    return host.start(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=30)
    return process.returncode


def test_each_host_has_a_name_an_address_and_processes_of_its_own(hosts) -> None:
    with hosts.Lan("host1", "host2") as lan:
        assert [host.address for host in lan.hosts] == ["10.77.0.1", "10.77.0.2"]
        for host in lan.hosts:
            assert ask(host, "cat", "/proc/sys/kernel/hostname") == host.name
            assert f"{host.address}/24" in ask(host, "ip", "address", "show", "eth0")
            assert ask(host, "sh", "-c", "ls -d /proc/[0-9]* | head -1") == "/proc/1"
        assert Path("/proc/sys/kernel/hostname").read_text().strip() != "host2"


def test_bytes_pass_until_the_cable_is_cut_and_again_when_it_is_healed(hosts) -> None:
    with hosts.Lan("host1", "host2") as lan:
        one, two = lan.hosts
        server = start_python(two, SERVER)
        assert server.stdout.readline() == "ready\n"
        client = start_python(one, CLIENT, "host2")
        assert server.stdout.readline() == "10.77.0.1\n"
        lan.cut(one)
        client.stdin.write("hello\n")
        client.stdin.flush()
        assert select.select([server.stdout], [], [], 0.5)[0] == []
        lan.heal(one)
        assert server.stdout.readline() == "hello\n"  # TCP sends it again
        assert (end(client), end(server)) == (0, 0)


def test_a_killed_host_ends_at_once_and_can_be_replaced(hosts) -> None:
    with hosts.Lan("host1", "host2") as lan:
        one, two = lan.hosts
        sleeper = one.start(["sleep", "1000"])
        server = start_python(two, SERVER)
        assert server.stdout.readline() == "ready\n"
        two.kill()
        assert end(server) != 0
        assert sleeper.poll() is None
        new = lan.replace(two)
        assert lan.hosts == [one, new]
        assert ask(new, "cat", "/proc/sys/kernel/hostname") == "host2"
        server = start_python(new, SERVER)
        assert server.stdout.readline() == "ready\n"
        client = start_python(one, CLIENT, "10.77.0.2")
        assert server.stdout.readline() == "10.77.0.1\n"
        assert (end(client), end(server)) == (0, 0)
    assert sleeper.wait(timeout=30) != 0


def test_a_link_can_be_slowed(hosts) -> None:
    with hosts.Lan("host1") as lan:
        lan.limit(lan.hosts[0], 10**8)
        assert "rate 100Mbit" in ask(lan.hosts[0], "tc", "qdisc", "show", "dev", "eth0")


def test_hosts_end_with_the_process_that_made_them(hosts) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import hosts\n"
        "with hosts.Lan('host1') as lan:\n"
        "    sleeper = lan.hosts[0].start(['sleep', '1000'])\n"
        "    print(lan.hosts[0].pid, flush=True); time.sleep(1000)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(SCRIPT.parent)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    first = Path("/proc") / process.stdout.readline().strip()
    assert first.is_dir()
    process.kill()
    process.communicate()
    until = time.monotonic() + 30
    while first.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not first.exists()


def test_why_there_are_no_hosts_is_told(monkeypatch, tmp_path) -> None:
    module = load_script()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.why_not() == "there is no `ip` (iproute2)"
    for name in ("ip", "nsenter"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    assert module.why_not() == (
        "no network namespaces can be made here: unshare: unshare failed: Operation not permitted"
    )
