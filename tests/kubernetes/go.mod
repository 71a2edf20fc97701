module culvert.dev/tests/kubernetes

go 1.26.0
