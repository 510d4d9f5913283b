"""Settings: the environment, read once and checked, and the cluster's cookie.

Reason for this file beside comrade.py and ghost.py: both roles and `--help` read the
same settings, and neither role may import the other.

Rules. `read_settings` is the only function of the product that reads the environment.
Imports only cookie.py of ours. Sends no packet: this machine's address is asked of the
kernel. Every error is a `WrongSetting`, whose text is all that the user needs: what is
wrong, what was found, what to do.

How it works. `read_settings` turns the environment into one immutable `Settings`. What
it doesn't set is taken from the machine: the host's name, the address of the interface
that the default route uses. Nothing is written. `find_cookie` and, where that finds
none, `make_cookie` are steps of their own (cookie.py has their rules), as a start
without a cookie first listens for other clusters.

Invariants.
1. The first wrong setting stops the start; none is silently replaced by its default.
2. parse_size(format_size(n)) <= n: what is shown is there.

It does not check that the address belongs to this machine or that the port is free
(listening tells), and knows nothing of the machine's cores and memory (sandbox.py).
"""

import fcntl
import os
import re
import socket
import struct
from typing import Iterator, List, Mapping, NamedTuple, Optional, Tuple

import cookie
from cookie import Cookie
from cookie import WrongSetting as WrongSetting  # for all who import it from here

PORT_DEFAULT = 7117
PORT_MAX = 65535
NICE_MOST = 19  # what Linux has
OF_MACHINE = ("LEORONIC_ADDRESS", "LEORONIC_CORES", "LEORONIC_MEMORY")
LOCK_NAME = "lock"  # in a state directory: store.py holds its flock while in use
GHOSTS_MAX = 1000  # state directories of ghosts that are tried on one host
SIZE_BYTES_MAX = 2**63 - 1  # what SQLite and 64-bit counters hold
DURATION_S_MAX = 100 * 365 * 86400.0  # so that no sum of times overflows a select

SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
DURATION_UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}

# From linux/route.h, linux/if.h and linux/sockios.h; stable since Linux 1.
ROUTE_TABLE = "/proc/net/route"
ROUTE_UP = 0x0001
ROUTE_REJECT = 0x0200
INTERFACE_UP = 0x0001
INTERFACE_LOOPBACK = 0x0008
INTERFACE_POINT_TO_POINT = 0x0010
INTERFACE_RUNNING = 0x0040
SIOCGIFFLAGS = 0x8913
SIOCGIFADDR = 0x8915
INTERFACE_NAME_BYTES_MAX = 15
LOOPBACK = "127.0.0.1"
# Documentation network 2 (RFC 5737): any address the default route leads to will do.
FAR_AWAY = ("198.51.100.1", 9)


class Settings(NamedTuple):
    """What this node was told and what follows from it; see README's table."""

    home: str  # the state directory
    home_is_default: bool
    program: str  # the folder of the scripts
    directory: str  # the working directory
    hostname: str
    address: str
    port: int
    peers: Tuple[str, ...]
    discovery: bool
    cookie_file: str  # '' = not given
    cores: Optional[int]  # None = what the machine has
    memory: Optional[int]  # bytes; None = what the machine has
    tags: Tuple[str, ...]
    relay_core: str  # 'auto' or 'off'
    user_home: str = ""  # the user's home directory; '' = has none
    address_is_given: bool = False  # by the user: it stays, whatever the machine has
    nice: int = 0  # of tasks; 0 = as this process
    given: Tuple[str, ...] = ()  # the names that the environment sets


# ---- reading the environment


def read_settings(
    environ: Mapping[str, str], program: str, role: str = "comrade"
) -> Settings:
    """Read and check every setting; WrongSetting for the first that is wrong.

    program is the folder of the scripts; role is 'comrade' or 'ghost'. For a ghost the
    default home is one that no process uses now; when it is taken after all
    (StateInUse: two ghosts started at once), call this again.
    """
    user_home = _user_home(environ)
    directory = _working_directory()
    hostname = clean_hostname(socket.gethostname())
    home = _path(environ, "LEORONIC_HOME", user_home)
    address = _own_address(environ)
    settings = Settings(
        home=home or _default_home(user_home, hostname, role),
        home_is_default=not home,
        program=os.path.abspath(program),
        directory=directory,
        hostname=hostname,
        address=address,
        port=_port(environ),
        peers=_peers(environ, address),
        discovery=_choice(environ, "LEORONIC_DISCOVERY", ("on", "off")) == "on",
        cookie_file=_path(environ, "LEORONIC_COOKIE_FILE", user_home),
        cores=_cores(environ),
        memory=_memory(environ),
        tags=tuple(dict.fromkeys(environ.get("LEORONIC_TAGS", "").split())),
        relay_core=_choice(environ, "LEORONIC_RELAY_CORE", ("auto", "off")),
        user_home=user_home,
        address_is_given=bool(_text(environ, "LEORONIC_ADDRESS")),
        nice=_number(environ, "LEORONIC_NICE", 0, NICE_MOST),
        given=tuple(n for n in environ if n[:9] == "LEORONIC_" and _text(environ, n)),
    )
    if os.path.realpath(settings.home) == os.path.realpath(directory):
        raise _wrong("LEORONIC_HOME", settings.home, "another than this directory")
    return settings


def _wrong(name: str, found: str, remedy: str) -> WrongSetting:
    shown = found if found.isprintable() else ascii(found)
    return WrongSetting(f"{name} is {shown}; it must be {remedy}")


def _text(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip()


def _user_home(environ: Mapping[str, str]) -> str:
    """Return the user's home directory; '' for a user who has none."""
    home = environ.get("HOME", "")
    if not home:
        # Imported here: started by cron or an init system only.
        import pwd

        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return ""
    return os.path.abspath(home)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as problem:
        raise WrongSetting(
            f"the working directory is gone ({problem.strerror}); "
            "change to one that exists and start again"
        ) from problem


def clean_hostname(name: str) -> str:
    """Return the name as one path component and one word; the usual ones stay."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "localhost"


def _path(environ: Mapping[str, str], name: str, user_home: str) -> str:
    path = environ.get(name, "")
    if path == "~" or path.startswith("~/"):
        path = user_home + path[1:]
    return os.path.abspath(path) if path else ""


def _default_home(user_home: str, hostname: str, role: str) -> str:
    if not user_home:
        raise WrongSetting(
            f"no home directory; HOME is empty and user {os.getuid()} has no entry in "
            "the password file; set LEORONIC_HOME to a directory of this user"
        )
    home = os.path.join(user_home, ".leoronic", hostname)
    if role == "comrade":
        return home
    for number in range(1, GHOSTS_MAX + 1):
        candidate = f"{home}-ghost{number}"
        if not is_in_use(candidate):
            return candidate
    raise WrongSetting(
        f"no state directory is free; {home}-ghost1 to -ghost{GHOSTS_MAX} are in use; "
        "set LEORONIC_HOME"
    )


def is_in_use(home: str) -> bool:
    """Tell whether a process holds the state directory's lock at this moment."""
    try:
        fd = os.open(os.path.join(home, LOCK_NAME), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False  # not there yet, or not readable: store.py will tell
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def other_states(settings: Settings) -> List[str]:
    """Name the state directories beside a comrade's default one that is new.

    A host that was renamed doesn't find its state; these are where it may be.
    """
    parent, name = os.path.split(settings.home)
    is_comrades = settings.home_is_default and name == settings.hostname
    if not is_comrades or os.path.lexists(settings.home):
        return []
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        return []
    return [
        name
        for name in names
        if not re.search(r"-ghost\d+$", name)
        and os.path.isdir(os.path.join(parent, name))
    ]


def _own_address(environ: Mapping[str, str]) -> str:
    text = _text(environ, "LEORONIC_ADDRESS")
    if not text:
        return default_address()
    if not _is_address(text):
        example = "an IPv4 address of this machine, such as 192.168.1.5"
        raise _wrong("LEORONIC_ADDRESS", text, example)
    return text


def _is_address(text: str) -> bool:
    """Tell whether it is the IPv4 address of one host, in its usual form."""
    try:
        first = socket.inet_pton(socket.AF_INET, text)[0]
    except (OSError, ValueError):
        return False
    return 0 < first < 224  # neither 0.0.0.0, which is none, nor multicast, broadcast


def _peers(environ: Mapping[str, str], own: str) -> Tuple[str, ...]:
    peers = re.split(r"[\s,]+", _text(environ, "LEORONIC_PEERS"))
    for peer in filter(None, peers):
        if not _is_address(peer):
            example = "IPv4 addresses separated by blanks; names are not looked up"
            raise _wrong("LEORONIC_PEERS", peer, example)
    return tuple(dict.fromkeys(peer for peer in peers if peer not in ("", own)))


def _number(environ: Mapping[str, str], name: str, least: int, most: int) -> int:
    """Read a whole number; 0 if it isn't set."""
    text = _text(environ, name)
    if not text:
        return 0
    if not re.fullmatch("[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise _wrong(name, text, f"a whole number from {least} to {most}")
    return int(text)


def _port(environ: Mapping[str, str]) -> int:
    return _number(environ, "LEORONIC_PORT", 1, PORT_MAX) or PORT_DEFAULT


def _cores(environ: Mapping[str, str]) -> Optional[int]:
    return _number(environ, "LEORONIC_CORES", 1, 2**31 - 1) or None


def _memory(environ: Mapping[str, str]) -> Optional[int]:
    text = _text(environ, "LEORONIC_MEMORY")
    if not text:
        return None
    expected = "more than 0: bytes, or 64K, 512M, 2G"
    try:
        size = parse_size(text)
    except ValueError as problem:
        raise _wrong("LEORONIC_MEMORY", text, expected) from problem
    if size == 0:
        raise _wrong("LEORONIC_MEMORY", text, expected)
    return size


def _choice(environ: Mapping[str, str], name: str, choices: Tuple[str, str]) -> str:
    """Read one of two words; the first is the default."""
    text = _text(environ, name)
    if text and text not in choices:
        raise _wrong(name, text, " or ".join(choices))
    return text or choices[0]


# ---- this machine's address


def default_address(route_table: str = ROUTE_TABLE) -> str:
    """Return the address of the default route's interface, else the first LAN one.

    Else loopback. Only asks the kernel: nothing is sent, also not by the last resort
    of systems without /proc, where connecting a UDP socket looks up the route.
    """
    for name in _default_route_interfaces(route_table):
        address = _interface_address(name)
        if address:
            return address
    for name in _lan_interfaces():
        address = _interface_address(name)
        if address:
            return address
    return LOOPBACK if os.path.exists(route_table) else _address_towards(FAR_AWAY)


def _default_route_interfaces(route_table: str) -> List[str]:
    """Read the interfaces of the default routes, the preferred one first."""
    found = []
    try:
        with open(route_table, encoding="ascii", errors="replace") as table:
            for line in list(table)[1:]:
                name, target, _, flags, _, _, metric, mask = line.split()[:8]
                is_up = int(flags, 16) & (ROUTE_UP | ROUTE_REJECT) == ROUTE_UP
                if is_up and int(target, 16) == int(mask, 16) == 0:
                    found.append((int(metric), name))
    except (OSError, ValueError):
        pass  # no /proc, or not Linux's: the interfaces themselves are asked next
    return [name for _, name in sorted(found, key=lambda row: row[0])]


def _lan_interfaces() -> Iterator[str]:
    wanted = INTERFACE_UP | INTERFACE_RUNNING
    unwanted = INTERFACE_LOOPBACK | INTERFACE_POINT_TO_POINT
    for _, name in sorted(socket.if_nameindex()):
        flags = struct.unpack("H", _ask_interface(name, SIOCGIFFLAGS)[:2])[0]
        if flags & (wanted | unwanted) == wanted:
            yield name


def _interface_address(name: str) -> str:
    """Return the IPv4 address of an interface; '' if it has none."""
    address = socket.inet_ntoa(_ask_interface(name, SIOCGIFADDR)[4:8])
    return address if _is_address(address) else ""


def _ask_interface(name: str, question: int) -> bytes:
    """Return what the ioctl fills in behind the name; zeros if it fails."""
    request = struct.pack("16s240x", os.fsencode(name)[:INTERFACE_NAME_BYTES_MAX])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            return fcntl.ioctl(any_socket.fileno(), question, request)[16:]
    except OSError:
        return bytes(240)


def _address_towards(target: Tuple[str, int]) -> str:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.connect(target)
            address = str(unused.getsockname()[0])
    except OSError:
        return LOOPBACK
    return address if _is_address(address) else LOOPBACK


# ---- sizes and durations


def parse_size(text: str) -> int:
    """Read bytes from '2048', '64K', '1.5G'; ValueError says what was found."""
    match = re.fullmatch(r"([0-9]{1,19})(\.[0-9]{1,9}(?=.))?([KMGT]?)", text.upper())
    if match:
        whole, fraction, unit = match.groups()
        size = int(whole) * SIZE_UNITS[unit]
        size += int(float(fraction or 0) * SIZE_UNITS[unit])
        if size <= SIZE_BYTES_MAX:
            return size
    raise _not_a("size", text, "bytes, or 64K, 512M, 2G, 1T")


def parse_duration(text: str) -> float:
    """Read seconds from '90', '90s', '10m', '1h30m'; ValueError says what was found."""
    seconds = -1.0
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?s?", text):
        seconds = float(text.rstrip("s"))
    elif re.fullmatch(
        r"(?=.)([0-9]{1,9}d)?([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?", text
    ):
        parts = re.findall(r"([0-9]+)([dhms])", text)
        seconds = float(sum(int(n) * DURATION_UNITS_S[unit] for n, unit in parts))
    if 0 <= seconds <= DURATION_S_MAX:
        return seconds
    raise _not_a("time", text, "seconds, or 90s, 10m, 1h30m, 1d")


def _not_a(kind: str, text: str, expected: str) -> ValueError:
    shown = text if text.isprintable() else ascii(text)
    return ValueError(f"not a {kind}; found {shown or chr(34) * 2}; write {expected}")


def format_size(size: int) -> str:
    """Return it short, '1.5G', rounded down; bytes have no unit."""
    for unit in ("T", "G", "M", "K"):
        tenths = size * 10 // SIZE_UNITS[unit]
        if tenths >= 100:
            return f"{tenths // 10}{unit}"
        if tenths >= 10:
            return f"{tenths / 10:g}{unit}"
    return str(max(size, 0))


def format_duration(seconds: float) -> str:
    """Return the two greatest units: '12s', '4m05s', '1h30m', '2d03h'."""
    whole = max(int(seconds), 0)
    for unit, minor in (("d", "h"), ("h", "m"), ("m", "s")):
        if whole >= DURATION_UNITS_S[unit]:
            major, rest = divmod(whole, DURATION_UNITS_S[unit])
            return f"{major}{unit}{rest // DURATION_UNITS_S[minor]:02d}{minor}"
    return f"{whole}s"


# ---- the table for --help


class Row(NamedTuple):
    """One setting, as users see it."""

    name: str
    value: str  # in force
    origin: str  # environment, default, or the machine
    meaning: str


def rows(settings: Settings, machine_cores: int, machine_memory: int) -> List[Row]:
    """Return the settings with the values in force."""
    memory = machine_memory if settings.memory is None else settings.memory
    discovery = "on" if settings.discovery else "off"
    table = (
        ("HOME", settings.home, "this node's state; never the working directory"),
        ("ADDRESS", settings.address, "the IPv4 address this node listens on"),
        ("PORT", str(settings.port), "TCP and UDP port; one value per cluster"),
        ("PEERS", " ".join(settings.peers), "addresses to connect to as well"),
        ("DISCOVERY", discovery, "on, or off: nothing is sent but to peers"),
        ("COOKIE_FILE", _cookie_in_force(settings), "the cluster's shared secret"),
        ("CORES", str(settings.cores or machine_cores), "cores offered to tasks"),
        ("MEMORY", format_size(memory), "memory offered to tasks"),
        ("TAGS", " ".join(settings.tags), "tags from the start"),
        ("RELAY_CORE", settings.relay_core, "auto: one core is kept for ghosts; off"),
        ("NICE", str(settings.nice), "1 to 19: tasks yield to other programs"),
    )
    return [
        Row("LEORONIC_" + name, value, _origin(settings, "LEORONIC_" + name), meaning)
        for name, value, meaning in table
    ]


def _origin(settings: Settings, name: str) -> str:
    if name in settings.given:
        return "environment"
    return "the machine" if name in OF_MACHINE else "default"


def lines_of(row: Row) -> Tuple[str, str]:
    """Return the two lines that show a setting."""
    value = f"{row.value or '(empty)'} ({row.origin})"
    return f"  {row.name:<21} {value}", f"{'':24}{row.meaning}"


def help_table(settings: Settings, machine_cores: int, machine_memory: int) -> str:
    """Return the settings with the values in force and what they mean."""
    found = rows(settings, machine_cores, machine_memory)
    return "".join(line + "\n" for row in found for line in lines_of(row))


# ---- the cookie


def cookie_places(settings: Settings) -> List[str]:
    """Return where the cookie may be, the first choice first."""
    if settings.cookie_file:
        return [settings.cookie_file]
    folders = [settings.program, settings.user_home]
    return [os.path.join(folder, cookie.NAME) for folder in folders if folder]


def _cookie_in_force(settings: Settings) -> str:
    places = cookie_places(settings)
    return next(filter(os.path.lexists, places), places[0])


def find_cookie(settings: Settings) -> Cookie:
    """Read the cluster's cookie; its secret is empty if there is none yet."""
    places, kept = cookie_places(settings), cookie.kept(settings.home)
    return cookie.find(places, settings.user_home, kept=kept)


def make_cookie(settings: Settings) -> Cookie:
    """Make a cookie: beside the scripts, else in the home directory."""
    return cookie.make(cookie_places(settings), settings.user_home)
