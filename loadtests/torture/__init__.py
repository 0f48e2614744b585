"""`make torture`: a million random operations on a whole product while its processes are killed, and then the books.

product.py: the product under torture, its processes, their killing. line.py: one viewer's way in, which asks until there is an answer.
book.py: every acknowledged answer about goods and money, and whether a later one contradicts it; plays.py: the same of draws and envelopes.
crowd.py: what viewers do. host.py, showman.py: what hosts do. journal.py: all of it on disk, for the history of what broke.
verdict.py: waits until all has converged, then compares the answers with both engines; side_books.py: what lies beside the sale;
fairness.py: draws and envelopes computed again. report.py: what is said meanwhile and at the end.

The tester knows the product by its interface alone. It keeps what it was told in its own memory, and believes nothing else.
"""
