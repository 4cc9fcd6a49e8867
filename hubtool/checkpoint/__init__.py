"""What a checkpoint's files say, and how they are read: a folder, or a repo at one commit.

name            -> open.open_source           -> Source: config, headers, byte ranges
header bytes    -> tensors.parse_header       -> names, dtypes, shapes, offsets
repo@commit     -> remote, prefetch           -> the same by ranged reads; shards fetched ahead within a limit
folder, repo    -> identity                   -> which repo and commit it is, and how that is known
source's card   -> metadata.source_metadata   -> license and language
finished folder -> measure, inspect           -> what it really holds, and every disagreement in it
"""
