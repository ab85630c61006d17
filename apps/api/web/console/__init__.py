"""The console: a page for people that works through the public API. It is static and holds no secret, so it needs no
key; what it does needs one. See docs/console.md."""
