"""What a run looks at during training besides its loss; handed in to the loop by `srpo train`."""
