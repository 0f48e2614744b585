"""The demo show: a scripted rural livestream with a few hundred simulated viewers.

Nothing here is privileged. The host's team speaks REST, the viewers are the real centrifuge-python SDK over real websockets, each
with a token of its own, as a streaming app's backend would sign it. So the demo is also an example for client developers.

goods.py: what is sold. voices.py: what is said. viewers.py: the crowd. team.py: the host and her sister. show.py: the acts, in order.
"""
