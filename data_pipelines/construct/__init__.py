"""Records made from pictures by stages of chat models, and looked through by people.

stages (what is asked, as data in stage_lists/) and answers (how it is read) -> runner (row after
row, stage after stage; who answers is handed in) -> making (records); review/ is the people's part.
"""
