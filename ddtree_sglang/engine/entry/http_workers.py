"""The HTTP application of a server with several processes that tokenize: SGLang's, with its plugins loaded.

With `--tokenizer-worker-num` above 1 these processes are started by the web server, which imports the application by
its path, and SGLang loads no plugins there. This is that path, so that a request is refused where it is tokenized.
"""

from __future__ import annotations

from importlib import import_module

from sglang.srt.plugins import load_plugins

load_plugins()
app = import_module("sglang.srt.entrypoints.http_server").app
