"""The predictor that the tests of serving compare with."""

import pytest

pytest.register_assert_rewrite("asking")


@pytest.fixture(scope="module")
def predictor(finished_run):
    """Of the finished run, on torch."""
    from oct_hf import Predictor

    return Predictor(finished_run / "model", batch_size=8)
