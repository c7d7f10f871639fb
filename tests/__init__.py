"""The test suite."""

import pytest

# Helpers contain assertions too: let pytest show their values when they fail.
pytest.register_assert_rewrite("tests.helpers", "tests.stress")
