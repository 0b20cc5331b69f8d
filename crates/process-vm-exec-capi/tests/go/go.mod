module process-vm-exec.test/spaces

go 1.21
