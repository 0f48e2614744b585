"""`make torture`: a million random operations on a whole product while its processes are killed, and then the books.

product.py: the product under torture, its processes, their killing. line.py: one viewer's way in, which asks until there is an answer.
book.py: every acknowledged answer, and whether a later one contradicts it. crowd.py: what viewers do. host.py: what hosts do.
verdict.py: waits until all has converged, then compares the answers with both engines. report.py: what is printed.

The tester knows the product by its interface alone. It keeps what it was told in its own memory, and believes nothing else.
"""
