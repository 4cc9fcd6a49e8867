"""The rehearsal Hub: the Hugging Face Hub's HTTP protocol on loopback, for the stock huggingface_hub client.

    with RehearsalHub(Path("rehearsal")) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("someone/model")

or, in a process of its own, `serve(data, port)` with HF_ENDPOINT and HF_TOKEN set for the client. It binds to
127.0.0.1 only, wants a token for every write, hashes what it receives, and refuses wrong bytes, objects that were never
uploaded and a stale `parentCommit`. All state is in one folder and survives a restart:

    accounts.json, token, secret     who may do what; `token` is the owner's, good in every namespace
    repos/NAMESPACE/NAME/            settings, refs and commits as JSON
    blobs/                           contents under their hashes

Object ids (blobs, LFS pointers, trees, commits) are the ones git would compute. Like the Hub, a new repo starts with a
commit of `.gitattributes`, and a commit of an LFS file that no pattern covers adds a line to it.

With huggingface_hub's xet switched off (HF_HUB_DISABLE_XET=1 before it is imported) contents come by LFS.
"""

from hubtool.rehearsal.server import RehearsalHub, serve

__all__ = ["RehearsalHub", "serve"]
