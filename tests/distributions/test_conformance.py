"""Every distribution keeps every promise of the shared suite."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.distributions.rows import ROWS
from tests.distributions.suite import CHECKS, Row, check_log_prob_shape

shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_conformance(row: Row, check: Callable[[Row], None]):
    check(row)


@pytest.mark.parametrize("row", ROWS, ids=str)
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(batch_shape=shapes, sample_shape=shapes)
def test_log_prob_shape_for_random_shapes(row: Row, batch_shape: tuple[int, ...], sample_shape: tuple[int, ...]):
    check_log_prob_shape(row, batch_shape, sample_shape)
