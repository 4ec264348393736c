"""Class names, labelled images, and the batches of them that trainings read.

Trainings and evaluations open the `source.Source` that `config.data` names. Start with
`source`, the interface of all image sources; `class_lists` has the class names.
"""
