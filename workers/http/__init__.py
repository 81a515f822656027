"""The OpenAI side: SGLang's own handlers over answers, errors, metrics, readiness, the API key.

Must not import `workers.replicas`, `workers.jobs`, `workers.app`.
"""
