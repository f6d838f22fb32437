module example.com/atm-client

go 1.19
