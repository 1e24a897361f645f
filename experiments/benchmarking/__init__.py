"""What the benchmarks compare: cases, peers, and the processes that they run in."""
