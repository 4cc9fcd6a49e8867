"""Carries out plans: the only place that decodes and quantizes.

    Source, Job       -> convert.convert_sources -> finished folders, made or found
    folders           -> opened.open_folders     -> checked, locked, and what is left to do in each decided
    plan, folder      -> origin                  -> whether the folder was begun with the same, and is not another's
    task              -> engine.make             -> one piece, on a thread, in a process, or on another machine
    pieces            -> folder                  -> written at their offsets, journaled, hashed and synced
    pieces            -> stream                  -> the bytes of shards in file order
    one piece         -> piece, decode, quantize -> arrays of the output
    values, hints     -> nearest, weighted       -> codes, scales and biases: MLX's, or fitted to what the inputs are
    arrays            -> shard, journal          -> bytes in place, hashed, synced; what is done survives a kill
    plan, measurement -> record                  -> the record
    plan, source      -> config                  -> config.json, index, tokenizer, license: all small files

`device` is the one seam to MLX's backends, `job` says what is to be done and how hard.
"""
