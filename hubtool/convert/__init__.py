"""Carries out plans: the only place that decodes and quantizes.

    Source, Job       -> convert.convert_sources -> finished folders, made or found
    plan, folder      -> folder                  -> whether the folder was begun with the same, and is not another's
    pieces            -> engine                  -> made by threads, written at their offsets, journaled
    one piece         -> piece, decode, quantize -> arrays of the output
    arrays            -> shard, journal          -> bytes in place, hashed, synced; what is done survives a kill
    plan, measurement -> record                  -> the record
    plan, source      -> config                  -> config.json, index, tokenizer, license: all small files

`device` is the one seam to MLX's backends, `job` says what is to be done and how hard.
"""
