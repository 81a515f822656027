"""Servers without their imports: one process imports the engine once and forks every server and its processes.

For tests only. Such a server runs the code that `python -m sglang.launch_server` runs, with its flags and environment;
only its modules are imported already. A test that is about the start itself uses the real command.
"""
