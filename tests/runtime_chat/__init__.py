"""Tests of the shipped chat template."""
