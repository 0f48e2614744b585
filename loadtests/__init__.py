"""Load tests and the benchmark. `make load` runs a small evening with Locust against an embedded product and audits the books afterwards.

client.py: one viewer's connection. users.py: what viewers, buyers, grabbers and the host do. shapes.py: how many, when.
thresholds.py: what fails a run. run.py: starts a product of its own, runs Locust, waits for quiet, asks the auditor.
bench/: `make bench`, Jishi beside other servers in one run. native/: its crowd and the bare loop of send(), in C.
torture/: `make torture`, random operations while every process is killed.
crowd.py: the crowd in Python. product.py: a product of our own, for all of them.

Traffic goes to loopback addresses only.
"""
