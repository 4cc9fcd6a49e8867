"""What a guarded child process does: it loads and runs models, and says how it goes.

    Task (JSON)     -> worker    -> events on stdout, one a line
    folder          -> layerwise -> a model that generates, its weights read layer by layer, each let go when it is done
    source, folder  -> open      -> Forward: a model's own code, cut at its layers (`cut`), run one layer at a time
    several of them -> layers    -> all windows of tokens through each layer, every weight read once, ended or not
    source, texts   -> calibrate -> statistics: inputs of each matrix (`capture`), costs of formats (`sensitivity`)

`tensors` reads weights from wherever they are, `build` makes a model without them, `dense` multiplies with what was
decoded, `routed` takes tokens to experts, `keep` holds what outlives a batch. `events` is what the child and its
guardian say to each other.
"""
