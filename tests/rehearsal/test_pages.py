"""The pages, as a browser gets them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi

from hubtool.rehearsal import RehearsalHub
from hubtool.units import format_size
from tests.rehearsal.content import REPO, additions, shard

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CARD = b"""---
license: mit
library_name: mlx
base_model: org/base
base_model_relation: quantized
---
# A card <script>alert(1)</script>

[config](config.json)
"""


@pytest.fixture
def published(api: HfApi) -> str:
    """The commit of a repo with a card, a config, a shard and a folder."""
    config = {"model_type": "deepseek_v4", "quantization": {"bits": 4, "layers.1": {"bits": 8}}}
    files = {"README.md": CARD, "config.json": json.dumps(config).encode(), "sub/note.txt": b"<b>note</b>"}
    api.create_repo(REPO)
    files["model.safetensors"] = shard(1)
    api.create_commit(REPO, additions(files), commit_message="Publish <it>", commit_description="Why & how")
    api.create_tag(REPO, tag="v1/final")
    return str(api.list_repo_commits(REPO)[0].commit_id)


@pytest.fixture
def browser(hub: RehearsalHub) -> Iterator[httpx2.Client]:
    """A browser: no token."""
    with httpx2.Client(base_url=hub.endpoint, timeout=30) as client:
        yield client


def page(browser: httpx2.Client, address: str) -> str:
    """The HTML of a page; nothing on it may run."""
    answer = browser.get(address)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    return str(answer.text)


def test_model_page_shows_card_chips_and_facts(browser: httpx2.Client, published: str) -> None:
    html = page(browser, f"/{REPO}")
    assert "<h1>A card " in html and f'href="/{REPO}/blob/main/config.json"' in html
    for chip in ("mlx", "safetensors", "deepseek_v4", "4-bit", "license: mit", "base model: org/base"):
        assert f">{chip}</li>" in html, chip
    # 64 rows of 256 packed words of 8 bits are four times as many parameters; scales are not counted.
    assert "<dd>65.5K params</dd>" in html and "<dd>U32</dd>" in html
    assert "org/base → quantized → this model" in html and published in html and "v1/final" in html


def test_files_are_shown_with_sizes_and_hashes(browser: httpx2.Client, published: str) -> None:
    html = page(browser, f"/{REPO}/tree/main")
    assert f"sha256 {hashlib.sha256(shard(1)).hexdigest()}" in html
    assert f'<td class="number">{format_size(len(shard(1)))}</td>' in html
    assert f'href="/{REPO}/tree/main/sub"' in html
    assert f'href="/{REPO}/blob/v1%2Ffinal/sub/note.txt"' in page(browser, f"/{REPO}/tree/v1%2Ffinal/sub")
    assert "&lt;b&gt;note&lt;/b&gt;" in page(browser, f"/{REPO}/blob/main/sub/note.txt")
    assert "not shown" in page(browser, f"/{REPO}/blob/main/model.safetensors")
    assert browser.get(f"/{REPO}/tree/main/absent").status_code == 404
    assert browser.get(f"/{REPO}/blob/main/absent").status_code == 404


def test_commits_are_shown_with_what_they_changed(browser: httpx2.Client, published: str) -> None:
    assert "Publish &lt;it&gt;" in page(browser, f"/{REPO}/commits/main")
    html = page(browser, f"/{REPO}/commit/{published}")
    assert "Why &amp; how" in html and "<td>added</td><td>model.safetensors</td>" in html
    assert ".gitattributes" not in html


def test_discussions_and_collections_are_shown(browser: httpx2.Client, api: HfApi, published: str) -> None:
    api.create_pull_request(REPO, "A change", description="It is **better** <script>")
    api.create_commit(REPO, additions({"new.txt": b"n"}), commit_message="New", revision="refs/pr/1")
    api.rename_discussion(REPO, 1, "A good change")
    api.change_discussion_status(REPO, 1, "closed")
    assert "A good change" in page(browser, f"/{REPO}/discussions")
    html = page(browser, f"/{REPO}/discussions/1")
    assert "<strong>better</strong>" in html and "is now closed" in html and "renamed A change to" in html
    slug = api.create_collection("All", namespace="someone", description="Everything").slug
    api.add_collection_item(slug, REPO, "model", note="The first")
    assert "The first" in page(browser, f"/collections/{slug}")
    assert slug in page(browser, "/")


def test_private_repos_are_shown_to_a_browser_that_has_the_token(
    hub: RehearsalHub, browser: httpx2.Client, api: HfApi, published: str
) -> None:
    api.update_repo_settings(REPO, private=True)
    assert REPO not in page(browser, "/") and "1 more with a" in page(browser, "/")
    for address in (f"/{REPO}", f"/{REPO}/tree/main", "/login"):
        refused = browser.get(address)
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic ")
    browser.auth = ("anyone", hub.token)
    assert "(private)" in page(browser, "/")
    assert "A card" in page(browser, f"/{REPO}")
    assert browser.get("/login").status_code == 307
    browser.auth = ("anyone", "wrong")
    assert browser.get(f"/{REPO}").status_code == 401


def test_a_page_can_be_had_of_a_repo_without_card_or_with_a_broken_one(api: HfApi, browser: httpx2.Client) -> None:
    api.create_repo(REPO)
    assert REPO in page(browser, f"/{REPO}")
    files = {"config.json": b"[not json", "model.safetensors": b"not safetensors either" * 10, "README.md": b"\xff\xfe"}
    with pytest.raises(UnicodeDecodeError):
        api.create_commit(REPO, additions(files), commit_message="Broken")
    del files["README.md"]
    api.create_commit(REPO, additions(files), commit_message="Broken")
    assert "params" not in page(browser, f"/{REPO}")
    assert Path(api.hf_hub_download(REPO, "config.json")).read_bytes() == b"[not json"
