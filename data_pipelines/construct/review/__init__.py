"""What people say of records and of judged answers: items (what they are shown, in an order that
tells nothing) -> decisions (what they saved, checked) -> applying (what is left, and how far they
agree). label_studio.py has the same for who reviews there. The page itself is
srpo_jax/runs/review_page.py.
"""
