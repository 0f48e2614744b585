"""Load tests with Locust. `make load` runs a small evening against an embedded product and audits the books afterwards.

client.py: one viewer's connection. users.py: what viewers, buyers, grabbers and the host do. shapes.py: how many, when.
thresholds.py: what fails a run. run.py: starts a product of its own, runs Locust, waits for quiet, asks the auditor.
bench.py: `make bench`, side by side with the plain way in one run.

Traffic goes to loopback addresses only.
"""
