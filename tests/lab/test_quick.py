"""The quick cases, which the ordinary run has too, so that --lab runs them all."""

from test_lan import *  # noqa: F403
from test_lan import pytestmark  # noqa: F401
