"""Each reader on seeded inputs: few in the ordinary run, as many as asked for else.

bash tests/run --fuzz 100000     prints a table; a find names its input
"""

import os

import pytest
from fuzzing import REPORTS, fuzz
from readers import READERS

INPUTS = int(os.environ.get("LEORONIC_FUZZ_INPUTS", "1000"))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of regexes; comrades ignore it
@pytest.mark.timeout(max(60, INPUTS // 20))
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_no_input_raises_or_costs_what_it_must_not(reader):
    REPORTS.append(fuzz(reader, INPUTS))
    assert not REPORTS[-1].finds, "\n".join(REPORTS[-1].finds)
