"""One page of HTML about a run; `page.py` writes it, `templates/` holds its markup."""
