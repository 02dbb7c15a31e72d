"""Devices and processes: mesh, shardings, agreement between processes, watchdog, compile cache."""
