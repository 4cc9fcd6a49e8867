"""Every byte of the output before one weight is read. Pure: no weights, no MLX arrays.

TOML                  -> recipe.load_recipe -> Recipe: ordered rules, the first that matches wins
Model, Recipe         -> plan.make_plan     -> Plan: tensors, shards, offsets, pieces, peak memory
formats of a plan     -> mlx                -> packed shapes, config.json's quantization, the index
"""
