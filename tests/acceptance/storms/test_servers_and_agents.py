"""What an instance depends on, or has started, is slow, hangs or holds nonsense: nobody but its users is touched."""

from __future__ import annotations

import pytest

from tests.acceptance.storms.storm import Storm

pytestmark = pytest.mark.slow


async def test_redis_that_hangs(storm: Storm) -> None:
    async with storm.cause():
        storm.place.redis.answers.clear()
        await storm.probes(5)
        storm.place.redis.answers.set()
