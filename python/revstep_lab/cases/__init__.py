"""The cases of ``revstep bench``, one a file: what it measures, its options and its tables. Found, not
listed.
"""
