"""Real weights, end to end: SmolLM2-135M-Instruct published to a rehearsal Hub, and stock mlx-lm answers with it.

make real        # in a folder of its own; fetches 98 MB once
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.smollm2 import write_smollm2

QUESTION = "What is the opposite of hot?"
ANSWER = "cold"
RECIPE = "mixed_4_6"


def main() -> None:
    """Write the checkpoint, publish it with validation, ask the question."""
    here = Path(sys.argv[1] if len(sys.argv) > 1 else "real").resolve()
    source = write_smollm2(here / "SmolLM2-135M-Instruct")
    published = here / f"SmolLM2-135M-Instruct-{RECIPE}"
    hubtool = [sys.executable, "-m", "hubtool"]
    base = ["--base-model", "HuggingFaceTB/SmolLM2-135M-Instruct", "--out", str(published)]
    subprocess.run([*hubtool, "convert", str(source), "--recipe", RECIPE, *base], check=True)
    subprocess.run([*hubtool, "validate", str(published)], check=True)
    to = ["--to", f"me/{published.name}", "--rehearse"]
    subprocess.run([*hubtool, "publish", str(source), "--recipe", RECIPE, *base, *to], check=True)
    ask = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(published), "--max-tokens", "40"]
    answer = subprocess.run([*ask, "--prompt", QUESTION], check=True, capture_output=True, text=True).stdout
    print(f"{QUESTION}\n{answer}")
    if ANSWER not in answer:
        raise SystemExit(f"{published.name} does not answer {ANSWER!r}")


if __name__ == "__main__":
    main()
