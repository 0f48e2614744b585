"""`make bench`: Jishi and other ways to hold a live room, side by side in one run, as ratios.

One core is the server's, another the crowd's (and the engines' and the worker's of Jishi). CPU is what the kernel accounts to the server
process while the measured traffic flows. Figures swing on small machines by a factor of two from minute to minute; so the servers are
measured in turns, in several rounds, and what is compared is the median of the rounds' ratios.

machine.py: cores, CPU time, memory, compiler. crowds.py: the crowd as a program apart. servers.py, product_server.py: who is measured;
rivals/ their programs. fanout.py, memory.py, joins.py, storm.py, flood.py, holds.py: one measurement each. report.py: table, JSON, docs.

Everything is bounded, stays on the loopback, and ends with this process: children are ended by their own process id.
"""
