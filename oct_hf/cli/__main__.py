"""`python -m oct_hf.cli VERB`, as the command `oct-hf VERB`."""

from oct_hf.cli import main

main()
