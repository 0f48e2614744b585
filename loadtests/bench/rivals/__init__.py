"""The servers that Jishi is measured against. Each does one thing: what one viewer sends is sent to all. `python -m ... PORT`."""
