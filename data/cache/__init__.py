"""A teacher's signals, i.e. its outputs such as logits, stored once and read by every student.

`manifest` says what a cache is, `blocks` how it is cut, `codecs` how values become arrays, `layouts` how arrays become
objects (files, or their counterparts in a bucket), and `storage` where objects are kept. `writer`, `index`, `find` and
`reader` are built on these.
"""
