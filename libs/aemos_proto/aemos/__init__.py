"""Generated code of the contract: change proto/ and run `make proto`."""
