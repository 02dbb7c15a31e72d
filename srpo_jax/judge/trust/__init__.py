"""How far to trust a judge: `srpo judge sample`, `srpo judge calibrate` and `srpo judge compare`."""
