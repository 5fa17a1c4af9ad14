"""The bus beside its peers: throughput, latency, CPU time and memory. See README.md."""
