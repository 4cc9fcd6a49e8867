"""The rehearsal Hub: the Hugging Face Hub's HTTP protocol on loopback, for the stock huggingface_hub client.

    with RehearsalHub(Path("rehearsal")) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("someone/model")

or, in a process of its own, `serve(data, port)` with HF_ENDPOINT and HF_TOKEN set for the client. It binds to
127.0.0.1 only, wants a token for every write, hashes what it receives, and refuses wrong bytes, objects that were never
uploaded and a stale `parentCommit`. All state is in one folder and survives a restart:

    accounts.json, token, secret     who may do what; `token` is the owner's, good in every namespace
    repos/NAMESPACE/NAME/            settings, refs, commits and discussions as JSON
    blobs/                           contents under their hashes
    xet/NAMESPACE/NAME/              what hf_xet stored, before it was checked and taken over into blobs/

Contents come by LFS (HF_HUB_DISABLE_XET=1 for the client) or by xet, the client's default. Object ids (blobs, LFS
pointers, trees, commits) are the ones git would compute. Like the Hub, a new repo starts with a commit of
`.gitattributes`, and a commit of an LFS file that no pattern covers adds a line to it. Downloads are plain HTTP.

`hub.accounts`, or POST /rehearsal/accounts, makes users, organizations with members, read and write tokens, and quotas
of private bytes. `hub.faults`, or POST /rehearsal/faults, makes a chosen call fail (faults.py has the stages and
effects). With `discard=True` only hashes, sizes and the start of each safetensors file are kept. A browser at
`hub.endpoint` shows the repos as pages; for private ones it asks for a password, which is the token.
"""

from hubtool.rehearsal.server import RehearsalHub, serve

__all__ = ["RehearsalHub", "serve"]
