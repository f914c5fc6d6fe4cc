"""A network of its own for a command, and what the command wanted from it: `python watched.py REPORT.json COMMAND…`.

The command runs in a network namespace in which every address of the world is this machine, where nobody answers: what
it sends is refused at once, and read off the wire. So it is seen whoever sends it, Python, a library's native code or a
process that was started on the way, while a hook of Python's, or a preloaded library, would only see some of them.
Talk among this machine's own programs (127.0.0.1, ::1) is let through and not reported; a question to a name server is.

It needs Linux, iproute2, and to be root or to be allowed user namespaces. The program is started inside the namespace
by `watch`, and imports nothing but the standard library.
"""

import ipaddress
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

DNS = 53
_ALL_PROTOCOLS, _OUTGOING = 3, 4  # ETH_P_ALL, PACKET_OUTGOING
_STATISTICS, _FORCED_BUFFER = 6, 33  # PACKET_STATISTICS, SO_RCVBUFFORCE
_IPV4, _IPV6, _TCP, _UDP = 0x0800, 0x86DD, 6, 17


def _unshare() -> list[str]:
    options = ["--net"] if os.geteuid() == 0 else ["--net", "--map-root-user"]
    return ["unshare", *options, "--"]


def needs_a_network_of_its_own() -> None:
    """Skips a test where this system has no network namespaces for it; in CI that is a failure."""
    tools = shutil.which("unshare") and shutil.which("ip")
    if not tools or subprocess.run([*_unshare(), "true"], capture_output=True).returncode:
        said = "needs Linux, iproute2, and root or user namespaces: a network of its own"
        pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)


def watch(command: list, report: Path, environment: dict, **options) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Runs a command with its network watched; how it ended, and what left, each address or name once."""
    plain = {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
    whole = [*_unshare(), sys.executable, str(Path(__file__).resolve()), str(report), *map(str, command)]
    done = subprocess.run(whole, env=plain, capture_output=True, text=True, **options)
    assert report.exists(), done.stderr
    return done, json.loads(report.read_text())


def _question(payload: bytes) -> str:
    """The name that a DNS question asks for."""
    labels, at = [], 12
    while at < len(payload) and payload[at]:
        labels.append(payload[at + 1 : at + 1 + payload[at]].decode("ascii", "replace"))
        at += 1 + payload[at]
    return ".".join(labels)


def _wanted(kind: int, packet: bytes) -> str | None:
    """Where an IP packet goes, in words; None within this machine, and for the refusals that answer others."""
    if kind == _IPV4:
        start, protocol, target = 4 * (packet[0] & 15), packet[9], ipaddress.ip_address(packet[16:20])
    elif kind == _IPV6:
        start, protocol, target = 40, packet[6], ipaddress.ip_address(packet[24:40])
    else:
        return None
    if protocol not in (_TCP, _UDP):
        return None  # errors that the kernel sends back
    port = struct.unpack_from("!H", packet, start + 2)[0]
    if protocol == _UDP and port == DNS:
        return f"name {_question(packet[start + 8 :])}"
    refused = protocol == _TCP and packet[start + 13] & 4  # RST
    return None if target.is_loopback or refused else f"{'tcp' if protocol == _TCP else 'udp'} {target} port {port}"


class _Wire(threading.Thread):
    """Reads what goes out of the loopback device, through which everything goes here."""

    def __init__(self):
        super().__init__(daemon=True)
        self.found: dict[str, None] = {}
        self.done = threading.Event()
        self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL_PROTOCOLS))
        self.wire.setsockopt(socket.SOL_SOCKET, _FORCED_BUFFER, 64 * 2**20)
        self.wire.bind(("lo", _ALL_PROTOCOLS))
        self.wire.settimeout(0.2)

    def run(self) -> None:
        while True:
            try:
                packet, (_, kind, direction, *_) = self.wire.recvfrom(512)
            except TimeoutError:
                if self.done.is_set():
                    return
                continue
            if direction == _OUTGOING and (told := _wanted(kind, packet)):
                self.found[told] = None

    def close(self) -> list[str]:
        """All that was found."""
        self.done.set()
        self.join()
        lost = struct.unpack("II", self.wire.getsockopt(263, _STATISTICS, 8))[1]  # 263: SOL_PACKET
        return [*self.found, *([f"{lost} packets weren't seen"] if lost else [])]


def main() -> int:
    """In the namespace: makes every address local, reads the wire, runs the command."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for family, source in (("-4", "127.0.0.1"), ("-6", "::1")):
        route = ["ip", family, "route", "add", "local", "default", "dev", "lo", "src", source]
        subprocess.run(route, check=family == "-4")
    wire = _Wire()
    wire.start()
    code = subprocess.run(sys.argv[2:]).returncode
    Path(sys.argv[1]).write_text(json.dumps(wire.close()))
    return code


if __name__ == "__main__":
    sys.exit(main())
