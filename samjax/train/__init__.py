"""SAM's own training, as pure functions.

`recipe` says how to train, `step` makes the training step of it; beneath them lie `simulate` (the annotator), `losses`,
`rounds` (an annotator's eleven rounds with a model), `optim` and `lora`.
"""
