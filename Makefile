run:
	python3 packaging/run.py

test:
	python3 packaging/run.py test

.PHONY: run test
