"""What is recognised: class names, labelled images, and their way to the devices.

Trainings and evaluations open a `source.Source` by the name of `config.data`. Start
with `source`, the interface of all image sources; `class_lists` has the names.
"""
