"""`plam compare --noise`: how many documents flip when equal weights answer them again in another way.

What is changed (`variant`: batch size, dtype, engine, attention) makes a comparison of its own, of a sample of
documents, in a folder below the first one's (`run`). What flips, and which differences are smaller, is read from there
(`floor`).
"""
