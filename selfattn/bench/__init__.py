"""Benchmarks: this machine's own figures, beside those of every library that is installed here.

    run.py         `selfattn bench`: rows one by one, a page or JSON of them
    show.py        the page: bars, ratios; and how far the run is
    picture.py     the same as a picture
    measure.py     a row, raced: figures as plain values
    harness.py     turns, bursts, medians; which rounds count
    machine.py     the limits that calls are held against, by loops of csrc/
    contest.py     what a contestant is; peers.py, torch_peer.py, …: the contestants
    truth.py       whether a contestant's result is right
    rows.py        what a row is; shapes.py: the tables of rows

The repository's bench/ has more commands, on the same harness. Nothing here is imported by the
package itself.
"""
