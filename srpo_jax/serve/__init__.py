"""A policy behind the OpenAI chat API, for the tools that ask models over HTTP."""
