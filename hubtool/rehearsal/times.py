"""Dates as the Hub writes them."""

from datetime import UTC, datetime


def timestamp(date: datetime) -> str:
    """`2026-11-23T20:58:00.000Z`."""
    return f"{date.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{date.microsecond // 1000:03d}Z"
