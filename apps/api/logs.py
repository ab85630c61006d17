"""Logging: structlog, one JSON object a line, or coloured text with DEBUG. Never prompts, headers or secrets."""

from __future__ import annotations

import logging
import sys

import structlog

from apps.api.settings import Settings


def configure_logging(settings: Settings) -> None:
    """Set up structlog and let the libraries' own records through at WARNING."""
    level = logging.getLevelNamesMapping()[settings.log_level]
    renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if settings.debug else None
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer or structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(level, logging.WARNING), format="%(levelname)s %(name)s: %(message)s", force=True)
