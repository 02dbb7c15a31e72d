"""Measurements that anyone can run again, of speed and of the method."""
