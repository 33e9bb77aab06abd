"""The hierarchy of errors, and what is taken over from other people's."""

from __future__ import annotations

import pickle

import pytest

from online_dpo import errors


@pytest.mark.parametrize(
    ("text", "line"), [("a\nb", "a"), ("\n  a  \nb", "a"), ("", "ValueError"), (" \n ", "ValueError")]
)
def test_the_first_line_of_an_error_that_may_have_no_text(text: str, line: str) -> None:
    assert errors.first_line(ValueError(text)).strip() == line


def test_every_error_survives_the_way_between_processes() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 10
    for kind in kinds:
        found = pickle.loads(pickle.dumps(kind("what, which, remedy")))
        assert type(found) is kind and str(found) == "what, which, remedy"
        assert issubclass(kind, errors.OnlineDPOError)
