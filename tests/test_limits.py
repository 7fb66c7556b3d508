import re
from pathlib import Path

import pytest

from emacore import limits
from emacore.formatting import in_bytes
from emacore.limits import check_bytes, check_most
from emacore.tables import TableError

DOCS = Path(__file__).parents[1] / "docs" / "serving.md"


def test_more_than_the_most_is_told():
    check_most("seeds", 10, 10)
    with pytest.raises(ValueError, match="at most 1,000 seeds are possible, got 1,001"):
        check_most("seeds", 1001, 1000)
    with pytest.raises(TableError, match="at most 1 seeds"):
        check_most("seeds", 2, 1, TableError)


def test_bytes_are_told_as_megabytes_and_a_few_too_many_as_more():
    check_bytes("of a file", 2**20, 2**20)
    with pytest.raises(ValueError, match="at most 1 MB of a file are possible, got 2.5 MB"):
        check_bytes("of a file", 5 * 2**19, 2**20)
    with pytest.raises(ValueError, match="at most 1 MB of a file are possible, got more"):
        check_bytes("of a file", 2**20 + 1, 2**20)


def test_the_documentation_lists_every_limit_as_it_is():
    told = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", DOCS.read_text(), re.MULTILINE))
    known = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert told.keys() == known.keys()
    for name, value in known.items():
        assert told[name] in (f"{value:,}", in_bytes(value)), name
