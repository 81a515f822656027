"""Every request that plain SGLang answers, answered the same on a tree: many request shapes, two servers, two bodies.

`fields.py` names what every field of a request may be, `covering.py` combines the values pairwise, `shapes.py` writes
the requests, `sending.py` sends them, `comparing.py` compares the bodies, `exceptions.py` names what may differ.
"""
