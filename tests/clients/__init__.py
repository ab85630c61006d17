"""What client libraries must do, tested with each of them."""

import pytest

pytest.register_assert_rewrite("tests.clients.scenarios", "tests.clients.stage")  # where the assertions are
