"""Tests of kernels in Triton's interpreter; test_interpreter.py runs each in its own process.

Whether a kernel is interpreted is decided when it is decorated, so TRITON_INTERPRET must be set
before anything imports it.
"""
