"""Attention sinks and massive activations on any Hugging Face decoder, given the roles.

In names `intermediate` means the intermediate sinks; in `max_ratio/intermediate`, `importance_intermediate`,
`ratio_intermediate` and the most massive tokens, all tokens other than BOS, sinks or not.
"""
