"""Annotation formats of other tools, read and written.

One module for each format (see ``base.Reader``); ``convert`` writes the COCO data set that
everything else reads. ``supervision`` and ``datumaro`` are not used: they hold a data set in
memory, bring heavy dependencies, and do not report what they leave out.
"""
