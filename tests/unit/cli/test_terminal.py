"""Foreign text on a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.lines import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("curl", "curl"),
        ("café ☕", "café ☕"),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b", "\\x9b"),
        ("\u202e", "\\u202e"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_shown(text):
    assert printable(text).isprintable()
    printable(text).encode()
