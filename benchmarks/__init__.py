"""Speed against other libraries, on models of the true shapes with random weights.

`make bench` runs `python -m benchmarks.race` in an environment of its own, and then `python -m
benchmarks.report`, which writes tables and charts from what is stored. `python -m benchmarks.gpu`
is the short race for one CUDA device. None is part of the test run, and none downloads a model.
"""
