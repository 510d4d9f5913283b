"""`bash leoronic --install`: units and crontabs, by fake programs and real files."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from helpers import CHECKOUT

import settings

MARK = "# leoronic --install"
ODD = 'a %d%% $HOME `id` "q" it\'s \\b \\% é'  # a folder's name; no blank at its end
THEIRS = (
    "# mine\nMAILTO=me\n@reboot /bin/other # leoronic --install it\n1 2 * * * a%b\n"
)

SYSTEMCTL = """#!/bin/bash
printf '%s\\n' "$*" >>"$FAKE/calls"
[[ $2 != show-environment || -e $FAKE/manager ]]
"""
LOGINCTL = """#!/bin/bash
[[ -e $FAKE/lingers ]] && echo yes
"""
CRONTAB = """#!/bin/bash
[[ ! -e $FAKE/broken ]] || { echo 'you are not allowed to use cron' >&2; exit 1; }
case $1 in
-l) [[ -e $FAKE/tab ]] || { echo 'no crontab for me' >&2; exit 1; }; cat "$FAKE/tab" ;;
-) cat >"$FAKE/tab" ;;
esac
"""
# Stands for the launcher, to see how it would be called.
LAUNCHER = 'printf "%s\\0" "$PWD" "$0" "$*" "$LEORONIC_TAGS" "$PATH" >"$FAKE/started"\n'


class Home:
    """A user with odd folders, and fakes of what --install talks to."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.program, self.work = top / ("program " + ODD), top / ("work " + ODD)
        self.fake, self.home, self.bin = top / "fake", top / "home", top / "bin"
        for path in (self.program, self.work, self.fake, self.home, self.bin):
            path.mkdir()
        shutil.copy(str(CHECKOUT / "leoronic_install"), str(self.program))
        (self.program / "leoronic").write_text(LAUNCHER)
        for name, text in (("systemctl", SYSTEMCTL), ("loginctl", LOGINCTL)):
            self.put(name, text)
        self.put("crontab", CRONTAB)
        self.unit = self.home / ".config/systemd/user/leoronic.service"
        self.tab = self.fake / "tab"
        self.path = "%s:/usr/bin:/bin" % self.bin
        self.env = {"HOME": str(self.home), "PATH": self.path, "FAKE": str(self.fake)}

    def put(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, *args: str, **env: str) -> Tuple[int, str, str]:
        done = subprocess.run(
            ["bash", str(self.program / "leoronic_install"), *args],
            cwd=str(self.work),
            env=dict(self.env, **env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def calls(self) -> List[str]:
        return (self.fake / "calls").read_text().splitlines()

    def started(self) -> List[str]:
        return (self.fake / "started").read_bytes().decode().split("\0")[:-1]

    def files(self) -> List[str]:
        return sorted(str(p.relative_to(self.home)) for p in self.home.rglob("*"))


@pytest.fixture
def cron(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def systemd(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    (home.fake / "manager").touch()
    return home


def values(unit: str, key: str) -> List[str]:
    return re.findall("^%s=(.*)$" % key, unit, re.M)


def words(text: str, is_command: bool = False) -> List[str]:
    """Split as systemd does: double quotes, C escapes, specifiers, $ in commands."""
    found = []
    for word in re.findall(r'"((?:[^"\\]|\\.)*)"', text):
        word = re.sub(r"\\(.)", r"\1", word)
        assert not re.search("%(?!%)", word.replace("%%", ""))
        word = word.replace("%%", "%")
        assert not is_command or "$" not in word.replace("$$", "")
        found.append(word.replace("$$", "$") if is_command else word)
    return found


def cron_runs(line: str) -> str:
    """Give what cron hands to sh: up to the first % that has no backslash."""
    return re.split(r"(?<!\\)%", line)[0].replace("\\%", "%")


def start_by_cron(home: Home) -> None:
    (line,) = [one for one in home.tab.read_text().splitlines() if one.endswith(MARK)]
    command = cron_runs(line.partition("@reboot ")[2])
    subprocess.run(["sh", "-c", command], env=home.env, check=True, cwd="/")


# ---- systemd


def test_without_yes_a_unit_is_shown_and_nothing_is_written(systemd: Home) -> None:
    code, out, err = systemd.run("--install")
    assert (code, err) == (0, "")
    assert str(systemd.unit) in out and "loginctl enable-linger" in out
    assert "ExecStart=" in out and "--install --yes" in out
    assert systemd.files() == [] and not systemd.tab.exists()
    assert systemd.calls() == ["--user show-environment"]


def test_a_unit_starts_this_program_here_with_the_settings_of_now(
    systemd: Home,
) -> None:
    tags = 'x "y" \\ $z %n'
    code, out, err = systemd.run("--install", "--yes", LEORONIC_TAGS=tags)
    assert (code, err) == (0, ""), err
    unit = systemd.unit.read_text()
    (directory,) = values(unit, "WorkingDirectory")
    assert directory.replace("%%", "%") == str(systemd.work)
    (start,) = values(unit, "ExecStart")
    bash, script = words(start, True)
    assert os.access(bash, os.X_OK) and script == str(systemd.program / "leoronic")
    given = dict(
        word.split("=", 1) for v in values(unit, "Environment") for word in words(v)
    )
    assert given == {"LEORONIC_TAGS": tags, "PATH": systemd.path}
    enabled = ["--user daemon-reload", "--user enable leoronic.service"]
    assert systemd.calls()[1:] == enabled
    assert "enable-linger" in out


def test_installing_twice_is_installing_once(systemd: Home) -> None:
    first = systemd.run("--install", "--yes")
    files, text = systemd.files(), systemd.unit.read_text()
    assert systemd.run("--install", "--yes") == first
    assert (systemd.files(), systemd.unit.read_text()) == (files, text)


def test_who_lingers_already_is_not_told_to(systemd: Home) -> None:
    (systemd.fake / "lingers").touch()
    assert "enable-linger" not in systemd.run("--install", "--yes")[1]


def test_uninstalling_removes_the_unit_and_says_if_there_is_none(
    systemd: Home,
) -> None:
    systemd.run("--install", "--yes")
    code, out, _ = systemd.run("--uninstall")
    assert code == 0 and "removed " in out and not systemd.unit.exists()
    assert "--user disable leoronic.service" in systemd.calls()
    code, out, _ = systemd.run("--uninstall")
    assert code == 0 and "nothing was installed" in out


def test_a_unit_of_others_stays(systemd: Home) -> None:
    systemd.unit.parent.mkdir(parents=True)
    systemd.unit.write_text("[Unit]\n" + MARK + "\n")
    code, _, err = systemd.run("--install", "--yes")
    assert code == 100 and "not written by this program" in err
    assert systemd.run("--uninstall")[0] == 0
    assert systemd.unit.read_text() == "[Unit]\n" + MARK + "\n"


# ---- cron


def test_without_a_manager_cron_starts_it_in_odd_folders(cron: Home) -> None:
    tags = "it's % \\% $(id)"
    code, out, err = cron.run("--install", "--yes", LEORONIC_TAGS=tags)
    assert (code, err) == (0, ""), err
    start_by_cron(cron)
    script = str(cron.program / "leoronic")
    expected = [str(cron.work), script, "--background", tags, cron.path]
    assert cron.started() == expected
    assert cron.files() == []


def test_lines_of_others_stay_byte_for_byte(cron: Home) -> None:
    cron.tab.write_text(THEIRS)
    for tags in ("a", "a", "b"):
        assert cron.run("--install", "--yes", LEORONIC_TAGS=tags)[0] == 0
        text = cron.tab.read_text()
        assert text.startswith(THEIRS) and text.count("--background") == 1
    start_by_cron(cron)
    assert cron.started()[3] == "b"
    assert "removed the line" in cron.run("--uninstall")[1]
    assert cron.tab.read_text() == THEIRS
    assert "nothing was installed" in cron.run("--uninstall")[1]
    assert cron.tab.read_text() == THEIRS


def test_without_yes_a_line_is_shown_and_nothing_is_written(cron: Home) -> None:
    code, out, err = cron.run("--install")
    assert (code, err) == (0, "") and "@reboot " in out
    assert not cron.tab.exists() and cron.files() == []


def test_a_crontab_that_can_not_be_read_is_left_alone(cron: Home) -> None:
    cron.tab.write_text(THEIRS)
    (cron.fake / "broken").touch()
    code, _, err = cron.run("--install", "--yes")
    assert code == 111 and "not allowed to use cron" in err
    assert cron.tab.read_text() == THEIRS


def test_without_either_it_says_so(cron: Home) -> None:
    (cron.bin / "crontab").unlink()
    tools = "bash mkdir mv rm id cat".split()
    for name in tools:
        (cron.bin / name).symlink_to(str(shutil.which(name)))
    code, _, err = cron.run("--install", PATH=str(cron.bin))
    assert code == 111 and "neither" in err


# ---- words


@pytest.mark.parametrize("end", ["\n", " ", "\\"])
def test_a_folder_that_nothing_can_hold_is_refused(systemd: Home, end: str) -> None:
    systemd.work = systemd.top / ("x" + end)
    systemd.work.mkdir()
    code, out, err = systemd.run("--install", "--yes")
    assert (code, out, systemd.files()) == (100, "", [])
    assert "the working directory is" in err


def test_a_line_that_cron_would_cut_is_refused(cron: Home) -> None:
    code, _, err = cron.run("--install", "--yes", LEORONIC_TAGS="t" * 1000)
    assert code == 100 and "too long" in err and not cron.tab.exists()


@pytest.mark.parametrize("args", [["--install", "yes"], ["--uninstall", "--yes"], []])
def test_other_arguments_are_refused(systemd: Home, args: List[str]) -> None:
    assert systemd.run(*args)[0] == 100 and systemd.files() == []


def test_every_setting_is_written_down() -> None:
    text = (CHECKOUT / "leoronic_install").read_text()
    (listed,) = re.findall(r"^SETTINGS=\((.*)\)$", text, re.M)
    bare: Dict[str, str] = {"HOME": "/nowhere"}
    found = settings.rows(settings.read_settings(bare, "/nowhere"), 1, 1)
    assert listed.split() == [row.name[len("LEORONIC_") :] for row in found] + [
        "PYTHON"
    ]


def test_the_launcher_knows_the_options(systemd: Home) -> None:
    done = subprocess.run(
        ["bash", str(CHECKOUT / "leoronic"), "--install"],
        cwd=str(systemd.work),
        env=systemd.env,
        stdout=subprocess.PIPE,
    )
    assert done.returncode == 0 and b"ExecStart=" in done.stdout
    assert str(CHECKOUT / "leoronic").encode() in done.stdout
    assert systemd.files() == []
