"""How fast keras_deit is beside its peers. `python -m benchmarks.run --help`"""
