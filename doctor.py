"""leoronic_doctor: what is wrong in the cluster, and the command that mends it.

Reason for this file beside verbs.py: as filecalls.py, it asks each node by letter; and
what is looked for is a list that grows.

Rules. Looks and tells; changes nothing. Each finding is one line; one that is wrong has
a command behind it that can be pasted, on the machine that it names.

How it works. Each node that is reached answers `health` (`of_machine` here, and what
the role adds) and is held against the others: who hears whom, versions, clocks, disks,
addresses that can't be dialled, broadcasts. Cookies are told of by the addresses: two
that differ can't have a link.

Invariant. Whatever a node answers, its row is made, or it is said that it can't be.
"""

import os
import sys
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import machine
import wire
from control import Call, Control, Verb, at_most, printable
from filecalls import Gone, Pace, Place, Steps, places_of, with_comrade
from process import VERSION
from settings import format_duration, format_size
from wire import End

CLOCK_S = 2.0  # of difference that is nothing to tell
HOME_BYTES = 512 << 20  # free for the queue: shelf.py drops files below that
WORK_BYTES = 64 << 20  # free in the working directory
HEARD_S = 130.0  # up for so long: each broadcast, once a minute, had its chance
MIND_S = 3600.0  # a node that is lost is listed for so long

Health = Dict[str, Any]


class Finding(NamedTuple):
    """One thing that was looked at; `remedy` is a command, '' if all is well."""

    text: str
    remedy: str = ""
    is_wrong: bool = False


class Node(NamedTuple):
    """A node and what it answered; None: it didn't."""

    place: Place
    health: Optional[Health]
    clock: float = 0.0  # how far its wall clock is ahead of ours, in seconds


def of_machine(home: str, directory: str) -> Health:
    """Give what each node answers about its machine."""
    return {
        "version": VERSION,
        "wire": wire.VERSION,
        "python": "%d.%d.%d" % sys.version_info[:3],
        "wall": time.time(),
        "home": home,
        "home_free": machine.free_disk(home),
        "work": directory,
        "work_free": machine.free_disk(directory),
        "program": os.path.dirname(os.path.abspath(__file__)),
    }


def _doctor(ctl: Control, call: Call) -> Verb:
    at_most(call, 0)
    nodes = []
    for place in (yield from places_of(ctl)):
        nodes.append((yield from _ask(ctl, place)))
    wrong = 0
    for node in nodes:
        call.line(printable(_head(node)))
        for finding in _findings(node, nodes):
            wrong += finding.is_wrong
            mark = "problem" if finding.is_wrong else "ok     "
            call.line("  %s  %s" % (mark, printable(finding.text)))
            if finding.remedy:
                call.line("           " + printable(finding.remedy))
    count = "%d node%s" % (len(nodes), "" if len(nodes) == 1 else "s")
    if wrong:
        call.line("%s, %d problem%s" % (count, wrong, "" if wrong == 1 else "s"))
        call.end(1)
    else:
        call.line("%s, all is well" % count)


def _ask(ctl: Control, place: Place) -> Steps:
    if place.state == "lost":
        return Node(place, None)
    began = ctl.acts.wall()
    try:
        said, _ = yield from Pace(ctl, place.node).ask("health", {})
    except Gone:
        return Node(place, None)
    if not isinstance(said.get("wall"), float):
        return Node(place, None)
    middle = (began + ctl.acts.wall()) / 2
    return Node(place, said, said["wall"] - middle)


def _head(node: Node) -> str:
    text = "%s at %s: %s" % (node.place.name, node.place.address, node.place.role)
    if node.health is not None:
        text += ", version %s, Python %s" % (
            node.health.get("version"),
            node.health.get("python"),
        )
    return text


def _findings(node: Node, nodes: List[Node]) -> Iterator[Finding]:
    health, place = node.health, node.place
    if health is None:
        yield _of_lost(place, nodes)
        return
    if place.state == "draining":
        name = _quoted(place.name)
        yield Finding("it takes no new task", "if it is to: leoronic_undrain " + name)
    yield from _of_probation(node, nodes)
    yield from _of_blame(node, nodes)
    yield from _of_links(node, nodes)
    yield from _of_cookie(node, nodes)
    yield from _of_versions(node, nodes)
    yield from _of_clock(node)
    yield from _of_disks(node)
    yield from _of_addresses(node, nodes)
    yield from _of_broadcasts(node, nodes)


def _of_lost(place: Place, nodes: List[Node]) -> Finding:
    """Tell of a node that doesn't answer: it may be there, with another cookie."""
    for other in nodes:
        for finding in _of_addresses(other, []):
            if finding.text == "%s %s" % (place.address, OTHER_COOKIE[0]):
                return finding._replace(text="it is lost: it " + OTHER_COOKIE[0])
    what = "it is lost: nobody reaches it"
    if place.state != "lost":
        what = "it is %s, and doesn't answer" % place.state
    return Finding(what, "is it on?  ping -c 3 %s" % place.address, True)


def _comrades(nodes: List[Node]) -> List[Node]:
    return [n for n in nodes if n.place.role == "comrade" and n.health is not None]


def _of_links(node: Node, nodes: List[Node]) -> Iterator[Finding]:
    if node.health is None or "hears" not in node.health:
        return
    others = [n for n in _comrades(nodes) if n is not node]
    heard = [n.place.name for n in others if n.place.node in node.health["hears"]]
    if heard:
        yield Finding("it hears " + ", ".join(heard))
    for other in others:
        if other.place.node not in node.health["hears"]:
            port = node.health.get("port", "")
            yield Finding(
                "it has no link with %s: others pass on what is for it; is TCP port %s "
                "shut by a firewall?" % (other.place.name, port),
                "on %s:  nc -vz %s %s || sudo ufw allow %s"
                % (node.place.name, other.place.address, port, port),
                True,
            )


def _of_cookie(node: Node, nodes: List[Node]) -> Iterator[Finding]:
    """Tell of a new cookie that a node doesn't have, or can't keep."""
    health = node.health or {}
    ranks: List[Any] = [(n.health or {}).get("cookie") for n in nodes]
    newest, name = max(filter(_is_rank, ranks), default=None), node.place.name
    if newest is None:
        return
    if _is_rank(health.get("cookie")) and health["cookie"] != newest:
        yield Finding(
            "it has an older cookie: with that it is let in for a while only",
            "copy .leoronic_cookie of another node to it, then on %s:  leoronic_stop; "
            "bash leoronic" % name,
            True,
        )
    elif health.get("unkept"):
        yield Finding(
            "its new cookie can't be kept: %s" % health["unkept"],
            "on %s:  df -h; ls -l %s" % (name, _quoted(str(health["program"]))),
            True,
        )
    elif _is_left(health.get("grace")):
        left = format_duration(health["grace"])
        yield Finding("the cookie before this one lets nodes in for another " + left)


def _is_rank(rank: Any) -> bool:
    is_pair = isinstance(rank, list) and len(rank) == 2
    return is_pair and type(rank[0]) is int and isinstance(rank[1], str)


def _is_left(grace: Any) -> bool:
    return isinstance(grace, (int, float)) and grace >= 1


def _of_probation(node: Node, nodes: List[Node]) -> Iterator[Finding]:
    name = node.place.name
    failed = [(n.health or {}).get("probation", {}).get(name, 0) for n in nodes]
    if any(failed):
        yield Finding(
            "its last %d runs failed at once, those of others don't: it gets few tasks"
            % max(failed),
            "leoronic_get_queue failed; leoronic_drain " + _quoted(name),
            True,
        )


def _of_blame(node: Node, nodes: List[Node]) -> Iterator[Finding]:
    names = {n.place.node: n.place.name for n in nodes}
    for node_id, faults, left in (node.health or {}).get("away", []):
        name = names.get(node_id, node_id)
        yield Finding(
            "it keeps %s away for another %s: that broke the protocol %d times"
            % (name, format_duration(left), faults),
            "see %s/log on %s; on %s:  leoronic_stop; bash leoronic"
            % ((node.health or {}).get("home"), node.place.name, name),
            True,
        )


def _of_versions(node: Node, nodes: List[Node]) -> Iterator[Finding]:
    assert node.health is not None
    known = [n.health for n in nodes if n.health is not None]
    newest = max(str(health.get("version")) for health in known)
    if str(node.health.get("version")) != newest:
        yield Finding(
            "its Leoronic is %s, others have %s" % (node.health.get("version"), newest),
            "copy the newer folder to it, then there:  leoronic_stop; bash leoronic",
            True,
        )


def _of_clock(node: Node) -> Iterator[Finding]:
    if abs(node.clock) <= CLOCK_S:
        yield Finding("its clock is right, as far as this node's is")
        return
    side = "ahead of" if node.clock > 0 else "behind"
    yield Finding(
        "its clock is %s %s this node's: times shown are wrong, nothing else"
        % (format_duration(abs(node.clock)), side),
        'ssh %s "sudo date -s @$(date +%%s)"' % node.place.address,
        True,
    )


def _of_disks(node: Node) -> Iterator[Finding]:
    health = node.health or {}
    if health.get("stuck"):
        yield Finding(
            "its disk doesn't answer: it gets no new task meanwhile",
            "on %s:  sudo dmesg | tail" % node.place.name,
            True,
        )
    for what, where, least in (
        ("the queue", "home", HOME_BYTES),
        ("tasks", "work", WORK_BYTES),
    ):
        free, path = health[where + "_free"], str(health[where])
        text = "%s free for %s" % (format_size(free), what)
        if free >= least:
            yield Finding(text)
            continue
        command = "du -xh %s | sort -h | tail" % _quoted(path)
        yield Finding(
            text + ": that is little",
            "on %s:  %s" % (node.place.name, command),
            True,
        )


OTHER_COOKIE = (
    "has another cookie",
    "if it is to join:  scp %(cookie)s %(address)s:leoronic/",
)
WORDS = {
    End.REFUSED.name: ("refuses", "start it there:  bash leoronic"),
    End.WRONG_COOKIE.name: OTHER_COOKIE,
}


def _of_addresses(node: Node, nodes: List[Node]) -> Iterator[Finding]:
    health = node.health or {}
    told = {n.place.address for n in nodes if n.health is None}
    cookie = os.path.join(str(health.get("program", "")), ".leoronic_cookie")
    strange = health.get("strange", {})
    for address, why in strange.items():
        text, _, remedy = why.partition("; ")
        yield Finding(
            "%s is no node of this cluster: %s" % (address, text), remedy, True
        )
    for address, end in health.get("failing", []):
        if address in told or address in strange:
            continue
        default = ("doesn't answer", "is it on?  ping -c 3 %(address)s")
        text, remedy = WORDS.get(end, default)
        values = {"address": address, "cookie": _quoted(cookie)}
        yield Finding("%s %s" % (address, text), remedy % values, True)


def _of_broadcasts(node: Node, nodes: List[Node]) -> Iterator[Finding]:
    health = node.health or {}
    heard = health.get("broadcasts", ...)
    if heard is ...:
        return
    if heard is None:
        yield Finding("discovery is off: it knows LEORONIC_PEERS, and whom they name")
        return
    young = [n for n in _comrades(nodes) if (n.health or {}).get("up", 0) < HEARD_S]
    if node in young:
        yield Finding("it has just been started: broadcasts are not looked at")
        return
    others = [n for n in _comrades(nodes) if n is not node and n not in young]
    deaf = [n for n in others if n.place.address not in heard]
    if deaf:
        names, addresses = _list(deaf)
        yield Finding(
            "no broadcast of %s reaches it: a node that comes up is found late" % names,
            'start it with:  LEORONIC_PEERS="%s" bash leoronic' % addresses,
            True,
        )
    elif others:
        yield Finding("broadcasts of all others reach it")


def _quoted(word: str) -> str:
    from shlex import quote

    return quote(word)


def _list(nodes: List[Node]) -> Tuple[str, str]:
    names = ", ".join(n.place.name for n in nodes)
    return names, " ".join(n.place.address for n in nodes)


VERBS = {"doctor": with_comrade(_doctor)}
