"""What only a machine with an NVIDIA GPU can show: ``python -m tests.gpu`` checks it in about ten minutes.

No device has run it yet. The tests of the script are in ``tests/unit/test_gpu_checks.py``.
"""
