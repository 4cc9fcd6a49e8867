"""Files on this machine: whole or absent, held by one process, read strictly.

    bytes  -> whole.write_beside       -> a file whose name never stands for less than all of it
    folder -> lock.locked              -> held by this process; `.hubtool/` beneath it keeps its state
    file   -> read.file_sha256, pread  -> its hash, or a part of it
    bytes  -> formats, yaml, header    -> values within bounds, or one error that names the file

Nothing here knows what is written.
"""
