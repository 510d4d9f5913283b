"""The quick cases, which the ordinary run has too, so that --lab runs them all."""

import test_lan

pytestmark = test_lan.pytestmark
globals().update({n: v for n, v in vars(test_lan).items() if n.startswith("test_")})
