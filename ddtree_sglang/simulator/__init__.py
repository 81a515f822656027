"""What a server would do, computed from recorded trees and from what rounds cost: its tokens per second.

Must not import `sglang`, `ray`, `workers`, `ddtree_sglang.engine.worker`, `ddtree_sglang.engine.graphs`.
"""
