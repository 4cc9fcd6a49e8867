"""A repo published by the stock client, and read back by it."""

import hashlib
import json
import subprocess
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub._commit_api import CommitOperation
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from hubtool.rehearsal import RehearsalHub
from tests.rehearsal.content import REPO, additions, shard

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

README = b"---\nlicense: mit\nlibrary_name: mlx\nbase_model: org/base\nbase_model_relation: quantized\n---\n# A model\n"


def model_files() -> dict[str, bytes]:
    """A small sharded model."""
    shards = {f"model-0000{n}-of-00002.safetensors": shard(n) for n in (1, 2)}
    weight_map = {
        f"layers.{n}.{kind}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2) for kind in ("weight", "scales")
    }
    index = {"metadata": {"total_size": 262144}, "weight_map": weight_map}
    config = {"model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"]}
    return {
        **shards,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": json.dumps(config).encode(),
        "README.md": README,
        "sub/folder/empty.txt": b"",
    }


@pytest.fixture
def published(api: HfApi) -> dict[str, bytes]:
    """The files of a repo that was published in one commit."""
    files = model_files()
    api.create_repo(REPO)
    api.create_commit(REPO, additions(files), commit_message="Publish", commit_description="In one commit.")
    return files


def test_published_repo_is_read_back_byte_for_byte(api: HfApi, published: dict[str, bytes], tmp_path: Path) -> None:
    folder = Path(snapshot_download(REPO, local_dir=tmp_path / "read", endpoint=api.endpoint, token=api.token))
    assert {path: (folder / path).read_bytes() for path in published} == published
    assert (folder / ".gitattributes").is_file()


def test_verify_repo_checksums_accepts_the_files_and_names_a_changed_one(
    api: HfApi, published: dict[str, bytes], tmp_path: Path
) -> None:
    folder = Path(api.snapshot_download(REPO, local_dir=tmp_path / "read"))
    assert api.verify_repo_checksums(REPO, local_dir=folder).mismatches == []
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model-00001-of-00002.safetensors").write_bytes(shard(3))
    mismatches = api.verify_repo_checksums(REPO, local_dir=folder).mismatches
    assert [(item["path"], item["algorithm"]) for item in mismatches] == [
        ("config.json", "git-sha1"),
        ("model-00001-of-00002.safetensors", "sha256"),
    ]


def test_safetensors_metadata_comes_from_ranged_reads(api: HfApi, published: dict[str, bytes]) -> None:
    metadata = api.get_safetensors_metadata(REPO)
    assert metadata.sharded
    assert set(metadata.files_metadata) == {path for path in published if path.endswith(".safetensors")}
    assert metadata.parameter_count == {"U32": 2 * 64 * 256, "F32": 2 * 64 * 256}


def test_model_info_has_sizes_hashes_and_what_the_card_says(api: HfApi, published: dict[str, bytes]) -> None:
    info = api.model_info(REPO, files_metadata=True)
    assert info.siblings is not None and info.card_data is not None and info.safetensors is not None
    by_name = {sibling.rfilename: sibling for sibling in info.siblings}
    for path, content in published.items():
        assert by_name[path].size == len(content)
        if path.endswith(".safetensors"):
            lfs = by_name[path].lfs
            assert lfs is not None and lfs.sha256 == hashlib.sha256(content).hexdigest() and lfs.size == len(content)
        else:
            assert by_name[path].lfs is None
    assert info.library_name == "mlx"
    assert {"mlx", "safetensors", "license:mit", "base_model:quantized:org/base"} <= set(info.tags or [])
    assert info.card_data.license == "mit"
    assert info.config == {"model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"]}
    assert info.safetensors.total == 4 * 64 * 256


def test_info_can_be_narrowed_to_one_key(api: HfApi, published: dict[str, bytes]) -> None:
    info = api.model_info(REPO, expand=["sha"])
    assert info.sha == api.list_repo_commits(REPO)[0].commit_id
    assert info.siblings is None


def test_paths_info_leaves_out_what_is_absent_and_dates_the_rest(api: HfApi, published: dict[str, bytes]) -> None:
    found = api.get_paths_info(REPO, ["config.json", "absent.json", "sub"], expand=True)
    assert [entry.path for entry in found] == ["config.json", "sub"]
    assert all(entry.last_commit is not None and entry.last_commit.title == "Publish" for entry in found)


def test_tree_lists_one_folder_or_everything_below_it(api: HfApi, published: dict[str, bytes]) -> None:
    assert [entry.path for entry in api.list_repo_tree(REPO, "sub")] == ["sub/folder"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "sub/folder")] == ["sub/folder/empty.txt"]
    everything = [entry.path for entry in api.list_repo_tree(REPO, recursive=True) if isinstance(entry, RepoFile)]
    assert sorted(everything) == sorted([*published, ".gitattributes"])
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "absent"))


def test_long_listings_come_in_pages(api: HfApi) -> None:
    api.create_repo(REPO)
    files = {f"notes/{number:04d}.txt": b"%d" % number for number in range(1005)}
    api.create_commit(REPO, additions(files), commit_message="Many")
    listed = [entry.path for entry in api.list_repo_tree(REPO, recursive=True)]
    assert len(listed) == 1005 + 2 == len(set(listed))
    expanded = [entry for entry in api.list_repo_tree(REPO, recursive=True, expand=True)]
    assert [entry.path for entry in expanded] == listed


def test_long_histories_come_in_pages(api: HfApi) -> None:
    api.create_repo(REPO)
    for number in range(51):
        file = {"counter": b"%d" % number}
        api.create_commit(REPO, additions(file), commit_message=str(number))
    titles = [commit.title for commit in api.list_repo_commits(REPO)]
    assert titles == [*(str(number) for number in reversed(range(51))), "initial commit"]


def test_a_large_object_is_uploaded_in_parts(api: HfApi, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(shard(7, rows=1500))
    assert file.stat().st_size > 2.5 * (1 << 20)
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id=REPO)
    assert Path(api.hf_hub_download(REPO, file.name)).read_bytes() == file.read_bytes()


def test_parts_are_checked_as_the_whole_is(api: HfApi, http: httpx2.Client, hub: RehearsalHub) -> None:
    api.create_repo(REPO)
    content = shard(7, rows=1500)
    oid = hashlib.sha256(content).hexdigest()
    body = {"operation": "upload", "transfers": ["multipart"], "objects": [{"oid": oid, "size": len(content)}]}
    answer = http.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).json()
    upload = answer["objects"][0]["actions"]["upload"]
    chunk = int(upload["header"]["chunk_size"])
    pieces = [content[start : start + chunk] for start in range(0, len(content), chunk)]
    assert httpx2.put(upload["header"]["1"], content=pieces[0][:-1]).status_code == 400
    assert httpx2.put(upload["header"]["1"], content=pieces[0] + b"x").status_code == 400
    etags = [httpx2.put(upload["header"][str(n)], content=piece).headers["etag"] for n, piece in enumerate(pieces, 1)]
    parts = [{"partNumber": n, "etag": etag} for n, etag in enumerate(etags, 1)]
    for wrong in (
        parts[:-1],
        [*parts[:-1], {**parts[-1], "etag": etags[0]}],
        [{**parts[0], "etag": "../x"}, *parts[1:]],
    ):
        assert http.post(upload["href"], json={"oid": oid, "parts": wrong}).status_code == 400
    other = httpx2.put(upload["header"]["1"], content=bytes(chunk)).headers["etag"]
    damaged = [{"partNumber": 1, "etag": other}, *parts[1:]]
    answer = http.post(upload["href"], json={"oid": oid, "parts": damaged})
    assert answer.status_code == 400 and "the bytes hash to" in answer.json()["error"]
    assert not list(hub.data.glob("blobs/sha256/*/*"))


def test_the_second_upload_of_an_object_sends_nothing(
    api: HfApi, http: httpx2.Client, published: dict[str, bytes]
) -> None:
    content = published["model-00001-of-00002.safetensors"]
    objects = [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}]
    body = {"operation": "upload", "transfers": ["basic"], "objects": objects}
    answer = http.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).json()
    assert "actions" not in answer["objects"][0]
    api.create_repo("someone/other")
    answer = http.post("/someone/other.git/info/lfs/objects/batch", json=body).json()
    assert "actions" in answer["objects"][0], "an object of another repo is not this repo's"


def test_publishing_the_same_files_again_makes_no_commit(api: HfApi, published: dict[str, bytes]) -> None:
    before = api.list_repo_commits(REPO)
    info = api.create_commit(REPO, additions(published), commit_message="Again")
    assert info.oid == before[0].commit_id
    assert len(api.list_repo_commits(REPO)) == len(before)


def test_commit_against_a_stale_parent_is_refused(api: HfApi, published: dict[str, bytes]) -> None:
    head, initial = (commit.commit_id for commit in api.list_repo_commits(REPO))
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as refused:
        api.create_commit(REPO, additions({"a.txt": b"a"}), commit_message="Late", parent_commit=initial)
    assert refused.value.response.status_code == 412
    assert api.list_repo_commits(REPO)[0].commit_id == head
    api.create_commit(REPO, additions({"a.txt": b"a"}), commit_message="In time", parent_commit=head)
    assert api.list_repo_commits(REPO)[0].title == "In time"


def test_commit_of_an_object_that_was_never_uploaded_is_refused(api: HfApi, http: httpx2.Client) -> None:
    api.create_repo(REPO)
    lines = [
        {"key": "header", "value": {"summary": "Broken", "description": ""}},
        {"key": "lfsFile", "value": {"path": "m.safetensors", "algo": "sha256", "oid": "ab" * 32, "size": 5}},
    ]
    answer = http.post(f"/api/models/{REPO}/commit/main", content="\n".join(map(json.dumps, lines)))
    assert answer.status_code == 400
    assert "never uploaded" in answer.json()["error"]
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["initial commit"]


def test_wrong_bytes_are_refused_and_not_kept(api: HfApi, http: httpx2.Client, hub: RehearsalHub) -> None:
    api.create_repo(REPO)
    promised = hashlib.sha256(b"promised").hexdigest()
    body = {"operation": "upload", "objects": [{"oid": promised, "size": 8}]}
    action = http.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).json()["objects"][0]["actions"]
    for wrong in (b"promisee", b"promise", b"promised!", b""):
        answer = httpx2.put(action["upload"]["href"], content=wrong)
        assert answer.status_code == 400, wrong
    assert http.post(action["verify"]["href"], json={"oid": promised, "size": 8}).status_code == 404
    assert not list(hub.data.glob("blobs/sha256/*/*")) and not list(hub.data.glob("blobs/incoming/*"))
    assert httpx2.put(action["upload"]["href"], content=b"promised").status_code == 200
    assert http.post(action["verify"]["href"], json={"oid": promised, "size": 8}).status_code == 200


def test_upload_address_is_good_for_its_object_only(api: HfApi, http: httpx2.Client) -> None:
    api.create_repo(REPO)
    body = {"operation": "upload", "objects": [{"oid": hashlib.sha256(b"a").hexdigest(), "size": 1}]}
    href = http.post(f"/{REPO}.git/info/lfs/objects/batch", json=body).json()["objects"][0]["actions"]["upload"]["href"]
    assert httpx2.put(href.replace("size=1", "size=100000"), content=b"a").status_code == 403
    assert httpx2.put(href.replace(REPO, "someone/else"), content=b"a").status_code == 403
    assert httpx2.put(href, content=b"a").status_code == 200


def test_deletions_come_before_additions(api: HfApi, published: dict[str, bytes]) -> None:
    operations: list[CommitOperation] = [
        CommitOperationDelete("sub/", is_folder=True),
        CommitOperationAdd("sub", b"now a file"),
    ]
    api.create_commit(REPO, operations, commit_message="Replace a folder by a file")
    assert Path(api.hf_hub_download(REPO, "sub")).read_bytes() == b"now a file"
    api.delete_file("sub", REPO)
    assert not api.file_exists(REPO, "sub")
    with pytest.raises(EntryNotFoundError):
        api.delete_file("sub", REPO)


def test_file_in_the_place_of_a_folder_is_refused(api: HfApi, published: dict[str, bytes]) -> None:
    with pytest.raises(BadRequestError, match="sub is a file"):
        api.create_commit(REPO, additions({"sub": b"file"}), commit_message="Clash")


def test_object_that_no_pattern_covers_is_named_in_gitattributes(api: HfApi) -> None:
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"\0binary" * 100, path_in_repo="table.dat", repo_id=REPO)
    attributes = Path(api.hf_hub_download(REPO, ".gitattributes")).read_text()
    assert attributes.endswith(
        "*tfevents* filter=lfs diff=lfs merge=lfs -text\ntable.dat filter=lfs diff=lfs merge=lfs -text\n"
    )
    for number in range(2):
        file = b"\0binary%d" % number
        api.upload_file(path_or_fileobj=file, path_in_repo="two words.dat", repo_id=REPO)
    attributes = Path(api.hf_hub_download(REPO, ".gitattributes")).read_text()
    assert attributes.count("two[[:space:]]words.dat filter=lfs") == 1
    (entry,) = api.get_paths_info(REPO, "table.dat")
    assert isinstance(entry, RepoFile) and entry.lfs is not None


def test_tags_and_branches_name_commits(api: HfApi, published: dict[str, bytes]) -> None:
    head, initial = (commit.commit_id for commit in api.list_repo_commits(REPO))
    api.create_tag(REPO, tag="releases/v1", tag_message="First")
    api.create_branch(REPO, branch="next", revision=initial[:9])
    refs = api.list_repo_refs(REPO)
    assert [(tag.name, tag.ref, tag.target_commit) for tag in refs.tags] == [
        ("releases/v1", "refs/tags/releases/v1", head)
    ]
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": head, "next": initial}
    api.upload_file(path_or_fileobj=b"n", path_in_repo="n.txt", repo_id=REPO, revision="next")
    assert not api.file_exists(REPO, "n.txt")
    assert api.file_exists(REPO, "n.txt", revision="refs/heads/next")
    assert Path(api.hf_hub_download(REPO, "README.md", revision="releases/v1")).read_bytes() == README
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_tag(REPO, tag="releases/v1")
    assert refused.value.response.status_code == 409
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_branch(REPO, branch="next")
    assert refused.value.response.status_code == 409
    api.create_tag(REPO, tag="releases/v1", exist_ok=True)
    api.delete_tag(REPO, tag="releases/v1")
    api.delete_branch(REPO, branch="next")
    assert api.list_repo_refs(REPO).tags == []
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="next")
    with pytest.raises(HfHubHTTPError):
        api.delete_branch(REPO, branch="main")


def test_ids_are_those_that_git_computes(api: HfApi, published: dict[str, bytes], tmp_path: Path) -> None:
    def git(*words: str, stdin: bytes | None = None) -> bytes:
        return subprocess.run(["git", *words], cwd=clone, input=stdin, capture_output=True, check=True).stdout

    clone = tmp_path / "clone"
    clone.mkdir()
    git("init", "--quiet")
    for entry in api.list_repo_tree(REPO, recursive=True):
        if isinstance(entry, RepoFile):
            content = Path(api.hf_hub_download(REPO, entry.path)).read_bytes()
            if entry.lfs is not None:
                pointer = (
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.lfs.sha256}\nsize {entry.size}\n"
                )
                content = pointer.encode()
                assert entry.lfs.pointer_size == len(content)
            oid = git("hash-object", "-w", "--stdin", stdin=content).decode().strip()
            assert oid == entry.blob_id, entry.path
            git("update-index", "--add", "--cacheinfo", f"100644,{oid},{entry.path}")
    tree = git("write-tree").decode().strip()
    head, initial = api.list_repo_commits(REPO)
    when = f"{int(head.created_at.timestamp())} +0000"
    who = "rehearsal <rehearsal@users.noreply.rehearsal>"
    text = f"tree {tree}\nparent {initial.commit_id}\nauthor {who} {when}\ncommitter {who} {when}\n\n"
    text += "Publish\n\nIn one commit.\n"
    assert (
        git("hash-object", "-t", "commit", "--literally", "--stdin", stdin=text.encode()).decode().strip()
        == head.commit_id
    )
    folder = next(entry for entry in api.list_repo_tree(REPO) if entry.path == "sub")
    assert not isinstance(folder, RepoFile)
    assert folder.tree_id == git("rev-parse", f"{tree}:sub").decode().strip()


def test_files_are_served_with_the_hubs_headers_and_in_ranges(http: httpx2.Client, published: dict[str, bytes]) -> None:
    name = "model-00001-of-00002.safetensors"
    content = published[name]
    address = f"/{REPO}/resolve/main/{name}"
    sha256 = hashlib.sha256(content).hexdigest()
    head = http.head(address)
    assert head.headers["x-linked-etag"] == head.headers["etag"] == f'"{sha256}"'
    assert head.headers["x-linked-size"] == head.headers["content-length"] == str(len(content))
    assert len(head.headers["x-repo-commit"]) == 40
    middle = http.get(address, headers={"range": "bytes=100-199"})
    assert middle.status_code == 206 and middle.content == content[100:200]
    assert middle.headers["content-range"] == f"bytes 100-199/{len(content)}"
    assert http.get(address, headers={"range": "bytes=-10"}).content == content[-10:]
    beyond = http.get(address, headers={"range": f"bytes={len(content)}-"})
    assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{len(content)}"
    absent = http.get(f"/{REPO}/resolve/main/absent")
    assert absent.status_code == 404 and absent.headers["x-error-code"] == "EntryNotFound"
    assert absent.headers["x-repo-commit"] == head.headers["x-repo-commit"]
    assert http.get(f"/{REPO}/resolve/absent/{name}").headers["x-error-code"] == "RevisionNotFound"


def test_repo_is_created_once_and_deleted(api: HfApi) -> None:
    address = api.create_repo(REPO)
    assert address.repo_id == REPO and str(address) == f"{api.endpoint}/{REPO}"
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(REPO)
    assert refused.value.response.status_code == 409
    assert str(api.create_repo(REPO, exist_ok=True)) == f"{api.endpoint}/{REPO}"
    api.delete_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(REPO)
    api.delete_repo(REPO, missing_ok=True)


def test_upload_folder_of_the_stock_client_works(api: HfApi, tmp_path: Path) -> None:
    for path, content in model_files().items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(content)
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=tmp_path / "folder")
    assert api.verify_repo_checksums(REPO, local_dir=tmp_path / "folder").mismatches == []


def test_bad_metadata_is_refused_before_and_in_a_commit(api: HfApi, http: httpx2.Client) -> None:
    api.create_repo(REPO)
    with pytest.raises(ValueError, match="not valid YAML"):
        api.create_commit(REPO, additions({"README.md": b"---\na: [\n---\n"}), commit_message="Bad card")
    lines = [
        {"key": "header", "value": {"summary": "Bad card"}},
        {"key": "file", "value": {"path": "README.md", "content": "---\na: [\n---\n", "encoding": "utf-8"}},
    ]
    answer = http.post(f"/api/models/{REPO}/commit/main", content="\n".join(map(json.dumps, lines)))
    assert answer.status_code == 400 and "README.md" in answer.json()["error"]
