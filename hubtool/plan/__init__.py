"""Every byte of the output before one weight is read. Pure: no weights, no MLX arrays.

TOML                  -> recipe.load_recipe -> Recipe: ordered rules, the first that matches wins
Model, Recipe         -> plan.make_plan     -> Plan: tensors, shards, offsets, pieces, peak memory
statistics, a budget  -> budget, fit        -> a recipe of the least measured cost that is within it, as TOML
statistics, a step    -> fitting            -> whether its scales are fitted, and to what
formats of a plan     -> mlx                -> packed shapes, config.json's quantization, the index
"""
