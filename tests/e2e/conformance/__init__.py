"""What a client may ask of SGLang, asked of a plain server and a DDTREE server.

The `*_fields.py` name what every field of a request may be, `covering.py` combines the values pairwise, `shapes.py`
writes the requests, `comparing.py` compares bodies, `exceptions.py` names what may differ.
"""
