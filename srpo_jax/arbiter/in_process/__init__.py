"""Judges that this process runs itself, on its own accelerators: no server is needed.

policy_chat.py answers chat requests with a checkpoint of any family that srpo_jax loads, by
generating or by choosing among the labels (closed_set.py); judges.py makes the arbiters `policy`
and `guard` of it.
"""
