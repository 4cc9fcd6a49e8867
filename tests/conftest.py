"""What holds for every test: only loopback is reached, no account of the person is touched, examples repeat."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

# huggingface_hub reads its environment once, when it is imported: this comes before any test module is.
# Child processes, which pytest-socket cannot watch, inherit it too; nothing listens on the discard port.
_HF_HOME = tempfile.TemporaryDirectory(prefix="hubtool-tests-")
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
    del os.environ[_name]
os.environ |= {
    "HF_HOME": str(Path(_HF_HOME.name)),
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_COLOR": "1",
    # Tests share the cores: BLAS's threads would wait for each other by spinning. NumPy reads this when it is imported.
    "OPENBLAS_NUM_THREADS": "1",
}

# The machine's speed decides nothing, and every run draws the same examples.
settings.register_profile(
    "deterministic", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("deterministic")

pytest_plugins = ("tests.fixtures", "tests.publisher")
