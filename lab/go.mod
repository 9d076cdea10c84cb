module ambitmesh.dev/ambit/lab

go 1.26
