"""Stands in for SGLang where the program that starts servers is under test, and not what they serve."""
