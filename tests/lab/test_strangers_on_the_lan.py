"""Strangers on a LAN: floods of forged beacons, and of connections half open.

FAULTS 62 and 68. What is sent are raw packets from addresses that nobody has.
"""

import subprocess
import sys
import time

import figures
from cluster import Member, await_component
from netlab import PORT, Lan
from scenes import Lab, marks
from strangers import SECRET, Usage

import wire
from discovery import BEACON, Say

pytestmark = marks

RATE = 10000  # datagrams a second
SECONDS = 5.0
SYN_SECONDS = 8.0
# Each has another sender of this LAN, and none of them exists.
FLOOD = """
import random, socket, struct, sys, time
data, port, rate, seconds = bytes.fromhex(sys.argv[1]), *map(int, sys.argv[2:5])
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
udp = struct.pack("!HHHH", 40000, port, 8 + len(data), 0) + data
began, sent = time.monotonic(), 0
while time.monotonic() < began + seconds:
    for _ in range(100):
        source = bytes([10, 77, 0, random.randrange(100, 250)])
        head = struct.pack("!BBHHHBBH", 69, 0, 20 + len(udp), 1, 0, 64, 17, 0)
        out.sendto(head + source + bytes([10, 77, 0, 255]) + udp, ("10.77.0.255", 0))
        sent += 1
    time.sleep(max(0.0, began + sent / rate - time.monotonic()))
print(sent)
"""

# The first packet of a connection: the node's answer reaches nobody.
SYN_FLOOD = """
import random, socket, struct, sys, time
target, port, rate, seconds = socket.inet_aton(sys.argv[1]), *map(int, sys.argv[2:5])
out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
def total(data):
    one = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    one = (one >> 16) + (one & 0xFFFF)
    return ~(one + (one >> 16)) & 0xFFFF
began, sent = time.monotonic(), 0
while time.monotonic() < began + seconds:
    for _ in range(100):
        source = bytes([10, 77, 0, random.randrange(100, 250)])
        words = (random.randrange(1024, 65536), port, random.randrange(1 << 32), 0)
        syn = struct.pack("!HHIIBBHHH", *words, 0x50, 2, 64240, 0, 0)
        head = source + target + struct.pack("!BBH", 0, 6, len(syn))
        syn = syn[:16] + struct.pack("!H", total(head + syn)) + syn[18:]
        ip = struct.pack("!BBHHHBBH", 69, 0, 20 + len(syn), 1, 0, 64, 6, 0)
        out.sendto(ip + source + target + syn, (sys.argv[1], 0))
        sent += 1
    time.sleep(max(0.0, began + sent / rate - time.monotonic()))
print(sent)
"""


def half_open(lan: Lan, node: Member) -> int:
    """Count the connections to a node that wait for their third packet."""
    command = ["ss", "-Htn", "state", "syn-recv", "sport = :%d" % PORT]
    done = subprocess.run([*node.prefix, *command], stdout=subprocess.PIPE, check=True)
    return len(done.stdout.splitlines())


def test_ten_thousand_half_open_connections_a_second_keep_nobody_out(lab: Lab) -> None:
    lan = lab(2)
    lan.start()
    stranger, newcomer = lan.machine(), lan.machine()
    node = lan.nodes[0]
    words = [sys.executable, "-c", SYN_FLOOD, node.address, str(PORT), str(RATE)]
    flood = subprocess.Popen(
        [*stranger.prefix, *words, "%d" % SYN_SECONDS], stdout=subprocess.PIPE
    )
    usage = Usage(node)
    time.sleep(1)
    waiting = half_open(lan, node)
    began = time.monotonic()
    newcomer.start()
    await_component([*lan.nodes, newcomer], 30)
    joined = time.monotonic() - began
    assert newcomer.wait(newcomer.add("true", "worker:is " + node.address)) == 0
    time.sleep(max(0.0, SYN_SECONDS - 1 - (time.monotonic() - began)))
    share, grown = usage.share, usage.grown_mb
    sent = int(flood.communicate(timeout=20)[0])
    assert sent > RATE * SYN_SECONDS / 2 and waiting > 100
    rate = "%d half-open connections a second, %d at once" % (
        sent / SYN_SECONDS,
        waiting,
    )
    figures.note(rate + ": of a core", "0.05", "%.3f" % share, "62")
    figures.note("... memory", "10 MB", "%.1f MB" % grown, "62")
    figures.note("... one that starts has joined all", "10 s", "%.1f s" % joined, "62")
    assert share < 0.15 and grown < 10 and joined < 10


def test_ten_thousand_forged_beacons_a_second_cost_next_to_nothing(lab: Lab) -> None:
    lan = lab(2)
    lan.start()
    stranger, newcomer = lan.machine(), lan.machine()
    node = lan.nodes[0]
    calm = Usage(node)
    time.sleep(2)
    resting = calm.share
    fields = (wire.MAGIC, wire.VERSION, Say.HERE, wire.fingerprint(SECRET))
    beacon = BEACON.pack(*fields, bytes(8), PORT)
    words = [sys.executable, "-c", FLOOD, beacon.hex(), str(PORT), str(RATE)]
    flood = subprocess.Popen(
        [*stranger.prefix, *words, "%d" % SECONDS], stdout=subprocess.PIPE
    )
    usage = Usage(node)
    time.sleep(1)
    began = time.monotonic()
    newcomer.start()
    await_component([*lan.nodes, newcomer], 30)
    joined = time.monotonic() - began
    time.sleep(max(0.0, SECONDS - 1 - joined))
    share, grown = usage.share, usage.grown_mb
    sent = int(flood.communicate(timeout=20)[0])
    assert sent > RATE * SECONDS / 2
    rate = "%d forged beacons a second" % (sent / SECONDS)
    figures.note(
        rate + ": of a core", "0.05", "%.3f (calm: %.3f)" % (share, resting), "68"
    )
    figures.note("... memory", "10 MB", "%.1f MB" % grown, "68")
    figures.note("... one that starts has joined all", "10 s", "%.1f s" % joined, "68")
    assert share < 0.15 and grown < 10 and joined < 10
    log = node.home / "log"
    assert not log.exists() or log.stat().st_size < 20000
