"""What a run leaves in its workdir: identity, ledger, metrics, trackers, and the report."""
