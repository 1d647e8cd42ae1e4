"""What is raced, as data: rows, options, rules, and who takes part where not all do."""
