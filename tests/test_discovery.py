"""Discovery's hints, answers and limits. Broadcasts stay in a network namespace."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List, Optional

import pytest

import discovery
import wire
from discovery import Discovery, Hint, Interface, Say
from wire import Hello, Role

FOLDER = str(Path(__file__).resolve().parent.parent)
COOKIE = b"0123456789abcdef0123456789abcdef"
ALICE = Hello("00000000000000aa", "aaaaaaaaaaaaaaaa", Role.COMRADE)
BOB = Hello("00000000000000bb", "bbbbbbbbbbbbbbbb", Role.COMRADE)
GHOST = Hello("00000000000000cc", "cccccccccccccccc", Role.GHOST)
PORT = 7117
CLUSTER = wire.fingerprint(COOKIE)


def datagram(
    say: int = Say.HERE,
    cluster: bytes = CLUSTER,
    node: str = BOB.node,
    port: int = PORT,
) -> bytes:
    fields = (wire.MAGIC, wire.VERSION, say, cluster, bytes.fromhex(node), port)
    return discovery.BEACON.pack(*fields)


@pytest.fixture
def comrade() -> Iterator[Discovery]:
    made = Discovery(
        0, ALICE.node, lambda: [CLUSTER], interfaces=list
    )  # any port, no interface
    made._port = PORT
    yield made
    made.close()


def hints(
    discovery: Discovery, data: bytes, address: str = "10.0.0.2", now: float = 0.0
) -> List[Hint]:
    return list(discovery._on_datagram(data, (address, 40000), now))


def test_a_beacon_is_a_hint_to_dial_once_in_ten_seconds(comrade: Discovery) -> None:
    assert hints(comrade, datagram()) == [Hint("10.0.0.2", PORT, True)]
    assert hints(comrade, datagram(), now=9.9) == []
    assert hints(comrade, datagram(), now=10.0) == [Hint("10.0.0.2", PORT, True)]


def test_another_clusters_beacon_is_told_apart(comrade: Discovery) -> None:
    other = wire.fingerprint(b"another")
    assert hints(comrade, datagram(cluster=other)) == [Hint("10.0.0.2", PORT, False)]


def test_32_addresses_in_ten_seconds_are_hints_the_rest_is_ignored(
    comrade: Discovery,
) -> None:
    for second in (0.0, 5.0):
        found = [
            hint
            for n in range(10000)
            for hint in hints(comrade, datagram(), f"10.1.{n >> 8}.{n & 255}", second)
        ]
        assert len(found) == (discovery.HINTS_MAX if second == 0.0 else 0)
    assert len(comrade._hinted) == discovery.HINTS_MAX


def test_malformed_own_and_aimed_beacons_are_ignored(comrade: Discovery) -> None:
    good = datagram()
    comrade._own = ["10.0.0.9"]
    for bad in (b"", good[:-1], good + b"x", b"x" + good[1:], datagram(say=9)):
        assert hints(comrade, bad) == []
    assert hints(comrade, datagram(port=22)) == []
    assert hints(comrade, datagram(Say.ANSWER)) == []
    assert hints(comrade, datagram(node=ALICE.node), "10.0.0.9") == []
    clone = hints(comrade, datagram(node=ALICE.node), "10.0.0.3")
    assert clone  # a cloned disk: must be met, and told


def test_a_question_is_answered_once_a_second_and_no_longer_than_it_is(
    comrade: Discovery,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.bind(("127.0.0.1", 0))
        asker.settimeout(1)
        for now, question, answers in (
            (0.0, datagram(Say.WHO), 1),
            (0.9, datagram(Say.WHO), 0),
            (1.0, datagram(Say.WHO, cluster=wire.NO_CLUSTER), 1),
            (2.0, datagram(Say.WHO, cluster=b"x" * 16), 0),
        ):
            list(comrade._on_datagram(question, asker.getsockname(), now))
            for _ in range(answers):
                answer = asker.recv(1000)
                assert answer == datagram(Say.ANSWER, node=ALICE.node)
                assert len(answer) <= len(question)
            asker.setblocking(False)
            with pytest.raises(BlockingIOError):
                asker.recv(1000)
            asker.settimeout(1)


def test_who_asks_takes_answers_only_and_answers_nobody() -> None:
    ghost = Discovery(
        PORT, GHOST.node, lambda: [CLUSTER], is_comrade=False, interfaces=list
    )
    assert (
        hints(ghost, datagram()) == [] == hints(ghost, datagram(Say.WHO), "127.0.0.1")
    )
    assert hints(ghost, datagram(Say.ANSWER)) == [Hint("10.0.0.2", PORT, True)]
    ghost.close()
    assert ghost._answered == float("-inf")


def test_a_flood_is_read_in_sips(comrade: Discovery) -> None:
    address = ("127.0.0.1", comrade._in.getsockname()[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as spoofer:
        for _ in range(100):
            spoofer.sendto(datagram(), address)
        comrade.tick(0.0, lonely=False)
        assert len(comrade.on_readable(0.0)) == 1
        assert not comrade.want_read(0.05) and comrade.want_read(0.1)
        assert comrade.tick(0.05, lonely=False) == discovery.BEACON_REST_S


def test_beacons_leave_at_start_then_each_two_seconds_or_each_minute() -> None:
    sent: List[str] = []

    def interfaces() -> List[Interface]:
        sent.append("beacon")
        return []

    lonely = Discovery(0, ALICE.node, lambda: [CLUSTER], interfaces=interfaces)
    assert [lonely.tick(n, lonely=True) for n in (0.0, 1.0, 2.0)] == [2.0, 2.0, 4.0]
    assert lonely.tick(10.0, lonely=False) == 62.0 and len(sent) == 2
    lonely.close()


def test_interfaces_are_lans_never_loopback() -> None:
    for interface in discovery.lan_interfaces():  # asks the kernel; sends nothing
        assert not interface.address.startswith("127.")
        assert interface.broadcast != "255.255.255.255"


def test_a_sweep_stays_in_its_own_private_24() -> None:
    found = list(discovery.sweep("192.168.7.250"))
    assert found[:3] == ["192.168.7.249", "192.168.7.251", "192.168.7.248"]
    assert len(found) == len(set(found)) == 253 and "192.168.7.250" not in found
    assert all(address.startswith("192.168.7.") for address in found)
    assert len(list(discovery.sweep("172.31.0.1"))) == 253
    for public in ("127.0.0.2", "8.8.8.8", "172.32.0.1"):
        assert list(discovery.sweep(public)) == []


COMRADE_THERE = """
import select, sys, time
sys.path.insert(0, sys.argv[1]); import discovery, wire
names = lambda: [wire.fingerprint(b"cookie")]
there = discovery.Discovery(7117, "00" * 7 + "bb", names)
end = time.monotonic() + 8
while time.monotonic() < end:
    there.tick(time.monotonic(), lonely=True)
    if select.select([there], [], [], 0.05)[0]:
        for hint in there.on_readable(time.monotonic()):
            print("there heard", hint.address, hint.ours, flush=True)
"""
HERE = """
import select, sys, time
sys.path.insert(0, sys.argv[1]); import discovery, wire
names = lambda: [wire.fingerprint(b"cookie")]
print("interfaces", *discovery.lan_interfaces()[0])
print("start heard", *discovery.listen_for_cluster(7117, 2))
here = discovery.Discovery(7117, "00" * 7 + "aa", names)
end = time.monotonic() + 3
heard = []
while not heard and time.monotonic() < end:
    here.tick(time.monotonic(), lonely=True)
    if select.select([here], [], [], 0.05)[0]:
        heard = here.on_readable(time.monotonic())
print("here heard", *heard[0])
ghost = discovery.Discovery(7117, "00" * 7 + "cc", names, False)
ghost.say()
select.select([ghost], [], [], 2)
print("ghost heard", *ghost.on_readable(0.0)[0])
"""
NAMESPACES = """
ip link set lo up
unshare -n sleep 10 & there=$!
while [ "$(readlink /proc/$there/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do
    sleep 0.05; done
ip link add name va type veth peer name vb netns $there || exit 99
ip addr add 10.9.8.1/24 dev va; ip link set va up
nsenter -t $there -n sh -c 'ip addr add 10.9.8.2/24 dev vb; ip link set vb up'
nsenter -t $there -n "$1" -c "$3" "$2" & comrade=$!
sleep 0.5
"$1" -c "$4" "$2"
kill $there $comrade
"""


def why_no_namespace() -> Optional[str]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return "needs root, unshare, nsenter and ip"
    made = subprocess.run(["unshare", "-n", "true"], stderr=subprocess.DEVNULL)
    return "no network namespaces here" if made.returncode else None


@pytest.mark.skipif(why_no_namespace() is not None, reason=why_no_namespace() or "")
def test_broadcasts_in_a_namespace_of_their_own_find_a_comrade() -> None:
    shell = ["unshare", "-n", "sh", "-c", NAMESPACES, "sh", sys.executable, FOLDER]
    done = subprocess.run(
        [*shell, COMRADE_THERE, HERE], stdout=subprocess.PIPE, timeout=30
    )
    if done.returncode == 99:
        pytest.skip("no veth here")
    lines = done.stdout.decode().splitlines()
    assert "interfaces 10.9.8.1 10.9.8.255" in lines
    assert "start heard 10.9.8.2" in lines
    assert "here heard 10.9.8.2 7117 True" in lines
    assert "there heard 10.9.8.1 True" in lines
    assert "ghost heard 10.9.8.2 7117 True" in lines
