"""Function calling: tools told to a model, its answer kept to calls of them, calls read from it.

`asked` checks what a request wants, `formats` says how models write calls, `messages` tells tools
to a template, `grammar` constrains an answer, `reader` reads one, and `dialect` is one model's part
in all that. No torch.
"""
