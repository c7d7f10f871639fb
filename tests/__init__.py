"""The test suite."""

import pytest

# Helpers also contain assertions. Let pytest show the values when such an assertion fails.
pytest.register_assert_rewrite("tests.helpers", "tests.stress")
