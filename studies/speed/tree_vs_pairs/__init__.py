"""What does computing a question as one tree save against rows of pairs, through our own objective?
Same loss, same gradients; seconds, tokens and memory, for one shape or swept over shapes.
"""
