"""The engine room: requests in, samples out, for every stage that lets a policy speak."""
