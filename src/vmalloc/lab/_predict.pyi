# SPDX-License-Identifier: MIT
from vmalloc.lab.ledger import LedgerSpace
from vmalloc.lab.predict import Predictor

class Ledger(LedgerSpace): ...

def run(predictor: Predictor, index: int, end: int) -> int: ...
