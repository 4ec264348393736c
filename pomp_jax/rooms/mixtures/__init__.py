"""Class vectors beside a prompt's: mixtures, sentences about each class, random words.

`evaluate.named_prompts` recognises them by the form of a prompt's name. Start with
`prompts`; `weights` chooses the weights of a mixture on validation images.
"""
