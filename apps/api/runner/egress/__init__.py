"""The way of agents to anything but a model: a proxy on the loopback that lets through what a session may reach."""
