"""Class vectors beside a prompt's: mixtures, sentences about each class, random
words."""
