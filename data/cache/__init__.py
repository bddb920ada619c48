"""A teacher's signals, stored once and read by every student.

`manifest` says what a cache is, `blocks` how it is cut, `codecs` how values become arrays, `layouts` how arrays become
objects, `storage` where objects are kept. `writer`, `index`, `find` and `reader` are built on these.
"""
