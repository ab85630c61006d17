from tests.world import lone_world, neighbourhood, relay, world

__all__ = ["lone_world", "neighbourhood", "relay", "world"]
