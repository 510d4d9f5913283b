"""What is in force at this node: its settings, for leoronic_config.

Reason for this file beside verbs.py: it tells of the process, not of the queue, and a
ghost answers it by itself.

Rules. Changes nothing. What the settings are and mean is settings.py's; this prints it.
"""

import json

from control import TURN, Call, Control, Verb, Wrong, printable, told
from settings import lines_of
from taskform import split_flags


def config(ctl: Control, call: Call) -> Verb:
    """Print every setting: its name, value, where that comes from, what it means."""
    flags, rest = split_flags(call.args[1:], ("--json",))
    if rest:
        what = "leoronic_config takes no argument but --json"
        raise Wrong(told(what, rest[0], "leave it out"))
    rows = ctl.acts.settings()
    if flags:
        call.raw((json.dumps([row._asdict() for row in rows]) + "\n").encode("ascii"))
        return
    for row in rows:
        for line in lines_of(row):
            call.line(printable(line))
        yield TURN
