"""`python -m tests.drills`."""

from tests.drills.runner import main

if __name__ == "__main__":
    main()
