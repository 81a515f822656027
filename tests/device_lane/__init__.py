"""The device lane: SGLang's GPU path, run whole on CPU tensors.

An out-of-tree SGLang platform for tests. Nothing is registered when this package is imported.
"""
