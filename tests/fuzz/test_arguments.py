"""The argument checks against any value at all: they return what they promise, or raise words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deit import arguments

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.just(ValueError("x")),
    st.just(len),
)


@pytest.mark.parametrize(
    ("check", "is_right"),
    [
        (arguments.check_positive_int, lambda value: value >= 1),
        (arguments.check_non_negative_int, lambda value: value >= 0),
        (arguments.check_rate, lambda value: 0 <= value < 1),
        (arguments.check_fraction, lambda value: 0 <= value <= 1),
        (arguments.check_positive_number, lambda value: 0 < value < math.inf),
    ],
)
@given(value=ANYTHING)
def test_a_number_is_in_its_range_or_refused_by_name(check, is_right, value):
    try:
        result = check("rate", value)
    except ValueError as error:
        assert str(error).startswith("`rate` must be ")
        assert f"rate={value!r}" in str(error)
    else:
        assert is_right(result) and not isinstance(value, bool)
