"""What a guarded child process does: it loads and runs models, and says how it goes.

    Task (JSON)     -> worker    -> events on stdout, one a line
    folder          -> layerwise -> a model whose weights are read layer by layer, each let go when it is done

`events` is what the child and its guardian say to each other.
"""
