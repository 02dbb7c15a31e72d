"""Asking chat models: what a request and a reply are, who answers, and what is kept of it.

messages.py has the request, the reply and the protocol of a back end, wire.py their form outside,
openai_api.py the back end for OpenAI-compatible servers, batch_files.py and batch_answers.py those
for batches, retries.py what is tried again and when, reply_cache.py the replies on disk, and
cost.py what asking costs. Nothing in here knows what a verdict is.
"""
