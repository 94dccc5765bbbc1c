"""What samplers and engines are compared with: the plain sampler, the published loop, conformance."""
