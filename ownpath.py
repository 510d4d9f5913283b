"""Where our own folder stands among those that Python imports from: behind the library.

Reason for this file: the scripts of all three roles must do this before they import
anything else, and from whatever they import first it must come.

Rules. Imports nothing that isn't loaded at every start of Python: any other import
could be taken from the working directory.
"""

import os
import sys


def prefer_stdlib() -> None:
    """Move our own folder behind the standard library.

    The working directory may be that folder, and a task may write `re.py` there; what
    pip installed may be called `settings`, so ours stands before site-packages.
    """
    own = os.path.dirname(os.path.abspath(__file__))
    rest = [path for path in sys.path if os.path.abspath(path or ".") != own]
    is_site = [path.endswith(("site-packages", "dist-packages")) for path in rest]
    place = is_site.index(True) if True in is_site else len(rest)
    sys.path[:] = rest[:place] + [own] + rest[place:]
