"""A device lane: SGLang's and our GPU path, run whole on a machine without a GPU.

An out-of-tree SGLang platform for tests. Its tensors live in host memory, and it answers as a GPU does: Triton kernels
run in Triton's interpreter, CUDA graphs are recordings of operators with frozen host values, streams and events exist,
overlap scheduling is on, and a host read inside a capture is an error. Product code knows nothing of it.

    TRITON_INTERPRET=1 python -m pytest tests/device_lane

What it is blind to: races between streams, kernels that are not Triton's, split KV, bfloat16 rounding, memory, speed.
"""
