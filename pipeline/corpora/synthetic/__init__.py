"""The synthetic corpus: sentences spoken by espeak-ng, and a drawn mouth that moves with them."""
