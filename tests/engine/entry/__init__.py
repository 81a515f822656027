"""Tests of what meets a request before the scheduler."""
