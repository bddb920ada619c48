"""The fixture `place` for every test here."""

from tests.conformance.places import place, s3_endpoint

__all__ = ["place", "s3_endpoint"]
