from tests.world import lone_world, neighbourhood, world

__all__ = ["lone_world", "neighbourhood", "world"]
