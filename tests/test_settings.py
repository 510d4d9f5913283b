"""Settings: the environment, sizes and times, this machine's address, the cookie."""

import fcntl
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import cookie
import settings
from settings import WrongSetting

TOP = os.path.dirname(os.path.abspath(settings.__file__))
HEX = b"0123456789abcdef" * 4
ELSE = 4242  # a user id that nobody here has
NAME = ".leoronic_cookie"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """Start in a working directory of the test's own."""
    directory = tmp_path / "work"
    directory.mkdir()
    (tmp_path / "program").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def read(tmp_path):
    """Return the function that reads settings: read(PORT="7118")."""

    def read(role="comrade", **given):
        environ = {"HOME": str(tmp_path / "home"), "LEORONIC_ADDRESS": "127.0.0.5"}
        for name, value in given.items():
            environ["HOME" if name == "user_home" else "LEORONIC_" + name] = value
        return settings.read_settings(environ, str(tmp_path / "program"), role)

    return read


# ---- defaults


def test_an_empty_environment_gives_the_defaults_of_the_contract(read, tmp_path, work):
    found = read(ADDRESS="")
    host = settings.clean_hostname(socket.gethostname())
    assert found.home == str(tmp_path / "home" / ".leoronic" / host)
    assert found.home_is_default
    assert found.program == str(tmp_path / "program")
    assert found.directory == str(work)
    assert found.hostname == host
    assert found.address == settings.default_address()
    assert found.port == 7117
    assert found.peers == found.tags == ()
    assert found.discovery
    assert found.cookie_file == ""
    assert found.cores is found.memory is None
    assert found.relay_core == "auto"


def test_an_empty_value_is_the_same_as_none(read):
    names = "HOME ADDRESS PORT PEERS DISCOVERY COOKIE_FILE CORES MEMORY TAGS RELAY_CORE"
    assert read(**dict.fromkeys(names.split(), "")) == read(ADDRESS="")


def test_reading_settings_writes_nothing(read, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    read()
    read(role="ghost")
    assert sorted(tmp_path.rglob("*")) == before


def test_without_home_the_password_file_tells_where_it_is(read):
    pwd = pytest.importorskip("pwd")
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert read(user_home="").home.startswith(os.path.join(home, ".leoronic") + "/")


def test_every_value_that_is_given_is_taken(read, tmp_path):
    found = read(
        HOME="state",
        PORT="7200",
        PEERS="10.0.0.2, 10.0.0.3  10.0.0.2 127.0.0.5",
        DISCOVERY="off",
        COOKIE_FILE=str(tmp_path / "c"),
        CORES="3",
        MEMORY="1.5G",
        TAGS=" gpu ssd gpu ",
        RELAY_CORE="off",
    )
    assert found.home == str(tmp_path / "work" / "state")
    assert not found.home_is_default
    assert found.port == 7200
    assert found.peers == ("10.0.0.2", "10.0.0.3")
    assert not found.discovery
    assert found.cookie_file == str(tmp_path / "c")
    assert (found.cores, found.memory) == (3, 3 * 2**29)
    assert found.tags == ("gpu", "ssd")
    assert found.relay_core == "off"


def test_a_tilde_that_no_shell_expanded_is_the_home_directory(read, tmp_path):
    assert read(HOME="~/x").home == str(tmp_path / "home" / "x")
    assert read(COOKIE_FILE="~/c").cookie_file == str(tmp_path / "home" / "c")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "7_117"),
        ("PORT", "9" * 5000),
        ("ADDRESS", "localhost"),
        ("ADDRESS", "10.0.0"),
        ("ADDRESS", "10.0.0.256"),
        ("ADDRESS", "::1"),
        ("ADDRESS", "0.0.0.0"),
        ("ADDRESS", "224.0.0.1"),
        ("ADDRESS", "255.255.255.255"),
        ("PEERS", "10.0.0.2 old2"),
        ("DISCOVERY", "no"),
        ("DISCOVERY", "OFF"),
        ("CORES", "0"),
        ("CORES", "two"),
        ("MEMORY", "0"),
        ("MEMORY", "-1G"),
        ("MEMORY", "lots"),
        ("RELAY_CORE", "on"),
        ("PORT", "7117\n\x1b[2J8"),
    ],
)
def test_a_wrong_value_is_refused_with_name_value_and_remedy(read, name, value):
    with pytest.raises(WrongSetting) as caught:
        read(**{name: value})
    text = str(caught.value)
    what, remedy = text.split("; it must be ")
    assert what.startswith(f"LEORONIC_{name} is ")
    assert remedy
    assert text.isprintable()


def test_the_working_directory_is_never_the_state_directory(read, work, tmp_path):
    (tmp_path / "link").symlink_to(work)
    for home in (".", str(work), str(tmp_path / "link")):
        with pytest.raises(WrongSetting, match="another than this directory"):
            read(HOME=home)


def test_a_working_directory_that_is_gone_is_said_in_words(read, work):
    work.rmdir()
    with pytest.raises(WrongSetting, match="working directory is gone"):
        read()


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("old1", "old1"),
        ("old1.lan", "old1.lan"),
        ("a/b c", "a_b_c"),
        ("..", "localhost"),
        ("", "localhost"),
    ],
)
def test_a_hosts_name_is_one_word_and_one_path_component(name, clean):
    assert settings.clean_hostname(name) == clean


# ---- state directories


def test_a_ghost_takes_the_first_state_directory_that_nobody_uses(read):
    first = read(role="ghost").home
    assert first.endswith("-ghost1")
    os.makedirs(first)
    assert read(role="ghost").home == first
    fd = os.open(os.path.join(first, settings.LOCK_NAME), os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert read(role="ghost").home == first[:-1] + "2"
    os.close(fd)
    assert read(role="ghost").home == first


def test_a_given_state_directory_is_a_ghosts_too(read, tmp_path):
    assert read(role="ghost", HOME="/x/y").home == "/x/y"


def test_a_renamed_host_is_told_of_other_states_until_it_has_its_own(read):
    home = Path(read().home)
    for name in ("before", "before-ghost1", "earlier"):
        (home.parent / name).mkdir(parents=True)
    (home.parent / "file").touch()
    assert settings.other_states(read()) == ["before", "earlier"]
    assert settings.other_states(read(role="ghost")) == []
    assert settings.other_states(read(HOME="/x/y")) == []
    home.mkdir()
    assert settings.other_states(read()) == []


def test_a_first_start_has_no_other_states(read):
    assert settings.other_states(read()) == []


# ---- this machine's address


def in_python(code, *command):
    """Run the code in an interpreter of its own; return what it prints, or None."""
    python = [*command, sys.executable, "-c", f"import sys\nsys.path.append({TOP!r})"]
    python[-1] += "\n" + code
    done = subprocess.run(python, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_the_default_address_is_one_that_can_be_listened_on():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((settings.default_address(), 0))


@pytest.mark.skipif(sys.version_info < (3, 8), reason="audit hooks are of Python 3.8")
def test_finding_the_default_address_connects_and_sends_nothing():
    code = """
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        print("event", event)
sys.addaudithook(watch)
import settings
print(settings.default_address())
"""
    assert in_python(code) == settings.default_address()


def test_without_any_network_the_address_is_loopback():
    unshare = shutil.which("unshare")
    command = [str(unshare), "--user", "--net"]
    if not unshare or subprocess.call([*command, "true"], stderr=subprocess.DEVNULL):
        pytest.skip("no network namespaces here")
    code = "import settings; print(settings.default_address())"
    assert in_python(code, *command) == "127.0.0.1"


def route(name, target="00000000", flags="0003", metric="0", mask="00000000"):
    return "\t".join([name, target, "0100000A", flags, "0", "0", metric, mask, "0"])


@pytest.mark.parametrize(
    ("routes", "names"),
    [
        ([], []),
        ([route("eth0", target="0000000A", mask="000000FF")], []),
        ([route("eth0")], ["eth0"]),
        (
            [route("wlan0", metric="600"), route("eth0", metric="100")],
            ["eth0", "wlan0"],
        ),
        ([route("eth0", flags="0002")], []),
        ([route("lo", flags="0201")], []),
        ([route("tun0", mask="00000080"), route("eth0")], ["eth0"]),
        (["garbage"], []),
    ],
)
def test_the_default_routes_are_read_the_cheapest_first(tmp_path, routes, names):
    table = tmp_path / "route"
    table.write_text("\n".join(["Iface\tDestination\t...", *routes, ""]))
    assert settings._default_route_interfaces(str(table)) == names


def test_a_route_over_an_interface_without_address_leads_to_the_next(tmp_path):
    table = tmp_path / "route"
    table.write_text("header\n" + route("nosuch0") + "\n" + route("lo", metric="9"))
    assert settings.default_address(str(table)) == "127.0.0.1"


def test_without_a_route_table_an_address_is_found_all_the_same(tmp_path):
    address = settings.default_address(str(tmp_path / "none"))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))


# ---- sizes and times


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("2048", 2048),
        ("64K", 65536),
        ("64k", 65536),
        ("512M", 2**29),
        ("2G", 2**31),
        ("1T", 2**40),
        ("1.5G", 3 * 2**29),
        ("0.5K", 512),
    ],
)
def test_sizes_are_read(text, size):
    assert settings.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    "|-1|+1|1.5|1.|.5G|G|2GB|2 G|12Q|1e3|0x10|1_000|٣|nan|9223372036854775808"
    "|9999999999T|1K\n| 1".split("|"),
)
def test_a_garbled_size_is_refused_and_shown(text):
    with pytest.raises(ValueError, match="not a size; found .+; write bytes, or 64K"):
        settings.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("0.25", 0.25),
        ("1.5s", 1.5),
        ("10m", 600),
        ("1h30m", 5400),
        ("1d", 86400),
        ("2d3h4m5s", 183845),
        ("1h5s", 3605),
    ],
)
def test_times_are_read(text, seconds):
    assert settings.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    "|-1|1.|h|1h30|30m1h|1m1m|1w|inf|nan|1e9|9999999999d|999999999999|1 h".split("|"),
)
def test_a_garbled_time_is_refused_and_shown(text):
    with pytest.raises(ValueError, match="not a time; found .+; write seconds, or 90s"):
        settings.parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1K"),
        (3 * 2**29, "1.5G"),
        (2**31 - 1, "1.9G"),
        (2**31, "2G"),
        (15 * 2**30 + 2**29, "15G"),
        (2**30 - 1, "1023M"),
        (3000 * 2**40, "3000T"),
        (-5, "0"),
    ],
)
def test_sizes_are_shown_short(size, text):
    assert settings.format_size(size) == text


def test_what_is_shown_of_a_size_can_be_read_and_is_never_more():
    chooser = random.Random(11)
    for _ in range(5000):
        size = chooser.getrandbits(chooser.randrange(1, 60))
        shown = settings.parse_size(settings.format_size(size))
        assert size * 0.9 <= shown <= size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-3, "0s"),
        (12.9, "12s"),
        (60, "1m00s"),
        (245, "4m05s"),
        (3599.9, "59m59s"),
        (5400, "1h30m"),
        (3660, "1h01m"),
        (3 * 86400 + 5 * 3600, "3d05h"),
    ],
)
def test_times_are_shown_in_two_units(seconds, text):
    assert settings.format_duration(seconds) == text


# ---- help


def test_help_lists_every_setting_with_the_value_in_force(read, tmp_path):
    found = read(PORT="7200", TAGS="gpu ssd", DISCOVERY="off", CORES="3")
    text = settings.help_table(found, machine_cores=8, machine_memory=2**31)
    values = {}
    for line in text.splitlines():
        if line.startswith("  LEORONIC_"):
            name, value = line.strip().split(None, 1)
            values[name[len("LEORONIC_") :]] = value
    assert values == {
        "HOME": found.home + " (default)",
        "ADDRESS": "127.0.0.5 (environment)",
        "PORT": "7200 (environment)",
        "PEERS": "(empty) (default)",
        "DISCOVERY": "off (environment)",
        "COOKIE_FILE": str(tmp_path / "program" / NAME) + " (default)",
        "CORES": "3 (environment)",
        "MEMORY": "2G (the machine)",
        "TAGS": "gpu ssd (environment)",
        "RELAY_CORE": "auto (default)",
        "NICE": "0 (default)",
    }


@pytest.mark.parametrize("text", ["20", "-1", "x", "1.5"])
def test_niceness_is_a_whole_number_from_0_to_19(read, text):
    with pytest.raises(settings.WrongSetting) as problem:
        read(NICE=text)
    assert "LEORONIC_NICE" in str(problem.value)


def test_help_names_the_cookie_that_would_be_used(read, tmp_path):
    write(tmp_path / "home" / NAME)
    shown = settings.help_table(read(), machine_cores=1, machine_memory=1)
    assert str(tmp_path / "home" / NAME) in shown


# ---- the cookie: where


def write(path, content=HEX + b"\n", mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_without_a_cookie_none_is_found_and_none_is_made(read, tmp_path):
    assert settings.find_cookie(read()) == (b"", "", [])
    assert not list(tmp_path.rglob("*cookie*"))


def test_a_new_cookie_is_256_random_bits_beside_the_scripts_for_its_user_only(
    read, tmp_path
):
    secret, path, notices = settings.make_cookie(read())
    assert path == str(tmp_path / "program" / NAME)
    assert len(bytes.fromhex(secret.decode())) == 32
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert Path(path).read_bytes() == secret + b"\n"
    assert "copy it to every node" in notices[0]
    assert settings.find_cookie(read()) == (secret, path, [])
    assert os.listdir(str(tmp_path / "program")) == [NAME]


def test_where_the_folder_cannot_be_written_the_cookie_is_made_at_home(read, tmp_path):
    (tmp_path / "program").rmdir()
    (tmp_path / "program").symlink_to("/proc/self")  # writable for nobody, not for root
    secret, path, _ = settings.make_cookie(read())
    assert path == str(tmp_path / "home" / NAME)
    assert settings.find_cookie(read()) == (secret, path, [])


def test_a_cookie_that_can_be_written_nowhere_is_refused_in_words(read):
    with pytest.raises(WrongSetting) as caught:
        settings.make_cookie(read(COOKIE_FILE="/proc/self/cookie"))
    assert "/proc/self/cookie" in str(caught.value)
    assert "set LEORONIC_COOKIE_FILE" in str(caught.value)


def test_the_cookie_beside_the_scripts_comes_before_the_one_at_home(read, tmp_path):
    write(tmp_path / "home" / NAME, b"h" * 20)
    assert settings.find_cookie(read()).secret == b"h" * 20
    write(tmp_path / "program" / NAME, b"p" * 20)
    assert settings.find_cookie(read()).secret == b"p" * 20


def test_a_cookie_file_that_is_given_is_the_only_place(read, tmp_path):
    write(tmp_path / "program" / NAME)
    given = read(COOKIE_FILE=str(tmp_path / "given"))
    assert settings.find_cookie(given).secret == b""
    secret, path, _ = settings.make_cookie(given)
    assert path == given.cookie_file
    assert settings.find_cookie(given).secret == secret != HEX


def test_making_a_cookie_never_overwrites_one(read, tmp_path):
    path = write(tmp_path / "program" / NAME)
    assert settings.make_cookie(read()) == (HEX, str(path), [])


def test_processes_that_make_a_cookie_at_once_agree_on_one(tmp_path):
    place = [str(tmp_path / "program" / NAME)]
    gate = threading.Barrier(8)
    found = []

    def make():
        gate.wait()
        found.append(cookie.make(place, ""))

    makers = [threading.Thread(target=make) for _ in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len(found) == 8
    assert len({each.secret for each in found}) == 1
    assert sum(bool(each.notices) for each in found) == 1


def test_a_folder_without_hard_links_gets_its_cookie_too(read, tmp_path, monkeypatch):
    def no_link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    secret, path, _ = settings.make_cookie(read())
    assert path == str(tmp_path / "program" / NAME)
    assert settings.find_cookie(read()).secret == secret
    assert os.listdir(str(tmp_path / "program")) == [NAME]


# ---- the cookie: trust (FAULTS 61, 67)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"short", "5 bytes"),
        (b"f" * 15 + b"\n", "15 bytes"),
        (b"\0" * 64, "garbled"),
        (HEX + b"\n" + HEX, "garbled"),
        (HEX + b"\xff", "garbled"),
        (b"\x89PNG\r\n\x1a\n" + HEX, "garbled"),
        (b"x" * 5000, "longer"),
    ],
)
def test_a_cookie_that_is_none_is_refused_with_what_was_found(
    read, tmp_path, content, found
):
    path = write(tmp_path / "program" / NAME, content)
    with pytest.raises(WrongSetting) as caught:
        settings.find_cookie(read())
    what, was, remedy = str(caught.value).split("; ", 2)
    assert str(path) in what
    assert found in was
    assert "copy it anew" in remedy
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [HEX, b"\n" + HEX + b"\r\n", HEX + b"\n"])
def test_line_ends_and_blanks_around_a_cookie_do_not_matter(read, tmp_path, content):
    write(tmp_path / "program" / NAME, content)
    assert settings.find_cookie(read()).secret == HEX


def test_a_passphrase_of_the_users_own_will_do(read, tmp_path):
    write(tmp_path / "program" / NAME, b"correct horse battery staple\n")
    assert settings.find_cookie(read()).secret == b"correct horse battery staple"


@pytest.mark.parametrize("mode", [0o644, 0o755, 0o660, 0o604])
def test_an_own_cookie_that_others_may_read_is_tightened_and_said_so(
    read, tmp_path, mode
):
    path = write(tmp_path / "program" / NAME, mode=mode)
    secret, used, notices = settings.find_cookie(read())
    assert (secret, used) == (HEX, str(path))
    assert len(notices) == 1
    assert f"{mode:04o}" in notices[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert settings.find_cookie(read()).notices == []


def test_a_cookie_that_only_its_user_may_read_is_left_alone(read, tmp_path):
    path = write(tmp_path / "program" / NAME, mode=0o400)
    assert settings.find_cookie(read()).notices == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o400


def ignored(fd, mode):
    """Stand in for fchmod on a FAT stick mounted with "quiet"."""


def refused(fd, mode):
    """Stand in for fchmod on a FAT stick, or one that is write-protected."""
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("fchmod", [ignored, refused])
def test_a_cookie_on_a_fat_stick_is_copied_home_once_and_used_there(tmp_path, fchmod):
    stick = write(tmp_path / "program" / NAME, mode=0o755)
    home = tmp_path / "home" / NAME
    places = [str(stick), str(home)]
    found = cookie.find(places, str(tmp_path / "home"), fchmod=fchmod)
    assert (found.secret, found.path) == (HEX, str(home))
    assert "copied to" in found.notices[0]
    assert stat.S_IMODE(home.stat().st_mode) == 0o600
    assert stick.read_bytes() == HEX + b"\n"
    again = cookie.find(places, str(tmp_path / "home"), fchmod=fchmod)
    assert again == (HEX, str(home), [])


def test_a_cookie_at_home_of_another_cluster_is_not_overwritten_from_a_stick(tmp_path):
    stick = write(tmp_path / "program" / NAME, mode=0o755)
    home = write(tmp_path / "home" / NAME, b"another cluster's\n")
    with pytest.raises(WrongSetting, match="two cookies differ"):
        cookie.find([str(stick), str(home)], str(tmp_path / "home"), fchmod=ignored)
    assert home.read_bytes() == b"another cluster's\n"


def test_a_home_directory_without_modes_is_used_with_a_warning(tmp_path):
    home = write(tmp_path / "home" / NAME, mode=0o755)
    found = cookie.find([str(home)], str(tmp_path / "home"), fchmod=ignored)
    assert (found.secret, found.path) == (HEX, str(home))
    assert "others can read" in found.notices[0]


def test_a_stick_whose_cookie_cannot_be_copied_home_is_refused_in_words(tmp_path):
    stick = write(tmp_path / "program" / NAME, mode=0o755)
    with pytest.raises(WrongSetting, match="can't be written .*set LEORONIC_COOKIE_F"):
        cookie.find([str(stick)], "/proc/self", fchmod=ignored)


def test_a_cookie_of_another_user_is_refused_in_words(tmp_path):
    path = write(tmp_path / "program" / NAME)
    with pytest.raises(WrongSetting) as caught:
        cookie.find([str(path)], str(tmp_path / "home"), user=ELSE)
    what, found, remedy = str(caught.value).split("; ", 2)
    assert "belongs to another user" in what
    assert found.startswith("found ")
    assert "LEORONIC_COOKIE_FILE" in remedy


@needs_root
def test_a_cookie_given_to_another_user_is_refused_even_by_root(read, tmp_path):
    path = write(tmp_path / "program" / NAME, mode=0o644)
    os.chown(str(path), ELSE, ELSE)
    with pytest.raises(WrongSetting, match=f"belongs to another user; found .*{ELSE}"):
        settings.find_cookie(read())
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@needs_root
def test_a_link_to_another_users_cookie_is_refused_and_named(read, tmp_path):
    target = write(tmp_path / "theirs", mode=0o644)
    os.chown(str(target), ELSE, ELSE)
    (tmp_path / "program" / NAME).symlink_to(target)
    with pytest.raises(WrongSetting, match=f"a link to {target}"):
        settings.find_cookie(read())


@needs_root
def test_a_link_that_another_user_made_is_refused(read, tmp_path):
    target = write(tmp_path / "mine")
    link = tmp_path / "program" / NAME
    link.symlink_to(target)
    os.chown(str(link), ELSE, ELSE, follow_symlinks=False)
    with pytest.raises(WrongSetting, match="belongs to another user"):
        settings.find_cookie(read())


def test_a_link_to_an_own_cookie_is_followed(read, tmp_path):
    target = write(tmp_path / "mine")
    (tmp_path / "program" / NAME).symlink_to(target)
    assert settings.find_cookie(read()).secret == HEX


def test_a_link_to_nowhere_is_refused_and_nothing_is_made_behind_it(read, tmp_path):
    (tmp_path / "program" / NAME).symlink_to(tmp_path / "nowhere")
    for start in (settings.find_cookie, settings.make_cookie):
        with pytest.raises(WrongSetting, match="a link to .*nowhere"):
            start(read())
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_folder_or_fifo_in_the_cookies_place_is_refused_at_once(read, tmp_path, make):
    make(str(tmp_path / "program" / NAME))
    with pytest.raises(WrongSetting, match="not a regular file"):
        settings.find_cookie(read())


def test_a_cookie_that_cannot_be_read_is_refused_in_words(read, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    write(tmp_path / "program" / NAME, mode=0)
    with pytest.raises(WrongSetting, match="can't be read; Permission denied"):
        settings.find_cookie(read())
