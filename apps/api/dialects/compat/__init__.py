"""Dialects of older servers, and what they share."""
