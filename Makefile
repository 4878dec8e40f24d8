# Thin names for the commands of the README; everything is done by packaging/run.py.
PYTHON ?= python3

.PHONY: run test strict

run:            ## receive on 127.0.0.1:11112 into ./sorter-data
	$(PYTHON) packaging/run.py

test:           ## ruff, mypy and the tests of the first tier
	$(PYTHON) packaging/run.py test

strict:         ## the same; a test skipped for want of DCMTK or of the sample images fails
	SORTER_STRICT=1 $(PYTHON) packaging/run.py test
