"""How many cases hypothesis makes, and which: see docs/reliability.md.

The cases are the same in every run, so that a change that lands does not fail by chance. A long run
by hand makes others: `pytest tests/fuzz -m "" --fuzz-cases 10000 --hypothesis-seed 7`.
"""

import hypothesis


def pytest_configure(config):
    cases = config.getoption("--fuzz-cases")
    hypothesis.settings.register_profile(
        "fuzz",
        max_examples=cases or 200,
        derandomize=cases is None and config.getoption("--hypothesis-seed") is None,
        database=None,
        deadline=None,  # a shared machine is slow now and then
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    hypothesis.settings.load_profile("fuzz")
