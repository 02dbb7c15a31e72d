"""Exploration: branches sampled by the policy from every prefix of the reference path."""
