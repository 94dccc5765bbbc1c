"""How the built-in rewards read answers: where one stands, what numbers it holds, when two are the same.

It lies beside the reward functions, which share it, and needs nothing but the standard library and mpmath.
Text of a model is parsed and never evaluated as code; length, depth and size of numbers are bounded.
"""
