"""The Hub's rules as far as they can be checked without it: names, lengths, and the metadata of a card.

`check_metadata` is what the rehearsal Hub answers at validate-yaml, and what is checked before anything is sent, so
that a card which the Hub would refuse is noticed before hours of upload. The lists are closed on the Hub:

* licenses: docs/hub/repositories-licenses, as of August 2026;
* relations to a base model: docs/hub/model-cards;
* languages: ISO 639-1, 639-2 and 639-3 codes. Those of two letters are all listed, those of three all let through;
* tasks: `PIPELINE_DATA` of the Hub's own @huggingface/tasks. An unknown one is only warned about.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hubtool.errors import SourceError
from hubtool.files.yaml import parse_yaml
from hubtool.record import CARD_FILE

LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
    """.split()
)

BASE_MODEL_RELATIONS = ("adapter", "merge", "quantized", "finetune")

LANGUAGES_OF_TWO_LETTERS = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo
    es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg
    ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn
    no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta
    te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
    """.split()
)
SPECIAL_LANGUAGES = frozenset({"code", "multilingual"})

TASKS = frozenset(
    """
    any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition biology
    depth-estimation document-question-answering feature-extraction fill-mask graph-ml image-classification
    image-feature-extraction image-segmentation image-text-to-text image-to-3d image-to-image image-to-text
    image-to-video keypoint-detection mask-generation multiple-choice object-detection other question-answering
    reinforcement-learning robotics sentence-similarity summarization table-question-answering table-to-text
    tabular-classification tabular-regression tabular-to-text text-classification text-generation text-ranking
    text-retrieval text-to-3d text-to-audio text-to-image text-to-speech text-to-video text2text-generation
    time-series-forecasting token-classification translation unconditional-image-generation video-classification
    video-text-to-text visual-document-retrieval visual-question-answering voice-activity-detection
    zero-shot-classification zero-shot-image-classification zero-shot-object-detection
    """.split()
)

REPO_NAME = re.compile(r"(?!.*(?:--|\.\.|\.git$))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
"""The name of a namespace or repo (huggingface_hub, `validate_repo_id`)."""

REF_NAME = re.compile(r"(?!.*(?:\.\.|//|@\{|\.lock$))[^\x00-\x20~^:?*\[\\/.][^\x00-\x20~^:?*\[\\]{0,190}(?<![/.])")
"""The name of a branch or tag (git check-ref-format)."""

REGULAR_LIMIT_NBYTES = 10 << 20
"""The largest file that travels in a commit itself; larger ones go before it, by LFS or xet."""

COLLECTION_DESCRIPTION_LENGTH = 150
COLLECTION_NOTE_LENGTH = 500
DISCUSSION_TITLE_LENGTHS = range(3, 201)
"""Characters, from the docstrings of huggingface_hub 2.4."""

CARD_REMEDY = "correct the front matter of the card"

FRONT_MATTER = re.compile(r"\A\s*---(?:\r\n|\r|\n)(.*?(?:\r\n|\r|\n))?---[ \t]*(?:\r\n|\n|\Z)", re.DOTALL)
"""YAML between two lines of three dashes at the start (huggingface_hub, `REGEX_YAML_BLOCK`)."""


@dataclass(frozen=True)
class Problem:
    """Something about a card's metadata.

    Attributes:
        message: What and where.
        fatal: The Hub refuses the card for it; otherwise it only warns.
    """

    message: str
    fatal: bool = True


def is_repo_id(text: str) -> bool:
    """Whether this is `NAMESPACE/NAME` as the Hub allows it."""
    parts = text.split("/")
    return len(parts) == 2 and all(REPO_NAME.fullmatch(part) for part in parts)


def split_card(text: str) -> tuple[str, str]:
    """The YAML and the Markdown of a README.md; the YAML is empty where there is no front matter."""
    match = FRONT_MATTER.match(text)
    return (match[1] or "", text[match.end() :]) if match else ("", text)


def read_metadata(text: str, name: object = CARD_FILE) -> dict[str, object]:
    """The metadata of a README.md, empty where there is none.

    Args:
        text: The card.
        name: What it is called in messages.

    Raises:
        SourceError: It is not a YAML mapping, names a key twice, or has what `parse_yaml` refuses.
    """
    data = parse_yaml(split_card(text)[0], name, remedy=CARD_REMEDY)
    if not isinstance(data, dict | None):
        found = type(data).__name__
        raise SourceError("not a mapping", where=name, found=found, expected="names and values", remedy=CARD_REMEDY)
    return {str(key): value for key, value in (data or {}).items()}


def check_metadata(text: str) -> list[Problem]:
    """What the Hub would object to in the metadata of this README.md, nothing if it is fine."""
    front = split_card(text)[0]
    try:
        data = parse_yaml(front, CARD_FILE, remedy=CARD_REMEDY)
    except SourceError as error:
        return [Problem(f"the metadata is not valid YAML: {error.found}")]
    if data is None:
        return [Problem("empty or missing yaml metadata in repo card", fatal=False)]
    if not isinstance(data, dict):
        return [Problem("the metadata is not a mapping of names to values")]
    problems = [problem for key, check in CHECKS.items() if key in data for problem in check(key, data[key])]
    return problems + _license(data)


def count_parameters(tensors: Iterable[tuple[str, str, Sequence[int]]], config: Mapping[str, object]) -> dict[str, int]:
    """Parameters by dtype as the Hub's page counts them: a quantized weight unpacked, its scales and biases not at all.

    The Hub reads the bits off config.json (@huggingface/hub 2.17.5, `parse-safetensors-metadata`): from the module's
    own entry of `quantization`, else from its top. With a `quant_method`, or without a block, it counts what is stored.

    Args:
        tensors: Name, dtype and shape of each.
        config: What config.json holds.
    """
    block = config.get("quantization") or config.get("quantization_config")
    known = isinstance(block, Mapping) and "quant_method" not in block
    listed = list(tensors)
    modules = {name.removesuffix(".scales") for name, _, _ in listed if name.endswith(".scales")} if known else set()
    counts: Counter[str] = Counter()
    for name, dtype, shape in listed:
        module, _, kind = name.rpartition(".")
        if module not in modules:
            counts[dtype] += math.prod(shape)
        elif kind == "weight":
            counts[dtype] += math.prod(shape) * 32 // _bits(block, module)
    return dict(counts)


def _bits(block: object, module: str) -> int:
    """Bits of a module's weight; 32, which unpacks nothing, where config.json does not say."""
    entry = block.get(module, block) if isinstance(block, Mapping) else None
    bits = entry.get("bits") if isinstance(entry, Mapping) else None
    return bits if isinstance(bits, int) and bits > 0 else 32


Check = Callable[[str, object], Iterator[Problem]]


def _text(key: str, value: object) -> Iterator[Problem]:
    if not isinstance(value, str):
        yield Problem(f'"{key}" must be a string')


def _texts(key: str, value: object) -> Iterator[Problem]:
    if not isinstance(value, list):
        yield Problem(f'"{key}" must be an array')
    elif not all(isinstance(item, str) for item in value):
        yield Problem(f'"{key}" must be an array of strings')


def _array(key: str, value: object) -> Iterator[Problem]:
    if not isinstance(value, list):
        yield Problem(f'"{key}" must be an array')


def _each(accepts: Callable[[str], bool], expected: str) -> Check:
    """A check of a string, or of every string of an array."""

    def check(key: str, value: object) -> Iterator[Problem]:
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str):
                # YAML reads the Norwegian `no` as false.
                yield Problem(f'"{key}" must be a string or an array of strings, not {item!r}; put it in quotes')
            elif not accepts(item):
                yield Problem(f'"{key}" with value "{item}" is not valid. {expected}')

    return check


def _is_model(text: str) -> bool:
    # Models of the Hub's first days have no namespace.
    return is_repo_id(text) or REPO_NAME.fullmatch(text) is not None


def _is_language(text: str) -> bool:
    return text in LANGUAGES_OF_TWO_LETTERS or text in SPECIAL_LANGUAGES or re.fullmatch("[a-z]{3}", text) is not None


def _task(key: str, value: object) -> Iterator[Problem]:
    if not isinstance(value, str):
        yield Problem(f'"{key}" must be a string')
    elif value not in TASKS:
        yield Problem(f'the {key} "{value}" is not in the official list of tasks', fatal=False)


def _model_index(key: str, value: object) -> Iterator[Problem]:
    if not isinstance(value, list):
        yield Problem(f'"{key}" must be an array')
        return
    for at, model in enumerate(value):
        if not isinstance(model, Mapping) or not isinstance(model.get("name"), str):
            yield Problem(f'"{key}[{at}].name" is required')
        elif not isinstance(model.get("results"), list):
            yield Problem(f'"{key}[{at}].results" must be an array')


def _license(data: Mapping[object, object]) -> list[Problem]:
    """What only concerns licenses that the Hub has no name for."""
    if data.get("license") != "other":
        return []
    absent = [key for key in ("license_name", "license_link") if key not in data]
    return [Problem(f'"license: other" should come with "{key}"', fatal=False) for key in absent]


_a_model = _each(_is_model, "Use a model id from https://hf.co/models.")

CHECKS: dict[str, Check] = {
    "license": _each(LICENSES.__contains__, "Use an identifier from https://hf.co/docs/hub/repositories-licenses."),
    "license_name": _text,
    "license_link": _text,
    "language": _each(
        _is_language,
        'It must be an ISO 639-1, 639-2 or 639-3 code (two or three letters), or a special value like "code" or '
        '"multilingual". BCP-47 identifiers go into "language_bcp47".',
    ),
    "base_model": _a_model,
    "base_model_relation": _each(
        BASE_MODEL_RELATIONS.__contains__, f"It must be one of {', '.join(BASE_MODEL_RELATIONS)}."
    ),
    "new_version": _a_model,
    "pipeline_tag": _task,
    "library_name": _text,
    "tags": _texts,
    "datasets": _texts,
    "metrics": _texts,
    "thumbnail": _text,
    "widget": _array,
    "model-index": _model_index,
}
