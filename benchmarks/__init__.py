"""Speed against other libraries, on models of the true shapes with random weights.

`make bench` runs `python -m benchmarks.race` in an environment of its own; `python -m
benchmarks.gpu` is the short race for one CUDA device. Neither is part of the test run, and neither
downloads a model.
"""
