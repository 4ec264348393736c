"""Class vectors beside a prompt's: mixtures, sentences about each class, random words.

`evaluate.named_prompts` opens them by what a prompt's name looks like. Start with
`prompts`; `weights` chooses the weights of a mixture on validation images.
"""
