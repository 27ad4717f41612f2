"""Prompts made from masks, what is wrong with an answer to them, and how good an answer is.

Knows arrays alone, and the labels of points; training and experiments build on it.
"""
