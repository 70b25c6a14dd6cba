"""The reward service: any scorer over HTTP, for runs on other machines and for several runs at once.

`python -m unirl_env.service --config my_service.yaml`; its clients are `unirl_env.rewards.RemoteScorer`,
curl, and whatever speaks JSON.
"""
