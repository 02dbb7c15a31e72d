"""How far to trust a judge: `srpo judge sample`, `calibrate` and `compare`."""
