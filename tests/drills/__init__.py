"""Drills: kills, damage, two commands at once, random load, hostile answers and files, by seed.

    make drills                 # seed 0
    make drills SEED=1
    python -m tests.drills --seed 0 --out workdirs/drills/seed_0 [--short] [--kinds kills,damages]
    python -m tests.drills --table workdirs/drills/seed_*       # the table of several seeds

Each kind is a module here: `drills(seed, short)` says what there is to do, `run(drill, place)` does
one drill and yields its cases. `runner` starts each drill as a process of its own, two at a time,
keeps finished ones in OUT/drills.jsonl, so that a drill run that was killed continues there, and
leaves no process behind. Lists of cases lie in tests/support and grow by one line a case.
"""
