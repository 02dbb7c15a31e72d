"""What several families are built from: decoder, vision towers, remat, tensor specs."""
