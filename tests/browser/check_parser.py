"""Asks the Hub's own parser how many parameters our repos have: each recipe's must be counted exactly.

    python -m tests.browser.check_parser

publishes the small sample in every recipe to a rehearsal Hub on this machine, and exits 1 if the count that
`parseSafetensorsMetadata` of npm's @huggingface/hub gives is not the record's. It needs the extra `rehearse`, Node.js
20 or later and npm.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hubtool.checkpoint.open import open_source
from hubtool.hub.client import make_api
from hubtool.hub.destination import Destination
from hubtool.plan.plan import plan_source
from hubtool.plan.recipe import recipe_names
from hubtool.rehearsal import RehearsalHub
from hubtool.sample import write_sample
from tests.fixtures import convert_source
from tests.publisher import upload

PARSER = "@huggingface/hub@2.17.5"
"""The first version that counts MLX's quantized weights unpacked is 2.17.5."""

SCRIPT = """
import { parseSafetensorsMetadata } from "@huggingface/hub"
const [hubUrl, accessToken, ...repos] = process.argv.slice(2)
const counts = {}
for (const repo of repos) {
  const path = "model.safetensors.index.json"
  const parsed = await parseSafetensorsMetadata({ repo, path, hubUrl, accessToken, computeParametersCount: true })
  counts[repo] = { total: parsed.parameterTotal, byType: parsed.parameterCount }
}
console.log(JSON.stringify(counts))
"""


def main() -> int:
    """Exit code of the check."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with RehearsalHub(work / "rehearsal") as hub:
            expected = publish(hub, work)
            counted = count(hub, work, list(expected))
    wrong = 0
    for repo, parameters in expected.items():
        by_type, total = counted[repo]["byType"], counted[repo]["total"]
        right = total == parameters == sum(by_type.values())
        wrong += not right
        verdict = "as recorded" if right else f"the record says {parameters:,}"
        sys.stdout.write(f"{repo}: {total:,} parameters, {verdict}: {by_type}\n")
    return 1 if wrong else 0


def publish(hub: RehearsalHub, work: Path) -> dict[str, int]:
    """Logical parameters by repo, after the sample was published in every recipe."""
    source = open_source(str(write_sample(work / "sample")))
    api = make_api(hub.endpoint, hub.token, xet=False)
    expected = {}
    for recipe in recipe_names():
        (plan,) = plan_source(source, [recipe])
        made = convert_source(source, plan, work / recipe)
        repo = f"rehearsal/{recipe}"
        upload(api, made.folder, made.record, Destination(repo))
        expected[repo] = made.record.measured.parameters
    return expected


def count(hub: RehearsalHub, work: Path, repos: list[str]) -> Any:
    """What the Hub's own parser says of each repo."""
    (work / "package.json").write_text('{"type": "module", "private": true}')
    (work / "count.js").write_text(SCRIPT)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", PARSER], cwd=work, check=True)
    command = ["node", "count.js", hub.endpoint, hub.token, *repos]
    return json.loads(subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
