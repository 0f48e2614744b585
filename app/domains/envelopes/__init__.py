"""Red envelopes: money from the room's account, split and committed before anyone can grab, settled share by share."""
