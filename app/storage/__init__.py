"""How to talk to the engines; knows no domain. Redis protocol (roles `sales` and `fan-out`) and PostgreSQL, nothing else."""
