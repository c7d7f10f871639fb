"""The SDK's standard test suite for targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from singer_sdk.testing import get_target_test_class
from singer_sdk.testing.suites import SingerTestSuite, target_tests
from singer_sdk.testing.target_tests import (
    TargetInvalidSchemaTest,
    TargetRecordBeforeSchemaTest,
    TargetRecordMissingKeyProperty,
)

from target_crm.loader.target import TargetCrm

if TYPE_CHECKING:
    from singer_sdk.testing.runners import TargetTestRunner

# These two expect that an invalid record ends the run. The default is to quarantine it.
FAILING = [TargetRecordBeforeSchemaTest, TargetRecordMissingKeyProperty]
# This one expects a stream without properties to fail. target-crm loads it, into `_sdc_extra`.
LOADING = [test for test in target_tests.tests if test not in (*FAILING, TargetInvalidSchemaTest)]


def suite(tests: list[type], **config: object) -> type:
    return get_target_test_class(
        TargetCrm,
        config=config,
        custom_suites=[SingerTestSuite(kind="target", tests=tests)],
        include_target_tests=False,
    )


class TestLoading(suite(LOADING)):  # type: ignore[misc]
    """The tests of runs that succeed, on each engine."""

    @pytest.fixture
    def resource(self, runner: TargetTestRunner, warehouse_url: str) -> None:
        runner.config["sqlalchemy_url"] = warehouse_url


class TestFailing(suite(FAILING, on_invalid_record="fail")):  # type: ignore[misc]
    """The tests of runs that end with an error."""

    @pytest.fixture
    def resource(self, runner: TargetTestRunner, sqlite_url: str) -> None:
        runner.config["sqlalchemy_url"] = sqlite_url
