"""Data of other tools on its way in and out: what all formats share. The formats themselves are in
the folder beside this one.
"""
