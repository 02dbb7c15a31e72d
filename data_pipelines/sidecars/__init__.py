"""What is worked out from shards and parts once and kept beside them: named by all that decides it,
never changed, and made afresh where it is missing, damaged or of something else.
"""
