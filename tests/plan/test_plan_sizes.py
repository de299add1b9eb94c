"""Sizes and counts as people write them: read, refused and written."""

import pytest

from revstep._values import count, parse_bytes, size
from revstep.errors import ConfigError


@pytest.mark.parametrize(
    "text, value",
    [
        ("80GB", 80 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("512", 512),
        (512, 512),
        ("2e3 mb", 2 * 10**9),
        (1e9, 10**9),
    ],
)
def test_sizes_are_read(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "80 apples", "-3GB", "0", 0, True, "GB", None])
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match="expected bytes or a size such as '80GB'"):
        parse_bytes(text)


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0 KB"),
        (999, "0.999 KB"),
        (16.06e9, "16.1 GB"),
        (999.9e6, "1 GB"),
        (130.4e9, "130 GB"),
        (1.2e15, "1,200 TB"),
    ],
)
def test_sizes_are_written(number, text):
    assert size(number) == text


@pytest.mark.parametrize(
    "number, text",
    [(0, "0"), (999, "999"), (340_200, "340 thousand"), (8.03e9, "8.03 billion"), (1.5e12, "1.5 trillion")],
)
def test_counts_are_written(number, text):
    assert count(number) == text
