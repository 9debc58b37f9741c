"""The command ``triton-zerocopy bench``: measures this library on a user's own server and model.

Nothing of the library imports it. From the top: `command` runs a whole benchmark, `arguments`
and `plan` say what is measured, `target` where, `workload` with which tensors, `callers` in
which way; `runner` takes the time, and `environment`, `table`, `results` and `plot` tell it.
"""
